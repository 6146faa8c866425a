"""Training runs: resumed ones equal unbroken ones bit for bit, worker counts agree, mistakes are refused at
the door.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file

from cluster.jsonl import last_line, read_lines
from cluster.storage import Store, open_store
from configs.load import UserError
from tests.conftest import ROOT
from tests.fakes.latents import make_latents
from training.checkpoints.fragments import Fragment
from training.checkpoints.store import commit
from training.data.randomness import SampleKey
from training.pretrained import find_model
from training.recipes import diffusion
from training.run.ema import Ema
from training.run.engine import start_engine
from training.run.journal import Journal
from training.run.setup import check_shared
from training.settings import TrainConfig, learning_rate
from training.train import train

TINY = diffusion.Config(
    channels=[16, 16], head_counts=[2, 2], layers_per_block=1, attention=False, norm_groups=8
)
WORDS = "diffusion.channels=[16,16] diffusion.head_counts=[2,2] diffusion.layers_per_block=1 diffusion.attention=false diffusion.norm_groups=8"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_latents(tmp_path_factory.mktemp("latents") / "data").uri


def settings(data: str, output: Path, **other: Any) -> TrainConfig:
    basic = {
        "workers": 0,
        "steps": 12,
        "global_batch": 8,
        "lanes": 4,
        "checkpoint_every": 4,
        "warmup_steps": 3,
        "lr": 1e-3,
    }
    return TrainConfig(data=data, output=str(output), diffusion=TINY, **{**basic, **other})


def losses(output: Path) -> list[float]:
    lines = read_lines(output / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


@pytest.mark.parametrize("zero_stage,precision", [(0, "fp32"), (1, "fp32"), (2, "bf16"), (3, "fp32")])
def test_a_resumed_run_gives_the_losses_of_an_unbroken_one_bit_for_bit(
    data: str, tmp_path: Path, zero_stage: int, precision: str
) -> None:
    kind = {"zero_stage": zero_stage, "precision": precision}
    train(settings(data, tmp_path / "whole", **kind))
    train(settings(data, tmp_path / "broken", **kind, steps=8))
    summary = train(settings(data, tmp_path / "broken", **kind))
    assert summary["resumed_from"] == 8
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    for name in ("unet/diffusion_pytorch_model.safetensors", "conditioning.json"):
        assert (tmp_path / "broken/model" / name).read_bytes() == (
            tmp_path / "whole/model" / name
        ).read_bytes()


def test_a_finished_run_says_so_and_does_nothing(data: str, tmp_path: Path) -> None:
    train(settings(data, tmp_path / "run", steps=4))
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*"))
    assert train(settings(data, tmp_path / "run", steps=4))["finished_before"]
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*")) == before


def test_a_damaged_checkpoint_is_put_into_quarantine_and_the_one_before_is_taken(
    data: str, tmp_path: Path
) -> None:
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


def test_a_marker_that_speaks_of_another_step_is_not_believed(data: str, tmp_path: Path) -> None:
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


def test_only_the_newest_checkpoints_are_kept(data: str, tmp_path: Path) -> None:
    train(settings(data, tmp_path / "run", keep_checkpoints=2))
    folder = tmp_path / "run/checkpoints"
    assert {path.parent.name for path in folder.glob("*/COMMITTED.json")} == {
        "step-00000008",
        "step-00000012",
    }
    assert not [path for path in (folder / "step-00000004").rglob("*") if path.is_file()]


def test_a_run_on_object_storage_resumes_bit_for_bit_and_its_model_is_found_there(
    data: str, tmp_path: Path
) -> None:
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
def test_a_run_goes_on_at_another_zero_stage_with_the_same_losses(
    data: str, tmp_path: Path, stages: tuple[int, int]
) -> None:
    train(settings(data, tmp_path / "whole", zero_stage=stages[0]))
    train(settings(data, tmp_path / "run", zero_stage=stages[0], steps=8))
    train(settings(data, tmp_path / "run", zero_stage=stages[1]))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)


def test_an_output_that_a_node_does_not_see_is_refused_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a folder that all nodes share, or s3://"):
        check_shared(str(tmp_path))


def test_two_micro_batches_give_the_losses_of_one(data: str, tmp_path: Path) -> None:
    train(settings(data, tmp_path / "one"))
    train(settings(data, tmp_path / "two", accumulate=2))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)


def test_a_journal_survives_a_cut_off_line_and_a_crash_while_it_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, store = tmp_path / "metrics.jsonl", open_store(str(tmp_path))
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    with Journal(store, path.name) as journal:
        journal.append({"step": 3})
    assert last_line(path) == {"step": 3} and read_lines(path) == [{"step": 1}, {"step": 2}, {"step": 3}]
    with monkeypatch.context() as crash, pytest.raises(OSError), Journal(store, path.name) as journal:
        crash.setattr(Path, "replace", Mock(side_effect=OSError))
        journal.truncate_after(1)
    assert read_lines(path) == [{"step": 1}, {"step": 2}, {"step": 3}]


def test_a_checkpoint_is_committed_when_all_its_parts_lie_there(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def checked(store: Store, step: int, facts: dict[str, Any], files: list[dict[str, Any]]) -> None:
        seen.append([store.size(file["name"]) == file["size"] for file in files])
        assert not store.exists(f"checkpoints/step-{step:08d}/COMMITTED.json")
        commit(store, step, facts, files)

    monkeypatch.setattr("training.checkpoints.store.commit", checked)
    train(settings(data, tmp_path / "run", steps=4))
    assert len(seen) == 1 and len(seen[0]) >= 5 and all(seen[0])


def test_what_ships_is_the_average_and_without_one_the_weights_themselves(data: str, tmp_path: Path) -> None:
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


def test_the_average_follows_the_weights_as_its_decay_says() -> None:
    weight = torch.ones(1)
    ema = Ema([Fragment("weight", 0, 1, weight, 0, {})], decay=0.5)
    weight.fill_(3.0)
    ema.update(1)  # the decay is still (1 + 1) / (10 + 1)
    assert ema.tensors[0].item() == pytest.approx(1 * 2 / 11 + 3 * 9 / 11)
    ema.update(1000)
    assert ema.tensors[0].item() == pytest.approx((1 * 2 / 11 + 3 * 9 / 11 + 3) / 2)


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    config = TrainConfig(data="", output="", lr=1.0, steps=110, warmup_steps=10, schedule="cosine")
    assert [round(learning_rate(config, step), 4) for step in (1, 5, 10, 60, 110)] == [
        0.1,
        0.5,
        1.0,
        0.5,
        0.0,
    ]
    assert learning_rate(replace(config, schedule="constant"), 110) == 1.0


def test_what_a_run_would_need_later_is_asked_for_at_the_door(data: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="split=dev"):
        train(settings(data, tmp_path / "run", validate_every=2, validation_split="dev"))
    assert not (tmp_path / "run/events.jsonl").exists()


@pytest.mark.parametrize(
    "change,says",
    [
        ({"lr": 2e-3}, "lr: 0.001 (existing) -> 0.002 (yours)"),
        ({"seed": 1}, "seed: 0 (existing) -> 1 (yours)"),
        ({"precision": "bf16"}, 'precision: "fp32" (existing) -> "bf16" (yours)'),
    ],
)
def test_other_settings_on_a_started_run_are_refused(
    data: str, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
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
        ({"zero_stage": 0, "precision": "bf16"}, "give zero_stage=1"),
        ({"ema": 1.0}, "ema=1.0"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_settings_that_cannot_work_are_refused_naming_value_and_fix(
    data: str, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError) as error:
        settings(data, tmp_path / "run", **change)
    assert says in str(error.value)
    assert not (tmp_path / "run").exists()


def run_command(
    data: str, output: Path, workers: int, *more: str, stderr: int | None = None
) -> subprocess.Popen[bytes]:
    words = f"data={data} output={output} workers={workers} global_batch=8 lanes=4 warmup_steps=3 lr=1e-3 {WORDS}".split()
    return subprocess.Popen(
        [sys.executable, "-m", "training", "train", *words, *more], cwd=ROOT, stderr=stderr
    )


@pytest.fixture(scope="module")
def two_workers(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 steps by two Ray Train workers, one of them killed after the first checkpoint."""
    output = tmp_path_factory.mktemp("two") / "run"
    process = run_command(
        data, output, 2, "steps=40", "checkpoint_every=10", "validate_every=10", "validation_items=4"
    )
    while process.poll() is None and not (
        list(output.glob("checkpoints/*/COMMITTED.json")) and len(read_lines(output / "metrics.jsonl")) > 12
    ):
        time.sleep(0.02)  # the checkpoint is uploaded beside the training: wait until it is there
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


