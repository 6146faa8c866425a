"""`training train`: what the verb reports."""

import re
from pathlib import Path

import pytest

from tests.fakes.runs import settings
from training.train import train


def test_a_finished_run_does_nothing(data: str, tmp_path: Path) -> None:
    train(settings(data, tmp_path / "run", steps=4))
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*"))
    assert train(settings(data, tmp_path / "run", steps=4))["finished_before"]
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*")) == before


def test_without_a_terminal_the_log_says_how_far_it_is(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "training.watch")
    monkeypatch.setattr("training.watch.LOOK_EVERY_S", 0.005)
    monkeypatch.setattr("training.watch.LOG_EVERY_S", 0.0)
    train(settings(data, tmp_path / "run"))
    assert any(re.match(r"step \d+ of 12 \u00b7 loss \d", message) for message in caplog.messages)
