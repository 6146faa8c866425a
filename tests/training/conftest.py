"""Latents, and a run by two workers, for all tests that only read them."""

import os
import signal
import time
from pathlib import Path

import pytest

from cluster.jsonl import read_lines
from tests.fakes.latents import make_latents
from tests.fakes.pipelines import vocoder
from tests.fakes.runs import run_command


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_latents(tmp_path_factory.mktemp("latents") / "data").uri


@pytest.fixture(scope="session")
def voice(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A vocoder that is not silent; Griffin-Lim takes ten times as long."""
    folder = tmp_path_factory.mktemp("vocoder")
    vocoder().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def two_workers(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 steps by two Ray Train workers, one of them killed after the first checkpoint."""
    output = tmp_path_factory.mktemp("two") / "run"
    args = ["steps=40", "checkpoint_every=10", "validate_every=10", "validation_items=4"]
    process = run_command(data, output, 2, *args)
    # the checkpoint is uploaded beside the training: wait until it is there
    while process.poll() is None and not _past_a_checkpoint(output):
        time.sleep(0.02)
    pid = read_lines(output / "events.jsonl")[-1]["pids"][-1]
    os.kill(pid, signal.SIGKILL)
    assert process.wait(200) == 0
    return output


def _past_a_checkpoint(output: Path) -> bool:
    markers = list(output.glob("checkpoints/*/COMMITTED.json"))
    return bool(markers) and len(read_lines(output / "metrics.jsonl")) > 12
