"""fp16: the scale of the loss and what it skips are the same in a resumed run, bit for bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.jsonl import read_lines
from configs.load import UserError
from tests.fakes.runs import losses, settings
from training.checkpoints.store import ScaleState
from training.run import engine, resume
from training.run.scaling import restore_scale, scale_of
from training.settings import TrainConfig
from training.train import train

UNET = "model/unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def eager_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scale so high that the first steps overflow, and that is doubled after three good steps."""
    monkeypatch.setattr(engine, "INITIAL_POWER", 24)
    monkeypatch.setattr(engine, "WINDOW", 3)


def halves(data: str, output: Path, **changes: Any) -> TrainConfig:
    return settings(data, output, **{"precision": "fp16", "steps": 24, "checkpoint_every": 3, **changes})


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_a_resumed_run_scales_and_skips_as_an_unbroken_one(
    data: str, tmp_path: Path, zero_stage: int
) -> None:
    train(halves(data, tmp_path / "whole", zero_stage=zero_stage))
    for steps in (5, 13, 24):
        train(halves(data, tmp_path / "run", zero_stage=zero_stage, steps=steps))
    whole, run = (read_lines(tmp_path / name / "metrics.jsonl") for name in ("whole", "run"))
    scales = [line["loss_scale"] for line in whole]
    assert [line["loss_scale"] for line in run] == scales
    assert min(scales) < 2**24 and any(
        after > before for before, after in zip(scales, scales[1:], strict=False)
    )
    assert [line["grad_norm"] for line in run] == [line["grad_norm"] for line in whole]
    skipped = sum(line["grad_norm"] == 0 for line in whole)
    assert 2 <= skipped < 20
    states = [
        json.loads((tmp_path / name / "checkpoints/step-00000024/COMMITTED.json").read_text())["facts"][
            "scales"
        ]
        for name in ("whole", "run")
    ]
    assert states[0] == states[1] and states[0][0]["skipped"] == skipped
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert (tmp_path / "run" / UNET).read_bytes() == (tmp_path / "whole" / UNET).read_bytes()


def test_it_learns_what_fp32_learns(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "INITIAL_POWER", 10)
    train(halves(data, tmp_path / "fp16", steps=12))
    train(halves(data, tmp_path / "fp32", steps=12, precision="fp32"))
    assert losses(tmp_path / "fp16") == pytest.approx(losses(tmp_path / "fp32"), rel=5e-3)
    assert losses(tmp_path / "fp16") != losses(tmp_path / "fp32")


def test_a_processor_without_it_is_refused(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False)
    with pytest.raises(UserError, match="precision=fp16: the CPU here has no such arithmetic"):
        train(halves(data, tmp_path / "run"))
    with pytest.raises(UserError, match="zero_stage=0: averages no fp32 weights with precision=fp16"):
        halves(data, tmp_path / "run", zero_stage=0)


def test_the_other_precisions_have_no_scale(data: str, tmp_path: Path) -> None:
    train(halves(data, tmp_path / "run", precision="bf16", steps=3))
    assert "loss_scale" not in read_lines(tmp_path / "run/metrics.jsonl")[-1]
    marker = json.loads((tmp_path / "run/checkpoints/step-00000003/COMMITTED.json").read_text())
    assert "scales" not in marker["facts"]


def test_a_restored_scale_is_the_stored_one(data: str, tmp_path: Path) -> None:
    kind = {"zero_stage": 1, "steps": 4, "checkpoint_every": 4}
    states: list[ScaleState] = []

    def restored(side: Any, state: ScaleState) -> None:
        # of which every number is another one than a fresh engine has
        changed: ScaleState = {
            "scale": 2.0**7,
            "steps": 41,
            "last_overflow": 17,
            "hysteresis": state["hysteresis"],
            "skipped": 3,
        }
        restore_scale(side, changed)
        states.append(changed)
        found = scale_of(side)
        assert found is not None
        states.append(found)

    train(halves(data, tmp_path / "run", **kind))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume, "restore_scale", restored)
        train(halves(data, tmp_path / "run", **{**kind, "steps": 5}))
    assert states[0] == states[1]
