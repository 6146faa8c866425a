"""Training runs: resumed ones equal unbroken ones bit for bit, worker counts agree, mistakes are refused at the door."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from configs.load import UserError
from tests.conftest import ROOT
from tests.latents import make_latents
from training.journal import read_lines
from training.recipes import diffusion
from training.settings import TrainConfig
from training.train import train

TINY = diffusion.Config(channels=[16, 16], head_counts=[2, 2], layers_per_block=1, attention=False, norm_groups=8)
WORDS = (
    "diffusion.channels=[16,16] diffusion.head_counts=[2,2] diffusion.layers_per_block=1 diffusion.attention=false diffusion.norm_groups=8"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_latents(tmp_path_factory.mktemp("latents") / "data").uri


def settings(data: str, output: Path, **other: Any) -> TrainConfig:
    basic = {"workers": 0, "steps": 12, "global_batch": 8, "lanes": 4, "checkpoint_every": 4, "warmup_steps": 3, "lr": 1e-3}
    return TrainConfig(data=data, output=str(output), diffusion=TINY, **{**basic, **other})


def losses(output: Path) -> list[float]:
    lines = read_lines(output / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


@pytest.mark.parametrize("zero_stage,precision", [(0, "fp32"), (1, "fp32"), (2, "bf16"), (3, "fp32")])
def test_a_resumed_run_gives_the_losses_of_an_unbroken_one_bit_for_bit(data: str, tmp_path: Path, zero_stage: int, precision: str) -> None:
    kind = {"zero_stage": zero_stage, "precision": precision}
    train(settings(data, tmp_path / "whole", **kind))
    train(settings(data, tmp_path / "broken", **kind, steps=8))
    summary = train(settings(data, tmp_path / "broken", **kind))
    assert summary["resumed_from"] == 8
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    for name in ("unet/diffusion_pytorch_model.safetensors", "conditioning.json"):
        assert (tmp_path / "broken/model" / name).read_bytes() == (tmp_path / "whole/model" / name).read_bytes()


def test_a_finished_run_says_so_and_does_nothing(data: str, tmp_path: Path) -> None:
    train(settings(data, tmp_path / "run", steps=4))
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*"))
    assert train(settings(data, tmp_path / "run", steps=4))["finished_before"]
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*")) == before


def test_a_damaged_checkpoint_is_put_into_quarantine_and_the_one_before_is_taken(data: str, tmp_path: Path) -> None:
    train(settings(data, tmp_path / "whole"))
    train(settings(data, tmp_path / "run", steps=8))
    victim = next((tmp_path / "run/checkpoints/step-00000008").rglob("weights.safetensors"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    train(settings(data, tmp_path / "run"))
    assert json.loads((tmp_path / "run/checkpoints/step-00000008/COMMITTED.json").read_text())["step"] == 8
    assert "other bytes" in (tmp_path / "run/checkpoints/step-00000008/QUARANTINED.json").read_text()
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_only_the_newest_checkpoints_are_kept(data: str, tmp_path: Path) -> None:
    train(settings(data, tmp_path / "run", keep_checkpoints=2))
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").glob("*/COMMITTED.json")) == ["COMMITTED.json"] * 2
    assert {path.parent.name for path in (tmp_path / "run/checkpoints").glob("*/COMMITTED.json")} == {"step-00000008", "step-00000012"}


@pytest.mark.parametrize(
    "change,says",
    [
        ({"lr": 2e-3}, "lr: 0.001 (existing) -> 0.002 (yours)"),
        ({"seed": 1}, "seed: 0 (existing) -> 1 (yours)"),
        ({"zero_stage": 2}, "zero_stage: 1 (existing) -> 2 (yours)"),
    ],
)
def test_other_settings_on_a_started_run_are_refused(data: str, tmp_path: Path, change: dict[str, Any], says: str) -> None:
    train(settings(data, tmp_path / "run", steps=4))
    with pytest.raises(UserError, match="other settings") as error:
        train(settings(data, tmp_path / "run", **change))
    assert says in str(error.value)


@pytest.mark.parametrize(
    "change,says",
    [
        ({"recipe": "difusion"}, "recipe=difusion"),
        ({"global_batch": 10}, "global_batch=10: must be a multiple of lanes=4; the nearest is"),
        ({"workers": 3}, "workers=3: must divide lanes=4; legal here: 1, 2, 4"),
        ({"precision": "fp16"}, "precision=fp16: give one of fp32, bf16"),
        ({"zero_stage": 4}, "zero_stage=4"),
        ({"ema": 1.0}, "ema=1.0"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_settings_that_cannot_work_are_refused_naming_value_and_fix(data: str, tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as error:
        settings(data, tmp_path / "run", **change)
    assert says in str(error.value)
    assert not (tmp_path / "run").exists()


def run_command(data: str, output: Path, workers: int, *more: str) -> subprocess.Popen[bytes]:
    words = f"data={data} output={output} workers={workers} global_batch=8 lanes=4 warmup_steps=3 lr=1e-3 {WORDS}".split()
    return subprocess.Popen([sys.executable, "-m", "training", "train", *words, *more], cwd=ROOT)


@pytest.fixture(scope="module")
def two_workers(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 steps by two Ray Train workers, one of them killed after the first checkpoint."""
    output = tmp_path_factory.mktemp("two") / "run"
    process = run_command(data, output, 2, "steps=40", "checkpoint_every=10")
    while len(read_lines(output / "metrics.jsonl")) < 13 and process.poll() is None:
        time.sleep(0.02)
    pid = read_lines(output / "events.jsonl")[-1]["pids"][-1]
    os.kill(pid, signal.SIGKILL)
    assert process.wait(200) == 0
    return output


def test_a_killed_worker_costs_no_step_and_no_bit(data: str, tmp_path: Path, two_workers: Path) -> None:
    events = read_lines(two_workers / "events.jsonl")
    assert [event["event"] for event in events] == ["started", "resumed", "finished"]
    assert events[1]["step"] in (10, 20, 30)
    process = run_command(data, tmp_path / "unbroken", 2, "steps=40", "checkpoint_every=10")
    assert process.wait(200) == 0
    assert losses(two_workers) == losses(tmp_path / "unbroken")


def test_one_worker_and_two_workers_give_the_same_losses(data: str, tmp_path: Path, two_workers: Path) -> None:
    train(settings(data, tmp_path / "one", steps=40))
    assert losses(two_workers) == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
