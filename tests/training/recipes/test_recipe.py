"""The contract: every recipe of the table has it."""

import pytest

from training.recipes.recipe import ONE_OPTIMISER, PipelineParts
from training.settings import RECIPES, TrainConfig


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_a_section_of_its_own_settings(name: str) -> None:
    config = TrainConfig(data="x", output="y", recipe=name)
    assert type(config.section) is RECIPES[name].Config  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", RECIPES)
def test_every_parameter_belongs_to_exactly_one_optimiser(name: str) -> None:
    prefixes = [prefix for optimiser in RECIPES[name].OPTIMISERS for prefix in optimiser.prefixes]
    for parameter in ("unet.conv_in.weight", "log_scale"):
        assert sum(parameter.startswith(prefix) for prefix in prefixes) == 1
    assert len(ONE_OPTIMISER) == 1


def test_weights_are_in_the_order_of_the_pipeline_without_what_is_not_there() -> None:
    parts = PipelineParts(network="unet", codec="autoencoder", encoders=("image_encoder",), scheduler="s")
    assert parts.weights == ("autoencoder", "image_encoder", "unet")
