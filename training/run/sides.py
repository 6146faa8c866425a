"""A model that several optimisers step: one engine for each, around the children that are its own.

    sides = [Side(model, optimiser) for optimiser in config.optimisers]
    losses = sides[0](batch)            # model(batch, "generator"); gradients only for the generator

One optimiser needs no side: its engine wraps the model itself. Knows nothing of DeepSpeed.
"""

import torch
from torch import nn

from training.recipes.recipe import Batch, Optimiser


class Side(nn.Module):
    """The children of one optimiser, registered under their names in the model; the others are only used."""

    def __init__(self, model: nn.Module, optimiser: Optimiser):
        super().__init__()
        self.optimiser = optimiser
        for name in optimiser.children:
            self.add_module(name, model.get_submodule(name))
        # in a tuple: registered, the children of the other side would be this one's, too
        self.whole = (model,)
        # what is frozen stays so
        self.trained = [parameter for parameter in self.parameters() if parameter.requires_grad]

    def forward(self, batch: Batch) -> Batch:
        self.take_gradients()
        losses: Batch = self.whole[0](batch, self.optimiser.name)
        return losses

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def take_gradients(self) -> None:
        """For this side's parameters alone: those of an opponent are constants of its loss."""
        for parameter in self.whole[0].parameters():
            parameter.requires_grad_(False)
        for parameter in self.trained:
            parameter.requires_grad_(True)


def sides_of(model: nn.Module, optimisers: tuple[Optimiser, ...]) -> list[nn.Module]:
    """What each optimiser's engine wraps. The model itself where there is one optimiser."""
    if len(optimisers) == 1:
        return [model]
    taken = [name for optimiser in optimisers for name in optimiser.children]
    children = [name for name, _ in model.named_children()]
    assert sorted(taken) == sorted(children), "each child is stepped by exactly one optimiser"
    return [Side(model, optimiser) for optimiser in optimisers]
