"""The unit runner under kills, hangs, dead storage and big lists.

What a commit promises is tests.cluster.test_dataset's.
"""

import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from cluster.dataset import Dataset
from cluster.pool import UnitOutput
from cluster.shards import Row, write_shard
from cluster.storage import FolderStore, StorageDownError
from cluster.units import run_units
from cluster.worklist import UnitTask
from configs.load import StoppedError
from tests.conftest import ROOT
from tests.fakes.numbers import Died

COLUMNS = pa.schema([("number", pa.int32())])


def make(uri: Path, count: int, unit_size: int = 2) -> Dataset:
    dataset = Dataset.create_or_open(str(uri), "numbers", {"rate": 1}, [])
    dataset.worklist.append(((f"item{n:04d}", {"n": n}) for n in range(count)), unit_size)
    return dataset


class Slow:
    """Keeps every item; notes in `log` which worker did which unit, and takes its time, or for ever for item
    `hangs`.
    """

    def __init__(self, log: Path, seconds: float = 0.05, hangs: str = ""):
        self.log, self.seconds, self.hangs = log, seconds, hangs

    def __call__(self, task: UnitTask, scratch: Path) -> UnitOutput:
        (self.log / f"{task.unit}-{os.getpid()}-{time.time_ns()}").touch()
        time.sleep(1e6 if any(item.item_id == self.hangs for item in task.items) else self.seconds)
        rows = [
            Row(item.item_id, item.item_id, columns={"number": item.payload["n"]}, members={"txt": b"x"})
            for item in task.items
        ]
        return UnitOutput(write_shard(scratch, rows, COLUMNS))


