"""What the recipes that learn from clips share: geometry from the dataset, FLAC and JPEG members -> arrays.

    log_mel = decode_log_mel(sample["flac"], mel)       # [num_frames, num_mels]
    pixels = decode_image(sample["jpg"], image)         # [3, s, s]

Each member has one decoder and none is pickle. Not for latents (training.recipes.diffusion reads their .npy).
"""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cluster.dataset import DatasetMeta
from configs.load import UserError
from ingest.pixels import open_picture
from training.pipeline.codec import ImageConfig, image_to_tensor
from training.pipeline.mel import SPECTROGRAMS, MelConfig, wav_to_log_mel
from training.recipes.recipe import Geometry

OPPONENTS = "opponents.safetensors"


def mel_of_clips(dataset_meta: DatasetMeta, spectrogram: str = "audioldm") -> MelConfig:
    """The spectrogram of a dataset of clips, from its semantic config; `spectrogram`: one of SPECTROGRAMS.

    `UserError` where it is no dataset of clips.
    """
    if dataset_meta["kind"] != "clips":
        raise UserError(f"data: is a dataset of {dataset_meta['kind']}, need one of clips")
    config = dataset_meta["config"]
    rate = config["audio"]["sample_rate_hz"]
    if rate != MelConfig.sample_rate_hz:
        need = MelConfig.sample_rate_hz
        fix = f"scrape with audio.sample_rate_hz={need} into another output"
        raise UserError(f"data: has audio.sample_rate_hz={rate}; the models take {need}: {fix}")
    return MelConfig(duration_s=config["clip"]["duration_s"], **SPECTROGRAMS[spectrogram])


def mel_geometry(
    dataset_meta: DatasetMeta, level: str = "recorded", spectrogram: str = "audioldm"
) -> Geometry:
    """`{"mel": …}`, plain data; `MelConfig(**geometry["mel"])` is the inverse."""
    return {"mel": replace(mel_of_clips(dataset_meta, spectrogram), level=level).settings()}


def decode_wav(flac: bytes) -> np.ndarray:
    """FLAC bytes -> float32 [n] in -1..1, mono."""
    wav, _ = soundfile.read(io.BytesIO(flac), dtype="float32", always_2d=True)
    mono: np.ndarray = wav[:, 0]
    return mono


def decode_log_mel(flac: bytes, mel: MelConfig) -> Tensor:
    """FLAC bytes -> float32 [num_frames, num_mels]."""
    return wav_to_log_mel(torch.from_numpy(decode_wav(flac))[None], mel)[0]


def decode_image(jpeg: bytes, config: ImageConfig) -> Tensor:
    """A picture's bytes -> float32 [3, size, size], normalised. Raises `PictureError`."""
    return image_to_tensor(open_picture(jpeg), config)


def save_opponents(state: dict[str, Tensor], child: str, folder: Path) -> None:
    """The part of a model that it learnt against, beside what ships: for whoever trains on.

    New opponents would first have to learn what the model knows.
    """
    opponents = {name: tensor.contiguous() for name, tensor in state.items() if name.startswith(f"{child}.")}
    if opponents:
        save_file(opponents, folder / OPPONENTS)


def load_opponents(folder: Path) -> dict[str, Tensor]:
    """What `save_opponents` wrote; nothing where there is none, as beside published models."""
    path = folder / OPPONENTS
    return load_file(path) if path.is_file() else {}


def weights(samples: Sequence[Any]) -> Tensor:
    """float32 [b]: 1, or 0 for a hole."""
    return torch.tensor([0.0 if sample is None else 1.0 for sample in samples])
