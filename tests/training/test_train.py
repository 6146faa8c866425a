"""`training train`: what the verb reports."""

from pathlib import Path

from tests.fakes.runs import settings
from training.train import train


def test_a_finished_run_does_nothing(data: str, tmp_path: Path) -> None:
    train(settings(data, tmp_path / "run", steps=4))
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*"))
    assert train(settings(data, tmp_path / "run", steps=4))["finished_before"]
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*")) == before
