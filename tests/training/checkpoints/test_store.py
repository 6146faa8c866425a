"""Checkpoints: dying at any storage call of a save costs nothing, retention keeps what is needed, any rank
finds its values.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.jsonl import read_lines
from cluster.runs import checkpoint_folder, committed_steps
from cluster.storage import FolderStore, Store, open_store
from tests.fakes.latents import make_latents
from tests.fakes.runs import TINY
from tests.fakes.runs import settings as run_settings
from training.average import stored_profiles
from training.checkpoints.store import FileEntry, Metadata, commit, retain
from training.inspect import inspect
from training.settings import TrainConfig
from training.train import train

KINDS_OF_FILES = 5  # the weights, two moments, the average and a profile


class Died(BaseException):
    """kill -9 in a test: no `except Exception` may catch it."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("latents")
    make_latents(folder / "data")
    basic = {
        "workers": 0,
        "steps": 9,
        "global_batch": 8,
        "lanes": 4,
        "checkpoint_every": 3,
        "keep_checkpoints": 1,
        "ema_profiles": [0.1],
        "lr": 1e-3,
    }
    return TrainConfig(data=str(folder / "data"), output=str(folder / "whole"), diffusion=TINY, **basic)  # type: ignore[arg-type]


def outcome(config: TrainConfig) -> tuple[list[float], bytes]:
    """Losses, and all that the last checkpoint holds: weights, moments and average."""
    output = Path(config.output)
    parts = [
        path
        for path in sorted(output.glob(f"{checkpoint_folder(config.steps)}/*/rank-0000/*.safetensors"))
        if path.is_file()
    ]
    return [line["loss"] for line in read_lines(output / "metrics.jsonl")], b"".join(
        path.read_bytes() for path in parts[-KINDS_OF_FILES:]
    )


def dies(config: TrainConfig, n: int, after: bool) -> bool:
    """Trains, and dies at the n-th write to the run, before or after it took effect; whether it died."""
    left = n

    def dying(real: Any) -> Any:
        def call(self: FolderStore, *args: Any) -> None:
            nonlocal left
            left -= self.uri == config.output
            if left == 0 and not after and self.uri == config.output:
                raise Died
            real(self, *args)
            if left == 0 and after and self.uri == config.output:
                raise Died

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("put", "put_file", "replace", "delete"):
            patch.setattr(FolderStore, name, dying(getattr(FolderStore, name)))
        try:
            train(config)
        except Died:
            return True
    return False


@pytest.mark.parametrize("after", [False, True])
def test_dying_at_every_storage_call_of_a_run_costs_no_step_and_no_bit(
    config: TrainConfig, tmp_path: Path, after: bool
) -> None:
    if not Path(config.output).exists():
        train(config)
    n = 1
    while dies(ours := replace(config, output=str(tmp_path / str(n))), n, after):
        if Path(ours.output, "run.json").exists():
            assert not any(line["problem"] for line in inspect(ours.output))
        train(ours)
        assert outcome(ours) == outcome(config)
        # an older checkpoint that was being deleted leaves its profiles, whole
        profiles = stored_profiles(open_store(ours.output))
        assert {profile.step for profile in profiles} == {3, 6, 9}
        n += 1
    assert n > 20


def test_retention_keeps_older_ones_while_the_newest_is_not_whole(tmp_path: Path) -> None:
    store = open_store(str(tmp_path), writable=True)
    for step in (1, 2, 3):
        name = f"{checkpoint_folder(step)}/a/rank-0000/x"
        store.put(name, b"1234")
        commit(store, step, {}, [{"name": name, "size": 4, "sha256": ""}])
    store.put(f"{checkpoint_folder(2)}/b/rank-0000/x", b"never committed")
    store.delete(f"{checkpoint_folder(3)}/a/rank-0000/x")
    retain(store, keep=1)
    assert committed_steps(store) == [1, 2, 3]
    store.put(f"{checkpoint_folder(3)}/a/rank-0000/x", b"1234")
    retain(store, keep=1)
    assert store.list("checkpoints") == [
        f"{checkpoint_folder(3)}/COMMITTED.json",
        f"{checkpoint_folder(3)}/a/rank-0000/x",
    ]


def test_only_the_newest_checkpoints_are_kept(data: str, tmp_path: Path) -> None:
    train(run_settings(data, tmp_path / "run", keep_checkpoints=2))
    folder = tmp_path / "run/checkpoints"
    assert {path.parent.name for path in folder.glob("*/COMMITTED.json")} == {
        "step-00000008",
        "step-00000012",
    }
    assert not [path for path in (folder / "step-00000004").rglob("*") if path.is_file()]


def test_a_checkpoint_is_committed_after_all_its_parts(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def checked(store: Store, step: int, metadata: Metadata, files: list[FileEntry]) -> None:
        seen.append([store.size(file["name"]) == file["size"] for file in files])
        assert not store.exists(f"checkpoints/step-{step:08d}/COMMITTED.json")
        commit(store, step, metadata, files)

    monkeypatch.setattr("training.checkpoints.store.commit", checked)
    train(run_settings(data, tmp_path / "run", steps=4))
    assert len(seen) == 1 and len(seen[0]) >= 5 and all(seen[0])
