"""What `make chaos` draws: every recipe with settings that load, the same for the same seed; and it sees a
difference.
"""

import itertools
import json
import random
from pathlib import Path

import pytest

from configs.load import load_config
from tests.whole.chaos import recipes_in_turn
from tests.whole.chaos_training import RECIPES, check_equal, draw_legs
from training.settings import RECIPES as TRAINED
from training.settings import TrainConfig


def test_every_recipe_is_drawn_before_one_comes_again() -> None:
    assert set(RECIPES) == set(TRAINED)
    drawn = list(itertools.islice(recipes_in_turn(random.Random(0)), 2 * len(RECIPES)))
    assert set(drawn[: len(RECIPES)]) == set(drawn[len(RECIPES) :]) == set(RECIPES)
    assert drawn == list(itertools.islice(recipes_in_turn(random.Random(0)), 2 * len(RECIPES)))


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_its_settings_are_those_of_the_recipe(recipe: str) -> None:
    config = load_config(TrainConfig, ["data=x", "output=y", *RECIPES[recipe].args])
    assert config.recipe == recipe
    if recipe == "autoencoder":  # with its discriminator, from within the first leg on
        assert config.autoencoder.discriminator_weight
        assert config.autoencoder.discriminator_start < RECIPES[recipe].leg_steps


def test_every_leg_has_other_workers_and_another_stage() -> None:
    for seed in range(50):
        (workers, stage), (others, another) = draw_legs(random.Random(seed))
        assert workers != others and stage != another


def test_a_number_or_a_weight_that_differs_is_seen(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "model/model.safetensors").write_bytes(b"weights")
        lines = [{"step": step, "loss": 0.5, "seconds": len(name)} for step in (1, 2)]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    check_equal(tmp_path / "a", tmp_path / "b")
    metrics = tmp_path / "b/metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("0.5", "0.5000000001", 1))
    with pytest.raises(AssertionError, match=r"steps \[1\] differ"):
        check_equal(tmp_path / "a", tmp_path / "b")
    metrics.write_text((tmp_path / "a/metrics.jsonl").read_text())
    (tmp_path / "b/model/model.safetensors").write_bytes(b"Weights")
    with pytest.raises(AssertionError, match="models differ"):
        check_equal(tmp_path / "a", tmp_path / "b")
