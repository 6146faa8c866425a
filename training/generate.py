"""`training generate`: pictures -> one wav file each.

generate(GenerateConfig(model="out/demo/export", images="photos/", output="sounds", seed=0))
"""

import glob
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile
import torch
from PIL import Image, UnidentifiedImageError

from configs.load import UserError, operational
from training.export import make_folder, open_pipeline

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass
class GenerateConfig:
    """`images`: a file, a folder or a glob. `guidance` 1 = none; `steps` of the sampler; `threads` 0: all cores."""

    model: str
    images: str
    output: str
    seed: int = 0
    guidance: float = 2.0
    steps: int = 25
    threads: int = operational(0)


def generate(config: GenerateConfig) -> dict[str, Any]:
    """Writes `<output>/<picture's name>.wav`; returns `{"wavs": [paths]}`. `UserError` before any work.

    Every picture has its own noise, from the seed alone: the sound of a picture does not depend on its neighbours.
    """
    check_sampling(config.guidance, config.steps)
    paths = find_images(config.images)
    for path in paths:
        _open(path)
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    pipeline, folder = open_pipeline(config.model), make_folder(config.output)
    wavs = []
    for path, name in zip(paths, _names(paths), strict=True):
        wav = pipeline(_open(path), seed=config.seed, guidance=config.guidance, steps=config.steps)[0]
        wavs.append(str(folder / f"{name}.wav"))
        soundfile.write(wavs[-1], wav, pipeline.sample_rate_hz, subtype="PCM_16")
    return {"wavs": wavs}


def check_sampling(guidance: float, steps: int) -> None:
    """`UserError` for settings no sampler can work with."""
    if steps < 1:
        raise UserError(f"steps={steps}: give 1 or more")
    if guidance < 0:
        raise UserError(f"guidance={guidance}: give 0 or more (1 = none)")


def find_images(images: str) -> list[Path]:
    """Sorted picture files of a file, a folder or a glob. `UserError` where there are none."""
    path = Path(images)
    found = [path] if path.is_file() else sorted(path.iterdir()) if path.is_dir() else sorted(map(Path, glob.glob(images, recursive=True)))
    pictures = found if path.is_file() else [file for file in found if file.suffix.lower() in SUFFIXES]
    if not pictures:
        state = f"no picture ({', '.join(SUFFIXES)}) there" if found or path.exists() else "does not exist"
        raise UserError(f"images={images}: {state}; give a picture, a folder or a glob")
    return pictures


def _names(paths: list[Path]) -> list[str]:
    """The stem, or the whole name where two pictures share a stem."""
    stems = [path.stem for path in paths]
    return [stem if stems.count(stem) == 1 else path.name for stem, path in zip(stems, paths, strict=True)]


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"images: {path} is not a readable picture ({error})") from error
