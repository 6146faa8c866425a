"""The finished model: which weights ship."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.fakes.runs import settings
from training.train import train


def test_what_ships_is_the_average(data: str, tmp_path: Path) -> None:
    for ema in (0.0, 0.5):
        train(settings(data, tmp_path / str(ema), steps=4, ema=ema))
    plain, average = (
        load_file(tmp_path / ema / "model/unet/diffusion_pytorch_model.safetensors") for ema in ("0.0", "0.5")
    )
    masters = {
        name: load_file(next((tmp_path / name / "checkpoints").rglob("master.safetensors")))
        for name in ("0.0", "0.5")
    }
    part = json.loads(next((tmp_path / "0.0/checkpoints").rglob("part.json")).read_text())
    weights = {name: masters["0.0"][str(number)] for number, (name, _, _) in enumerate(part["fragments"])}
    assert all(torch.equal(plain[name].flatten(), weights[f"unet.{name}"]) for name in plain)
    assert all(torch.equal(tensor, masters["0.5"][number]) for number, tensor in masters["0.0"].items())
    assert any(not torch.equal(plain[name], average[name]) for name in plain)
