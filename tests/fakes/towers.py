"""A published image tower and a codec, tiny, of random weights.

save_tower(folder)
save_codec(folder)
"""

import json
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

OURS = {
    "size": {"height": 32, "width": 32},
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "do_resize": True,
}
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "projection_dim": 8,
}


def save_tower(folder: Path, kind: Any = CLIPVisionModelWithProjection) -> Path:
    kind(CLIPVisionConfig(image_size=32, patch_size=8, **TOWER)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(OURS))
    return folder


def save_codec(folder: Path, channels: int = 1, levels: int = 3) -> Path:
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
    }
    widths = {"block_out_channels": (4,) * levels, "norm_num_groups": 2, "latent_channels": 8}
    AutoencoderKL(in_channels=channels, out_channels=channels, **blocks, **widths).save_pretrained(folder)
    return folder
