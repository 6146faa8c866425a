"""Resume and rollback: from any place to any ZeRO stage, past damage and past what is not finite."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.jsonl import read_lines
from cluster.storage import open_store
from configs.load import UserError
from tests.fakes.runs import losses, poison, settings
from training.pretrained import find_model
from training.train import train


def test_a_damaged_checkpoint_is_quarantined(data: str, tmp_path: Path) -> None:
    train(settings(data, tmp_path / "whole"))
    train(settings(data, tmp_path / "run", steps=8))
    victim = next((tmp_path / "run/checkpoints/step-00000008").rglob("exp_avg.safetensors"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    train(settings(data, tmp_path / "run"))
    assert json.loads((tmp_path / "run/checkpoints/step-00000008/COMMITTED.json").read_text())["step"] == 8
    assert "other bytes" in (tmp_path / "run/checkpoints/step-00000008/QUARANTINED.json").read_text()
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_a_marker_of_another_step_is_damaged(data: str, tmp_path: Path) -> None:
    train(settings(data, tmp_path / "run", steps=8))
    marker = tmp_path / "run/checkpoints/step-00000008/COMMITTED.json"
    marker.write_text(marker.read_text().replace('"step": 8', '"step": 9'))
    train(settings(data, tmp_path / "run"))
    assert read_lines(tmp_path / "run/events.jsonl")[-2] | {"pids": 0, "time": 0} == {
        "event": "resumed",
        "step": 4,
        "pids": 0,
        "time": 0,
    }


def test_a_run_on_object_storage_resumes_bit_for_bit(data: str, tmp_path: Path) -> None:
    remote = f"memory://{tmp_path.name}"
    train(settings(data, tmp_path / "whole"))
    config = settings(data, tmp_path)
    train(replace(config, output=remote, steps=8))
    train(replace(config, output=remote))
    store = open_store(remote)
    lines = [json.loads(line) for line in store.read("metrics.jsonl").splitlines()]
    assert [line["loss"] for line in lines] == losses(tmp_path / "whole")
    unet = "diffusion_pytorch_model.safetensors"
    assert (find_model(remote, "model", "unet") / unet).read_bytes() == (
        tmp_path / "whole/model/unet" / unet
    ).read_bytes()
    store.delete("FINISHED.json")
    with pytest.raises(UserError, match="is its training finished"):
        find_model(remote, "model", "unet")


@pytest.mark.parametrize("stages", [(1, 2), (2, 1), (0, 3), (3, 0), (1, 0), (3, 2)])
def test_a_run_resumes_at_another_zero_stage(data: str, tmp_path: Path, stages: tuple[int, int]) -> None:
    train(settings(data, tmp_path / "whole", zero_stage=stages[0]))
    train(settings(data, tmp_path / "run", zero_stage=stages[0], steps=8))
    train(settings(data, tmp_path / "run", zero_stage=stages[1]))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)


@pytest.mark.parametrize("zero_stage,precision", [(0, "fp32"), (1, "fp32"), (1, "bf16")])
def test_a_gradient_that_is_nan_rolls_back(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zero_stage: int, precision: str
) -> None:
    kind = {"zero_stage": zero_stage, "precision": precision}
    poison(monkeypatch, {8 * 9 + 3})
    train(settings(data, tmp_path / "whole", **kind))
    train(settings(data, tmp_path / "run", steps=11, **kind))
    train(settings(data, tmp_path / "run", **kind))
    for name in ("whole", "run"):
        (back,) = [
            event for event in read_lines(tmp_path / name / "events.jsonl") if event["event"] == "rolled_back"
        ]
        assert back["step"] == 8 and back["skipped_samples"] == 2 * 8 and "step 10 is nan" in back["reason"]
    assert losses(tmp_path / "run") == losses(tmp_path / "whole") and len(losses(tmp_path / "run")) == 12
    marker = json.loads((tmp_path / "run/checkpoints/step-00000012/COMMITTED.json").read_text())
    assert marker["facts"]["position"] == (12 + 2) * 8
