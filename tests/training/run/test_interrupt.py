"""Preemption: a run that gets SIGTERM saves, and resumes where it stopped."""

import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.jsonl import read_lines
from tests.fakes.runs import losses, run_command, settings
from training.train import train


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_gets_sigterm_saves_and_resumes_bit_for_bit(
    data: str, tmp_path: Path, workers: int
) -> None:
    output = tmp_path / "run"
    process = run_command(
        data, output, workers, "steps=4000", "checkpoint_every=1000", stderr=subprocess.PIPE
    )
    while len(read_lines(output / "metrics.jsonl")) < 5 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == 1 and "run the same command again" in stderr.decode()
    (step,) = [int(marker.parent.name[5:]) for marker in output.glob("checkpoints/*/COMMITTED.json")]
    assert step == len(losses(output)) < 1000
    more = settings(data, output, steps=step + 3)
    assert not list(output.glob("STOP-*"))
    train(more)
    train(replace(more, output=str(tmp_path / "unbroken")))
    exact = 0.0 if workers == 0 else 1e-5
    assert losses(output) == pytest.approx(losses(tmp_path / "unbroken"), rel=exact, abs=0)


@pytest.mark.slow
def test_a_preempted_worker_saves_and_the_run_resumes_by_itself(
    data: str, tmp_path: Path, two_workers: Path
) -> None:
    output = tmp_path / "run"
    process = run_command(data, output, 2, "steps=40", "checkpoint_every=1000")
    while len(read_lines(output / "metrics.jsonl")) < 5 and process.poll() is None:
        time.sleep(0.02)
    os.kill(read_lines(output / "events.jsonl")[-1]["pids"][-1], signal.SIGTERM)
    assert process.wait(200) == 0
    events = read_lines(output / "events.jsonl")
    assert [event["event"] for event in events] == ["started", "stopped", "resumed", "finished"]
    assert 5 <= events[1]["step"] == events[2]["step"] < 40
    assert losses(output) == losses(two_workers)
