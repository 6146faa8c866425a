"""The towers of contrastive training: a picture or a log mel -> one vector.

    build_image_tower(ImageTowerConfig(kind="clip"), embedding_dim=512)      # of transformers; [b, 3, s, s]
    AudioTower(AudioTowerConfig(), num_mels=64)              # [b, frames, mels] -> [b, 2 * width]

CLAP's are in training.networks.clap. Image towers are stock, so that `from_pretrained` loads them anywhere.
No head, no loss and no data here (training.recipes.contrastive).
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import (
    BitConfig,
    BitModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from training.networks.clap import HtsatConfig
from training.networks.map_tower import MapTower

DERIVED_AT_MOST_PX = 128  # of what a small machine learns from; a tower that should see more says so
IMAGE_KINDS = ("", "resnet", "map", "clip", "siglip")
AUDIO_KINDS = ("conv", "clap")
HEAD_WIDTH = 64  # of a ViT at every size (Dosovitskiy et al. 2021, table 1)
STEM_KERNEL = 5
NORM_GROUPS = 8


@dataclass
class ImageTowerConfig:
    """`kind` resnet: a BiT ResNet (group norm, so nothing depends on the batch) of `widths` and `depths` per
    level; `kind` map: training.networks.map_tower's, of such widths and depths, whose embedding has `dim`
    numbers; `kind` clip: a ViT of `widths[0]`, `depths[0]` layers, heads of 64 and patches of `patch`; `kind`
    siglip: such a ViT that pools by attention; `kind` "": no pictures. `size_px`: side of its square; 0: the
    short side of the data's frames, at most 128 (`size_for`).
    """

    # clip (ViT), siglip (ViT that pools by attention), resnet (BiT), map, or "": no pictures
    kind: str = "clip"
    widths: list[int] = field(default_factory=lambda: [768])  # one per level; of clip and siglip one
    # blocks per level; of clip and siglip one, the layers
    depths: list[int] = field(default_factory=lambda: [12])
    stem: int = 64  # channels of resnet's first convolution
    norm_groups: int = 32  # of group norm; of resnet and map
    patch: int = 32  # side of a patch in pixels; of clip and siglip
    size_px: int = 224  # side of its square; 0 = as the frames of the data, at most 128
    dim: int = 128  # numbers of map's embedding

    @property
    def pooled_dim(self) -> int:
        """How wide the pooled output is."""
        return self.dim if self.kind == "map" else self.widths[-1]

    @property
    def factor(self) -> int:
        """What the side must be a multiple of."""
        if self.kind == "map":
            return 1 << len(self.widths)
        return self.patch if self.kind in ("clip", "siglip") else 1


@dataclass
class AudioTowerConfig:
    """`kind` conv: residual convolutions over time with the mels as channels; `kind` clap: `htsat`, which
    projects by itself.

    Of conv, every entry of `depths` is a level of that many blocks of `width`, at half the frame rate of the
    one before.
    """

    width: int = 512  # channels; of conv
    # blocks per level, each at half the frame rate of the one before; of conv
    depths: list[int] = field(default_factory=lambda: [3, 3, 9, 3])
    kind: str = "conv"  # conv, or clap: HTSAT
    htsat: HtsatConfig = field(default_factory=HtsatConfig)


def size_for(image: ImageTowerConfig, frame_px: int) -> int:
    """The side for frames whose short side is `frame_px`: a multiple of what the tower takes.

    >>> size_for(ImageTowerConfig(kind="map", widths=[16, 32, 64, 96]), 100)
    96
    """
    side = min(frame_px, DERIVED_AT_MOST_PX)
    return max(image.factor, side - side % image.factor)


def build_image_tower(image: ImageTowerConfig, embedding_dim: int) -> nn.Module:
    """Of random weights. CLIP's projects to `embedding_dim` by itself."""
    if image.kind == "resnet":
        return _resnet(image)
    if image.kind == "map":
        tower: nn.Module = MapTower(
            tuple(image.widths), tuple(image.depths), image.dim, image.size_px, image.norm_groups
        )
        return tower
    return _clip(image, embedding_dim) if image.kind == "clip" else _siglip(image)


def _clip(image: ImageTowerConfig, embedding_dim: int) -> nn.Module:
    vision = CLIPVisionConfig(**_vit(image), projection_dim=embedding_dim)
    tower: nn.Module = CLIPVisionModelWithProjection(vision)
    return tower


def _siglip(image: ImageTowerConfig) -> nn.Module:
    tower: nn.Module = SiglipVisionModel(SiglipVisionConfig(**_vit(image)))
    return tower


def _vit(image: ImageTowerConfig) -> dict[str, int]:
    """Settings that ViTs of transformers share."""
    width = image.widths[0]
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": image.depths[0],
        "num_attention_heads": width // HEAD_WIDTH,
        "patch_size": image.patch,
        "image_size": image.size_px,
    }


def _resnet(image: ImageTowerConfig) -> nn.Module:
    config = BitConfig(
        embedding_size=image.stem,
        hidden_sizes=list(image.widths),
        depths=list(image.depths),
        num_groups=image.norm_groups,
        layer_type="preactivation",
        # PyTorch's symmetric padding: TensorFlow's "SAME" pads one side more and shifts the picture
        global_padding=None,
    )
    tower: nn.Module = BitModel(config)
    return tower


class AudioTower(nn.Module):
    """Log mels [b, frames, mels] -> [b, 2 * width]: mean and maximum over time.

    Both: the mean hears what lasts, the maximum what happens once.
    """

    def __init__(self, config: AudioTowerConfig, num_mels: int):
        super().__init__()
        self.stem = nn.Conv1d(num_mels, config.width, STEM_KERNEL, padding=STEM_KERNEL // 2)
        layers: list[nn.Module] = []
        for depth in config.depths:
            layers.append(nn.MaxPool1d(2))
            layers += [Residual(config.width) for _ in range(depth)]
        self.levels = nn.Sequential(*layers)

    def forward(self, log_mel: Tensor) -> Tensor:
        hidden = self.levels(self.stem(log_mel.transpose(1, 2)))
        return torch.cat([hidden.mean(2), hidden.amax(2)], 1)


class Residual(nn.Module):
    """x + two convolutions of x, group-normalised before each."""

    def __init__(self, width: int):
        super().__init__()
        norms = [nn.GroupNorm(NORM_GROUPS, width), nn.GroupNorm(NORM_GROUPS, width)]
        convolutions = [nn.Conv1d(width, width, 3, padding=1), nn.Conv1d(width, width, 3, padding=1)]
        # a block starts as the identity, so that depth does no harm (Goyal et al. 2017, section 5.1)
        nn.init.zeros_(convolutions[1].weight)
        self.steps = nn.Sequential(norms[0], nn.SiLU(), convolutions[0], norms[1], nn.SiLU(), convolutions[1])

    def forward(self, hidden: Tensor) -> Tensor:
        steps: Tensor = self.steps(hidden)
        return hidden + steps
