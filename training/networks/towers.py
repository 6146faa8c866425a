"""The towers of contrastive training: pictures and sounds -> features of one width each.

    image_tower = build_image_tower(ImageTowerConfig(kind="clip"), embedding_dim=512)     # [b, 3, s, s]
    audio_tower = AudioTower(AudioTowerConfig(), num_mels=64)                             # [b, frames, mels]

Image towers come from transformers, so that they load by name or folder. The loss is training.recipes.contrastive's.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import BitConfig, BitModel, CLIPVisionConfig, CLIPVisionModelWithProjection


@dataclass
class ImageTowerConfig:
    """`kind` resnet: a BiT ResNet (group norm, so nothing depends on the batch) of `widths` and `depths` per
    level; `kind` clip: a ViT of `widths[0]`, `depths[0]` layers, heads of 64 and patches of `patch`.
    `size_px`: side of its square."""

    kind: str = "clip"
    widths: list[int] = field(default_factory=lambda: [768])
    depths: list[int] = field(default_factory=lambda: [12])
    stem: int = 64
    norm_groups: int = 32
    patch: int = 32
    size_px: int = 224


@dataclass
class AudioTowerConfig:
    """Residual convolutions over time with the mels as channels; every `depths` entry is a level at half the
    frame rate.
    """

    width: int = 512
    depths: list[int] = field(default_factory=lambda: [3, 3, 9, 3])


class AudioTower(nn.Module):
    """Log mels [b, frames, mels] -> [b, 2 * width]: mean and maximum over time."""

    def __init__(self, config: AudioTowerConfig, num_mels: int):
        super().__init__()
        self.stem = nn.Conv1d(num_mels, config.width, 5, padding=2)
        levels = [
            [nn.MaxPool1d(2), *(Residual(config.width) for _ in range(depth))] for depth in config.depths
        ]
        self.levels = nn.Sequential(*[layer for level in levels for layer in level])

    def forward(self, log_mel: Tensor) -> Tensor:
        hidden = self.levels(self.stem(log_mel.transpose(1, 2)))
        return torch.cat([hidden.mean(2), hidden.amax(2)], 1)


class Residual(nn.Module):
    """x + two convolutions of x, group-normalised before each."""

    def __init__(self, width: int):
        super().__init__()
        norms = [nn.GroupNorm(8, width), nn.GroupNorm(8, width)]
        convolutions = [nn.Conv1d(width, width, 3, padding=1), nn.Conv1d(width, width, 3, padding=1)]
        nn.init.zeros_(convolutions[1].weight)
        self.steps = nn.Sequential(norms[0], nn.SiLU(), convolutions[0], norms[1], nn.SiLU(), convolutions[1])

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.steps(hidden)


def build_image_tower(image: ImageTowerConfig, embedding_dim: int) -> nn.Module:
    """A CLIP vision model or a BiT ResNet, of random weights. `embedding_dim`: of CLIP's projection."""
    return _clip(image, embedding_dim) if image.kind == "clip" else _resnet(image)


def _clip(image: ImageTowerConfig, embedding_dim: int) -> nn.Module:
    width = image.widths[0]
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=image.depths[0],
        num_attention_heads=width // 64,
        patch_size=image.patch,
        image_size=image.size_px,
        projection_dim=embedding_dim,
    )
    return CLIPVisionModelWithProjection(vision)


def _resnet(image: ImageTowerConfig) -> nn.Module:
    sizes = {"embedding_size": image.stem, "hidden_sizes": list(image.widths), "depths": list(image.depths)}
    return BitModel(
        BitConfig(**sizes, num_groups=image.norm_groups, layer_type="preactivation", global_padding=None)
    )
