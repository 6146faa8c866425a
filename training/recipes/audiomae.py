"""A masked autoencoder of spectrograms (Huang et al. 2022): features of sounds, learnt from sounds alone.

    geometry = audiomae.geometry(snapshot, dataset_meta, config)
    model = audiomae.build_model(config, geometry)
    losses = model(audiomae.make_batch(samples, keys, config, geometry))["loss"]           # [b]

Four fifths of the 16 x 16 patches of a log mel are hidden; the encoder sees the others, and the decoder
predicts the hidden ones: mean squared error over them (He et al. 2022, section 3), of patches standardised
each by itself by option. Which ones are hidden comes from the samples' keys. What ships is the encoder, whose
pooled tokens precompute writes (training.networks.audiomae says what is not as in the paper).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ViTMAEConfig

from cluster.dataset import DatasetMeta, Snapshot
from configs.load import UserError, positive
from training.data.randomness import SampleKey, keyed_rng
from training.networks.audiomae import (
    SpectrogramMae,
    patches_of,
    pixels_of,
    restore,
    standardise,
)
from training.pipeline.mel import LEVELS, MEL_FILE, SPECTROGRAMS, MelConfig
from training.pretrained import find_model, load_audiomae
from training.recipes.clips import decode_log_mel, mel_geometry, weights
from training.recipes.recipe import (
    ONE_OPTIMISER,
    Batch,
    DrawnKind,
    Geometry,
    Optimiser,
    PipelineParts,
    Sample,
)

MEMBERS: tuple[str, ...] = ("flac",)
LEARNS_FROM: Literal["clips", "latents"] = "clips"
DRAWS: DrawnKind = "log_mels"
PARTS = PipelineParts()
PATCH = int(SPECTROGRAMS["audiomae"]["downsampling"])
FLAT_PATCH = 1e-6  # added to variances, as in He et al.'s code: a patch of silence has none


@dataclass
class Config:
    """ViT-B and a decoder of 8 x 512 by default, as MAE's; AudioMAE's decoder has 16 layers.

    `mask_ratio`: the share of hidden patches. `norm_pix_loss`: predicts patches standardised each by itself.
    `level`: recorded, or audioldm (each clip's mean removed, its peak at 0.5).
    """

    width: int = 768  # of the encoder
    layers: int = 12  # of the encoder
    heads: int = 12  # of the encoder
    decoder_width: int = 512  # of the decoder
    decoder_layers: int = 8  # of the decoder
    decoder_heads: int = 16  # of the decoder
    mask_ratio: float = 0.8
    norm_pix_loss: bool = True
    level: str = "recorded"


def geometry(snapshot: Snapshot, dataset_meta: DatasetMeta, config: Config) -> Geometry:
    """`{"mel"}`: 128 bands, frames a multiple of a patch. `UserError` for what does not fit."""
    check_config(config)
    geometry = mel_geometry(dataset_meta, config.level, "audiomae")
    _, rows, columns = MelConfig(**geometry["mel"]).latent_shape
    seen = int(rows * columns * (1 - config.mask_ratio))
    if not 0 < seen < rows * columns:
        raise UserError(
            f"audiomae.mask_ratio={config.mask_ratio}: leaves {seen} of {rows * columns} patches of a clip; "
            "the paper has 0.8"
        )
    return geometry


def check_config(config: Config) -> None:
    """`UserError` for settings that no network can be made of."""
    names = ("width", "layers", "heads", "decoder_width", "decoder_layers", "decoder_heads")
    positive(config, *names, section="audiomae.")
    for side in ("", "decoder_"):
        width = getattr(config, f"{side}width")
        heads = getattr(config, f"{side}heads")
        # two halves of a position, of sines and cosines each
        if width % heads or width % 4:
            raise UserError(f"audiomae.{side}width={width}: give a multiple of 4 and of {side}heads={heads}")
    if not 0 < config.mask_ratio < 1:
        raise UserError(f"audiomae.mask_ratio={config.mask_ratio}: give more than 0, less than 1")
    if config.level not in LEVELS:
        raise UserError(f"audiomae.level={config.level}: give one of {', '.join(LEVELS)}")


class AudioMae(nn.Module):
    """`log_mel` [b, 1, t, m], `noise` [b, patches] -> the loss of the patches whose noise is highest [b]."""

    def __init__(self, config: Config, mel: MelConfig):
        super().__init__()
        self.norm_pix_loss = config.norm_pix_loss
        self.mae = SpectrogramMae(mae_config(config, mel))

    def forward(self, batch: Batch) -> Batch:
        pixels = standardise(batch["log_mel"])
        predicted, hidden = self.predict(pixels, batch["noise"])
        target, _, _ = self.targets(pixels)
        error = (predicted - target).square().mean(2)
        return {"loss": (error * hidden).sum(1) / hidden.sum(1) * batch["weight"]}

    def predict(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Patches float32 [b, n, p * p], and which were hidden, 1 or 0 [b, n]."""
        encoded = self.mae.vit(pixels.to(self.mae.dtype), noise=noise)
        decoded = self.mae.decoder(encoded.last_hidden_state, encoded.ids_restore)
        return decoded.logits.float(), encoded.mask

    def targets(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is to be predicted [b, n, p * p], and the mean and deviation [b, n, 1] that it lost."""
        patches = patches_of(pixels, PATCH)
        if not self.norm_pix_loss:
            return patches, torch.zeros_like(patches[..., :1]), torch.ones_like(patches[..., :1])
        mean = patches.mean(2, keepdim=True)
        deviation = (patches.var(2, keepdim=True) + FLAT_PATCH).sqrt()
        return (patches - mean) / deviation, mean, deviation


def mae_config(config: Config, mel: MelConfig) -> ViTMAEConfig:
    """Of the network for clips of `mel`. No dropout: it would be drawn by the rank."""
    return ViTMAEConfig(
        image_size=[mel.num_frames, mel.num_mels],
        patch_size=PATCH,
        num_channels=1,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=4 * config.width,
        decoder_hidden_size=config.decoder_width,
        decoder_num_hidden_layers=config.decoder_layers,
        decoder_num_attention_heads=config.decoder_heads,
        decoder_intermediate_size=4 * config.decoder_width,
        mask_ratio=config.mask_ratio,
        norm_pix_loss=config.norm_pix_loss,
    )


def optimisers(config: Config) -> tuple[Optimiser, ...]:
    """One, of all parameters; the tables of positions are none."""
    return ONE_OPTIMISER


def couples_samples(config: Config) -> bool:
    """No: each loss is of its own sample."""
    return False


def build_model(config: Config, geometry: Geometry) -> nn.Module:
    """The encoder and its decoder."""
    return AudioMae(config, MelConfig(**geometry["mel"]))


def initial(source: str, config: Config, geometry: Geometry) -> dict[str, Tensor]:
    """One of ours, or any ViTMAE: of one of pictures the layers fit, its patches and positions do not."""
    mae = load_audiomae(find_model(source, "init_from", "audiomae"))
    return {f"mae.{name}": tensor for name, tensor in mae.state_dict().items()}


def make_batch(
    samples: Sequence[Sample | None], keys: Sequence[SampleKey], config: Config, geometry: Geometry
) -> Batch:
    """`log_mel` [b, 1, t, m], `noise` [b, patches] from the keys, `weight` [b]."""
    mel = MelConfig(**geometry["mel"])
    _, rows, columns = mel.latent_shape
    log_mel = torch.full((len(samples), 1, mel.num_frames, mel.num_mels), math.log(mel.floor))
    noise = torch.zeros(len(samples), rows * columns)
    for index, (sample, key) in enumerate(zip(samples, keys, strict=True)):
        # a hole's, too: equal noise would be sorted as it comes
        drawn = keyed_rng(key, "mask").random(rows * columns, dtype=np.float32)
        noise[index] = torch.from_numpy(drawn)
        if sample is not None:
            log_mel[index, 0] = decode_log_mel(sample["flac"], mel)
    return {"log_mel": log_mel, "noise": noise, "weight": weights(samples)}


def loss_groups(batch: Batch) -> None:
    """None: all clips are alike to it."""


def draw(model: nn.Module, batch: Batch, geometry: Geometry) -> dict[str, Tensor]:
    """Log mels [b, t, m] whose hidden patches are predicted, and the true ones.

    Where patches are standardised each by itself, with their true mean and deviation.
    """
    trained: Any = model
    pixels = standardise(batch["log_mel"])
    predicted, hidden = trained.predict(pixels, batch["noise"])
    _, mean, deviation = trained.targets(pixels)
    mixed = torch.lerp(patches_of(pixels, PATCH), predicted * deviation + mean, hidden[..., None])
    rows = pixels.shape[2] // PATCH
    return {"drawn": restore(pixels_of(mixed, rows, PATCH))[:, 0], "truth": batch["log_mel"][:, 0]}


def save(state: dict[str, Tensor], config: Config, geometry: Geometry, folder: Path) -> None:
    """Writes what `load_audiomae` loads, and `ViTMAEModel` its encoder; beside it mel.json: of what mels."""
    mel = MelConfig(**geometry["mel"])
    model = AudioMae(config, mel)
    model.load_state_dict(state)
    model.mae.save_pretrained(folder)
    (folder / MEL_FILE).write_text(json.dumps(asdict(mel), indent=1))
