"""Units per second and the driver's memory over a long list of units that do nothing, beside the same loop
without Ray.

    python -m benchmarks.units [units=100000] [workers=2] [baseline_units=5000]

A unit is one item whose stage refuses it at once: what remains is the runner's own cost, which is an index
file and a commit on the local disk, each synced, and the way there and back. The baseline, `in_process`, is
one process that builds and commits the same units in a bare loop. Resident memory is the driver's own, Ray
included, looked at from outside; CPU is told by process.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

from benchmarks.machine import machine
from cluster.dataset import Dataset
from cluster.pool import UnitOutput, do_unit
from cluster.shards import Row, write_shard
from cluster.units import run_units
from cluster.worklist import UnitTask

COLUMNS = pa.schema([("number", pa.int32())])
MARKS = (0.1, 0.5, 1.0)  # of all units: where memory is told
SAMPLE_S = 0.5


def noop_stage(task: UnitTask, scratch: Path) -> UnitOutput:
    """Refuses every item at once."""
    return UnitOutput(
        write_shard(scratch, [Row(item.item_id, None, "refused", "silent") for item in task.items], COLUMNS)
    )


def make(uri: Path | str, units: int) -> Dataset:
    dataset = Dataset.create_or_open(str(uri), "numbers", {}, [])
    dataset.worklist.append(
        ((f"item{n:09d}", {"n": n, "url": f"https://example.org/watch?v={n:011d}"}) for n in range(units)), 1
    )
    return dataset


def in_process(folder: Path, units: int) -> float:
    """Units per second of a bare loop."""
    dataset = make(folder / "in_process", units)
    started = time.monotonic()
    for task in dataset.worklist.iter_units():
        do_unit(dataset, noop_stage, task, frozenset())
    return units / (time.monotonic() - started)


def drive(uri: str, workers: int) -> None:
    """The driver, a process of its own: runs the units and tells what they cost as JSON."""
    summary = run_units(Dataset.open(uri), lambda: noop_stage, workers, columns=COLUMNS, progress=False)
    print(
        json.dumps({"done": summary.units_done, "failed": len(summary.failed), "seconds": summary.seconds}),
        flush=True,
    )


def watch(
    driver: subprocess.Popen[str], commits: Path
) -> tuple[list[tuple[float, int, float]], dict[str, float]]:
    """(seconds, units committed, resident MB of the driver) as long as it runs, and CPU-seconds by name of
    process.
    """
    seen, cpu_s = [], dict[tuple[str, int], float]()
    process = psutil.Process(driver.pid)
    while driver.poll() is None:
        try:
            num_units = (
                sum(1 for entry in os.scandir(commits) if entry.name.endswith(".json"))
                if commits.exists()
                else 0
            )
            seen.append((time.monotonic(), num_units, process.memory_info().rss / 1e6))
            for member in (process, *process.children(recursive=True)):
                times = member.cpu_times()
                name = (
                    "driver"
                    if member.pid == driver.pid
                    else "workers"
                    if "Worker" in member.name()
                    else member.name()
                )
                cpu_s[name, member.pid] = times.user + times.system
        except psutil.Error:
            pass
        time.sleep(SAMPLE_S)
    by_name: dict[str, float] = defaultdict(float)
    for (name, _), seconds in cpu_s.items():
        by_name[name] += seconds
    return seen, dict(sorted(by_name.items(), key=lambda pair: -pair[1])[:6])


def under_ray(folder: Path, units: int, workers: int) -> dict[str, object]:
    dataset = make(folder / "ray", units)
    words = [sys.executable, "-m", "benchmarks.units", f"drive={dataset.uri}", f"workers={workers}"]
    driver = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    seen, cpu_s = watch(driver, folder / "ray/commits")
    assert driver.stdout
    told = json.loads(driver.stdout.read().splitlines()[-1])
    assert told["done"] == units and not told["failed"], told
    working = [(at, done, rss) for at, done, rss in seen if done]
    rate = np.polyfit([at for at, _, _ in working], [done for _, done, _ in working], 1)[0]
    slope = np.polyfit([done for _, done, _ in working], [rss for _, _, rss in working], 1)[0]
    marks = {
        str(round(share * units)): min(working, key=lambda point: abs(point[1] - share * units))[2]
        for share in MARKS
    }
    return {
        "units_per_s": round(float(rate), 1),
        "units_per_s_start_included": round(units / told["seconds"], 1),
        "driver_mb_at_units": {name: round(rss, 1) for name, rss in marks.items()},
        "driver_mb_max": round(max(rss for _, _, rss in seen), 1),
        "driver_mb_per_10000_units": round(float(slope) * 1e4, 2),
        "cpu_ms_per_unit": {name: round(1e3 * seconds / units, 3) for name, seconds in cpu_s.items()},
    }


def measure(units: int, workers: int, baseline_units: int) -> dict[str, object]:
    """The figures of both, and their ratio."""
    with tempfile.TemporaryDirectory(prefix="stillsound-bench-") as name:
        bare = in_process(Path(name), baseline_units)
        ours = under_ray(Path(name), units, workers)
    return {
        "benchmark": "units",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine("ray"),
        "units": units,
        "workers": workers,
        **ours,
        "in_process_units_per_s": round(bare, 1),
        "over_in_process": round(float(str(ours["units_per_s"])) / bare, 2),
    }


if __name__ == "__main__":
    words = dict(word.split("=", 1) for word in sys.argv[1:])
    num_workers = int(words.get("workers", 2))
    if "drive" in words:
        drive(words["drive"], num_workers)
    else:
        print(
            json.dumps(
                measure(
                    int(words.get("units", 100_000)), num_workers, int(words.get("baseline_units", 5000))
                ),
                indent=1,
            )
        )
