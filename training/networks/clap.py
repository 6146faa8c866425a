"""CLAP's branches (Wu et al. 2023): HTSAT for sounds, RoBERTa for texts, each with its projection.

    build_clap_audio(HtsatConfig(), num_mels=64, embedding_dim=512, norm=MelNorm(-6, 4))   # [b, 1, t, mels]
    build_clap_text(TextTowerConfig(kind="clap"), vocab_size=50265, pad=1, embedding_dim=512)   # [b, n]

transformers' own classes, so that published weights load by name and ours load there. Nothing in them is
random, and nothing depends on the batch: dropout is 0, and the one BatchNorm, at the entrance, keeps its
statistics. So the loss is the same at any number of workers, and a resumed run repeats it. No loss and no
data here (training.recipes.contrastive).
"""

import math
import os
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    ClapAudioConfig,
    ClapAudioModelWithProjection,
    ClapTextConfig,
    ClapTextModelWithProjection,
)

ENTRANCE = "audio_model.audio_encoder.batch_norm"  # the BatchNorm of a `ClapAudioModelWithProjection`


@dataclass
class HtsatConfig:
    """HTSAT (Chen et al. 2022): a Swin transformer over a log mel that is folded into a square.

    By default CLAP's of 28.6 M: a square of `spec_size` holds (spec_size / mels) * spec_size frames, `depths`
    levels of `width`, 2 `width`, …, each at half the resolution of the one before, with attention within
    `window` x `window` patches of `patch` x `patch`.
    """

    width: int = 96  # of the first level; each has twice that of the one before
    depths: list[int] = field(default_factory=lambda: [2, 2, 6, 2])  # blocks per level
    heads: list[int] = field(default_factory=lambda: [4, 8, 16, 32])  # attention heads per level
    spec_size: int = 256  # side of the square that the spectrogram is folded into
    patch: int = 4  # side of a patch
    window: int = 8  # side of an attention window, in patches

    def max_frames(self, num_mels: int) -> int:
        """The longest spectrogram that fits; shorter ones are stretched to it."""
        return self.spec_size * (self.spec_size // num_mels)


@dataclass
class TextTowerConfig:
    """`kind` "": no texts; clap: a RoBERTa of `width`, `layers` and `heads`, by default its base size.

    `column`: where a sample's JSON has its text, in itself or in its `meta`, such as title, caption or
    description. `tokenizer`: a folder or hub:owner/name with a tokenizer.json; none reads bytes. A text is
    cut to `max_tokens`; `positions`: how many the weights have places for.
    """

    kind: str = ""  # "": no texts; clap: RoBERTa
    column: str = "title"
    # a folder or hub:owner/name with a tokenizer.json; none reads bytes; a run pins its sha256
    tokenizer: str = field(default="", metadata={"operational": True})
    width: int = 768  # of RoBERTa
    layers: int = 12  # of RoBERTa
    heads: int = 12  # of RoBERTa
    max_tokens: int = 77  # longer texts are cut
    positions: int = 512  # tokens that the weights have places for

    def __post_init__(self) -> None:
        if self.tokenizer and ":" not in self.tokenizer:
            # workers may run in another folder
            self.tokenizer = os.path.abspath(self.tokenizer)


class MelNorm(NamedTuple):
    """Centre and spread of the log mels of recordings, by which a new tower starts with values around 0."""

    centre: float
    spread: float


class FrozenBatchNorm(nn.BatchNorm2d):
    """BatchNorm2d by statistics that are given and stay, in training too: an affine map per mel band.

    Statistics of a batch would be those of a rank's part of it.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, norm: MelNorm):
        super().__init__(num_features)
        self.running_mean.fill_(norm.centre)
        self.running_var.fill_(norm.spread**2)
        # a new module is in training
        self.train()

    def forward(self, input: Tensor) -> Tensor:
        # float32: DeepSpeed leaves the statistics so where the weights are bfloat16
        normed = nn.functional.batch_norm(
            input.float(),
            self.running_mean.float(),
            self.running_var.float(),
            self.weight.float(),
            self.bias.float(),
            eps=self.eps,
        )
        return normed.to(input.dtype)

    def train(self, mode: bool = True) -> "FrozenBatchNorm":
        super().train(False)
        return self


def build_clap_audio(config: HtsatConfig, num_mels: int, embedding_dim: int, norm: MelNorm) -> nn.Module:
    """`ClapAudioModelWithProjection` of random weights: [b, 1, frames, mels] -> `audio_embeds` [b, d].

    A new one has the statistics of `norm`, whatever the data: they are no weights, and no checkpoint has
    them. Those of published weights are folded into the norm's own weight and bias (`with_statistics`).
    """
    settings = ClapAudioConfig(
        num_mel_bins=num_mels,
        spec_size=config.spec_size,
        window_size=config.window,
        patch_size=config.patch,
        patch_stride=[config.patch, config.patch],
        patch_embeds_hidden_size=config.width,
        depths=list(config.depths),
        num_attention_heads=list(config.heads),
        num_hidden_layers=len(config.depths),
        hidden_size=config.width * 2 ** (len(config.depths) - 1),
        projection_dim=embedding_dim,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        drop_path_rate=0.0,
    )
    tower: nn.Module = ClapAudioModelWithProjection(settings)
    parent, _, name = ENTRANCE.rpartition(".")
    setattr(tower.get_submodule(parent), name, FrozenBatchNorm(num_mels, norm))
    check_steady(tower)
    return tower


def build_clap_text(config: TextTowerConfig, vocab_size: int, pad: int, embedding_dim: int) -> nn.Module:
    """`ClapTextModelWithProjection` of random weights: token ids [b, n] -> `text_embeds` [b, d]."""
    settings = ClapTextConfig(
        vocab_size=vocab_size,
        hidden_size=config.width,
        intermediate_size=4 * config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        # RoBERTa's first place is the one after the padding's
        max_position_embeddings=config.positions + pad + 1,
        pad_token_id=pad,
        projection_dim=embedding_dim,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    tower: nn.Module = ClapTextModelWithProjection(settings)
    check_steady(tower)
    return tower


def check_steady(model: nn.Module) -> None:
    """`AssertionError` where a module draws at random in training, or depends on the others of its batch."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            frozen = isinstance(module, FrozenBatchNorm) and not module.training
            assert frozen, f"{name}: takes the statistics of its batch"
        chances = [getattr(module, chance, 0.0) for chance in ("p", "drop_prob", "attention_dropout")]
        assert not any(chances), f"{name}: drops at random"


def with_statistics(state: dict[str, Tensor], norm: MelNorm) -> dict[str, Tensor]:
    """The state of a published `ClapAudioModelWithProjection`, its statistics exchanged for those of `norm`.

    (x - m) / sqrt(v + eps) * w + b is the same map with the other statistics once `w` and `b` are changed.
    """
    entrance = FrozenBatchNorm(len(state[f"{ENTRANCE}.weight"]), norm)
    mean, variance = (state[f"{ENTRANCE}.running_{name}"] for name in ("mean", "var"))
    if torch.equal(mean, entrance.running_mean) and torch.equal(variance, entrance.running_var):
        # of ours: bit for bit
        return state
    deviation = (variance + entrance.eps).sqrt()
    own_deviation = math.sqrt(norm.spread**2 + entrance.eps)
    weight = state[f"{ENTRANCE}.weight"] / deviation
    own = entrance.state_dict()
    own["weight"] = weight * own_deviation
    own["bias"] = state[f"{ENTRANCE}.bias"] + weight * (norm.centre - mean)
    return state | {f"{ENTRANCE}.{name}": tensor for name, tensor in own.items()}


def embed_sounds(tower: nn.Module, log_mel: Tensor) -> Tensor:
    """[b, frames, mels] -> [b, d] of a `ClapAudioModelWithProjection`.

    A spectrogram that is too short is stretched here, as the tower would do behind its norm, which is one map
    of each mel: its gradient, which GPUs sum up in any order, is then not needed.
    """
    encoder: Any = tower.get_submodule("audio_model.audio_encoder")
    size = (encoder.spec_size * encoder.freq_ratio, log_mel.shape[2])
    pixels = log_mel[:, None]
    if log_mel.shape[1] < size[0]:
        stretched = nn.functional.interpolate(pixels.float(), size, mode="bicubic", align_corners=True)
        pixels = stretched.to(log_mel.dtype)
    embeds: Tensor = tower(input_features=pixels).audio_embeds
    return embeds


def embed_texts(tower: nn.Module, tokens: Tensor, pad: int) -> Tensor:
    """Token ids [b, n] -> [b, d] of a `ClapTextModelWithProjection`."""
    weights = next(tower.parameters()).dtype
    # added to the scores of attention; as numbers of tokens transformers would look at its values, which a
    # model without memory does not have
    mask = (tokens == pad)[:, None, None] * torch.finfo(weights).min
    embeds: Tensor = tower(input_ids=tokens, attention_mask=mask.to(weights)).text_embeds
    return embeds
