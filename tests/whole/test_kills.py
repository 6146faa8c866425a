"""Real kills of a training run under Ray, one after the other: what is left at the end equals a run that was
never killed, bit for bit.

Marked slow, part of `make chaos`: a minute a kill is too long for `make test`
(tests/training/run/test_loop.py kills one worker).
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from cluster.jsonl import read_lines
from tests.fakes.latents import make_latents
from tests.fakes.runs import losses, run_command

NUM_KILLS = 10
VICTIMS = ("all workers", "driver", "a worker")
STEPS = 30 + 20 * NUM_KILLS


def wait_for(happened: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    while not happened():
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)


def state_of(run: Path) -> dict[str, object]:
    """Everything in the last checkpoint but its name: tensors as bytes, and what the marker says."""
    folder = run / f"checkpoints/step-{STEPS:08d}"
    marker = json.loads((folder / "COMMITTED.json").read_text())
    parts = {"/".join(path.parts[-2:]): path for path in folder.rglob("*.safetensors")}
    tensors = {
        f"{name}/{key}": tensor.numpy().tobytes()
        for name, path in parts.items()
        for key, tensor in load_file(path).items()
    }
    return {"facts": marker["facts"], **tensors}


@pytest.mark.timeout(1800)
@pytest.mark.slow
def test_kills_cost_no_step_no_sample_and_no_bit(tmp_path: Path) -> None:
    data, run = make_latents(tmp_path / "latents").uri, tmp_path / "run"
    args = (f"steps={STEPS}", "checkpoint_every=10", "max_failures=20")
    unbroken = run_command(data, tmp_path / "unbroken", 2, *args)
    assert unbroken.wait(250) == 0
    process = run_command(data, run, 2, *args)
    for number in range(NUM_KILLS):
        victim, goal = VICTIMS[number % len(VICTIMS)], 15 + 20 * number
        wait_for(lambda goal=goal: len(read_lines(run / "metrics.jsonl")) >= goal, process)  # type: ignore[misc]
        pids = read_lines(run / "events.jsonl")[-1]["pids"]
        starts = len(read_lines(run / "events.jsonl"))
        if victim == "driver":
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            process = run_command(data, run, 2, *args)
        else:
            for pid in pids if victim == "all workers" else pids[-1:]:
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda starts=starts: len(read_lines(run / "events.jsonl")) > starts, process)  # type: ignore[misc]
    assert process.wait(250) == 0
    events = [event["event"] for event in read_lines(run / "events.jsonl")]
    assert events == ["started", *["resumed"] * NUM_KILLS, "finished"]
    assert losses(run) == losses(tmp_path / "unbroken")
    ours, theirs = state_of(run), state_of(tmp_path / "unbroken")
    assert ours == theirs and len(ours) > 20
