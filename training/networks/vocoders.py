"""Vocoders, log mels -> waveforms: HiFi-GAN and BigVGAN-v2 as transformers and diffusers have them, and ours.

    vocoder = build_vocoder(VocoderConfig(kind="hifigan"), num_mels=64, sample_rate_hz=16000)
    wav = vocode(vocoder, log_mel, num_samples)          # training.pipeline.codec; [b, t, m] -> [b, n]

Stock classes where there are, so that published weights load by name. No loss and no data here
(training.recipes.vocoder).
"""

import math
from dataclasses import dataclass, field

from diffusers import MMAudioVocoder
from torch import nn
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from training.networks.istft_vocoder import IstftVocoder

KINDS = ("hifigan", "bigvgan", "istft")


@dataclass
class VocoderConfig:
    """`kind` hifigan: `SpeechT5HifiGan`, by default AudioLDM's (Kong et al. 2020, V1, at 16 kHz); bigvgan:
    `MMAudioVocoder` (Lee et al. 2023), whose activations oscillate and do not alias; istft: `IstftVocoder`
    (as Vocos, Siuzdak 2024), at a small part of their cost.

    `channels` of the first layer; each of `rates` halves them. The product of `rates` is the hop. Of istft,
    `channels` is the width of all `layers`, and the other lists do not matter.
    """

    kind: str = "hifigan"  # hifigan, bigvgan or istft, the cheapest
    channels: int = 1024  # of the first layer; of istft, of all
    # by which each stage lengthens the signal; their product is the hop
    rates: list[int] = field(default_factory=lambda: [5, 4, 2, 2, 2])
    rate_kernels: list[int] = field(default_factory=lambda: [16, 16, 8, 4, 4])  # one per rate
    # of the residual blocks of every stage
    block_kernels: list[int] = field(default_factory=lambda: [3, 7, 11])
    dilations: list[int] = field(default_factory=lambda: [1, 3, 5])  # of every residual block
    layers: int = 8  # of istft
    fft_size: int = 1024  # of istft


def build_vocoder(config: VocoderConfig, num_mels: int, sample_rate_hz: int) -> nn.Module:
    """A vocoder of random weights."""
    if config.kind == "istft":
        istft: nn.Module = IstftVocoder(
            num_mels=num_mels,
            width=config.channels,
            num_layers=config.layers,
            fft_size=config.fft_size,
            hop_size=math.prod(config.rates),
        )
        return istft
    if config.kind == "bigvgan":
        bigvgan: nn.Module = MMAudioVocoder(
            num_mels=num_mels,
            upsample_initial_channel=config.channels,
            upsample_rates=tuple(config.rates),
            upsample_kernel_sizes=tuple(config.rate_kernels),
            resblock_kernel_sizes=tuple(config.block_kernels),
            resblock_dilation_sizes=(tuple(config.dilations),) * len(config.block_kernels),
        )
        return bigvgan
    settings = SpeechT5HifiGanConfig(
        model_in_dim=num_mels,
        sampling_rate=sample_rate_hz,
        upsample_initial_channel=config.channels,
        upsample_rates=config.rates,
        upsample_kernel_sizes=config.rate_kernels,
        resblock_kernel_sizes=config.block_kernels,
        resblock_dilation_sizes=[config.dilations] * len(config.block_kernels),
        # AudioLDM's takes log mels as they are
        normalize_before=False,
    )
    hifigan: nn.Module = SpeechT5HifiGan(settings)
    return hifigan
