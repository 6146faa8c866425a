"""The mel autoencoder: a small `AutoencoderKL` on raw log mels, as AudioLDM has it.

    geometry = autoencoder.geometry(snapshot, dataset_meta, config)
    model = autoencoder.build_model(config, geometry)
    losses = model(autoencoder.make_batch(samples, keys, config, geometry))["loss"]        # [b]

Loss: AudioLDM's, absolute error plus KL (Liu et al. 2023, section 4), without its discriminator. Theirs is

    sum of |x - y| over a clip's 1024 x 64 values + kl_weight * mean of the KL to N(0, 1) over the latent's

with a kl_weight of 1000; ours is that divided by 1024 x 64, whatever is cropped: mean error + kl_weight /
65536 * mean KL. So `kl_weight` is in their units, and 1000 is .0153 beside a mean error. Trains on random
crops in time; the network is convolutional, so complete clips pass through it afterwards.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from cluster.dataset import DatasetMeta, Snapshot
from configs.load import UserError
from training.data.randomness import SampleKey, keyed_rng
from training.pipeline.mel import LEVELS, MEL_FILE, MelConfig
from training.pretrained import find_model, load_autoencoder
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
PARTS = PipelineParts(codec=".")  # the model folder itself
TYPICAL_LOG_MEL = -6.0  # of recordings, which have -11.5 to 3.5
TYPICAL_SPREAD = 3.0
AUDIOLDM_VALUES = 1024 * 64  # of the clip that its kl_weight is stated for


@dataclass
class Config:
    """`channels`: one width per level, three levels are a ratio of 4. `crop_frames` 0: complete clips.

    `kl_weight` in AudioLDM's units, where theirs is 1000. `level`: recorded, or audioldm (each clip's mean
    removed, its peak at 0.5).
    """

    channels: list[int] = field(default_factory=lambda: [128, 256, 512])
    layers_per_block: int = 2
    norm_groups: int = 32
    attention: bool = True
    kl_weight: float = 1000.0
    crop_frames: int = 0
    level: str = "recorded"


def geometry(snapshot: Snapshot, dataset_meta: DatasetMeta, config: Config) -> Geometry:
    """`{"mel"}`: the geometry of the clips.

    `UserError` for other datasets and for levels that do not give the ratio.
    """
    check_config(config)
    geometry = mel_geometry(dataset_meta, config.level)
    levels = len(config.channels)
    ratio = 2 ** (levels - 1)
    need = geometry["mel"]["downsampling"]
    if ratio != need:
        raise UserError(f"autoencoder.channels has {levels} levels: a ratio of {ratio}, need {need}")
    if config.crop_frames % ratio:
        raise UserError(f"autoencoder.crop_frames={config.crop_frames}: give a multiple of {ratio}, or 0")
    return geometry


def check_config(config: Config) -> None:
    """`UserError` for settings that no codec can be trained with."""
    if not 0 <= config.kl_weight < math.inf:
        raise UserError(f"autoencoder.kl_weight={config.kl_weight}: give 0 or more (AudioLDM has 1000)")
    if config.level not in LEVELS:
        raise UserError(f"autoencoder.level={config.level}: give one of {', '.join(LEVELS)}")


class Autoencoder(nn.Module):
    """Log mels [b, 1, frames, mels] -> losses. `codec` is the `AutoencoderKL`."""

    def __init__(self, config: Config, mel: MelConfig):
        super().__init__()
        levels = len(config.channels)
        self.kl_weight = config.kl_weight / AUDIOLDM_VALUES
        self.codec = AutoencoderKL(
            in_channels=1,
            out_channels=1,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(config.channels),
            layers_per_block=config.layers_per_block,
            latent_channels=mel.latent_channels,
            norm_num_groups=config.norm_groups,
            sample_size=mel.num_frames,
            mid_block_add_attention=config.attention,
        )
        if not self.codec.decoder.conv_out.weight.is_meta:  # built without memory, to check its settings
            _start_at_typical_levels(self.codec)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        dtype = self.codec.dtype  # of the weights; the batch and the losses are float32
        moments = self.codec.quant_conv(self.codec.encoder(batch["log_mel"].to(dtype))).float()
        mean, log_variance = moments.chunk(2, dim=1)
        log_variance = log_variance.clamp(-30, 20)  # as diffusers has it: exp of it stays finite
        latent = mean + (0.5 * log_variance).exp() * batch["noise"]
        decoded = self.codec.decoder(self.codec.post_quant_conv(latent.to(dtype)))
        error = (decoded.float() - batch["log_mel"]).abs().mean((1, 2, 3))
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean((1, 2, 3))
        weight = batch["weight"]
        return {"loss": (error + self.kl_weight * kl) * weight, "error": error * weight, "kl": kl * weight}


def _start_at_typical_levels(codec: AutoencoderKL) -> None:
    """Raw log mels are around -6: without this the first steps only learn the level."""
    with torch.no_grad():
        codec.decoder.conv_out.weight.mul_(TYPICAL_SPREAD)
        codec.decoder.conv_out.bias.fill_(TYPICAL_LOG_MEL)
        codec.encoder.conv_in.weight.div_(TYPICAL_SPREAD)
        codec.encoder.conv_in.bias.copy_(-codec.encoder.conv_in.weight.sum((1, 2, 3)) * TYPICAL_LOG_MEL)


def optimisers(config: Config) -> tuple[Optimiser, ...]:
    """One, of all parameters."""
    return ONE_OPTIMISER


def couples_samples(config: Config) -> bool:
    """No: each loss is of its own sample."""
    return False


def build_model(config: Config, geometry: Geometry) -> nn.Module:
    """The module to train; its `forward` takes `make_batch`'s tensors."""
    return Autoencoder(config, MelConfig(**geometry["mel"]))


