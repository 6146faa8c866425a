"""A dataset of numbers: item k is a sample of k bytes, and those ending in 7 are refused."""

import sys
from pathlib import Path

import pyarrow as pa
from ray import cloudpickle

from cluster.dataset import Dataset
from cluster.pool import UnitOutput
from cluster.shards import Row, write_shard
from cluster.worklist import UnitTask

# Ray workers cannot import a test module
cloudpickle.register_pickle_by_value(sys.modules[__name__])
COLUMNS = pa.schema([("n", pa.int64())])


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


class Died(BaseException):
    """kill -9 in a test: no `except Exception` may catch it."""
