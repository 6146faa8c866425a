"""An image tower that reads its last map position by position: where and how large a thing is stays in it.

    tower = MapTower(widths=(16, 32, 64, 96), dim=128, size_px=64)
    tower(pixels).pooler_output                    # [b, 3, 64, 64] -> [b, 128]

A ResNet averages its last map, and with it sizes away. Group norm, so that nothing depends on the batch.
Stands alone: `training.export` copies this text beside its weights.
"""

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

STEM_KERNEL = 5


class MapBlock(nn.Module):
    """x + two convolutions of x, group-normalised before each; at first the identity."""

    def __init__(self, width: int, norm_groups: int):
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.GroupNorm(norm_groups, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)]
        self.steps = nn.Sequential(*layers)
        # so that depth does no harm (Goyal et al. 2017, section 5.1)
        for parameter in layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, hidden: Tensor) -> Tensor:
        update: Tensor = self.steps(hidden)
        return hidden + update


class MapTower(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers hides its types from mypy
    """Pictures [b, 3, s, s] -> `last_hidden_state` [b, c, h, w] and `pooler_output` [b, dim].

    Every level of `widths` halves both sides and has `depths` blocks. `size_px`: s, a multiple of
    2 ** levels; the map has a place per position, so that there is one size. `ValueError` for another.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        widths: tuple[int, ...] = (16, 32, 64, 96),
        depths: tuple[int, ...] = (1, 1, 1, 1),
        dim: int = 128,
        size_px: int = 64,
        norm_groups: int = 8,
    ):
        super().__init__()
        side, rest = divmod(size_px, 2 ** len(widths))
        if rest or not side:
            raise ValueError(f"size_px={size_px}: give a multiple of {2 ** len(widths)}")
        layers: list[nn.Module] = []
        channels = 3
        for width, depth in zip(widths, depths, strict=True):
            kernel = 3 if layers else STEM_KERNEL
            layers.append(nn.Conv2d(channels, width, kernel, stride=2, padding=kernel // 2))
            layers += [MapBlock(width, norm_groups) for _ in range(depth)]
            channels = width
        self.levels = nn.Sequential(*layers, nn.GroupNorm(norm_groups, channels), nn.SiLU())
        self.pooler = nn.Linear(channels * side**2, dim)

    def forward(self, pixels: Tensor) -> BaseModelOutputWithPooling:
        hidden = self.levels(pixels)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden, pooler_output=self.pooler(hidden.flatten(1))
        )
