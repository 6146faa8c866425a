"""The commit protocol on a folder: create-only writes, frozen work list, resume after death at any storage
call.
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.dataset import Dataset, Snapshot
from cluster.pool import UnitOutput
from cluster.shards import Row, write_shard
from cluster.storage import FolderStore
from cluster.units import run_units
from cluster.worklist import UnitTask
from configs.load import UserError
from tests.fakes.numbers import COLUMNS, Died, committed, make, numbers_stage

READ_ALL = """
import os, sys
import pyarrow as pa
from cluster.dataset import Dataset

dataset = Dataset.open(sys.argv[1])
pa.array(["what Arrow starts at its first use"])
before = len(os.listdir("/proc/self/task"))
commits = dataset.commits()
assert len(dataset.worklist.units()) == dataset.worklist.count_units() == len(commits) == 5
assert dataset.worklist.append([("item0", {})], 4) == 0
assert all(len(dataset.read_index(commit)) == 4 for commit in commits.values())
assert list(dataset.buried()) == ["k001"]
print(len(os.listdir("/proc/self/task")) - before)
"""


def test_reading_leaves_no_thread_behind(tmp_path: Path) -> None:
    """One of Arrow's that lets go of a Python object while the process ends aborts it."""
    dataset = make(str(tmp_path))
    assert not run_units(dataset, numbers_stage, 0, columns=COLUMNS, progress=False).failed
    dataset.bury({"k001": "take-down"})
    words = [sys.executable, "-c", READ_ALL, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.stdout == "0\n", done.stdout + done.stderr


def test_the_highest_generation_of_a_unit_wins_and_changes_the_snapshot(tmp_path: Path) -> None:
    dataset = make(str(tmp_path / "data"), 4)
    run_units(dataset, numbers_stage, 0, columns=COLUMNS, progress=False)
    before, (unit,) = dataset.snapshot(), dataset.commits()
    for generation in (1, 10, 2):
        folder = tmp_path / str(generation)
        folder.mkdir()
        rows = [Row("item0", "k0", columns={"n": 0}, members={"txt": str(generation).encode()})]
        dataset.commit(unit, generation, write_shard(folder, rows, COLUMNS), {})
    assert dataset.commits()[unit].generation == 10 and dataset.commits()[unit].counts == {"kept": 1}
    assert dataset.snapshot().id != before.id
    commit = dataset.commits()[unit]
    other = replace(commit, index=replace(commit.index, sha256="0"))
    assert Snapshot.of(dataset.uri, [other]).id != dataset.snapshot().id
    assert Dataset.open(dataset.uri, "numbers").snapshot().id == dataset.snapshot().id


def test_a_dataset_of_another_kind_is_refused(tmp_path: Path) -> None:
    make(str(tmp_path))
    with pytest.raises(UserError, match="is a dataset of numbers, need one of clips"):
        Dataset.open(str(tmp_path), "clips")


def test_second_run_has_nothing_to_do(tmp_path: Path) -> None:
    dataset = make(str(tmp_path))
    first = run_units(dataset, numbers_stage, 0, columns=COLUMNS, progress=False)
    second = run_units(dataset, numbers_stage, 0, columns=COLUMNS, progress=False)
    assert (first.units_done, second.units_done, second.units_before) == (5, 0, 5)
    assert first.counts == {"kept": 18, "refused:silent": 2}


class DyingStore(FolderStore):
    """Dies at the n-th write, before or after it took effect."""

    def __init__(self, uri: str, n: int, after: bool):
        super().__init__(uri)
        self.left, self.after = n, after

    def put(self, name: str, data: bytes) -> None:
        self._die_or(lambda: FolderStore.put(self, name, data))

    def put_file(self, name: str, path: Path) -> None:
        self._die_or(lambda: FolderStore.put_file(self, name, path))

    def _die_or(self, write) -> None:
        self.left -= 1
        if self.left == 0 and self.after:
            write()
        if self.left <= 0:
            raise Died
        write()


@pytest.mark.parametrize("after", [False, True])
def test_dying_at_every_storage_call_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch, after: bool
) -> None:
    whole = make(str(tmp_path / "whole"), 12)
    run_units(whole, numbers_stage, 0, columns=COLUMNS, progress=False)
    n, died = 0, True
    while died:
        n, died = n + 1, False
        uri = str(tmp_path / f"cut{n}-{after}")
        with monkeypatch.context() as patch:
            dying = DyingStore(uri, n, after)
            patch.setattr("cluster.dataset.open_store", lambda uri, writable=False, dying=dying: dying)
            try:
                run_units(make(uri, 12), numbers_stage, 0, columns=COLUMNS, progress=False)
            except Died:
                died = True
        if (Path(uri) / "dataset.json").exists():
            for commit in Dataset.open(uri).commits().values():
                assert all(
                    (Path(uri) / part.name).stat().st_size == part.size
                    for part in (commit.tar, commit.index)
                    if part
                )
        again = make(uri, 12)
        run_units(again, numbers_stage, 0, columns=COLUMNS, progress=False)
        assert committed(again) == committed(whole)
        assert again.snapshot().id == whole.snapshot().id
    assert (
        n - 1 == 1 + 1 + 3 * 3
    )  # dataset.json, the work list, and a tar, an index and a commit of three units: no write is left out


