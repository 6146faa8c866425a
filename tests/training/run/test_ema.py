"""Validation by the averaged weights: the loss of what ships, at every ZeRO stage, without a bit of the
training changed.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cluster.dataset import Dataset
from cluster.jsonl import read_lines
from tests.fakes.latents import make_latents
from tests.fakes.runs import losses, settings
from training.checkpoints.fragments import Fragment
from training.recipes import diffusion
from training.run.ema import Ema, warmed_up
from training.run.validate import Validation
from training.settings import TrainConfig
from training.train import prepare, train

STAGES = [(0, "fp32"), (1, "fp32"), (2, "bf16"), (3, "fp32")]
KIND = {"steps": 8, "validate_every": 4, "validation_items": 3, "ema": 0.9}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_latents(tmp_path_factory.mktemp("latents") / "data").uri


class PlainEngine:
    """A model where an engine is asked for."""

    device = torch.device("cpu")

    def __init__(self, model: torch.nn.Module):
        self.module, self.eval, self.train = model, model.eval, model.train

    def __call__(self, batch: dict[str, torch.Tensor]) -> Any:
        return self.module(batch)


def loss_of_the_finished_model(config: TrainConfig) -> float:
    """Of <output>/model on the items of the validation."""
    plan = prepare(config)
    model: Any = diffusion.build_model(config.section, plan.geometry)
    model.unet.load_state_dict(
        load_file(Path(config.output) / "model/unet/diffusion_pytorch_model.safetensors")
    )
    null = json.loads((Path(config.output) / "model/conditioning.json").read_text())["null_embedding"]
    with torch.no_grad():
        model.null_embedding.copy_(torch.tensor(null))
    validation = Validation.of(Dataset.open(config.data), plan.snapshots[0], config, plan.geometry, 0, 1)
    assert validation
    return validation.measure(PlainEngine(model))["loss"]


@pytest.mark.parametrize("stage,precision", STAGES)
def test_the_finished_models_loss_is_in_the_journal_and_measuring_it_changes_no_step(
    data: str, tmp_path: Path, stage: int, precision: str
) -> None:
    kind = {"zero_stage": stage, "precision": precision}
    config = settings(data, tmp_path / "run", **KIND, **kind)
    train(config)
    lines = read_lines(tmp_path / "run/validation.jsonl")
    assert [line["step"] for line in lines] == [4, 8]
    assert all(line["ema_loss"] != line["loss"] for line in lines)
    assert {f"ema_{name}" for name in lines[-1] if name.startswith("loss")} < lines[-1].keys()
    assert lines[-1]["ema_loss"] == pytest.approx(
        loss_of_the_finished_model(config), rel=1e-5 if precision == "fp32" else 1e-2
    )
    train(settings(data, tmp_path / "plain", **kind, steps=8, ema=0.9))
    assert losses(tmp_path / "run") == losses(tmp_path / "plain")
    for name in ("unet/diffusion_pytorch_model.safetensors", "conditioning.json"):
        assert (tmp_path / "run/model" / name).read_bytes() == (tmp_path / "plain/model" / name).read_bytes()


def test_without_an_average_there_is_one_loss(data: str, tmp_path: Path) -> None:
    train(settings(data, tmp_path / "run", **{**KIND, "ema": 0.0}))
    assert not [
        name for line in read_lines(tmp_path / "run/validation.jsonl") for name in line if "ema" in name
    ]


def test_the_average_follows_the_weights() -> None:
    weight = torch.ones(1)
    ema = Ema([Fragment("weight", 0, 1, weight, 0, {})], warmed_up(0.5))
    weight.fill_(3.0)
    ema.update(1)  # the decay is still (1 + 1) / (10 + 1)
    assert ema.tensors[0].item() == pytest.approx(1 * 2 / 11 + 3 * 9 / 11)
    ema.update(1000)
    assert ema.tensors[0].item() == pytest.approx((1 * 2 / 11 + 3 * 9 / 11 + 3) / 2)
