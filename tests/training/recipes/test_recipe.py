"""The contract: every recipe of the table has it."""

import json

import pytest
import torch

from tests.fakes.chain import Chain
from training.recipes.recipe import PipelineParts
from training.run.sides import sides_of
from training.settings import RECIPES, TrainConfig


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_a_section_of_its_own_settings(name: str) -> None:
    config = TrainConfig(data="x", output="y", recipe=name)
    assert type(config.section) is RECIPES[name].Config  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", RECIPES)
def test_the_optimisers_share_out_all_children(chain: Chain, name: str) -> None:
    run = json.loads((chain.root / name / "run.json").read_text())
    config = TrainConfig(data="x", output="y", recipe=name)
    with torch.device("meta"):
        model = RECIPES[name].build_model(config.section, run["facts"])
    sides = sides_of(model, config.optimisers)
    owned = [parameter for side in sides for parameter, _ in side.named_parameters()]
    assert sorted(owned) == sorted(parameter for parameter, _ in model.named_parameters())


def test_weights_are_in_the_order_of_the_pipeline_without_what_is_not_there() -> None:
    parts = PipelineParts(network="unet", codec="autoencoder", encoders=("image_encoder",), scheduler="s")
    assert parts.weights == ("autoencoder", "image_encoder", "unet")
