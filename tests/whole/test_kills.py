"""A training run under Ray that is killed again and again ends bit for bit as one that never was.

Marked slow, part of `make chaos`: a minute a kill is too long for `make test`
(tests/training/run/test_loop.py kills one worker).
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
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
    """Everything in the last checkpoint but its name: tensors as bytes, and the metadata of the marker."""
    folder = run / f"checkpoints/step-{STEPS:08d}"
    state: dict[str, object] = {"facts": json.loads((folder / "COMMITTED.json").read_text())["facts"]}
    for path in folder.rglob("*.safetensors"):
        for key, tensor in load_file(path).items():
            state["/".join((*path.parts[-2:], key))] = tensor.numpy().tobytes()
    return state


def kill_victim(victim: str, driver: subprocess.Popen[bytes], pids: list[int]) -> None:
    if victim == "driver":
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        return
    for pid in pids if victim == "all workers" else pids[-1:]:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.timeout(1800)
@pytest.mark.slow
def test_a_run_with_kills_equals_one_without(tmp_path: Path) -> None:
    data = make_latents(tmp_path / "latents").uri
    run = tmp_path / "run"
    args = (f"steps={STEPS}", "checkpoint_every=10", "max_failures=20")
    unbroken = run_command(data, tmp_path / "unbroken", 2, *args)
    assert unbroken.wait(250) == 0
    process = run_command(data, run, 2, *args)
    for kill in range(NUM_KILLS):
        steps_before_kill = 15 + 20 * kill
        wait_for(partial(has_lines, run / "metrics.jsonl", steps_before_kill), process)
        events = read_lines(run / "events.jsonl")
        victim = VICTIMS[kill % len(VICTIMS)]
        kill_victim(victim, process, events[-1]["pids"])
        if victim == "driver":
            process = run_command(data, run, 2, *args)
        wait_for(partial(has_lines, run / "events.jsonl", len(events) + 1), process)
    assert process.wait(250) == 0
    names = [event["event"] for event in read_lines(run / "events.jsonl")]
    assert names == ["started", *["resumed"] * NUM_KILLS, "finished"]
    assert losses(run) == losses(tmp_path / "unbroken")
    state = state_of(run)
    assert state == state_of(tmp_path / "unbroken") and len(state) > 20


def has_lines(path: Path, count: int) -> bool:
    return len(read_lines(path)) >= count