def test_one_worker_and_two_workers_give_the_same_losses_and_validation(
    data: str, tmp_path: Path, two_workers: Path
) -> None:
    train(settings(data, tmp_path / "one", steps=40, validate_every=10, validation_items=4))
    assert losses(two_workers) == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    two, one = (read_lines(run / "validation.jsonl") for run in (two_workers, tmp_path / "one"))
    assert [line["step"] for line in two] == [10, 20, 30, 40]
    assert all(ours == pytest.approx(theirs, rel=1e-5) for ours, theirs in zip(two, one, strict=True))


def test_a_run_goes_on_with_other_numbers_of_workers_and_gives_the_same_losses(
    data: str, tmp_path: Path, two_workers: Path
) -> None:
    output = tmp_path / "run"
    shutil.copytree(two_workers, output)
    assert train(settings(data, output, steps=50))["resumed_from"] == 40
    assert run_command(data, output, 2, "steps=60", "zero_stage=2").wait(200) == 0
    train(settings(data, tmp_path / "one", steps=60))
    assert losses(output) == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    events = read_lines(output / "events.jsonl")
    assert [event["step"] for event in events if event["event"] == "resumed"][-2:] == [40, 50]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_is_told_to_stop_saves_first_and_goes_on_bit_for_bit(
    data: str, tmp_path: Path, two_workers: Path, workers: int
) -> None:
    output = tmp_path / "run"
    process = run_command(
        data, output, workers, "steps=4000", "checkpoint_every=1000", stderr=subprocess.PIPE
    )
    while len(read_lines(output / "metrics.jsonl")) < 5 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=100)
    assert process.returncode == 1 and "run the same command again" in told.decode()
    (step,) = [int(marker.parent.name[5:]) for marker in output.glob("checkpoints/*/COMMITTED.json")]
    assert step == len(losses(output)) < 1000
    more = settings(data, output, steps=step + 3)
    assert not list(output.glob("STOP-*"))
    train(more)
    train(replace(more, output=str(tmp_path / "unbroken")))
    exact = 0.0 if workers == 0 else 1e-5
    assert losses(output) == pytest.approx(losses(tmp_path / "unbroken"), rel=exact, abs=0)


