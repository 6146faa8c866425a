"""What a run writes down of its steps."""

from pathlib import Path

from cluster.jsonl import read_lines
from tests.fakes.runs import settings
from training.train import train


def test_measurements_are_in_metrics_and_tensorboard(data: str, tmp_path: Path) -> None:
    train(settings(data, tmp_path / "run", steps=8))
    train(settings(data, tmp_path / "run"))
    line = read_lines(tmp_path / "run/metrics.jsonl")[-1]
    assert line["grad_norm"] > 0 and line["tflops"] > 0
    shown = b"".join(path.read_bytes() for path in (tmp_path / "run/tensorboard").glob("events.*"))
    assert b"train/loss" in shown and b"train/data_wait_s" in shown
