"""A run with work behind it never starts at step 0 by itself, and a start that is refused binds nothing."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.jsonl import last_line, read_lines
from cluster.storage import FolderStore, open_store
from configs.load import StoppedError, UserError
from tests.fakes.latents import make_latents
from training.data.randomness import SampleKey
from training.recipes import contrastive, diffusion
from training.run.prepare import prepare
from training.settings import TrainConfig
from training.train import train

TINY = diffusion.Config(
    channels=[16, 16], head_counts=[2, 2], layers_per_block=1, attention=False, norm_groups=8
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_latents(tmp_path_factory.mktemp("latents") / "data", units=2).uri


@pytest.fixture(scope="module")
def finished(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 steps with checkpoints at 2 and 4."""
    output = tmp_path_factory.mktemp("finished") / "run"
    train(settings(data, output))
    return output


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def settings(data: str, output: Path, **other: Any) -> TrainConfig:
    basic = {
        "workers": 0,
        "steps": 4,
        "global_batch": 4,
        "lanes": 4,
        "checkpoint_every": 2,
        "lr": 1e-3,
        "zero_stage": 0,
    }
    return TrainConfig(data=data, output=str(output), **{**basic, "diffusion": TINY, **other})


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def steps_of(output: Path) -> list[int]:
    return [line["step"] for line in read_lines(output / "metrics.jsonl")]


@pytest.mark.parametrize(
    "tail", ['{"event": "resumed", "st', "\0" * 40 + "\n", '{"event": "killed", "step": 3}', "[1]\n"]
)
def test_a_damaged_last_line_of_the_events_does_not_block_a_resume(data: str, run: Path, tail: str) -> None:
    with open(run / "events.jsonl", "a") as file:
        file.write(tail)
    assert train(settings(data, run, steps=6))["resumed_from"] == 4
    assert all(json.loads(line) for line in (run / "events.jsonl").read_text().splitlines())
    assert steps_of(run) == list(range(1, 7))


