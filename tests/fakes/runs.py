"""A tiny training run for tests: its settings, the command that starts it, and what it wrote."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.jsonl import read_lines
from tests.conftest import ROOT
from training.data.randomness import SampleKey
from training.recipes import diffusion
from training.settings import TrainConfig

KILLS_TRIED = 3
TINY = diffusion.Config(
    channels=[16, 16], head_counts=[2, 2], layers_per_block=1, attention=False, norm_groups=8
)
# the same as arguments of a command
TINY_ARGS = [
    "diffusion.channels=[16,16]",
    "diffusion.head_counts=[2,2]",
    "diffusion.layers_per_block=1",
    "diffusion.attention=false",
    "diffusion.norm_groups=8",
]


def settings(data: str, output: Path, **changes: Any) -> TrainConfig:
    """12 steps of 8 samples in this process, a checkpoint every 4 steps."""
    defaults = {
        "workers": 0,
        "steps": 12,
        "global_batch": 8,
        "lanes": 4,
        "checkpoint_every": 4,
        "warmup_steps": 3,
        "lr": 1e-3,
        "diffusion": TINY,
    }
    return TrainConfig(data=data, output=str(output), **{**defaults, **changes})


def run_command(
    data: str, output: Path, workers: int, *more: str, stderr: int | None = None
) -> subprocess.Popen[bytes]:
    """`python -m training train` with the settings of `settings`, but 1,000 steps."""
    args = [*arguments(data, output, *more), f"workers={workers}"]
    return subprocess.Popen([sys.executable, "-m", "training", "train", *args], cwd=ROOT, stderr=stderr)


def arguments(data: str, output: Path, *more: str) -> list[str]:
    """What `run_command` gives, for `load_config`."""
    args = [f"data={data}", f"output={output}", "global_batch=8", "lanes=4", "warmup_steps=3", "lr=1e-3"]
    return [*args, *TINY_ARGS, *more]


def killed_run(data: str, folder: Path, *more: str) -> Path:
    """The output of a finished run of two workers, one of which was killed after the first checkpoint."""
    for attempt in range(KILLS_TRIED):
        output = folder / f"killed-{attempt}"
        process = run_command(data, output, 2, *more)
        while process.poll() is None and not list(output.glob("checkpoints/*/COMMITTED.json")):
            time.sleep(0.02)
        if process.poll() is None:
            os.kill(read_lines(output / "events.jsonl")[-1]["pids"][-1], signal.SIGKILL)
        assert process.wait(400) == 0
        if any(line["event"] == "resumed" for line in read_lines(output / "events.jsonl")):
            return output
    # on a busy machine a run may end before it is looked at
    pytest.fail(f"{KILLS_TRIED} runs ended before they could be killed")


def losses(output: Path) -> list[float]:
    """Of steps 1, 2, … of a run."""
    lines = read_lines(output / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


def poison(monkeypatch: pytest.MonkeyPatch, positions: set[int]) -> None:
    """The noise of the samples at these positions of the run is NaN."""
    make_batch = diffusion.make_batch

    def poisoned(samples: Any, keys: list[SampleKey], *more: Any) -> dict[str, torch.Tensor]:
        batch = make_batch(samples, keys, *more)
        batch["noise"][[key.position in positions for key in keys]] = torch.nan
        return batch

    monkeypatch.setattr(diffusion, "make_batch", poisoned)