def shards(dataset: Dataset) -> dict[str, str]:
    return {
        unit: commit.index.sha256 + (commit.tar.sha256 if commit.tar else "")
        for unit, commit in dataset.commits().items()
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("undisturbed")
    dataset = make(folder / "data", 60)
    run_units(dataset, lambda: Slow(folder, 0), 0, columns=COLUMNS, progress=False)
    return shards(dataset)


def kept_items(dataset: Dataset) -> list[str]:
    return sorted(
        row["item_id"] for row in dataset.iter_rows(["item_id", "status"]) if row["status"] == "kept"
    )


def test_killed_workers_cost_no_sample_and_little_work(
    tmp_path: Path, ray_local: None, undisturbed: dict[str, str]
) -> None:
    """A unit may meet three kills: it is refused then, and its items are tried one by one, or by the next
    run.
    """
    log, done, killed = tmp_path / "log", threading.Event(), []
    log.mkdir()

    def kill_after_every_fourth_unit() -> None:
        while not done.wait(0.02) and len(killed) < 6:
            begun = sorted(log.iterdir(), key=lambda path: path.name.rsplit("-", 1)[1])
            pid = int(begun[-1].name.split("-")[1]) if begun else 0
            if len(begun) >= 4 * (len(killed) + 1) and pid not in killed and psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    thread = threading.Thread(target=kill_after_every_fourth_unit)
    thread.start()
    dataset = make(tmp_path / "data", 60)
    summary = run_units(dataset, lambda: Slow(log), 2, columns=COLUMNS, progress=False)
    done.set()
    thread.join()
    begun = len(list(log.iterdir()))
    run_units(dataset, lambda: Slow(log), 0, columns=COLUMNS, progress=False)
    assert killed and not summary.failed
    assert kept_items(dataset) == [f"item{n:04d}" for n in range(60)]
    refused = {row["unit"] for row in dataset.iter_rows(["status"]) if row["status"] == "refused"}
    whole = {
        unit: sha256
        for unit, sha256 in shards(dataset).items()
        if unit in undisturbed and unit not in refused
    }
    assert whole == {unit: sha256 for unit, sha256 in undisturbed.items() if unit not in refused}
    assert begun <= 30 + len(killed) * 5  # at most a call's units are done again for each death


def test_a_worker_that_hangs_is_killed_and_its_item_refused(tmp_path: Path, ray_local: None) -> None:
    dataset = make(tmp_path / "data", 6)
    summary = run_units(
        dataset,
        lambda: Slow(tmp_path, 0, "item0003"),
        2,
        columns=COLUMNS,
        unit_deadline_s=2.0,
        progress=False,
    )
    rows = {
        row["item_id"]: row["reason"]
        for row in dataset.iter_rows(["item_id", "status", "reason"])
        if row["status"] == "refused"
    }
    kept = {row["item_id"] for row in dataset.iter_rows(["item_id", "status"]) if row["status"] == "kept"}
    assert kept == {f"item{n:04d}" for n in range(6)} - {"item0003"} and not summary.failed
    assert rows["item0003"] == "worker_crashed"


DRIVER = """
import sys
from pathlib import Path
from typing import Any
from cluster.dataset import Dataset
from cluster.units import run_units
from tests.cluster.test_units import COLUMNS, Slow, make
log = Path(sys.argv[2])
run_units(make(Path(sys.argv[1]), 60), lambda: Slow(log), 2, columns=COLUMNS, progress=False)
"""


@pytest.mark.parametrize("victim", ["driver", "raylet"])
def test_a_killed_driver_or_raylet_costs_no_sample_and_leaves_no_process(
    tmp_path: Path, undisturbed: dict[str, str], victim: str
) -> None:
    log, data = tmp_path / "log", tmp_path / "data"
    log.mkdir()
    words = [sys.executable, "-c", DRIVER, str(data), str(log)]
    driver = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    while len(list(log.iterdir())) < 8 and driver.poll() is None:
        time.sleep(0.02)
    family = psutil.Process(driver.pid).children(recursive=True)
    names = {process.pid: process.name() for process in family}
    if victim == "driver":
        driver.kill()
    else:
        next(child for child in family if child.name() == "raylet").kill()
    driver.wait(120)
    workers = [process for process in family if names[process.pid].startswith("ray::Worker")]
    _, alive = psutil.wait_procs(workers, timeout=30)  # Ray's own agents follow within a minute
    assert workers and not alive
    before = len(list(log.iterdir()))
    dataset = Dataset.open(str(data))
    committed = len(dataset.commits())
    run_units(dataset, lambda: Slow(log), 0, columns=COLUMNS, progress=False)
    assert shards(dataset) == undisturbed
    assert len(list(log.iterdir())) == before + 30 - committed


def test_a_run_stops_with_one_line_when_the_storage_is_down_and_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, put, calls = make(tmp_path / "data", 60), FolderStore.put, []

    def down(store: FolderStore, name: str, data: bytes) -> None:
        calls.append(name)
        if len(calls) > 5:
            raise StorageDownError("object storage does not answer (HTTP 503)")
        put(store, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "put", down)
        with pytest.raises(StoppedError, match="does not answer.*run the same command again"):
            run_units(dataset, lambda: Slow(tmp_path, 0), 0, columns=COLUMNS, progress=False)
    assert len(calls) == 6
    summary = run_units(dataset, lambda: Slow(tmp_path, 0), 0, columns=COLUMNS, progress=False)
    assert summary.units_before == 5 and summary.units_done == 25


def test_a_run_in_which_nothing_succeeds_stops_early(tmp_path: Path) -> None:
    def broken(task: UnitTask, scratch: Path) -> UnitOutput:
        raise KeyError("a defect")

    with pytest.raises(StoppedError, match="first 20 shards all failed.*a defect"):
        run_units(make(tmp_path / "data", 200), lambda: broken, 0, columns=COLUMNS, progress=False)


def test_what_failed_in_passing_waits_for_its_second_attempt_and_for_the_next_run_with_its_third(
    tmp_path: Path,
) -> None:
    tried: list[tuple[float, str, int]] = []

    def stage(task: UnitTask, scratch: Path) -> UnitOutput:
        tried.extend((time.monotonic(), item.item_id, item.attempt) for item in task.items)
        rows = [Row(item.item_id, item.item_id, members={"txt": b""}) for item in task.items]
        for row in rows:
            if row.item_id == "item0005":  # a single one: it waits all the same
                row.key, row.status, row.reason = None, "refused", "timeout"
        return UnitOutput(
            write_shard(scratch, rows, COLUMNS), retryable=sum(row.reason is not None for row in rows)
        )

    dataset, later = (
        make(tmp_path / "data", 8, 4),
        {"retryable_reasons": frozenset({"timeout"}), "retry_after_s": 0.3},
    )
    for attempts in (2, 3, 3):
        run_units(dataset, lambda: stage, 0, columns=COLUMNS, progress=False, **later)  # type: ignore[arg-type]
        assert sum(name == "item0005" for _, name, _ in tried) == attempts
    times = [when for when, name, _ in tried if name == "item0005"]
    assert times[1] - times[0] > 0.3


def passing_stage(task: UnitTask, scratch: Path) -> UnitOutput:
    """Items 1 and 6 fail in passing at their first attempt."""
    rows = [
        Row(item.item_id, item.item_id, columns={"number": item.attempt}, members={"txt": b""})
        for item in task.items
    ]
    for row, item in zip(rows, task.items, strict=True):
        if item.payload["n"] in (1, 6) and item.attempt == 0:
            row.key, row.status, row.reason, row.members = None, "refused", "timeout", {}
    return UnitOutput(
        write_shard(scratch, rows, COLUMNS), retryable=sum(row.reason is not None for row in rows)
    )


def run_passing(uri: Path) -> dict[str, int]:
    """Lists and does eight items; item -> the attempt that gave the row kept."""
    dataset = make(uri, 8, 4)
    run_units(
        dataset,
        lambda: passing_stage,
        0,
        columns=COLUMNS,
        retryable_reasons=frozenset({"timeout"}),
        progress=False,
    )
    rows = [row for row in dataset.iter_rows() if row["status"] == "kept"]
    assert len({row["key"] for row in rows}) == len(rows)
    return {row["key"]: row["number"] for row in rows}


@pytest.mark.parametrize("after", [False, True])
def test_dying_at_every_storage_call_loses_no_later_attempt(tmp_path: Path, after: bool) -> None:
    undisturbed = run_passing(tmp_path / "whole")
    assert undisturbed == {f"item{n:04d}": int(n in (1, 6)) for n in range(8)}
    n, died = 1, True
    while died:
        left, died = n, False

        def dying(real: Any) -> Any:
            def call(self: FolderStore, *args: Any) -> None:
                nonlocal left, died
                left -= 1
                if left == 0 and not after:
                    died = True
                    raise Died
                real(self, *args)
                if left == 0:
                    died = True
                    raise Died

            return call

        with pytest.MonkeyPatch.context() as patch:
            for name in ("put", "put_file", "delete"):
                patch.setattr(FolderStore, name, dying(getattr(FolderStore, name)))
            with contextlib.suppress(Died):
                run_passing(tmp_path / str(n))
        assert run_passing(tmp_path / str(n)) == undisturbed, n
        n += 1
    assert n > 15


def test_a_long_list_is_streamed_and_numbered_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.worklist.LIST_ITEMS", 50)
    monkeypatch.setattr("cluster.worklist.LIST_ROWS", 20)
    dataset = make(tmp_path / "data", 203, 3)
    assert len(dataset.store.list("worklist")) == 5
    units = dataset.worklist.units()
    assert [item.payload["n"] for task in units for item in task.items] == list(range(203))
    assert [task.unit for task in units] == [f"u{n:07d}" for n in range(dataset.worklist.count_units())]
    for first in (0, 1, 16, 17, 35, len(units) - 1, len(units)):
        assert list(dataset.worklist.iter_units(first)) == units[first:]
        assert [unit for unit, _ in dataset.worklist.unit_attempts(first)] == [
            task.unit for task in units[first:]
        ]
    assert (
        dataset.worklist.append(((f"item{n:04d}", {"n": n}) for n in range(210)), 3) == 7
        and len(dataset.store.list("worklist")) == 6
    )


def test_a_run_logs_its_progress(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "cluster.progress")
    monkeypatch.setattr("sys.stdout", io.StringIO())
    monkeypatch.setattr("cluster.progress.LOG_EVERY_S", 0)
    run_units(make(tmp_path / "data", 6), lambda: Slow(tmp_path, 0.01), 0, columns=COLUMNS)
    assert [line.split(" · ")[0] for line in caplog.messages] == [f"{done} of 3 shards" for done in (1, 2, 3)]
    assert "kept 6 · refused 0" in caplog.messages[-1] and "kept 6 · refused 0" in sys.stdout.getvalue()