def test_the_reader_of_json_lines_leaves_out_what_is_no_line(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(
        '{"a": "x\u2028y"}\n\n{"b": 1}{"c"\n{"d": 2}\n{"e": \xff'.encode("utf-8", "surrogateescape")
    )
    assert read_lines(path) == [{"a": "x\u2028y"}, {"d": 2}]
    assert last_line(path) == {"d": 2}
    assert read_lines(tmp_path / "nowhere") == [] and last_line(tmp_path / "nowhere") is None


def test_a_finished_run_without_its_checkpoints_is_not_a_new_run(data: str, run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    before = content(run)
    with pytest.raises(
        UserError, match="it was finished at step 4, but its checkpoints are missing.*restart=true"
    ):
        train(settings(data, run, steps=6))
    assert content(run) == before
    assert train(settings(data, run))["finished_before"]


def test_restart_starts_anew_and_only_where_nothing_is_usable(data: str, run: Path) -> None:
    assert train(settings(data, run, steps=6, restart=True))["resumed_from"] == 4
    shutil.rmtree(run / "checkpoints")
    assert train(settings(data, run, steps=8, restart=True))["resumed_from"] == 0
    assert steps_of(run) == list(range(1, 9))


def test_an_unfinished_run_without_its_checkpoints_is_not_a_new_run(data: str, run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "model")
    (run / "FINISHED.json").unlink()
    with pytest.raises(UserError, match="it was saved at step 4"):
        train(settings(data, run))


def test_checkpoints_that_are_all_damaged_are_named_and_left_as_they_are(data: str, run: Path) -> None:
    for path in (run / "checkpoints").rglob("master.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    before, steps = content(run / "checkpoints"), steps_of(run)
    with pytest.raises(
        StoppedError, match="the checkpoint of step 4 is damaged: .*step 2 is damaged: .*restart=true"
    ):
        train(settings(data, run, steps=6))
    assert content(run / "checkpoints") == before and steps_of(run) == steps
    assert train(settings(data, run, steps=6, restart=True))["resumed_from"] == 0


def test_a_run_whose_settings_are_lost_is_not_a_new_run(data: str, run: Path) -> None:
    (run / "run.json").write_text("{")
    with pytest.raises(UserError, match="run.json: damaged .*restart=true"):
        train(settings(data, run, steps=6))
    (run / "run.json").unlink()
    with pytest.raises(
        UserError, match="run.json, which holds its settings and snapshots, is missing.*restart=true"
    ):
        train(settings(data, run, steps=6, lr=2e-3))
    assert train(settings(data, run, steps=2, lr=2e-3, restart=True))["resumed_from"] == 0
    assert steps_of(run) == [1, 2]


@pytest.mark.parametrize("damage", ["FINISHED.json", "model"])
def test_a_finished_model_that_is_not_whole_is_written_again(data: str, run: Path, damage: str) -> None:
    weights = run / "model/unet/diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    victim = weights if damage == "model" else run / damage
    victim.write_bytes(victim.read_bytes()[:20])
    assert not train(settings(data, run))["finished_before"]
    assert weights.read_bytes() == before and train(settings(data, run))["finished_before"]


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    make_batch = diffusion.make_batch

    def poisoned(samples: Any, keys: list[SampleKey], *more: Any) -> dict[str, torch.Tensor]:
        batch = make_batch(samples, keys, *more)
        batch["noise"][[key.position // 4 in steps for key in keys]] = torch.nan
        return batch

    monkeypatch.setattr(diffusion, "make_batch", poisoned)


def test_bad_batches_far_apart_do_not_add_up_to_a_verdict(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {3, 8, 13, 18, 23})
    train(settings(data, tmp_path / "run", steps=20))
    assert [event["event"] for event in read_lines(tmp_path / "run/events.jsonl")].count("rolled_back") == 5


def test_bad_batches_without_progress_between_them_are_a_verdict(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, set(range(3, 99)))
    with pytest.raises(StoppedError, match="after 3 rollbacks to step 2"):
        train(settings(data, tmp_path / "run", steps=20))


@pytest.mark.parametrize(
    "change,says",
    [
        ({"validate_every": 2, "validation_split": "dev"}, "split=dev"),
        (
            {"diffusion": diffusion.Config(channels=[16, 16], head_counts=[2, 2], norm_groups=5)},
            "recipe=diffusion",
        ),
    ],
)
def test_a_refused_start_binds_nothing(data: str, tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        train(settings(data, tmp_path / "run", **change))
    assert not (tmp_path / "run").exists()


def test_the_number_of_micro_batches_may_change_at_a_resume(data: str, tmp_path: Path) -> None:
    train(settings(data, tmp_path / "whole", steps=6))
    train(settings(data, tmp_path / "run", steps=3))
    assert train(settings(data, tmp_path / "run", steps=6, accumulate=2))["resumed_from"] == 3
    ours, whole = (
        [line["loss"] for line in read_lines(tmp_path / name / "metrics.jsonl")] for name in ("run", "whole")
    )
    assert ours == pytest.approx(whole, abs=1e-5)


def test_it_may_not_where_a_micro_batch_holds_the_negatives(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert contrastive.couples_samples(contrastive.Config())
    monkeypatch.setattr(diffusion, "couples_samples", lambda config: True)
    prepare(settings(data, tmp_path / "run"))
    with pytest.raises(UserError, match="accumulate: 1 .existing. -> 2 .yours."):
        prepare(settings(data, tmp_path / "run", accumulate=2))


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "checkpoints/step-00000004/x")


def test_a_full_disk_is_one_line_and_costs_no_step(
    data: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        monkeypatch.context() as full,
        pytest.raises(StoppedError, match="No space left.*make room there, then run the same command"),
    ):
        put_file, calls = FolderStore.put_file, [0]

        def put_until_full(self: FolderStore, name: str, path: Path) -> None:
            calls[0] += 1
            put_file(self, name, path) if calls[0] < 6 else full_disk()

        full.setattr(FolderStore, "put_file", put_until_full)
        train(settings(data, tmp_path / "run"))
    assert train(settings(data, tmp_path / "run"))["resumed_from"] == 2
    ours, whole = (
        [line["loss"] for line in read_lines(run / "metrics.jsonl")] for run in (tmp_path / "run", finished)
    )
    assert ours == whole


def test_nothing_half_written_stays_where_a_disk_was_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path), writable=True)
    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError):
        store.replace("a", b"1" * 100)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
