"""Two optimisers of one model: each steps its own children, as plain torch would."""

import pytest
import torch
from torch import nn

from training.recipes.recipe import Batch, Optimiser
from training.run.sides import sides_of

PAIR = (Optimiser("maker", ("maker",), gives=("made",)), Optimiser("judge", ("judge",)))


class Pair(nn.Module):
    """A maker that wants the judge to say 1, and a judge that wants to say 0."""

    def __init__(self) -> None:
        super().__init__()
        self.maker = nn.Linear(3, 3)
        self.judge = nn.Linear(3, 1)

    def forward(self, batch: Batch, optimiser: str = "maker") -> Batch:
        if optimiser == "judge":
            return {"loss": self.judge(batch["made"]).square().mean(1)}
        made = self.maker(batch["noise"])
        return {"loss": (self.judge(made) - 1).square().mean(1), "made": made.detach()}


def test_one_optimiser_wraps_the_model_itself() -> None:
    model = Pair()
    assert sides_of(model, (Optimiser("all"),)) == [model]


def test_a_side_owns_its_children_under_their_names() -> None:
    model = Pair()
    maker, judge = sides_of(model, PAIR)
    assert [name for name, _ in maker.named_parameters()] == ["maker.weight", "maker.bias"]
    assert [name for name, _ in judge.named_parameters()] == ["judge.weight", "judge.bias"]


def test_a_child_of_nobody_is_refused() -> None:
    with pytest.raises(AssertionError, match="exactly one optimiser"):
        sides_of(Pair(), (PAIR[0], Optimiser("judge")))


def test_only_the_own_side_gets_gradients() -> None:
    model = Pair()
    batch: Batch = {"noise": torch.ones(2, 3)}
    maker, judge = sides_of(model, PAIR)
    losses = maker(batch)
    losses["loss"].sum().backward()
    assert model.judge.weight.grad is None and model.maker.weight.grad is not None
    model.maker.weight.grad = None
    judge(batch | {"made": losses["made"]})["loss"].sum().backward()
    assert model.maker.weight.grad is None and model.judge.weight.grad is not None
