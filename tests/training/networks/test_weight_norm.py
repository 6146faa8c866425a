"""Weight normalisation: the same outputs as without, as torch's own computes it, and folded away again."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from training.networks.weight_norm import fold_weights, normalise_weights

LAYERS = {
    "Conv1d": lambda: nn.Conv1d(3, 4, 5, stride=2, padding=2, dilation=2),
    "Conv2d": lambda: nn.Conv2d(3, 4, (5, 1), padding=(2, 0), bias=False),
    "ConvTranspose1d": lambda: nn.ConvTranspose1d(3, 4, 5, stride=2, padding=1, output_padding=1),
}


def inputs(name: str) -> torch.Tensor:
    return torch.randn(2, 3, 12, 5) if name == "Conv2d" else torch.randn(2, 3, 12)


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_it_computes_what_torchs_does(name: str) -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(LAYERS[name]())
    theirs = copy.deepcopy(ours)
    normalise_weights(ours)
    weight_norm(theirs[0])
    with torch.no_grad():
        ours[0].gain.mul_(1.5)
        theirs[0].parametrizations.weight.original0.mul_(1.5)
    given = inputs(name)
    outputs = [network(given) for network in (ours, theirs)]
    for output in outputs:
        output.square().sum().backward()
    assert torch.allclose(*outputs, atol=1e-6)
    expected = theirs[0].parametrizations.weight
    assert torch.allclose(ours[0].gain.grad, expected.original0.grad.flatten(), rtol=1e-4, atol=1e-4)
    assert torch.allclose(ours[0].weight.grad, expected.original1.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_a_folded_state_is_of_the_plain_network(name: str) -> None:
    plain = nn.Sequential(LAYERS[name]())
    normalised = copy.deepcopy(plain)
    normalise_weights(normalised)
    given = inputs(name)
    assert torch.allclose(normalised(given), plain(given), atol=1e-6)
    with torch.no_grad():
        normalised[0].gain.mul_(0.5)
    plain.load_state_dict(fold_weights(normalised.state_dict()))
    assert torch.allclose(normalised(given), plain(given), atol=1e-6)


def test_gains_are_vectors_which_do_not_decay() -> None:
    network = nn.Sequential(nn.Conv1d(3, 4, 5))
    normalise_weights(network)
    assert network[0].gain.shape == (4,)
