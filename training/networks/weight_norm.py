"""Weight normalisation (Salimans and Kingma 2016): the length of each kernel is a parameter of its own.

    normalise_weights(network)                 # in place: every convolution gets a `gain` per kernel
    plain = fold_weights(network.state_dict())  # the weights of the same network without gains

torch's own is a parametrisation: a module in the place of a tensor, which ZeRO 3, where a weight is whole
only while its module runs, aborts on. Here the gain is a parameter of the convolution itself. As a vector it
is not decayed.
"""

from typing import Any

import torch
from torch import Tensor, nn

GAIN = ".gain"


class NormalisedConv1d(nn.Conv1d):
    """`gain` [out]: the length of each kernel."""

    gain: nn.Parameter

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self._conv_forward(input, _weight(self.weight, self.gain), self.bias)
        return output


class NormalisedConv2d(nn.Conv2d):
    """`gain` [out]: the length of each kernel."""

    gain: nn.Parameter

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self._conv_forward(input, _weight(self.weight, self.gain), self.bias)
        return output


class NormalisedConvTranspose1d(nn.ConvTranspose1d):
    """`gain` [in]: the first axis of its weight is what it takes."""

    gain: nn.Parameter

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        return nn.functional.conv_transpose1d(
            input,
            _weight(self.weight, self.gain),
            self.bias,
            self.stride,
            self.padding,  # type: ignore[arg-type]  # a number: only convolutions know "same"
            self.output_padding,
            self.groups,
            self.dilation,
        )


NORMALISED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: NormalisedConv1d,
    nn.Conv2d: NormalisedConv2d,
    nn.ConvTranspose1d: NormalisedConvTranspose1d,
}


def normalise_weights(network: nn.Module) -> None:
    """Gives every convolution of `network` its gains, in place; its outputs stay what they were."""
    for module in list(network.modules()):
        normalised = NORMALISED.get(type(module))
        if normalised is not None:
            # the same object with its weights: only how it computes changes
            module.__class__ = normalised
            weight: Tensor = module.weight  # type: ignore[assignment]
            module.gain = nn.Parameter(_lengths(weight.detach()))


def fold_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state with gains -> that of the plain network, whose outputs are the same to rounding."""
    plain = {name: tensor for name, tensor in state.items() if not name.endswith(GAIN)}
    for name, gain in state.items():
        if name.endswith(GAIN):
            weight = name.removesuffix(GAIN) + ".weight"
            plain[weight] = _weight(plain[weight], gain)
    return plain


def _weight(direction: Tensor, gain: Tensor) -> Tensor:
    """`direction` [k, ...] with kernels of length `gain` [k]."""
    scale = gain / _lengths(direction)
    return direction * scale.view(-1, *[1] * (direction.ndim - 1))


def _lengths(weight: Tensor) -> Tensor:
    """[k, ...] -> [k]; in float32, because bfloat16 adds up thousands of squares badly."""
    lengths: Tensor = torch.linalg.vector_norm(weight.flatten(1).float(), dim=1)
    return lengths.to(weight.dtype)
