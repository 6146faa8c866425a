"""Discriminators of waveforms: of many periods and many scales (Kong et al. 2020, section 2.3).

    discriminators = WaveDiscriminators(DiscriminatorConfig())
    for logits, features in discriminators(wav):        # wav [b, n]; logits [b, k], features a list of layers

One that sees a waveform folded at period p, as an image p wide, for each of some primes, so that their grids
overlap little; and one for each of some rates, on the waveform as it is. No batch norm: nothing depends on
what is beside a sample. Kong et al. have spectral norm in the first scale; weight norm here in all: it
has no state. No loss here (training.recipes.vocoder).
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


@dataclass
class DiscriminatorConfig:
    """Channels of the layers: any number of a period, seven of a scale."""

    periods: list[int] = field(default_factory=lambda: [2, 3, 5, 7, 11])
    period_channels: list[int] = field(default_factory=lambda: [32, 128, 512, 1024, 1024])
    num_scales: int = 3
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


def _judge(hidden: Tensor, layers: nn.ModuleList, last: nn.Module) -> Opinion:
    features = []
    for layer in layers:
        hidden = nn.functional.leaky_relu(layer(hidden), SLOPE)
        features.append(hidden)
    logits = last(hidden)
    return Opinion(logits.flatten(1), [*features, logits])
