"""Tiny judges, as save_pretrained writes them: an audio classifier, a model of waveforms, sounds to judge.

save_classifier(folder)                        # ASTForAudioClassification of random weights
save_wav2vec(folder)                           # Wav2Vec2Model, whose inputs are as long as the sounds
save_sounds(folder, ["a", "b"], seed=0)        # wavs of noise in bands
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

RATE_HZ = 16000
LABELS = 7


def save_classifier(folder: Path, seed: int = 0) -> Path:
    """16 numbers wide, 7 classes, 64 frames of 32 mels. Far from uniform, so that sounds differ in class."""
    torch.manual_seed(seed)
    shape = {"num_mel_bins": 32, "max_length": 64}
    settings = ASTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=LABELS,
        **shape,
    )
    model = ASTForAudioClassification(settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    ASTFeatureExtractor(**shape).save_pretrained(folder)
    return folder


def save_wav2vec(folder: Path) -> Path:
    """16 numbers wide, a frame per 20 samples."""
    torch.manual_seed(0)
    shape = {"conv_dim": (8, 8), "conv_kernel": (10, 4), "conv_stride": (5, 4), "num_conv_pos_embeddings": 4}
    width = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    Wav2Vec2Model(Wav2Vec2Config(**shape, **width)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def save_sounds(folder: Path, names: Sequence[str], seed: int, samples: int = 9600) -> Path:
    """A tone with noise each, which begins after a while, as 16-bit wavs."""
    folder.mkdir(parents=True, exist_ok=True)
    time_s = np.arange(samples) / RATE_HZ
    for number, name in enumerate(names):
        rng = np.random.default_rng([seed, number])
        tone = np.sin(2 * np.pi * rng.uniform(100, 3000) * time_s)
        wav = rng.uniform(0.1, 0.5) * tone + rng.uniform(0.01, 0.2) * rng.standard_normal(samples)
        wav[time_s < rng.uniform(0.1, 0.4)] *= 0.01
        soundfile.write(folder / f"{name}.wav", np.clip(wav, -1, 1), RATE_HZ, subtype="PCM_16")
    return folder
