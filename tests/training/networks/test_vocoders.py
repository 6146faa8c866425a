"""Vocoders: stock classes, and as many samples as frames times the hop."""

import pytest
import torch
from diffusers import MMAudioVocoder
from transformers import SpeechT5HifiGan

from training.networks.vocoders import VocoderConfig, build_vocoder
from training.pipeline.codec import vocode

SMALL = {"channels": 64, "block_kernels": [3], "dilations": [1]}


@pytest.mark.parametrize(
    "kind,stock,kernels",
    [("hifigan", SpeechT5HifiGan, [16, 16, 8, 4, 4]), ("bigvgan", MMAudioVocoder, [11, 8, 4, 4, 4])],
)
def test_a_clip_has_the_length_of_its_frames(kind: str, stock: type, kernels: list[int]) -> None:
    vocoder = build_vocoder(VocoderConfig(kind, rate_kernels=kernels, **SMALL), 64, 16000)
    assert isinstance(vocoder, stock)
    wav = vocode(vocoder, torch.randn(2, 10, 64), 1600)
    assert wav.shape == (2, 1600) and wav.abs().max() <= 1
