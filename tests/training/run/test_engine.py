"""The engine: the same gradient norm at every ZeRO stage, and options that save memory."""

from pathlib import Path
from typing import Any

import pytest

from cluster.jsonl import read_lines
from tests.fakes.runs import losses, settings
from training.run.engine import start_engines
from training.train import train


@pytest.mark.parametrize("clip", [0.1, 0.0])
def test_the_gradient_norm_is_the_same_at_every_zero_stage(data: str, tmp_path: Path, clip: float) -> None:
    norms = []
    for stage in range(4):
        train(settings(data, tmp_path / str(stage), steps=3, zero_stage=stage, gradient_clip=clip))
        norms.append([line["grad_norm"] for line in read_lines(tmp_path / str(stage) / "metrics.jsonl")])
    assert min(norms[0]) > 0.1
    assert all(found == pytest.approx(norms[0], rel=1e-5) for found in norms)


@pytest.mark.parametrize("option", ["activation_checkpointing", "offload"])
def test_options_that_save_memory_change_no_loss(
    data: str, tmp_path: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines: list[Any] = []

    def started(*args: Any) -> list[Any]:
        new = start_engines(*args)
        engines.extend(new)
        return new

    monkeypatch.setattr("training.run.setup.start_engines", started)
    for name, change in (("plain", {}), ("option", {option: True})):
        train(settings(data, tmp_path / name, **change))
    assert losses(tmp_path / "option") == pytest.approx(losses(tmp_path / "plain"), rel=1e-6)
    on = {
        "activation_checkpointing": lambda e: e.module.unet.is_gradient_checkpointing,
        "offload": lambda e: e.optimizer.cpu_offload,
    }
    assert [bool(on[option](engine)) for engine in engines] == [False, True]


@pytest.mark.parametrize("stage", [1, 3])
def test_a_small_model_reserves_little_memory(data: str, tmp_path: Path, stage: int) -> None:
    # a first run imports DeepSpeed and starts torch's threads
    train(settings(data, tmp_path / "first", steps=1, zero_stage=stage))
    before = reserved_bytes()
    train(settings(data, tmp_path / "second", steps=1, zero_stage=stage))
    # DeepSpeed's buffers stay, as its groups do: a process that trains often would reserve more than there is
    assert reserved_bytes() - before < 500e6


def reserved_bytes() -> int:
    """Private memory of this process, used or not."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if "VmData" in line)
    return 1024 * int(line.split()[1])
