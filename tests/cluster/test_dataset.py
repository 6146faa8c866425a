"""The commit protocol on a folder: create-only writes, frozen work list, resume after death at any storage
call.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import ray
import webdataset
from ray import cloudpickle

from cluster.dataset import Dataset, Snapshot
from cluster.pool import UnitOutput
from cluster.shards import Row, write_shard
from cluster.storage import FolderStore, open_store
from cluster.units import run_units
from cluster.worklist import UnitTask
from configs.load import UserError

COLUMNS = pa.schema([("n", pa.int64())])
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray workers cannot import a test module


def numbers_stage():
    """A unit's rows: item `k` becomes a sample of k bytes; items ending in 7 are refused."""

    def stage(task: UnitTask, scratch: Path) -> UnitOutput:
        rows = []
        for item in task.items:
            n = item.payload["n"]
            if n % 10 == 7:
                rows.append(Row(item.item_id, None, "refused", "silent", "seven", {"n": n}))
            else:
                rows.append(
                    Row(item.item_id, f"k{n:03d}", columns={"n": n}, members={"txt": bytes(n), "json": b"{}"})
                )
        return UnitOutput(write_shard(scratch, rows, COLUMNS), {"total": len(rows)})

    return stage


def numbers(count: int):
    return [(f"item{n}", {"n": n}) for n in range(count)]


def make(uri: str, count: int = 20) -> Dataset:
    dataset = Dataset.create_or_open(uri, "numbers", {"rate": 1}, [])
    dataset.worklist.append(numbers(count), unit_size=4)
    return dataset


def committed(dataset: Dataset) -> dict[str, str]:
    """unit -> hash of its index: what a reader sees."""
    return {unit: commit.index.sha256 for unit, commit in dataset.commits().items()}


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


