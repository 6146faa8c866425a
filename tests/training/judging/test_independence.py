"""A judge that the model learnt from is refused, by what the model pins and by its numbers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cluster.dataset import Dataset
from configs.load import UserError
from tests.fakes.chain import Chain
from training.judging.independence import check_independent, check_unseen, same_weights
from training.judging.sound import JudgeFacts


def model_of(tower: nn.Module, **stated: dict[str, str]) -> Any:
    config = type("Config", (), {"conditioning": stated})
    return type("Pipeline", (), {"config": config, "image_encoder": tower})


def facts(sha256: str = "w", **parts: str) -> JudgeFacts:
    return {"name": "runs/j", "kind": "contrastive", "sha256": sha256, "parts": parts}


def tower(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(3, 2)


@pytest.mark.parametrize(
    "stated", [{"sha256": {"image_encoder": "same"}}, {"exported_sha256": {"image_encoder": "same"}}]
)
def test_what_the_model_pins_is_refused(stated: dict[str, Any]) -> None:
    judge = facts(image_encoder="same")
    with pytest.raises(UserError, match="judge=runs/j: the model was trained with this encoder"):
        check_independent(judge, tower(0), model_of(tower(1), **stated), allowed=False)
    check_independent(judge, tower(0), model_of(tower(1), **stated), allowed=True)
    assert judge["learnt_by_model"].startswith("yes")


def test_the_same_numbers_in_other_files_are_refused() -> None:
    with pytest.raises(UserError, match="no witness of itself"):
        check_independent(facts(), tower(0), model_of(tower(0)), allowed=False)


def test_others_are_taken_and_what_is_not_known_is_said() -> None:
    judge = facts(image_encoder="other")
    check_independent(judge, tower(0), model_of(tower(1), sha256={"image_encoder": "same"}), allowed=False)
    assert judge["learnt_by_model"] == "no"
    check_independent(judge, tower(0), None, allowed=False)
    assert judge["learnt_by_model"] == "not known: no model was named"


def test_weights_are_compared_by_name_and_number() -> None:
    assert same_weights(tower(0), tower(0)) and not same_weights(tower(0), tower(1))
    assert not same_weights(tower(0), nn.Linear(2, 3)) and not same_weights(
        tower(0), nn.Linear(3, 2, bias=False)
    )


def test_a_judge_that_learnt_from_the_clips_is_refused(chain: Chain, tmp_path: Path) -> None:
    clips = Dataset.open(chain.clips)
    home = Path(chain.contrastive) / "model"
    with pytest.raises(
        UserError, match="judge=runs/j: learnt from split=train of .*, and knows its pairs by heart"
    ):
        check_unseen("runs/j", home, clips, "train")
    check_unseen("runs/j", home, clips, "validation")
    # of published weights nothing is known
    (tmp_path / "config.json").write_text("{}")
    check_unseen("runs/j", tmp_path, clips, "train")
