"""Workers: a unit that fails, an item that kills its worker, memory, and the end of the stages."""

import logging
import os
import sys
from pathlib import Path

import pytest
import ray
from ray import cloudpickle

from cluster.pool import UnitOutput, ensure_ray
from cluster.units import run_units
from cluster.worklist import UnitTask
from tests.fakes.numbers import COLUMNS, make, numbers_stage

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray workers cannot import a test module


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


@pytest.mark.parametrize(
    ("address", "says"), [("", "starting Ray …"), ("head:6379", "connecting to Ray at head:6379 …")]
)
def test_that_ray_starts_is_said_before_it_does(
    address: str, says: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[str] = []
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: said.append(caplog.text))
    with caplog.at_level(logging.INFO):
        ensure_ray()
    assert says in said[0]
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    ensure_ray()
    assert len(said) == 1