def test_put_never_overwrites(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("a/b", b"one")
    store.put("a/b", b"one")
    with pytest.raises(FileExistsError):
        store.put("a/b", b"two")
    assert store.read("a/b") == b"one" and store.list() == ["a/b"]


def test_nothing_half_written_is_ever_seen(tmp_path: Path, monkeypatch) -> None:
    store, seen = open_store(str(tmp_path)), []

    def link(source: Path, target: Path) -> None:
        seen.append((source.read_bytes(), store.list(), store.exists("a")))
        raise Died

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(Died):
        store.put("a", b"one")
    assert seen == [(b"one", [], False)] and not any(path.is_file() for path in tmp_path.rglob("*"))


def test_two_drivers_may_append_at_once(tmp_path: Path, monkeypatch) -> None:
    dataset, put = make(str(tmp_path), 4), FolderStore.put

    def overtaken(store: FolderStore, name: str, data: bytes) -> None:
        monkeypatch.setattr(FolderStore, "put", put)
        make(str(tmp_path), 7)  # another driver lists items 4 to 6, just before us
        put(store, name, data)

    monkeypatch.setattr(FolderStore, "put", overtaken)
    assert dataset.worklist.append(numbers(9), unit_size=4) == 2
    ids = [item.item_id for task in dataset.worklist.units() for item in task.items]
    assert (
        ids == [f"item{n}" for n in range(9)] and len({task.unit for task in dataset.worklist.units()}) == 3
    )


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


def test_units_are_a_fixed_slice_and_new_items_only_append(tmp_path: Path) -> None:
    dataset = make(str(tmp_path), 10)
    before = dataset.worklist.units()
    assert dataset.worklist.append(numbers(13), unit_size=4) == 3
    after = dataset.worklist.units()
    assert after[: len(before)] == before
    ids = [item.item_id for task in after for item in task.items]
    assert sorted(ids) == sorted(f"item{n}" for n in range(13)) and len(set(ids)) == 13


def test_stock_webdataset_reads_the_shards_and_offsets_are_true(tmp_path: Path) -> None:
    dataset = make(str(tmp_path))
    run_units(dataset, numbers_stage, 0, columns=COLUMNS, progress=False)
    tars = [str(tmp_path / commit.tar.name) for commit in dataset.snapshot().commits if commit.tar]
    read = {sample["__key__"]: sample["txt"] for sample in webdataset.WebDataset(tars, shardshuffle=False)}
    assert read == {f"k{n:03d}": bytes(n) for n in range(20) if n % 10 != 7}
    for commit in dataset.snapshot().commits:
        for row in dataset.read_index(commit).to_pylist():
            for member in row["members"]:
                end = member["offset"] + member["size"]
                assert dataset.store.read_range(commit.tar.name, member["offset"], end) in (
                    bytes(row["n"]),
                    b"{}",
                )


def test_second_run_has_nothing_to_do(tmp_path: Path) -> None:
    dataset = make(str(tmp_path))
    first = run_units(dataset, numbers_stage, 0, columns=COLUMNS, progress=False)
    second = run_units(dataset, numbers_stage, 0, columns=COLUMNS, progress=False)
    assert (first.units_done, second.units_done, second.units_before) == (5, 0, 5)
    assert first.counts == {"kept": 18, "refused:silent": 2}


class Died(BaseException):
    """kill -9 in a test: no `except Exception` may catch it."""


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


def test_retryable_rows_come_back_as_follow_up_units_and_end(tmp_path: Path) -> None:
    attempts: list[tuple[str, int]] = []

    def factory():
        def stage(task: UnitTask, scratch: Path) -> UnitOutput:
            rows = []
            for item in task.items:
                attempts.append((item.item_id, item.attempt))
                bad = item.item_id == "item1" and item.attempt == 0 or item.item_id in ("item2", "item3")
                reason = ("removed" if item.item_id == "item3" else "timeout") if bad else None
                rows.append(
                    Row(
                        item.item_id,
                        None if bad else item.item_id,
                        "refused" if bad else "kept",
                        reason,
                        members={"txt": b""},
                    )
                )
            return UnitOutput(
                write_shard(scratch, rows, COLUMNS), retryable=sum(row.reason == "timeout" for row in rows)
            )

        return stage

    dataset = make(str(tmp_path), 8)
    summary = run_units(
        dataset, factory, 0, retryable_reasons=frozenset({"timeout"}), columns=COLUMNS, progress=False
    )
    assert [a for i, a in attempts if i == "item1"] == [0, 1] and [
        a for i, a in attempts if i == "item2"
    ] == [0, 1]
    assert summary.counts["kept"] == 6 and [a for i, a in attempts if i == "item3"] == [
        0
    ]  # a final reason is final
    for _ in range(2):  # the next run makes the third attempt, and that was the last
        run_units(
            dataset, factory, 0, retryable_reasons=frozenset({"timeout"}), columns=COLUMNS, progress=False
        )
        assert [a for i, a in attempts if i == "item2"] == [0, 1, 2] and len(attempts) == 11
    assert not dataset.store.list("again")


def test_a_mostly_retryable_unit_is_not_committed(tmp_path: Path) -> None:
    def factory():
        def stage(task: UnitTask, scratch: Path) -> UnitOutput:
            rows = [Row(item.item_id, None, "refused", "network") for item in task.items]
            return UnitOutput(write_shard(scratch, rows, COLUMNS), retryable=len(rows))

        return stage

    dataset = make(str(tmp_path), 8)
    summary = run_units(dataset, factory, 0, columns=COLUMNS, progress=False)
    assert len(summary.deferred) == 2 and dataset.commits() == {}


def test_a_unit_that_fails_is_tried_again_and_leaves_nothing_on_the_local_disk(
    tmp_path: Path, monkeypatch
) -> None:
    def factory():
        plain, failures = numbers_stage(), ["the disk hiccups", "once more"]

        def stage(task: UnitTask, scratch: Path) -> UnitOutput:
            (scratch / "half").write_bytes(b"x")
            if failures:
                raise OSError(failures.pop())
            return plain(task, scratch)

        return stage

    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    summary = run_units(make(str(tmp_path / "data")), factory, 0, columns=COLUMNS, progress=False)
    assert summary.units_done == 5 and not summary.failed and not any((tmp_path / "scratch").iterdir())


def test_tombstones_are_known_to_readers(tmp_path: Path, monkeypatch) -> None:
    dataset = make(str(tmp_path))
    dataset.bury({"k001": "take-down"})
    monkeypatch.setattr(
        dataset.store, "list", lambda prefix="": []
    )  # another driver buried something since we looked
    dataset.bury({"k002": "take-down"})
    assert Dataset.open(str(tmp_path)).tombstones() == {"k001", "k002"}
    assert json.loads((tmp_path / "dataset.json").read_text())["kind"] == "numbers"


def crashing_stage():
    """Kills its worker on item3, every time."""
    plain = numbers_stage()

    def stage(task: UnitTask, scratch: Path) -> UnitOutput:
        if any(item.item_id == "item3" for item in task.items):
            os._exit(9)
        return plain(task, scratch)

    return stage


def test_ray_isolates_an_item_that_kills_its_worker(tmp_path: Path, ray_local) -> None:
    dataset = make(str(tmp_path), 12)
    summary = run_units(dataset, crashing_stage, 2, columns=COLUMNS, progress=False)
    rows = list(dataset.iter_rows(["item_id", "status", "reason"]))
    kept = {row["item_id"] for row in rows if row["status"] == "kept"}
    assert kept == {f"item{n}" for n in range(12) if n not in (3, 7)} and not summary.failed
    assert {row["reason"] for row in rows if row["item_id"] == "item3"} == {"worker_crashed"}


def test_ray_does_the_work_where_fewer_workers_fit_than_were_asked_for(tmp_path: Path, ray_local) -> None:
    summary = run_units(make(str(tmp_path)), numbers_stage, 3, columns=COLUMNS, progress=False)
    assert summary.units_done == 5 and not summary.failed


def test_a_worker_killed_for_its_memory_is_replaced(tmp_path: Path, ray_local, monkeypatch) -> None:
    asked: list[object] = []
    get = ray.get

    def killed_once(ref):
        asked.append(ref)
        if len(asked) == 2:  # the first ask is whether the worker runs
            raise ray.exceptions.OutOfMemoryError("killed")
        return get(ref)

    monkeypatch.setattr(ray, "get", killed_once)
    dataset = make(str(tmp_path))
    summary = run_units(dataset, numbers_stage, 1, columns=COLUMNS, progress=False)
    assert not summary.failed and len(dataset.commits()) == 5


class ClosingStage:
    """Says in the file `closed` that it was closed."""

    def __init__(self, closed: Path):
        self.closed, self.plain = closed, numbers_stage()

    def __call__(self, task: UnitTask, scratch: Path) -> UnitOutput:
        return self.plain(task, scratch)

    def close(self) -> None:
        self.closed.touch()


def test_ray_closes_the_stages_at_the_end(tmp_path: Path, ray_local) -> None:
    run_units(
        make(str(tmp_path / "data")),
        lambda: ClosingStage(tmp_path / "closed"),
        1,
        columns=COLUMNS,
        progress=False,
    )
    assert (tmp_path / "closed").exists()
