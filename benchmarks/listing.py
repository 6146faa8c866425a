"""What finding one's place costs: listing and resuming a finished scrape of 10^6 units in a folder, and of
10^4 on S3.

    python -m benchmarks.listing [local=1000000] [stored=10000]

The commits are as the protocol writes them, without a sync each, and the work list is real. `list_s`: the
names of committed units. `resume_s`: `run_units` with nothing left to do, in a process of its own, whose
greatest memory is told. `snapshot_s`: every commit read and checked. Baselines: `os.scandir` over the same
names, and a bare botocore paginator (what moto itself takes, every page of it). S3 is moto on loopback; the
extrapolation to 10^6 is by requests, 1000 names each, of what we add to the paginator.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import botocore.session

from benchmarks.machine import machine
from benchmarks.units import COLUMNS, make, noop_stage
from cluster.dataset import Commit, Dataset
from cluster.pool import do_unit
from cluster.seals import seal_json
from cluster.units import run_units
from tests.fakes.servers import environment, moto, new_bucket


def fill(dataset: Dataset) -> None:
    """Commits every unit: the first by the protocol, the others as it would have, without a sync each."""
    tasks = dataset.worklist.iter_units()
    first = next(tasks)
    do_unit(dataset, noop_stage, first, frozenset())
    commit = dataset.read_commit(f"commits/{first.unit}.0.json")
    with ThreadPoolExecutor(8) as pool:
        for batch in batched((task.unit for task in tasks), 1000):
            list(pool.map(lambda unit: write(dataset, replace(commit, unit=unit)), batch))


def batched(units: Iterator[str], size: int) -> Iterator[list[str]]:
    while batch := list(itertools.islice(units, size)):
        yield batch


def write(dataset: Dataset, commit: Commit) -> None:
    name, data = f"commits/{commit.unit}.0.json", seal_json(commit.to_json())
    if "://" in dataset.uri:
        dataset.store.put(name, data)
    else:
        Path(dataset.uri, name).write_bytes(data)


@contextmanager
def timed(found: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    found[name] = round(time.perf_counter() - started, 2)


def peak_mb() -> float:
    """Of this program; getrusage would tell that of whoever started it."""
    return next(int(line.split()[1]) / 1e3 for line in open("/proc/self/status") if line.startswith("VmHWM"))


def resume(uri: str) -> None:
    """A driver with nothing to do, in this process: seconds and its greatest memory, as JSON."""
    found: dict[str, float] = {"import_mb": peak_mb()}
    with timed(found, "resume_s"):
        summary = run_units(Dataset.open(uri), lambda: noop_stage, 0, columns=COLUMNS, progress=False)
    assert not summary.units_done and summary.units_before
    print(json.dumps({**found, "resume_mb": peak_mb()}))


def look(uri: str, units: int) -> dict[str, float]:
    """The figures of one dataset, which is made first."""
    found: dict[str, float] = {"units": units}
    fill(make(uri, units))
    dataset = Dataset.open(uri)
    with timed(found, "list_s"):
        assert len(dataset.committed_units()) == units
    with timed(found, "snapshot_s"):
        assert len(dataset.snapshot().commits) == units
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks.listing", f"resume={uri}"],
        check=True,
        capture_output=True,
        text=True,
    )
    return {**found, **json.loads(told.stdout.splitlines()[-1])}


def paginated(uri: str) -> int:
    """The commits that botocore's own paginator finds."""
    bucket, prefix = uri.removeprefix("s3://").split("/", 1)
    pages = botocore.session.get_session().create_client("s3").get_paginator("list_objects_v2")
    return sum(page.get("KeyCount", 0) for page in pages.paginate(Bucket=bucket, Prefix=f"{prefix}/commits/"))


def measure(local: int, stored: int) -> dict[str, object]:
    """Both, and the extrapolation."""
    with tempfile.TemporaryDirectory(prefix="stillsound-bench-") as name:
        folder = look(f"{name}/numbers", local)
        with timed(folder, "scandir_s"):
            assert sum(1 for _ in os.scandir(f"{name}/numbers/commits")) == local
    with moto() as url, patch.dict(os.environ, environment(url)):
        uri = f"{new_bucket()}/numbers"
        s3 = look(uri, stored)
        with timed(s3, "paginator_s"):
            assert paginated(uri) == stored
    s3["added_s_at_1000000_extrapolated"] = round((s3["list_s"] - s3["paginator_s"]) * 1e6 / stored, 1)
    return {
        "benchmark": "listing",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "folder": folder,
        "s3": s3,
        "list_over_scandir": round(folder["list_s"] / folder["scandir_s"], 1),
    }


if __name__ == "__main__":
    words = dict(word.split("=", 1) for word in sys.argv[1:])
    if "resume" in words:
        resume(words["resume"])
    else:
        print(
            json.dumps(
                measure(int(words.get("local", 1_000_000)), int(words.get("stored", 10_000))), indent=1
            )
        )
