"""What it costs to resume: finding what is done of a finished scrape of 10^6 units in a folder, 10^4 on S3.

    python -m benchmarks.listing [local=1000000] [stored=10000]

Measured, of each of the two datasets:

- `list_s`: the names of the committed units. `snapshot_s`: every commit read and checked.
- `resume_s`, `resume_mb`: `run_units` with nothing left to do, in a process of its own, and its peak memory;
  `import_mb` is what it had before.
- the baselines of `list_s`: `scandir_s`, `os.scandir` over the same names, and `paginator_s`, a bare botocore
  paginator (moto's own time for every page).

How: the work list is real, and the commits have the form of the protocol, written without a sync each. S3 is
moto on loopback. `added_s_at_1000000_extrapolated` scales with the requests, 1000 names each, what we add to
the paginator.
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

from benchmarks.command_line import parse_options
from benchmarks.machine import machine
from benchmarks.units import COLUMNS, make_numbers, noop_stage
from cluster.dataset import Commit, Dataset
from cluster.pool import do_unit
from cluster.seals import seal_json
from cluster.units import run_units
from tests.fakes.servers import environment, moto, new_bucket

WRITERS = 8
WRITTEN_AT_ONCE = 1000  # bounds the futures that are held in memory


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Takes down how long the block took, as seconds[name]."""
    started_s = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - started_s, 4)


# --- A finished scrape --------------------------------------------------------------------------------------


def commit_all(dataset: Dataset) -> None:
    """Commits every unit: the first by the protocol, the others as copies of it, without a sync each."""
    tasks = dataset.worklist.iter_units()
    first = next(tasks)
    do_unit(dataset, noop_stage, first, frozenset())
    commit = dataset.read_commit(f"commits/{first.unit}.0.json")
    units = (task.unit for task in tasks)
    with ThreadPoolExecutor(WRITERS) as pool:
        while batch := list(itertools.islice(units, WRITTEN_AT_ONCE)):
            list(pool.map(lambda unit: write_commit(dataset, replace(commit, unit=unit)), batch))


def write_commit(dataset: Dataset, commit: Commit) -> None:
    name = f"commits/{commit.unit}.0.json"
    data = seal_json(commit.to_json())
    if "://" in dataset.uri:
        dataset.store.put(name, data)
    else:
        Path(dataset.uri, name).write_bytes(data)


# --- Ours ---------------------------------------------------------------------------------------------------


def measure_dataset(uri: str, units: int) -> dict[str, float]:
    """The figures of one dataset, which is made first."""
    figures: dict[str, float] = {"units": units}
    commit_all(make_numbers(uri, units))
    dataset = Dataset.open(uri)
    with timed(figures, "list_s"):
        assert len(dataset.committed_units()) == units
    with timed(figures, "snapshot_s"):
        assert len(dataset.snapshot().commits) == units
    args = [sys.executable, "-m", "benchmarks.listing", f"resume={uri}"]
    driver = subprocess.run(args, check=True, capture_output=True, text=True)
    return {**figures, **json.loads(driver.stdout.splitlines()[-1])}


def resume(uri: str) -> None:
    """A driver with nothing to do, in this process: prints its seconds and peak memory as JSON."""
    figures: dict[str, float] = {"import_mb": peak_mb()}
    with timed(figures, "resume_s"):
        summary = run_units(Dataset.open(uri), lambda: noop_stage, 0, columns=COLUMNS, progress=False)
    assert not summary.units_done and summary.units_before
    print(json.dumps({**figures, "resume_mb": peak_mb()}))


def peak_mb() -> float:
    """Of this program; getrusage would give that of the process that started it."""
    status = Path("/proc/self/status").read_text().splitlines()
    high_water = next(line for line in status if line.startswith("VmHWM"))
    return int(high_water.split()[1]) / 1e3


# --- Baselines ----------------------------------------------------------------------------------------------


def count_by_scandir(folder: str) -> int:
    return sum(1 for _ in os.scandir(folder))


def count_by_paginator(uri: str) -> int:
    """The commits that botocore's own paginator lists."""
    bucket, prefix = uri.removeprefix("s3://").split("/", 1)
    paginator = botocore.session.get_session().create_client("s3").get_paginator("list_objects_v2")
    pages = paginator.paginate(Bucket=bucket, Prefix=f"{prefix}/commits/")
    return sum(page.get("KeyCount", 0) for page in pages)


# --- Result -------------------------------------------------------------------------------------------------


def measure(local_units: int, stored_units: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="stillsound-bench-") as name:
        uri = f"{name}/numbers"
        folder = measure_dataset(uri, local_units)
        with timed(folder, "scandir_s"):
            assert count_by_scandir(f"{uri}/commits") == local_units
    with moto() as url, patch.dict(os.environ, environment(url)):
        uri = f"{new_bucket()}/numbers"
        s3 = measure_dataset(uri, stored_units)
        with timed(s3, "paginator_s"):
            assert count_by_paginator(uri) == stored_units
    added_s = s3["list_s"] - s3["paginator_s"]
    s3["added_s_at_1000000_extrapolated"] = round(added_s * 1e6 / stored_units, 1)
    return {
        "benchmark": "listing",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "folder": folder,
        "s3": s3,
        "list_over_scandir": round(folder["list_s"] / folder["scandir_s"], 1),
    }


def main() -> None:
    options = parse_options()
    if "resume" in options:
        resume(options["resume"])
        return
    local_units = int(options.get("local", 1_000_000))
    stored_units = int(options.get("stored", 10_000))
    print(json.dumps(measure(local_units, stored_units), indent=1))


if __name__ == "__main__":
    main()