@pytest.mark.slow
def test_a_worker_whose_machine_goes_away_saves_and_the_run_goes_on_by_itself(
    data: str, tmp_path: Path, two_workers: Path
) -> None:
    output = tmp_path / "run"
    process = run_command(data, output, 2, "steps=40", "checkpoint_every=1000")
    while len(read_lines(output / "metrics.jsonl")) < 5 and process.poll() is None:
        time.sleep(0.02)
    os.kill(read_lines(output / "events.jsonl")[-1]["pids"][-1], signal.SIGTERM)
    assert process.wait(200) == 0
    events = read_lines(output / "events.jsonl")
    assert [event["event"] for event in events] == ["started", "stopped", "resumed", "finished"]
    assert 5 <= events[1]["step"] == events[2]["step"] < 40
    assert losses(output) == losses(two_workers)


@pytest.mark.parametrize("zero_stage,precision", [(0, "fp32"), (1, "fp32"), (1, "bf16")])
def test_a_gradient_that_is_no_number_costs_the_samples_since_the_last_checkpoint(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zero_stage: int, precision: str
) -> None:
    kind = {"zero_stage": zero_stage, "precision": precision}
    make_batch = diffusion.make_batch

    def poisoned(samples: Any, keys: list[SampleKey], *more: Any) -> dict[str, torch.Tensor]:
        batch = make_batch(samples, keys, *more)
        batch["noise"][[key.position == 8 * 9 + 3 for key in keys]] = torch.nan
        return batch

    monkeypatch.setattr(diffusion, "make_batch", poisoned)
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


