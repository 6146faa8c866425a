"""An average of a chosen width, from what a run stored, after the run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cluster.runs import committed_steps
from cluster.storage import open_store
from configs.load import UserError
from tests.fakes.latents import make_latents
from tests.fakes.runs import losses, settings
from training.average import AverageConfig, average, stored_profiles
from training.run.lora import LoraConfig
from training.run.profiles import power_decay
from training.train import train

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
PROFILES: dict[str, Any] = {
    "ema_profiles": [0.05, 0.2],
    "checkpoint_every": 4,
    "keep_checkpoints": 1,
    "steps": 24,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_latents(tmp_path_factory.mktemp("latents") / "data").uri


@pytest.fixture(scope="module")
def run(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "run"
    train(settings(data, output, **PROFILES, zero_stage=1))
    return output


def weights_of(model: Path) -> np.ndarray:
    return torch.cat([tensor.flatten() for tensor in load_file(model / WEIGHTS).values()]).numpy()


def test_of_checkpoints_that_go_the_profiles_stay(run: Path) -> None:
    store = open_store(str(run))
    assert committed_steps(store) == [24]
    profiles = stored_profiles(store)
    assert sorted(profiles) == [(step, width) for step in range(4, 25, 4) for width in (0.05, 0.2)]
    left = sorted(path.name for path in (run / "checkpoints/step-00000008").rglob("*") if path.is_file())
    assert left == ["AVERAGES.json", "part.json", "profile-0.05.safetensors", "profile-0.2.safetensors"]


def test_a_width_that_was_stored_is_given_back(run: Path, tmp_path: Path) -> None:
    average(AverageConfig(str(run), 0.2, str(tmp_path / "model")))
    stored = load_file(next(run.glob("checkpoints/step-00000024/*/rank-0000/profile-0.2.safetensors")))
    flat = torch.cat([tensor.flatten() for tensor in stored.values()]).double()
    given = np.append(
        weights_of(tmp_path / "model"),
        json.loads((tmp_path / "model/conditioning.json").read_text())["null_embedding"],
    )
    assert len(given) == len(flat)
    assert np.sort(given) == pytest.approx(np.sort(flat.numpy()), abs=1e-6)


def test_an_earlier_step_of_another_width_is_what_training_would_have_averaged(
    run: Path, data: str, tmp_path: Path
) -> None:
    wanted = 0.12
    average(AverageConfig(str(run), wanted, str(tmp_path / "mixed"), step=20))
    train(settings(data, tmp_path / "direct", **{**PROFILES, "ema_profiles": [wanted], "steps": 20}))
    average(AverageConfig(str(tmp_path / "direct"), wanted, str(tmp_path / "tracked"), step=20))
    live = settings(data, tmp_path / "live", **{**PROFILES, "ema_profiles": [], "ema": 0.0, "steps": 20})
    train(live)
    mixed, tracked, last = (
        weights_of(folder) for folder in (tmp_path / "mixed", tmp_path / "tracked", tmp_path / "live/model")
    )
    assert np.linalg.norm(mixed - tracked) < 0.03 * np.linalg.norm(last - tracked)


def test_profiles_change_no_loss(run: Path, data: str, tmp_path: Path) -> None:
    plain = {**PROFILES, "ema_profiles": []}
    train(settings(data, tmp_path / "plain", **plain, zero_stage=1))
    assert losses(run) == losses(tmp_path / "plain")
    assert (run / "model" / WEIGHTS).read_bytes() == (tmp_path / "plain/model" / WEIGHTS).read_bytes()


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_resumed_run_stores_the_same_profiles(data: str, tmp_path: Path, stage: int) -> None:
    kind = {**PROFILES, "steps": 12, "zero_stage": stage}
    train(settings(data, tmp_path / "whole", **kind))
    train(settings(data, tmp_path / "broken", **{**kind, "steps": 8}))
    assert train(settings(data, tmp_path / "broken", **kind))["resumed_from"] == 8
    for width in PROFILES["ema_profiles"]:
        name = f"checkpoints/step-00000012/*/rank-0000/profile-{width:g}.safetensors"
        (whole,) = (tmp_path / "whole").glob(name)
        (broken,) = (tmp_path / "broken").glob(name)
        assert whole.read_bytes() == broken.read_bytes()


def test_a_run_of_one_average_says_how_to_keep_more(data: str, tmp_path: Path) -> None:
    train(settings(data, tmp_path / "run", steps=4, checkpoint_every=4))
    with pytest.raises(UserError, match="ema_profiles"):
        average(AverageConfig(str(tmp_path / "run"), 0.1, str(tmp_path / "model")))


def test_a_step_without_an_average_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="step=9: has no stored average; the newest are of 4, 8"):
        average(AverageConfig(str(run), 0.1, str(tmp_path / "model"), step=9))


@pytest.mark.parametrize("widths", [[0.1, 0.1], [0.0], [0.3]])
def test_widths_that_mean_nothing_are_refused(data: str, tmp_path: Path, widths: list[float]) -> None:
    with pytest.raises(UserError, match="ema_profiles="):
        settings(data, tmp_path / "run", ema_profiles=widths)


def test_the_decay_of_the_first_step_forgets_the_start() -> None:
    assert power_decay(0.1)(1) == 0


def test_of_a_mixture_and_of_adapters_too(run: Path, data: str, tmp_path: Path) -> None:
    other = make_latents(tmp_path / "other", units=1, seed=1).uri
    kind = {**PROFILES, "steps": 8, "more_data": [other], "weights": [3.0, 1.0]}
    adapters = {"init_from": str(run), "init_license": "own", "lora": LoraConfig(rank=2)}
    train(settings(data, tmp_path / "tuned", **kind, **adapters))
    average(AverageConfig(str(tmp_path / "tuned"), 0.2, str(tmp_path / "model")))
    # plain weights, as of any model
    assert load_file(tmp_path / "model" / WEIGHTS).keys() == load_file(run / "model" / WEIGHTS).keys()
    tuned, base = weights_of(tmp_path / "model"), weights_of(run / "model")
    assert 0 < np.linalg.norm(tuned - base) < np.linalg.norm(base)
