"""The training loop: resumed runs equal unbroken ones bit for bit, and worker counts agree."""

import shutil
import subprocess
from pathlib import Path

import pytest

from cluster.jsonl import read_lines
from tests.fakes.ranks import train_ranks
from tests.fakes.runs import arguments, losses, run_command, settings
from training.train import train


@pytest.mark.parametrize("zero_stage,precision", [(0, "fp32"), (1, "fp32"), (2, "bf16"), (3, "fp32")])
def test_a_resumed_run_repeats_an_unbroken_one_bit_for_bit(
    data: str, tmp_path: Path, zero_stage: int, precision: str
) -> None:
    kind = {"zero_stage": zero_stage, "precision": precision}
    train(settings(data, tmp_path / "whole", **kind))
    train(settings(data, tmp_path / "broken", **kind, steps=8))
    summary = train(settings(data, tmp_path / "broken", **kind))
    assert summary["resumed_from"] == 8
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    for name in ("unet/diffusion_pytorch_model.safetensors", "conditioning.json"):
        assert (tmp_path / "broken/model" / name).read_bytes() == (
            tmp_path / "whole/model" / name
        ).read_bytes()


def test_two_micro_batches_give_the_losses_of_one(data: str, tmp_path: Path) -> None:
    train(settings(data, tmp_path / "one"))
    train(settings(data, tmp_path / "two", accumulate=2))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)


def test_a_killed_worker_costs_no_step_and_no_bit(data: str, tmp_path: Path, two_workers: Path) -> None:
    events = read_lines(two_workers / "events.jsonl")
    assert [event["event"] for event in events] == ["started", "resumed", "finished"]
    assert events[1]["step"] in (10, 20, 30)
    train_ranks(arguments(data, tmp_path / "unbroken", "steps=40", "checkpoint_every=10"), 2)
    assert losses(two_workers) == losses(tmp_path / "unbroken")


def test_one_and_two_workers_give_the_same_losses(data: str, tmp_path: Path, two_workers: Path) -> None:
    train(settings(data, tmp_path / "one", steps=40, validate_every=10, validation_items=4))
    assert losses(two_workers) == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    two, one = (read_lines(run / "validation.jsonl") for run in (two_workers, tmp_path / "one"))
    assert [line["step"] for line in two] == [10, 20, 30, 40]
    assert all(ours == pytest.approx(theirs, rel=1e-5) for ours, theirs in zip(two, one, strict=True))


def test_a_run_resumes_with_another_number_of_workers(data: str, tmp_path: Path, two_workers: Path) -> None:
    output = tmp_path / "run"
    shutil.copytree(two_workers, output)
    assert train(settings(data, output, steps=50))["resumed_from"] == 40
    train_ranks(arguments(data, output, "steps=60", "zero_stage=2"), 2)
    train(settings(data, tmp_path / "one", steps=60))
    assert losses(output) == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    events = read_lines(output / "events.jsonl")
    assert [event["step"] for event in events if event["event"] == "resumed"][-2:] == [40, 50]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_loss_that_is_nan_stops_the_run_with_one_line(data: str, tmp_path: Path, workers: int) -> None:
    args = ["steps=40", "checkpoint_every=30", "lr=1e9", "gradient_clip=0", "schedule=constant"]
    process = run_command(data, tmp_path / "run", workers, *args, stderr=subprocess.PIPE)
    _, stderr = process.communicate(timeout=200)
    assert process.returncode == 1
    (line,) = [line for line in stderr.decode().splitlines() if line.startswith("error: ")]
    assert "the loss of step" in line and "lower lr" in line
    assert not (tmp_path / "run/FINISHED.json").exists()
    assert [event["event"] for event in read_lines(tmp_path / "run/events.jsonl")] == ["started", "failed"]
