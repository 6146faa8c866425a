"""What the runner itself costs: many units that do nothing, beside the same loop without Ray.

    python -m benchmarks.units [units=100000] [workers=2] [baseline_units=5000]

Measured: units per second, the driver's resident memory along the way, and CPU by kind of process. A unit is
one item that its stage refuses at once. What remains is the cost of an index file and a commit on the local
disk, each synced, and of the messages between driver and worker.

- `units_per_s`: the slope of units over time while they are committed, Ray's start not included.
- `in_process_units_per_s`, the baseline: one process that builds and commits the same units in a bare loop.

How: the driver is a process of its own, and is observed from outside every SAMPLE_S seconds.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pyarrow as pa

from benchmarks.command_line import parse_options
from benchmarks.machine import machine
from cluster.dataset import Dataset
from cluster.pool import UnitOutput, do_unit
from cluster.shards import Row, Status, write_shard
from cluster.units import run_units
from cluster.worklist import UnitTask

COLUMNS = pa.schema([("number", pa.int32())])
MEMORY_AT = (0.1, 0.5, 1.0)  # shares of all units: memory that grows with them would show between these
SAMPLE_S = 0.5
MAX_KINDS = 6  # of processes in the result, those with most CPU


class Observation(NamedTuple):
    at_s: float
    units: int
    driver_mb: float


# --- The units ----------------------------------------------------------------------------------------------


def noop_stage(task: UnitTask, scratch: Path) -> UnitOutput:
    """Refuses every item at once."""
    rows = [Row(item.item_id, None, Status.REFUSED, "silent") for item in task.items]
    return UnitOutput(write_shard(scratch, rows, COLUMNS))


def make_numbers(uri: Path | str, units: int) -> Dataset:
    """An empty dataset with a work list of so many units of one item."""
    dataset = Dataset.create_or_open(str(uri), "numbers", {}, [])
    items = ((f"item{n:09d}", {"n": n, "url": f"https://example.org/watch?v={n:011d}"}) for n in range(units))
    dataset.worklist.append(items, 1)
    return dataset


# --- Both sides ---------------------------------------------------------------------------------------------


def bare_loop(folder: Path, units: int) -> float:
    """Units per second in this process, without Ray."""
    dataset = make_numbers(folder / "in_process", units)
    started_s = time.monotonic()
    for task in dataset.worklist.iter_units():
        do_unit(dataset, noop_stage, task, frozenset())
    return units / (time.monotonic() - started_s)


def drive(uri: str, workers: int) -> None:
    """The driver, in a process of its own: runs the units and prints its summary as JSON."""
    summary = run_units(Dataset.open(uri), lambda: noop_stage, workers, columns=COLUMNS, progress=False)
    result = {"done": summary.units_done, "failed": len(summary.failed), "seconds": summary.seconds}
    print(json.dumps(result), flush=True)


def under_ray(folder: Path, units: int, workers: int) -> dict[str, object]:
    dataset = make_numbers(folder / "ray", units)
    args = [sys.executable, "-m", "benchmarks.units", f"drive={dataset.uri}", f"workers={workers}"]
    driver = subprocess.Popen(args, stdout=subprocess.PIPE, text=True)
    observations, cpu_s = observe(driver, folder / "ray/commits")
    assert driver.stdout
    # last line: Ray may print before it
    summary = json.loads(driver.stdout.read().splitlines()[-1])
    assert summary["done"] == units and not summary["failed"], summary
    working = [point for point in observations if point.units]
    committed = [point.units for point in working]
    units_per_s = np.polyfit([point.at_s for point in working], committed, 1)[0]
    mb_per_unit = np.polyfit(committed, [point.driver_mb for point in working], 1)[0]
    return {
        "units_per_s": round(float(units_per_s), 1),
        "units_per_s_start_included": round(units / summary["seconds"], 1),
        "driver_mb_at_units": {
            str(round(share * units)): round(driver_mb_at(working, share * units), 1) for share in MEMORY_AT
        },
        "driver_mb_max": round(max(point.driver_mb for point in observations), 1),
        "driver_mb_per_10000_units": round(float(mb_per_unit) * 1e4, 2),
        "cpu_ms_per_unit": {kind: round(1e3 * seconds / units, 3) for kind, seconds in cpu_s.items()},
    }


def driver_mb_at(observations: list[Observation], units: float) -> float:
    """Of the observation nearest to so many units."""
    return min(observations, key=lambda point: abs(point.units - units)).driver_mb


# --- What is seen from outside ------------------------------------------------------------------------------


def observe(driver: subprocess.Popen[str], commits: Path) -> tuple[list[Observation], dict[str, float]]:
    """Observations as long as the driver runs, and the CPU-seconds by kind of process."""
    observations: list[Observation] = []
    cpu_s: dict[tuple[str, int], float] = {}  # by kind and pid: the last that a process showed is its sum
    process = psutil.Process(driver.pid)
    while driver.poll() is None:
        try:
            driver_mb = process.memory_info().rss / 1e6
            observations.append(Observation(time.monotonic(), count_commits(commits), driver_mb))
            for member in (process, *process.children(recursive=True)):
                times = member.cpu_times()
                kind = "driver" if member.pid == driver.pid else kind_of(member.name())
                cpu_s[kind, member.pid] = times.user + times.system
        except psutil.Error:
            pass  # a process ended while it was looked at
        time.sleep(SAMPLE_S)
    by_kind: dict[str, float] = defaultdict(float)
    for (kind, _), seconds in cpu_s.items():
        by_kind[kind] += seconds
    most_first = sorted(by_kind.items(), key=lambda pair: -pair[1])
    return observations, dict(most_first[:MAX_KINDS])


def count_commits(folder: Path) -> int:
    if not folder.exists():
        return 0
    return sum(1 for entry in os.scandir(folder) if entry.name.endswith(".json"))


def kind_of(process_name: str) -> str:
    return "workers" if "Worker" in process_name else process_name


# --- Result -------------------------------------------------------------------------------------------------


def measure(units: int, workers: int, baseline_units: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="stillsound-bench-") as name:
        bare_per_s = bare_loop(Path(name), baseline_units)
        ray_figures = under_ray(Path(name), units, workers)
    ray_per_s = float(str(ray_figures["units_per_s"]))
    return {
        "benchmark": "units",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine("ray"),
        "units": units,
        "workers": workers,
        **ray_figures,
        "in_process_units_per_s": round(bare_per_s, 1),
        "over_in_process": round(ray_per_s / bare_per_s, 2),
    }


def main() -> None:
    options = parse_options()
    workers = int(options.get("workers", 2))
    if "drive" in options:
        drive(options["drive"], workers)
        return
    units = int(options.get("units", 100_000))
    baseline_units = int(options.get("baseline_units", 5000))
    print(json.dumps(measure(units, workers, baseline_units), indent=1))


if __name__ == "__main__":
    main()