def initial(source: str, config: Config, geometry: Geometry) -> dict[str, Tensor]:
    """A published `AutoencoderKL` of mels, or one of ours."""
    codec = load_autoencoder(find_model(source, "init_from", "autoencoder", "vae"))
    return {f"codec.{name}": tensor for name, tensor in codec.state_dict().items()}


def make_batch(
    samples: Sequence[Sample | None], keys: Sequence[SampleKey], config: Config, geometry: Geometry
) -> Batch:
    """`log_mel` [b, 1, crop, mels], `noise` [b, c, crop/4, mels/4], `weight` [b].

    Crop and noise come from the keys.
    """
    mel = MelConfig(**geometry["mel"])
    frames = min(config.crop_frames or mel.num_frames, mel.num_frames)
    channels, _, bands = mel.latent_shape
    log_mel = torch.full((len(samples), 1, frames, mel.num_mels), TYPICAL_LOG_MEL)
    noise = torch.zeros(len(samples), channels, frames // mel.downsampling, bands)
    for index, (sample, key) in enumerate(zip(samples, keys, strict=True)):
        if sample is None:
            continue
        start = int(keyed_rng(key, "crop").integers(mel.num_frames - frames + 1))
        log_mel[index, 0] = decode_log_mel(sample["flac"], mel)[start : start + frames]
        drawn = keyed_rng(key, "noise").standard_normal(noise.shape[1:], dtype=np.float32)
        noise[index] = torch.from_numpy(drawn)
    return {"log_mel": log_mel, "noise": noise, "weight": weights(samples)}


def loss_groups(batch: Batch) -> None:
    """None: all clips are alike to it."""


def draw(model: nn.Module, batch: Batch, geometry: Geometry) -> dict[str, Tensor]:
    """Log mels [b, crop, mels] through the codec and back, and what went in."""
    codec: Any = model.codec
    latent = codec.encode(batch["log_mel"].to(codec.dtype)).latent_dist.mean
    return {"drawn": codec.decode(latent).sample[:, 0], "truth": batch["log_mel"][:, 0]}


def save(state: dict[str, Tensor], config: Config, geometry: Geometry, folder: Path) -> None:
    """Writes what `AutoencoderKL.from_pretrained(folder)` loads, and beside it mel.json: of what mels."""
    mel = MelConfig(**geometry["mel"])
    model = Autoencoder(config, mel)
    model.load_state_dict(state)
    model.codec.save_pretrained(folder)
    (folder / MEL_FILE).write_text(json.dumps(asdict(mel), indent=1))
