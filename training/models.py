"""Finds trained models by what a user types: a run folder, its model folder, or any `save_pretrained` folder.

Used by precompute (autoencoder, image encoder) and by everything that opens a pipeline. Loads local folders only.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.utils.logging import disable_progress_bar as quiet_diffusers
from torch import nn
from transformers import AutoModel, CLIPVisionModelWithProjection
from transformers.utils.logging import disable_progress_bar as quiet_transformers

from configs.load import UserError

quiet_diffusers()
quiet_transformers()


def find_model(path: str, setting: str, inside: str = "") -> Path:
    """The `save_pretrained` folder behind `path`: itself, `path/model`, or `inside` one of them.

    `UserError`, naming `setting`, where no config.json is found there.
    """
    root = Path(path)
    places = [place / name for place in (root, root / "model") for name in (inside, "") if name or place.name]
    for place in [*places, root]:
        if (place / "config.json").is_file():
            return place
    state = "has no config.json (is its training finished?)" if root.exists() else "does not exist"
    raise UserError(f"{setting}={path}: {state}; give a finished run or a save_pretrained folder")


def load_autoencoder(folder: Path) -> nn.Module:
    """`AutoencoderKL`, frozen, in eval mode. `UserError` for another class of model."""
    name = json.loads((folder / "config.json").read_text()).get("_class_name")
    if name != "AutoencoderKL":
        raise UserError(f"autoencoder={folder}: holds a {name}, need an AutoencoderKL")
    return AutoencoderKL.from_pretrained(folder).eval().requires_grad_(False)


def load_image_encoder(folder: Path) -> nn.Module:
    """A transformers image tower, frozen, in eval mode, on one dtype (float32)."""
    clip = json.loads((folder / "config.json").read_text()).get("model_type") in ("clip", "clip_vision_model")
    loader: Any = CLIPVisionModelWithProjection if clip else AutoModel
    return loader.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval().requires_grad_(False)


def read_processor(folder: Path) -> dict[str, Any]:
    """The image settings of a tower. `UserError` where preprocessor_config.json is missing."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise UserError(f"image_encoder={folder}: preprocessor_config.json is missing; save the image processor into the folder")
    return json.loads(path.read_text())


def folder_sha256(folder: Path) -> str:
    """Over the names and bytes of a model folder's files: what makes latents different."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.is_file() and path.suffix in (".json", ".safetensors", ".bin"):
            digest.update(f"{path.name} {path.stat().st_size} ".encode())
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
