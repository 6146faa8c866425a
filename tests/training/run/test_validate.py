"""Validation in the loop: one number, whatever runs beside it."""

from pathlib import Path

import pytest

from cluster.jsonl import read_lines
from tests.fakes.runs import losses, settings
from training.train import train


def test_validation_depends_on_nothing_that_runs_beside_it(data: str, tmp_path: Path) -> None:
    often = {"validate_every": 4, "validation_items": 3}
    train(settings(data, tmp_path / "plain"))
    train(settings(data, tmp_path / "one", **often))
    train(settings(data, tmp_path / "other", **often, zero_stage=3, accumulate=2))
    lines = {name: read_lines(tmp_path / name / "validation.jsonl") for name in ("one", "other")}
    assert [line["step"] for line in lines["one"]] == [4, 8, 12]
    names = {"loss", "loss_at_0.1", "loss_at_0.3", "loss_at_0.5"}
    assert set(lines["one"][0]) == {"step", *names, *(f"ema_{name}" for name in names)}
    for one, other in zip(lines["one"], lines["other"], strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    assert losses(tmp_path / "one") == losses(tmp_path / "plain")
