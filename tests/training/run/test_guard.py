"""The guard against overfitting: what ships is the best step, and kills change no decision."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.jsonl import read_lines
from configs.load import UserError
from tests.fakes.ranks import kill_ranks, train_ranks
from tests.fakes.runs import arguments, losses, settings
from training.checkpoints.parts import Kept
from training.run.guard import Guard
from training.settings import TrainConfig
from training.train import train

# so high that it overfits within 16 steps
LR = 5e-3
GUARDED = ["steps=60", "checkpoint_every=5", f"lr={LR}", "ema=0.5", "validate_every=2", "validation_items=4"]
GUARDED += ["keep_best=true", "patience=3"]


def guarded(data: str, output: Path, **changes: Any) -> TrainConfig:
    """The settings of GUARDED."""
    kind = {"steps": 60, "checkpoint_every": 5, "lr": LR, "ema": 0.5, "validate_every": 2}
    return settings(
        data, output, **{**kind, "validation_items": 4, "keep_best": True, "patience": 3, **changes}
    )


def finished(run: Path) -> dict[str, Any]:
    return json.loads((run / "FINISHED.json").read_text())


def files(run: Path) -> dict[str, bytes]:
    """Of the model, without what names the data's place."""
    unet = run / "model/unet/diffusion_pytorch_model.safetensors"
    return {path.name: path.read_bytes() for path in (unet, run / "model/conditioning.json")}


@pytest.fixture(scope="module")
def whole(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ends by itself."""
    output = tmp_path_factory.mktemp("whole") / "run"
    train(guarded(data, output))
    return output


# --- Its decisions ------------------------------------------------------------------------------------------


def test_patience_counts_validations_without_a_gain() -> None:
    guard = Guard(keeps=True, patience=2, every=10)
    weights = [torch.ones(2)]
    for step, loss in ((10, 3.0), (20, 2.0), (30, math.nan), (40, 1.0), (50, 1.0)):
        guard.heed(step, {"loss": 0.0, "ema_loss": loss}, weights, {})
        weights[0] += 1
        assert not guard.is_over
    guard.heed(60, {}, weights, {})
    # the last step of a run that is prolonged later
    guard.heed(65, {"ema_loss": 5.0}, weights, {})
    assert not guard.is_over
    guard.heed(70, {"loss": 0.0, "ema_loss": 1.5}, weights, {})
    assert guard.is_over and guard.state == {"best_step": 40, "best_loss": 1.0, "waited": 2}
    assert guard.kept and guard.kept.average[0].tolist() == [4.0, 4.0]


def test_a_state_without_its_weights_is_no_state() -> None:
    guard = Guard(keeps=True, patience=2, every=10)
    state = {"best_step": 40, "best_loss": 1.0, "waited": 1}
    guard.restore(state, None)  # type: ignore[arg-type]
    assert not guard.state
    guard.restore(state, Kept([], {}))  # type: ignore[arg-type]
    assert guard.state == state


def test_it_needs_validation(data: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="validate_every=0: keep_best and patience go by validation"):
        guarded(data, tmp_path / "run", validate_every=0)


# --- Runs ---------------------------------------------------------------------------------------------------


def test_a_run_that_gets_no_better_ends_and_ships_its_best_step(
    data: str, whole: Path, tmp_path: Path
) -> None:
    lines = read_lines(whole / "validation.jsonl")
    by_step = {line["step"]: line["ema_loss"] for line in lines}
    best = min(by_step, key=lambda step: by_step[step])
    last = lines[-1]
    record = finished(whole)
    assert 10 < best == last["best_step"] == record["shipped_step"] == last["step"] - 6
    assert record["step"] == last["step"] < 60
    event = read_lines(whole / "events.jsonl")[-1]
    assert event["shipped_step"] == best and f"shipped are the weights of step {best}" in event["reason"]
    # the same weights as a run that was told to end there
    train(guarded(data, tmp_path / "short", steps=best, keep_best=False, patience=0))
    assert files(whole) == files(tmp_path / "short")


def test_the_same_again_is_finished_and_less_patience_or_more_of_it_is_heeded(
    data: str, whole: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    again = train(guarded(data, run))
    assert again["finished_before"] and again["shipped_step"] == finished(whole)["shipped_step"]
    assert "no gain in 3 validations" in again["reason"]
    on = train(guarded(data, run, patience=4))
    assert on["resumed_from"] == again["steps"] < on["steps"]


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_a_resumed_run_decides_as_an_unbroken_one(
    data: str, whole: Path, tmp_path: Path, zero_stage: int
) -> None:
    # after the best step, before the end
    run = tmp_path / "run"
    train(guarded(data, run, steps=finished(whole)["step"] - 2, zero_stage=zero_stage))
    assert not finished(run)["reason"].startswith("stopped")
    train(guarded(data, run, zero_stage=zero_stage))
    assert finished(run)["shipped_step"] == finished(whole)["shipped_step"]
    assert finished(run)["step"] == finished(whole)["step"]
    if zero_stage == 0:
        train(guarded(data, tmp_path / "unbroken", zero_stage=0))
        assert files(run) == files(tmp_path / "unbroken")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_decides_as_an_unbroken_one(
    data: str, whole: Path, tmp_path: Path, workers: int
) -> None:
    run = tmp_path / "run"
    args = arguments(data, run, *GUARDED)
    kill_ranks(args, 1, step=18)
    train_ranks(args, workers)
    assert finished(run)["shipped_step"] == finished(whole)["shipped_step"]
    assert finished(run)["step"] == finished(whole)["step"]
    assert losses(run) == pytest.approx(losses(whole), rel=0 if workers == 1 else 1e-5)
    if workers == 1:
        assert files(run) == files(whole)


def test_a_run_without_it_is_as_before(data: str, whole: Path, tmp_path: Path) -> None:
    train(guarded(data, tmp_path / "plain", steps=20, keep_best=False, patience=0))
    assert losses(tmp_path / "plain") == losses(whole)[:20]
    assert set(finished(tmp_path / "plain")) == {"step", "cpu_s", "time", "files"}
    assert not list((tmp_path / "plain").rglob("best*"))