def test_validation_gives_the_same_numbers_whatever_runs_beside_it(data: str, tmp_path: Path) -> None:
    often = {"validate_every": 4, "validation_items": 3}
    train(settings(data, tmp_path / "plain"))
    train(settings(data, tmp_path / "one", **often))
    train(settings(data, tmp_path / "other", **often, zero_stage=3, accumulate=2))
    lines = {name: read_lines(tmp_path / name / "validation.jsonl") for name in ("one", "other")}
    assert [line["step"] for line in lines["one"]] == [4, 8, 12]
    names = {"loss", "loss_at_0.1", "loss_at_0.3", "loss_at_0.5"}
    assert set(lines["one"][0]) == {"step", *names, *(f"ema_{name}" for name in names)}
    for one, other in zip(lines["one"], lines["other"], strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    assert losses(tmp_path / "one") == losses(tmp_path / "plain")


@pytest.mark.parametrize("clip", [0.1, 0.0])
def test_the_norm_of_the_gradient_is_told_alike_at_every_zero_stage(
    data: str, tmp_path: Path, clip: float
) -> None:
    norms = []
    for stage in range(4):
        train(settings(data, tmp_path / str(stage), steps=3, zero_stage=stage, gradient_clip=clip))
        norms.append([line["grad_norm"] for line in read_lines(tmp_path / str(stage) / "metrics.jsonl")])
    assert min(norms[0]) > 0.1
    assert all(found == pytest.approx(norms[0], rel=1e-5) for found in norms)


def test_what_a_run_measures_is_in_its_metrics_and_for_tensorboard(data: str, tmp_path: Path) -> None:
    train(settings(data, tmp_path / "run", steps=8))
    train(settings(data, tmp_path / "run"))
    line = read_lines(tmp_path / "run/metrics.jsonl")[-1]
    assert line["grad_norm"] > 0 and line["tflops"] > 0
    shown = b"".join(path.read_bytes() for path in (tmp_path / "run/tensorboard").glob("events.*"))
    assert b"train/loss" in shown and b"train/data_wait_s" in shown


@pytest.mark.parametrize("option", ["activation_checkpointing", "offload"])
def test_options_that_save_memory_are_on_and_change_no_loss(
    data: str, tmp_path: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines: list[Any] = []
    monkeypatch.setattr(
        "training.run.setup.start_engine", lambda *args: engines.append(start_engine(*args)) or engines[-1]
    )
    for name, change in (("plain", {}), ("option", {option: True})):
        train(settings(data, tmp_path / name, **change))
    assert losses(tmp_path / "option") == pytest.approx(losses(tmp_path / "plain"), rel=1e-6)
    on = {
        "activation_checkpointing": lambda e: e.module.unet.is_gradient_checkpointing,
        "offload": lambda e: e.optimizer.cpu_offload,
    }
    assert [bool(on[option](engine)) for engine in engines] == [False, True]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_loss_that_is_no_number_stops_the_run_with_one_line(
    data: str, tmp_path: Path, workers: int
) -> None:
    words = ["steps=40", "checkpoint_every=30", "lr=1e9", "gradient_clip=0", "schedule=constant"]
    process = run_command(data, tmp_path / "run", workers, *words, stderr=subprocess.PIPE)
    _, told = process.communicate(timeout=200)
    assert process.returncode == 1
    (line,) = [line for line in told.decode().splitlines() if line.startswith("error: ")]
    assert "the loss of step" in line and "lower lr" in line
    assert not (tmp_path / "run/FINISHED.json").exists()
    assert [event["event"] for event in read_lines(tmp_path / "run/events.jsonl")] == ["started", "failed"]
