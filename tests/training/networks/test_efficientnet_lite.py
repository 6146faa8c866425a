"""EfficientNet-Lite0: its size, TensorFlow's padding, and the names of the port that ships its weights."""

import pytest
import torch
from torch import nn

from training.networks.efficientnet_lite import Block, Convolution, EfficientNetLite, plain_state

LAYERS = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2")


def port_of(tower: EfficientNetLite) -> dict[str, torch.Tensor]:
    """A state as lukemelas' port has it, from the modules in the order in which they are applied."""
    port: dict[str, torch.Tensor] = {}
    named: list[tuple[str, nn.Module]] = [("_conv_stem", tower.stem[0]), ("_bn0", tower.stem[1])]
    for number, block in enumerate(tower.blocks):
        layers = [layer for step in block.steps for layer in list(step)[:2]]
        named += [
            (f"_blocks.{number}.{name}", layer)
            for name, layer in zip(LAYERS[-len(layers) :], layers, strict=True)
        ]
    named += [("_conv_head", tower.head[0]), ("_bn1", tower.head[1])]
    for name, module in named:
        port |= {f"{name}.{key}": tensor for key, tensor in module.state_dict().items()}
    return port | {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}


def test_the_size_is_lite0s() -> None:
    tower = EfficientNetLite()
    # 4.65 M with the classifier of 1,281,000
    assert sum(parameter.numel() for parameter in tower.parameters()) == 3_371_008
    assert len(tower.blocks) == 16
    # TensorFlow's, without which its weights give other numbers; Lite's activation quantises well
    norms = [module for module in tower.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 49 and {norm.eps for norm in norms} == {1e-3}
    bounded = [module for module in tower.modules() if isinstance(module, nn.ReLU6)]
    # after each convolution but the 16 projections
    assert len(bounded) == 49 - 16
    with torch.no_grad():
        output = tower.eval()(torch.zeros(1, 3, 64, 64))
    assert output.last_hidden_state.shape == (1, 1280, 2, 2) and output.pooler_output.shape == (1, 1280)


def test_the_ports_names_are_understood() -> None:
    tower = EfficientNetLite()
    state = plain_state(port_of(tower))
    assert all(torch.equal(state[name], tensor) for name, tensor in tower.state_dict().items())
    assert state.keys() == tower.state_dict().keys()


def test_layers_of_another_shape_are_no_lite0() -> None:
    port = port_of(EfficientNetLite())
    port["_blocks.3._depthwise_conv.weight"] = torch.zeros(144, 1, 3, 3)
    with pytest.raises(KeyError, match="_blocks.3._depthwise_conv.weight of shape"):
        plain_state(port)


@pytest.mark.parametrize("size,edges", [(8, (0, 1)), (9, (1, 1))])
def test_padding_is_tensorflows(size: int, edges: tuple[int, int]) -> None:
    layer = Convolution(1, 1, 3, stride=2).eval()
    pixels = torch.randn(1, 1, size, size)
    expected = layer[1](layer[0](nn.functional.pad(pixels, (*edges, *edges)))).clamp(0, 6)
    assert torch.allclose(layer(pixels), expected, atol=1e-6)


def test_a_block_adds_its_input_where_the_shapes_are_the_same() -> None:
    hidden = torch.randn(1, 8, 6, 6)
    for given, stride, expected in ((8, 1, hidden), (8, 2, torch.zeros(1, 8, 3, 3)), (16, 1, None)):
        block = Block(8, given, 3, stride, 6).eval()
        # of the projection, whose norm then gives zero
        nn.init.zeros_(block.steps[-1][0].weight)
        wanted = torch.zeros(1, 16, 6, 6) if expected is None else expected
        assert torch.equal(block(hidden), wanted)
