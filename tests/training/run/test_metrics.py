"""What a run writes down of its steps."""

from pathlib import Path
from typing import Any

import pytest

from cluster.jsonl import parse_lines, read_lines
from cluster.storage import open_store
from tests.fakes.runs import settings
from training.train import train


def test_measurements_are_in_metrics_and_tensorboard(data: str, tmp_path: Path) -> None:
    train(settings(data, tmp_path / "run", steps=8))
    train(settings(data, tmp_path / "run"))
    line = read_lines(tmp_path / "run/metrics.jsonl")[-1]
    assert line["grad_norm"] > 0 and line["tflops"] > 0
    shown = b"".join(path.read_bytes() for path in (tmp_path / "run/tensorboard").glob("events.*"))
    assert b"train/loss" in shown and b"train/data_wait_s" in shown


def test_object_storage_gets_the_metrics_while_a_run_trains(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By time: here at every step."""
    monkeypatch.setattr("training.run.journal.SYNC_EVERY_S", 0.0)
    monkeypatch.setattr("training.run.journal.SYNC_SHARE", 1e9)
    output = f"memory://{tmp_path.name}/run"
    kind = type(open_store(output))
    replace = kind.replace
    seen: list[int] = []

    def counting(self: Any, name: str, content: bytes) -> None:
        if name == "metrics.jsonl":
            seen.append(len(parse_lines(content)))
        replace(self, name, content)

    monkeypatch.setattr(kind, "replace", counting)
    train(settings(data, output, steps=4))
    assert [count for index, count in enumerate(seen) if count not in seen[:index]][-4:] == [1, 2, 3, 4]
