"""EfficientNet-Lite0 as an image tower (Tan and Le 2019, without squeeze and excitation, with ReLU6): 3.4 M.

    tower = EfficientNetLite()
    tower.load_state_dict(plain_state(torch.load(path, weights_only=True)))    # names of lukemelas' port
    tower(pixels).pooler_output                    # [b, 3, 224, 224] -> [b, 1280]

Computes what TensorFlow's does, whose weights the port has: "same" padding is by one pixel more on the right
and below where the stride is 2. Stands alone: `training.export` copies this text beside its weights.
"""

import re

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

# of each stage: blocks, kernel, stride of the first, expansion, channels (Tan and Le 2019, table 1)
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM = 32
HEAD = 1280
EPS = 1e-3  # TensorFlow's


class Convolution(nn.Sequential):
    """A convolution without bias and its norm; with `relu` ReLU6."""

    def __init__(
        self, taken: int, given: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True
    ):
        layers: list[nn.Module] = [
            nn.Conv2d(taken, given, kernel, stride, groups=groups, bias=False),
            nn.BatchNorm2d(given, eps=EPS),
        ]
        super().__init__(*layers, *([nn.ReLU6()] if relu else []))
        self.kernel = kernel
        self.stride = stride

    def forward(self, pixels: Tensor) -> Tensor:
        edges: list[int] = []
        for size in (pixels.shape[-1], pixels.shape[-2]):
            outputs = -(-size // self.stride)
            missing = max(0, (outputs - 1) * self.stride + self.kernel - size)
            edges += [missing // 2, missing - missing // 2]
        hidden = nn.functional.pad(pixels, edges)
        for layer in self:
            hidden = layer(hidden)
        return hidden


class Block(nn.Module):
    """Inverted residual (Sandler et al. 2018): expand, filter each channel, project."""

    def __init__(self, taken: int, given: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        width = taken * expansion
        layers = [Convolution(taken, width, 1)] if expansion > 1 else []
        layers += [
            Convolution(width, width, kernel, stride, groups=width),
            Convolution(width, given, 1, relu=False),
        ]
        self.steps = nn.Sequential(*layers)
        self.adds = stride == 1 and taken == given

    def forward(self, hidden: Tensor) -> Tensor:
        update: Tensor = self.steps(hidden)
        return hidden + update if self.adds else update


class EfficientNetLite(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers hides its types from mypy
    """Pictures [b, 3, s, s] -> `last_hidden_state` [b, 1280, s/32, s/32] and `pooler_output` [b, 1280]."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(3, STEM, 3, 2)
        blocks: list[nn.Module] = []
        channels = STEM
        for count, kernel, stride, expansion, given in STAGES:
            for index in range(count):
                blocks.append(Block(channels, given, kernel, stride if index == 0 else 1, expansion))
                channels = given
        self.blocks = nn.Sequential(*blocks)
        self.head = Convolution(channels, HEAD, 1)

    def forward(self, pixels: Tensor) -> BaseModelOutputWithPooling:
        hidden = self.head(self.blocks(self.stem(pixels)))
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=hidden.mean((2, 3)))


def plain_state(port: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of an `EfficientNetLite` out of one of lukemelas' port, without its classifier.

    `KeyError` where it has not the layers of Lite0.
    """
    tower = EfficientNetLite()
    state = {name: port[_port_name(name, tower)] for name in tower.state_dict()}
    other = [name for name, tensor in tower.state_dict().items() if tensor.shape != state[name].shape]
    if other:
        raise KeyError(f"{_port_name(other[0], tower)} of shape {tuple(tower.state_dict()[other[0]].shape)}")
    return state


def _port_name(name: str, tower: EfficientNetLite) -> str:
    """blocks.3.steps.1.0.weight -> _blocks.3._depthwise_conv.weight, and so on."""
    part, _, tensor = name.rpartition(".")
    inside = re.fullmatch(r"blocks\.(\d+)\.steps\.(\d+)\.(\d)", part)
    if not inside:
        names = {"stem.0": "_conv_stem", "stem.1": "_bn0", "head.0": "_conv_head", "head.1": "_bn1"}
        return f"{names[part]}.{tensor}"
    block, step, layer = (int(number) for number in inside.groups())
    # the first block expands nothing
    step += 3 - len(tower.get_submodule(f"blocks.{block}.steps"))
    layers = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
    return f"_blocks.{block}.{layers[step][layer]}.{tensor}"
