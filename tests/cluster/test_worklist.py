"""The work list: frozen, appended to, cut into units; retryable rows come back."""

from pathlib import Path

from cluster.pool import UnitOutput
from cluster.shards import Row, write_shard
from cluster.storage import FolderStore
from cluster.units import run_units
from cluster.worklist import UnitTask
from tests.fakes.numbers import COLUMNS, make, numbers


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


def test_units_are_a_fixed_slice_and_new_items_only_append(tmp_path: Path) -> None:
    dataset = make(str(tmp_path), 10)
    before = dataset.worklist.units()
    assert dataset.worklist.append(numbers(13), unit_size=4) == 3
    after = dataset.worklist.units()
    assert after[: len(before)] == before
    ids = [item.item_id for task in after for item in task.items]
    assert sorted(ids) == sorted(f"item{n}" for n in range(13)) and len(set(ids)) == 13


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
