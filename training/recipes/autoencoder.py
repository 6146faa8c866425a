"""The mel autoencoder: a small `AutoencoderKL` on raw log mels, as AudioLDM has it, or MMAudio's.

    geometry = autoencoder.geometry(snapshot, dataset_meta, config)
    model = autoencoder.build_model(config, geometry)
    losses = model(autoencoder.make_batch(samples, keys, config, geometry))["loss"]        # [b]

Loss: AudioLDM's, absolute error plus KL (Liu et al. 2023, section 4), and by option a patch discriminator
and the distance of modulation spectra (training.recipes.spectra), which theirs has not. Without these, theirs
is

    sum of |x - y| over a clip's 1024 x 64 values + kl_weight * mean of the KL to N(0, 1) over the latent's

with a kl_weight of 1000; ours is that divided by 1024 x 64, whatever is cropped: mean error + kl_weight /
65536 * mean KL. So `kl_weight` is in their units, and 1000 is .0153 beside a mean error. Trains on random
crops in time; the network is convolutional, so complete clips pass through it afterwards.

`kind` mel2d has latents [c, t, f], bands shrunk as time is; mmaudio (`MMAudioVAE`, Cheng et al. 2024) has
[c, t, 1], sequences for a transformer, of its own spectrogram (training.pipeline.mel). Its loss is ours.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from diffusers import AutoencoderKL, MMAudioVAE
from torch import Tensor, nn
from torch.nn.grad import conv1d_weight, conv2d_weight

from cluster.dataset import DatasetMeta, Snapshot
from configs.load import UserError, at_least, positive
from training.codecs import mel_of_codec
from training.data.randomness import SampleKey, keyed_rng
from training.networks.discriminators import PatchDiscriminator
from training.networks.mmaudio import build_mmaudio, stock_state, to_natural_log, trainable_state
from training.pipeline.mel import LEVELS, MEL_FILE, MelConfig
from training.pretrained import find_model, load_autoencoder
from training.recipes.clips import decode_log_mel, load_opponents, mel_geometry, save_opponents, weights
from training.recipes.recipe import (
    ONE_OPTIMISER,
    Batch,
    DrawnKind,
    Geometry,
    Optimiser,
    PipelineParts,
    Sample,
)
from training.recipes.spectra import MODULATION_WINDOWS, modulation_distance

MEMBERS: tuple[str, ...] = ("flac",)
LEARNS_FROM: Literal["clips", "latents"] = "clips"
DRAWS: DrawnKind = "log_mels"
PARTS = PipelineParts(codec=".")  # the model folder itself
CODEC = Optimiser("codec", ("codec",), gives=("decoded",))
DISCRIMINATOR = Optimiser("discriminator", ("discriminator",))
MAX_ADAPTIVE = 1e4  # as in Esser et al.'s code
TYPICAL_LOG_MEL = -6.0  # of recordings, which have -11.5 to 3.5
TYPICAL_SPREAD = 3.0
# by kind, whose spectrogram
SPECTROGRAM_OF = {"mel2d": "audioldm", "mmaudio": "mmaudio"}
AUDIOLDM_VALUES = 1024 * 64  # of the clip that its kl_weight is stated for


@dataclass
class Config:
    """`kind`: mel2d or mmaudio. `channels`: one width per level; of mel2d three levels are a ratio of 4; of
    mmaudio, whose ratio is 2, multiples of the first, and it has no use for `norm_groups` and `attention`.
    `crop_frames` 0: complete clips.

    `kl_weight` in AudioLDM's units, where theirs is 1000. `level`: recorded, or audioldm (each clip's mean
    removed, its peak at 0.5). `discriminator_weight` 0: no adversary; AudioLDM has 0.5, from step 50,001 on.
    `spectral_weight`: of `spectra.modulation_distance`, beside a mean absolute error of weight 1.
    `init_log10`: the weights of `init_from` take log10 mels, as MMAudio's own at 16 kHz; they are converted
    exactly.
    """

    kind: str = "mel2d"
    channels: list[int] = field(default_factory=lambda: [128, 256, 512])
    layers_per_block: int = 2  # of every level
    norm_groups: int = 32  # of group norm; mel2d's
    attention: bool = True  # in the middle; mel2d's
    discriminator_weight: float = 0.0  # of the adversary; 0 = none, AudioLDM has 0.5
    discriminator_start: int = 50001  # step from which the adversary counts
    discriminator_channels: int = 64  # of its first layer
    kl_weight: float = 1000.0  # in AudioLDM's units, where theirs is 1000
    spectral_weight: float = 0.0
    crop_frames: int = 0  # length of the pieces it learns from; 0 = complete clips
    level: str = "recorded"
    init_log10: bool = False


def geometry(snapshot: Snapshot, dataset_meta: DatasetMeta, config: Config) -> Geometry:
    """`{"mel"}`: the geometry of the clips.

    `UserError` for other datasets and for levels that do not give the ratio.
    """
    check_config(config)
    geometry = mel_geometry(dataset_meta, config.level, SPECTROGRAM_OF[config.kind])
    levels = len(config.channels)
    ratio = 2 ** (levels - 1)
    need = geometry["mel"]["downsampling"]
    if config.kind == "mel2d" and ratio != need:
        raise UserError(f"autoencoder.channels has {levels} levels: a ratio of {ratio}, need {need}")
    ratio = need
    if config.crop_frames % ratio:
        raise UserError(f"autoencoder.crop_frames={config.crop_frames}: give a multiple of {ratio}, or 0")
    if config.spectral_weight and 0 < config.crop_frames < MODULATION_WINDOWS[0]:
        raise UserError(
            f"autoencoder.crop_frames={config.crop_frames}: spectral_weight needs {MODULATION_WINDOWS[0]} or "
            f"more, and {MODULATION_WINDOWS[-1]} for all of its windows"
        )
    return geometry


def check_config(config: Config) -> None:
    """`UserError` for settings that no codec can be trained with."""
    if config.kind not in SPECTROGRAM_OF:
        raise UserError(f"autoencoder.kind={config.kind}: give one of {', '.join(SPECTROGRAM_OF)}")
    if config.kind == "mmaudio":
        _check_mmaudio(config)
    elif config.init_log10:
        raise UserError("autoencoder.init_log10=true: only of kind=mmaudio; AudioLDM's take natural ones")
    if not 0 <= config.kl_weight < math.inf:
        raise UserError(f"autoencoder.kl_weight={config.kl_weight}: give 0 or more (AudioLDM has 1000)")
    at_least(config, 0, "discriminator_weight", "spectral_weight", section="autoencoder.", meaning="none")
    positive(config, "discriminator_channels", section="autoencoder.")
    if config.level not in LEVELS:
        raise UserError(f"autoencoder.level={config.level}: give one of {', '.join(LEVELS)}")


def _check_mmaudio(config: Config) -> None:
    """`UserError` for widths that its stock class has no settings for."""
    widths = config.channels
    if len(widths) < 2 or any(width % widths[0] for width in widths):
        raise UserError(
            f"autoencoder.channels={widths}: give 2 levels or more, multiples of the first "
            "(MMAudio has [384, 768, 1536])"
        )


class Autoencoder(nn.Module):
    """Log mels [b, 1, frames, mels] -> losses. `codec` is the `AutoencoderKL` or `MMAudioVAE`."""

    def __init__(self, config: Config, mel: MelConfig):
        super().__init__()
        self.config = config
        self.kl_weight = config.kl_weight / AUDIOLDM_VALUES
        self.codec = _build_codec(config, mel)
        if config.discriminator_weight:
            self.discriminator = PatchDiscriminator(config.discriminator_channels)
        # not where it is built without memory, to check its settings
        if config.kind == "mel2d" and not self.codec.decoder.conv_out.weight.is_meta:
            _start_at_typical_levels(self.codec)

    def forward(self, batch: Batch, optimiser: str = CODEC.name) -> Batch:
        """The losses of an optimiser: [b] each, 0 for holes."""
        return self._judge(batch) if optimiser == DISCRIMINATOR.name else self._reconstruct(batch)

    def _reconstruct(self, batch: Batch) -> Batch:
        """The codec's."""
        mean, log_variance = self.encode(batch["log_mel"])
        latent = mean + (0.5 * log_variance).exp() * batch["noise"]
        hidden: list[Tensor] = []
        watch = self.decoder.conv_out.register_forward_pre_hook(lambda _, given: hidden.append(given[0]))
        decoded = self.decode(latent)
        watch.remove()
        error = (decoded - batch["log_mel"]).abs().mean((1, 2, 3))
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean((1, 2, 3))
        weight = batch["weight"]
        losses = {"error": error * weight, "kl": kl * weight}
        loss = error + self.kl_weight * kl
        if self.config.spectral_weight:
            spectral = modulation_distance(decoded[:, 0], batch["log_mel"][:, 0])
            losses["spectral"] = spectral * weight
            loss = loss + self.config.spectral_weight * spectral
        if not self.config.discriminator_weight or not self.codec.training:
            return {"loss": loss * weight, **losses}
        if self._is_opposed(batch):
            loss = loss + self._adversarial(decoded, batch, hidden[0].detach())
        return {"loss": loss * weight, **losses, "decoded": decoded.detach()}

    @property
    def decoder(self) -> Any:
        """Of the codec; its last layer is `conv_out`."""
        return self.codec.vae.decoder if self.config.kind == "mmaudio" else self.codec.decoder

    def encode(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        """[b, 1, t, m] -> mean and logarithm of the variance, float32 [b, c, t, f]."""
        dtype = self.codec.dtype  # of the weights; the batch and the losses are float32
        if self.config.kind == "mmaudio":
            vae = self.codec.vae
            bands_first = (log_mel[:, 0].transpose(1, 2) - vae.data_mean) / vae.data_std
            moments = vae.encoder(bands_first.to(dtype))[..., None]
        else:
            moments = self.codec.quant_conv(self.codec.encoder(log_mel.to(dtype)))
        mean, log_variance = moments.float().chunk(2, dim=1)
        return mean, log_variance.clamp(-30, 20)  # as diffusers has it: exp of it stays finite

    def decode(self, latent: Tensor) -> Tensor:
        """[b, c, t, f] -> log mels float32 [b, 1, t, m]."""
        given = latent.to(self.codec.dtype)
        if self.config.kind == "mmaudio":
            bands_first: Tensor = self.codec.vae.decode(given[..., 0])
            return bands_first.transpose(1, 2)[:, None].float()
        decoded: Tensor = self.codec.decoder(self.codec.post_quant_conv(given))
        return decoded.float()

    def _is_opposed(self, batch: Batch) -> bool:
        """Whether the discriminator is heeded yet."""
        return int(batch["step"][0]) >= self.config.discriminator_start

    def _adversarial(self, decoded: Tensor, batch: Batch, hidden: Tensor) -> Tensor:
        """[b]: how far the discriminator takes what was decoded for decoded, times its adaptive weight.

        Esser et al. 2021, eq. 7: the norm of the error's gradient at the last layer of the decoder over that
        of the adversary, both over the micro batches of all ranks. Both follow from gradients at its output,
        so that the decoder is passed through backwards once, and at ZeRO 3, too.
        """
        dtype = next(self.discriminator.parameters()).dtype
        if not torch.is_grad_enabled():
            # nothing to balance: shapes are checked, or operations counted
            unbalanced: Tensor = -self.discriminator(decoded.to(dtype)).float().mean((1, 2, 3))
            return unbalanced
        output = decoded.detach().requires_grad_()
        error = (output - batch["log_mel"]).abs().mean((1, 2, 3))
        fooled = -self.discriminator(output.to(dtype)).float().mean((1, 2, 3))
        error_sum = (error * batch["weight"]).sum()
        fooled_sum = (fooled * batch["weight"]).sum()
        (of_error,) = torch.autograd.grad(error_sum, output)
        (of_adversary,) = torch.autograd.grad(fooled_sum, output)
        norms = [
            _last_layer_norm(hidden, self._before_spread(gradient)) for gradient in (of_error, of_adversary)
        ]
        adaptive = (norms[0] / (norms[1] + 1e-4)).clamp(max=MAX_ADAPTIVE)
        # the value of `fooled` with the gradient of it, which is known already
        along = (decoded * of_adversary).sum((1, 2, 3))
        opposed: Tensor = adaptive * (fooled.detach() + along - along.detach())
        return self.config.discriminator_weight * opposed

    def _before_spread(self, gradient: Tensor) -> Tensor:
        """The gradient [b, 1, t, m] of log mels -> that of what the last layer gave."""
        if self.config.kind == "mmaudio":
            # [b, m, t]: it gives standardised bands as channels
            standardised: Tensor = gradient[:, 0].transpose(1, 2) * self.codec.vae.data_std
            return standardised
        return gradient

    def _judge(self, batch: Batch) -> Batch:
        """The discriminator's hinge loss: real spectrograms above 1, decoded ones below -1."""
        dtype = next(self.discriminator.parameters()).dtype
        both = torch.cat([batch["log_mel"], batch["decoded"]]).to(dtype)
        of_real, of_decoded = self.discriminator(both).float().chunk(2)
        hinge = 0.5 * ((1 - of_real).relu() + (1 + of_decoded).relu()).mean((1, 2, 3))
        heeded = float(self._is_opposed(batch))
        return {"loss": heeded * hinge * batch["weight"]}


def _build_codec(config: Config, mel: MelConfig) -> Any:
    """Of random weights."""
    if config.kind == "mmaudio":
        return build_mmaudio(
            config.channels, config.layers_per_block, mel, mean=TYPICAL_LOG_MEL, spread=TYPICAL_SPREAD
        )
    levels = len(config.channels)
    return AutoencoderKL(
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


@torch.no_grad()
def _last_layer_norm(hidden: Tensor, gradient: Tensor) -> Tensor:
    """Norm of the gradient of the decoder's last kernels, 3 x 3 or 3, over all ranks.

    From what the layer took, [b, c, t, m] or [b, c, t], and the gradient of what it gave, [b, 1, t, m] or
    [b, m, t].
    """
    kernels = (gradient.shape[1], hidden.shape[1], *[3] * (hidden.ndim - 2))
    differentiate: Any = conv1d_weight if hidden.ndim == 3 else conv2d_weight
    of_kernels: Tensor = differentiate(hidden.float(), kernels, gradient, stride=1, padding=1)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(of_kernels)
    norm: Tensor = torch.linalg.vector_norm(of_kernels)
    return norm


def _start_at_typical_levels(codec: AutoencoderKL) -> None:
    """Raw log mels are around -6: without this the first steps only learn the level."""
    with torch.no_grad():
        codec.decoder.conv_out.weight.mul_(TYPICAL_SPREAD)
        codec.decoder.conv_out.bias.fill_(TYPICAL_LOG_MEL)
        codec.encoder.conv_in.weight.div_(TYPICAL_SPREAD)
        codec.encoder.conv_in.bias.copy_(-codec.encoder.conv_in.weight.sum((1, 2, 3)) * TYPICAL_LOG_MEL)


def optimisers(config: Config) -> tuple[Optimiser, ...]:
    """The codec's, and the discriminator's if there is one."""
    return (CODEC, DISCRIMINATOR) if config.discriminator_weight else ONE_OPTIMISER


def couples_samples(config: Config) -> bool:
    """With a discriminator: its weight follows from the gradients of a micro batch."""
    return config.discriminator_weight > 0


def build_model(config: Config, geometry: Geometry) -> nn.Module:
    """The module to train; its `forward` takes `make_batch`'s tensors."""
    return Autoencoder(config, MelConfig(**geometry["mel"]))


def initial(source: str, config: Config, geometry: Geometry) -> dict[str, Tensor]:
    """A published `AutoencoderKL` of mels or `MMAudioVAE`, or one of ours.

    `UserError` for one of the other kind, or of another spectrogram.
    """
    folder = find_model(source, "init_from", "autoencoder", "vae")
    mel = MelConfig(**geometry["mel"])
    if mel_of_codec(folder, mel) != mel:
        raise UserError(
            f"init_from={source}: holds a codec of other mels than autoencoder.kind={config.kind} has; "
            f"give kind={'mel2d' if config.kind == 'mmaudio' else 'mmaudio'}, or other weights"
        )
    state = load_autoencoder(folder).state_dict()
    if config.kind == "mmaudio":
        state = trainable_state(to_natural_log(state) if config.init_log10 else state)
    return {f"codec.{name}": tensor for name, tensor in state.items()} | load_opponents(folder)


def make_batch(
    samples: Sequence[Sample | None], keys: Sequence[SampleKey], config: Config, geometry: Geometry
) -> Batch:
    """`log_mel` [b, 1, crop, mels], `noise` [b, c, t, f] as latents, `weight` [b].

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
    trained: Any = model
    latent, _ = trained.encode(batch["log_mel"])
    return {"drawn": trained.decode(latent)[:, 0], "truth": batch["log_mel"][:, 0]}


def save(state: dict[str, Tensor], config: Config, geometry: Geometry, folder: Path) -> None:
    """Writes what the stock class loads by `from_pretrained`, and beside it mel.json: of what mels."""
    mel = MelConfig(**geometry["mel"])
    model = Autoencoder(config, mel)
    model.load_state_dict(state)
    if config.kind == "mmaudio":
        # its front end stays as it was made: no precision of training has rounded it
        stock = MMAudioVAE.from_config(model.codec.config)
        stock.load_state_dict(stock.state_dict() | stock_state(model.codec.state_dict()))
        stock.save_pretrained(folder)
    else:
        model.codec.save_pretrained(folder)
    (folder / MEL_FILE).write_text(json.dumps(asdict(mel), indent=1))
    save_opponents(state, "discriminator", folder)
