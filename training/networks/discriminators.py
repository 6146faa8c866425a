"""Discriminators: of waveforms by many periods and scales, and of spectrograms by patches.

    discriminators = WaveDiscriminators(DiscriminatorConfig())
    for logits, features in discriminators(wav):        # wav [b, n]; logits [b, k], features a list of layers
    logits = PatchDiscriminator(channels=64)(log_mel)   # [b, 1, t, m] -> [b, 1, t', m']

Of waveforms (Kong et al. 2020, section 2.3): one that sees a waveform folded at period p, as an image p wide,
for each of some primes, so that their grids overlap little; and one for each of some rates. No batch norm:
nothing depends on what is beside a sample. Kong et al. have spectral norm in the first scale; weight norm
here in all: it has no state. No loss here (training.recipes.vocoder, autoencoder).
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn

from training.networks.weight_norm import normalise_weights

SLOPE = 0.1
PERIOD_KERNEL = 5
PERIOD_STRIDE = 3
# of the first six layers of a scale; the seventh is LAST_KERNEL wide
SCALE_KERNELS = (15, 41, 41, 41, 41, 41)
SCALE_STRIDES = (1, 2, 2, 4, 4, 1)
SCALE_GROUPS = (1, 4, 16, 16, 16, 16)
LAST_KERNEL = 5
LOGIT_KERNEL = 3
PATCH_KERNEL = 4
PATCH_SLOPE = 0.2
PATCH_GROUPS = 32
MAX_WIDENING = 8


@dataclass
class DiscriminatorConfig:
    """Channels of the layers: any number of a period, seven of a scale."""

    periods: list[int] = field(default_factory=lambda: [2, 3, 5, 7, 11])  # one discriminator each
    # per layer of these
    period_channels: list[int] = field(default_factory=lambda: [32, 128, 512, 1024, 1024])
    num_scales: int = 3  # discriminators of the signal averaged 0, 1, … times
    # seven, per layer of these
    scale_channels: list[int] = field(default_factory=lambda: [128, 128, 256, 512, 1024, 1024, 1024])


class Opinion(NamedTuple):
    """`logits` [b, k]: 1 for a real sound, 0 for a made one. `features`: what each layer gave, [b, ...]."""

    logits: Tensor
    features: list[Tensor]


class WaveDiscriminators(nn.Module):
    """All of them; `forward(wav)` takes [b, n]."""

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        self.periods = nn.ModuleList(
            PeriodDiscriminator(period, config.period_channels) for period in config.periods
        )
        self.scales = nn.ModuleList(
            ScaleDiscriminator(config.scale_channels) for _ in range(config.num_scales)
        )
        normalise_weights(self)

    def forward(self, wav: Tensor) -> list[Opinion]:
        wav = wav[:, None]
        opinions: list[Opinion] = [discriminator(wav) for discriminator in self.periods]
        for discriminator in self.scales:
            opinions.append(discriminator(wav))
            # the next one hears it at half the rate
            wav = nn.functional.avg_pool1d(wav, 4, 2, padding=2)
        return opinions


class PeriodDiscriminator(nn.Module):
    """Compares samples that are `period` apart."""

    def __init__(self, period: int, channels: list[int]):
        super().__init__()
        self.period = period
        self.layers = nn.ModuleList()
        width = 1
        for index, wider in enumerate(channels):
            stride = PERIOD_STRIDE if index < len(channels) - 1 else 1
            self.layers.append(
                nn.Conv2d(width, wider, (PERIOD_KERNEL, 1), (stride, 1), (PERIOD_KERNEL // 2, 0))
            )
            width = wider
        self.logits = nn.Conv2d(width, 1, (LOGIT_KERNEL, 1), padding=(LOGIT_KERNEL // 2, 0))

    def forward(self, wav: Tensor) -> Opinion:
        surplus = wav.shape[-1] % self.period
        if surplus:
            wav = nn.functional.pad(wav, (0, self.period - surplus), mode="reflect")
        return _judge(wav.view(*wav.shape[:2], -1, self.period), self.layers, self.logits)


class ScaleDiscriminator(nn.Module):
    """Compares neighbouring samples."""

    def __init__(self, channels: list[int]):
        super().__init__()
        self.layers = nn.ModuleList()
        width = 1
        for wider, kernel, stride, groups in zip(
            channels[:-1], SCALE_KERNELS, SCALE_STRIDES, SCALE_GROUPS, strict=True
        ):
            # narrower ones than the paper's have fewer groups
            shared = math.gcd(groups, width, wider)
            self.layers.append(nn.Conv1d(width, wider, kernel, stride, kernel // 2, groups=shared))
            width = wider
        self.layers.append(nn.Conv1d(width, channels[-1], LAST_KERNEL, padding=LAST_KERNEL // 2))
        self.logits = nn.Conv1d(channels[-1], 1, LOGIT_KERNEL, padding=LOGIT_KERNEL // 2)

    def forward(self, wav: Tensor) -> Opinion:
        return _judge(wav, self.layers, self.logits)


class PatchDiscriminator(nn.Module):
    """A logit for each patch of a spectrogram (Isola et al. 2017, section 3.2.2), as AudioLDM has it.

    But with group norm: batch norm would couple the samples of a batch.
    """

    def __init__(self, channels: int, num_layers: int = 3):
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(1, channels, PATCH_KERNEL, 2, padding=1),
            nn.LeakyReLU(PATCH_SLOPE),
        ]
        width = channels
        for index in range(1, num_layers + 1):
            wider = channels * min(2**index, MAX_WIDENING)
            stride = 2 if index < num_layers else 1
            # no bias: the norm's takes its place
            layers.append(nn.Conv2d(width, wider, PATCH_KERNEL, stride, padding=1, bias=False))
            layers.append(nn.GroupNorm(math.gcd(PATCH_GROUPS, wider), wider))
            layers.append(nn.LeakyReLU(PATCH_SLOPE))
            width = wider
        layers.append(nn.Conv2d(width, 1, PATCH_KERNEL, 1, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, log_mel: Tensor) -> Tensor:
        logits: Tensor = self.layers(log_mel)
        return logits


def _judge(hidden: Tensor, layers: nn.ModuleList, last: nn.Module) -> Opinion:
    features = []
    for layer in layers:
        hidden = nn.functional.leaky_relu(layer(hidden), SLOPE)
        features.append(hidden)
    logits = last(hidden)
    return Opinion(logits.flatten(1), [*features, logits])
