"""CLAP's front end: number for number what transformers' feature extractor gives."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import ClapFeatureExtractor

from training.recipes.clap_mel import FrontEndConfig, clap_mel, resample

SHORT = {"kind": "clap", "max_length_s": 1}


def sound(seconds: float, rate_hz: int = 48000) -> np.ndarray:
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    noise = np.random.default_rng(0).normal(0, 0.01, len(time_s))
    return (0.3 * np.sin(2 * np.pi * 440 * time_s * (1 + time_s)) + noise).astype(np.float32)


@pytest.mark.parametrize("padding", ["repeatpad", "repeat", "pad"])
@pytest.mark.parametrize("seconds", [0.3, 0.64, 1.0])
def test_features_are_the_extractors(padding: str, seconds: float) -> None:
    config = FrontEndConfig(**SHORT, padding=padding)
    extractor = ClapFeatureExtractor(**config.extractor())
    wav = sound(seconds)
    theirs: Any = extractor(wav, sampling_rate=48000, return_tensors="np")["input_features"][0, 0]
    ours = clap_mel(wav, 48000, config).numpy()
    assert ours.shape == theirs.shape == (config.num_frames, 64)
    assert np.abs(ours - theirs).max() < 2e-3  # dB; they round powers to float32
    assert ours.max() - ours.min() > 30


def test_other_settings_are_honoured_too() -> None:
    config = FrontEndConfig(
        **SHORT, sample_rate_hz=16000, fft_size=512, hop_size=160, num_mels=32, max_hz=7000.0
    )
    wav = sound(1.0, 16000)
    extractor = ClapFeatureExtractor(**config.extractor())
    theirs = np.asarray(extractor(wav, sampling_rate=16000, return_tensors="np")["input_features"][0, 0])
    assert np.abs(clap_mel(wav, 16000, config).numpy() - theirs).max() < 2e-3


def test_of_a_longer_clip_the_middle_is_heard() -> None:
    config = FrontEndConfig(**SHORT)
    wav = sound(1.5)
    assert torch.equal(clap_mel(wav, 48000, config), clap_mel(wav[12000:60000], 48000, config))


def test_a_clip_of_another_rate_is_the_same_sound() -> None:
    time_s = np.arange(16000) / 16000
    tone = np.sin(2 * np.pi * 1000 * time_s)
    tripled = resample(tone, 16000, 48000)
    expected = np.sin(2 * np.pi * 1000 * np.arange(48000) / 48000)
    assert tripled.shape == (48000,) and np.abs(tripled - expected)[500:-500].max() < 2e-3


def test_the_defaults_are_those_of_the_published_unfused_weights() -> None:
    config = FrontEndConfig()
    assert (config.num_samples, config.num_frames) == (480000, 1001)
    assert (config.min_hz, config.max_hz, config.padding) == (50, 14000, "repeatpad")
