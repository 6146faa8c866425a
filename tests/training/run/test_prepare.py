"""The start-up check of a run: what cannot work later is refused before anything is written."""

from pathlib import Path
from typing import Any

import pytest

from configs.load import UserError
from tests.fakes.runs import settings
from training.train import train


def test_what_a_run_needs_later_is_checked_at_the_start(data: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="split=dev"):
        train(settings(data, tmp_path / "run", validate_every=2, validation_split="dev"))
    assert not (tmp_path / "run/events.jsonl").exists()


@pytest.mark.parametrize(
    "change,says",
    [
        ({"lr": 2e-3}, "lr: 0.001 (existing) -> 0.002 (yours)"),
        ({"seed": 1}, "seed: 0 (existing) -> 1 (yours)"),
        ({"precision": "bf16"}, 'precision: "fp32" (existing) -> "bf16" (yours)'),
    ],
)
def test_other_settings_on_a_started_run_are_refused(
    data: str, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    train(settings(data, tmp_path / "run", steps=4))
    with pytest.raises(UserError, match="other settings") as error:
        train(settings(data, tmp_path / "run", **change))
    assert says in str(error.value)