def test_what_a_dead_worker_left_of_a_unit_is_not_in_the_way(tmp_path: Path, monkeypatch) -> None:
    def factory(detail: str):
        def stage(task: UnitTask, scratch: Path) -> UnitOutput:
            kept = [Row(item.item_id, item.item_id, members={"txt": b""}) for item in task.items[1:]]
            return UnitOutput(
                write_shard(
                    scratch, [Row(task.items[0].item_id, None, "refused", "removed", detail), *kept], COLUMNS
                )
            )

        return lambda: stage

    uri = str(tmp_path)
    make(uri, 4)
    with monkeypatch.context() as patch:
        dying = DyingStore(uri, 3, after=False)  # tar and index are there, the commit is not
        patch.setattr("cluster.dataset.open_store", lambda uri, writable=False: dying)
        with pytest.raises(Died):
            run_units(Dataset.open(uri), factory("HTTP 404"), 0, columns=COLUMNS, progress=False)
    summary = run_units(Dataset.open(uri), factory("HTTP 410"), 0, columns=COLUMNS, progress=False)
    assert not summary.failed and summary.counts == {"kept": 3, "refused:removed": 1}


def test_other_semantic_settings_are_refused_with_the_difference(tmp_path: Path) -> None:
    make(str(tmp_path))
    with pytest.raises(UserError, match=r"rate.*1.*2"):
        Dataset.create_or_open(str(tmp_path), "numbers", {"rate": 2}, [])


def test_a_damaged_index_is_noticed(tmp_path: Path) -> None:
    dataset = make(str(tmp_path))
    run_units(dataset, numbers_stage, 0, columns=COLUMNS, progress=False)
    commit = dataset.snapshot().commits[0]
    path = tmp_path / commit.index.name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(OSError, match="damaged"):
        dataset.read_index(commit)


def test_a_mostly_retryable_unit_is_not_committed(tmp_path: Path) -> None:
    def factory():
        def stage(task: UnitTask, scratch: Path) -> UnitOutput:
            rows = [Row(item.item_id, None, "refused", "network") for item in task.items]
            return UnitOutput(write_shard(scratch, rows, COLUMNS), retryable=len(rows))

        return stage

    dataset = make(str(tmp_path), 8)
    summary = run_units(dataset, factory, 0, columns=COLUMNS, progress=False)
    assert len(summary.deferred) == 2 and dataset.commits() == {}


def test_tombstones_are_known_to_readers(tmp_path: Path, monkeypatch) -> None:
    dataset = make(str(tmp_path))
    dataset.bury({"k001": "take-down"})
    monkeypatch.setattr(
        dataset.store, "list", lambda prefix="": []
    )  # another driver buried something since we looked
    dataset.bury({"k002": "take-down"})
    assert Dataset.open(str(tmp_path)).tombstones() == {"k001", "k002"}
    assert json.loads((tmp_path / "dataset.json").read_text())["kind"] == "numbers"
