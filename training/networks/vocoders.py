"""Vocoders, log mels -> waveforms: HiFi-GAN and BigVGAN-v2 as transformers and diffusers have them.

    vocoder = build_vocoder(VocoderConfig(kind="hifigan"), num_mels=64, sample_rate_hz=16000)
    wav = vocode(vocoder, log_mel, num_samples)          # training.pipeline.codec; [b, t, m] -> [b, n]

Stock classes, so that published weights load by name and ours load anywhere. No loss and no data here
(training.recipes.vocoder).
"""

from dataclasses import dataclass, field

from diffusers import MMAudioVocoder
from torch import nn
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

KINDS = ("hifigan", "bigvgan")


@dataclass
class VocoderConfig:
    """`kind` hifigan: `SpeechT5HifiGan`, by default AudioLDM's (Kong et al. 2020, V1, at 16 kHz); bigvgan:
    `MMAudioVocoder` (Lee et al. 2023), whose activations oscillate and do not alias.

    `channels` of the first layer; each of `rates` halves them. The product of `rates` is the hop.
    """

    kind: str = "hifigan"
    channels: int = 1024
    rates: list[int] = field(default_factory=lambda: [5, 4, 2, 2, 2])
    rate_kernels: list[int] = field(default_factory=lambda: [16, 16, 8, 4, 4])
    block_kernels: list[int] = field(default_factory=lambda: [3, 7, 11])
    dilations: list[int] = field(default_factory=lambda: [1, 3, 5])


def build_vocoder(config: VocoderConfig, num_mels: int, sample_rate_hz: int) -> nn.Module:
    """A stock vocoder of random weights."""
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
