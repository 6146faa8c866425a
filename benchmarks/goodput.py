"""Goodput of a real scrape while a worker is killed every minute, what its workers weigh, and what a second
worker costs.

    python -m benchmarks.goodput [minutes=5] [kill_every_s=60] [workers=2]

Videos of two minutes (H.264 640x360, 25 a second) are cut from a folder under Ray, with the defaults:
sandbox, FLAC, JPEG, tar, index, commit. Goodput: worker-seconds of committed units / (workers x seconds),
from the first actor's start to the last commit; the baseline is the same run without kills. `worker_pss_mb`:
the largest of an actor's own, and that together with its fetch and decoder children. Then the same videos by
one worker and by two: CPU-seconds per clip.
"""

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.clip import make_videos
from benchmarks.machine import machine
from ingest.clip.clipper import ClipConfig
from ingest.scrape import ScrapeConfig, scrape
from ingest.sources.settings import SourceConfig

VIDEO_MINUTES = 2.0
CPU_S_PER_VIDEO_MINUTE = 0.2  # a guess, for how many videos fill the time
SAMPLE_S = 0.5


@dataclass
class Seen:
    """What a run looks like from outside: its workers' memory in MB, and whom we killed."""

    alone_mb: float = 0.0
    family_mb: float = 0.0
    killed: list[int] = field(default_factory=list)
    torch_in: set[str] = field(default_factory=set)


def fill(folder: Path, films: list[Path], videos: int) -> Path:
    """A folder of so many videos: the few that were made, under many names."""
    folder.mkdir()
    for number in range(videos):
        os.link(films[number % len(films)], folder / f"{number:05d}.mp4")
    return folder


def drive(source: str, output: str, workers: int) -> None:
    """The driver, a process of its own; tells its summary as JSON."""
    config = ScrapeConfig(
        output=output,
        source=SourceConfig(path=source, license="own"),
        clip=ClipConfig(),
        workers=workers,
        unit_size=4,
    )
    print(json.dumps(asdict(scrape(config, progress=False))), flush=True)


def workers_of(driver: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return [
            process for process in driver.children(recursive=True) if process.name().startswith("ray::Worker")
        ]
    return []


def look(worker: psutil.Process, seen: Seen) -> None:
    with contextlib.suppress(psutil.Error):
        alone = worker.memory_full_info().pss / 1e6
        family = alone + sum(child.memory_full_info().pss / 1e6 for child in worker.children(recursive=True))
        seen.alone_mb, seen.family_mb = max(seen.alone_mb, alone), max(seen.family_mb, family)
        seen.torch_in |= {Path(part.path).name for part in worker.memory_maps() if "libtorch" in part.path}


def run(source: Path, output: Path, workers: int, kill_every_s: float = 0.0) -> tuple[dict[str, Any], Seen]:
    """(summary and goodput, what was seen) of one scrape of all of `source`."""
    words = [
        sys.executable,
        "-m",
        "benchmarks.goodput",
        f"drive={source}",
        f"output={output}",
        f"workers={workers}",
    ]
    driver = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert driver.stdout
    told: list[str] = []
    reader = threading.Thread(target=lambda: told.extend(driver.stdout or []))
    reader.start()
    seen, rng, process = Seen(), random.Random(0), psutil.Process(driver.pid)
    commits, start_s, first_s, last_s = output / "commits", 0.0, 0.0, 0.0
    num_commits = before = 0
    while driver.poll() is None:
        now = time.monotonic()
        num_commits = len(os.listdir(commits)) if commits.exists() else 0
        if num_commits > before:
            first_s, last_s, before = first_s or now, now, num_commits
        family = workers_of(process)
        start_s = start_s or (now if family else 0.0)
        for worker in family:
            look(worker, seen)
        if kill_every_s and first_s and family and now - first_s > kill_every_s * (len(seen.killed) + 1):
            victim = rng.choice(family)
            victim.kill()
            seen.killed.append(victim.pid)
        time.sleep(SAMPLE_S)
    reader.join()
    summary = json.loads(told[-1])
    assert not summary["failed"] and set(summary["counts"]) == {"kept"}, summary
    return {**summary, "goodput": summary["worker_seconds"] / workers / (last_s - start_s)}, seen


def measure(minutes: float, kill_every_s: float, workers: int) -> dict[str, Any]:
    videos = round(60 * minutes * workers / (VIDEO_MINUTES * CPU_S_PER_VIDEO_MINUTE))
    with tempfile.TemporaryDirectory(prefix="stillsound-bench-") as name:
        root = Path(name)
        (root / "films").mkdir()
        films = make_videos(root / "films", 4, VIDEO_MINUTES)
        many, few = fill(root / "many", films, videos), fill(root / "few", films, max(8, videos // 5))
        calm, _ = run(many, root / "calm", workers)
        shutil.rmtree(root / "calm")
        hit, seen = run(many, root / "hit", workers, kill_every_s)
        shutil.rmtree(root / "hit")
        cpu_s_per_clip = {}
        for number in (1, 2):
            summary, _ = run(few, root / f"workers{number}", number)
            cpu_s_per_clip[str(number)] = round(summary["cpu_s"] / summary["counts"]["kept"], 4)
    assert calm["counts"] == hit["counts"], "a kill cost samples"
    return {
        "benchmark": "goodput",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine("ray"),
        "workers": workers,
        "videos": videos,
        "clips": hit["counts"]["kept"],
        "kill_every_s": kill_every_s,
        "kills": len(seen.killed),
        "goodput_undisturbed": round(calm["goodput"], 3),
        "goodput_with_kills": round(hit["goodput"], 3),
        "seconds_over_undisturbed": round(hit["seconds"] / calm["seconds"], 3),
        "worker_pss_mb": {"actor": round(seen.alone_mb, 1), "with_its_children": round(seen.family_mb, 1)},
        "torch_libraries_in_workers": sorted(seen.torch_in),
        "cpu_s_per_clip_by_workers": cpu_s_per_clip,
        "cpu_two_over_one": round(cpu_s_per_clip["2"] / cpu_s_per_clip["1"], 3),
    }


if __name__ == "__main__":
    words = dict(word.split("=", 1) for word in sys.argv[1:])
    num_workers = int(words.get("workers", 2))
    if "drive" in words:
        drive(words["drive"], words["output"], num_workers)
    else:
        print(
            json.dumps(
                measure(float(words.get("minutes", 5)), float(words.get("kill_every_s", 60)), num_workers),
                indent=1,
            )
        )
