"""How much of a scrape's work is lost when a worker is killed every minute, and what workers weigh.

    python -m benchmarks.goodput [minutes=5] [kill_every_s=60] [workers=2]

Measured, of a real scrape under Ray with the defaults (sandbox, FLAC, JPEG, tar, index, commit):

- `goodput_with_kills`: worker-seconds of committed units / (workers x seconds), from the first actor's start
  to the last commit. The baseline, `goodput_undisturbed`, is the same run without kills.
- `worker_pss_mb`: the most memory of an actor alone, and of one together with its fetch and decoder children.
- `cpu_two_over_one`: CPU-seconds per clip of two workers over those of one, on the same fewer videos.

How: videos of two minutes (H.264 640x360, 25 frames a second) in a folder, as many as take about `minutes`.
The driver is a process of its own, observed from outside every SAMPLE_S seconds.
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
from benchmarks.command_line import parse_options
from benchmarks.machine import machine
from ingest.clip.clipper import ClipConfig
from ingest.scrape import ScrapeConfig, scrape
from ingest.sources.settings import SourceConfig

DIFFERENT_VIDEOS = 4
VIDEO_MINUTES = 2.0
CPU_S_PER_VIDEO_MINUTE = 0.2  # a guess, to choose how many videos take `minutes`
SAMPLE_S = 0.5


@dataclass
class Observed:
    """What a run looks like from outside."""

    actor_mb: float = 0.0  # the most of one actor alone
    family_mb: float = 0.0  # the most of one actor with its children
    killed_pids: list[int] = field(default_factory=list)
    torch_libraries: set[str] = field(default_factory=set)
    first_actor_s: float = 0.0
    first_commit_s: float = 0.0
    last_commit_s: float = 0.0


@dataclass
class Run:
    """A finished scrape: the summary that its driver printed, and what was observed of it."""

    summary: dict[str, Any]
    observed: Observed
    goodput: float

    @property
    def cpu_s_per_clip(self) -> float:
        return float(self.summary["cpu_s"] / self.summary["counts"]["kept"])


# --- One scrape ---------------------------------------------------------------------------------------------


def link_videos(folder: Path, originals: list[Path], videos: int) -> Path:
    """A folder of so many videos: hard links to the few that were made."""
    folder.mkdir()
    for index in range(videos):
        os.link(originals[index % len(originals)], folder / f"{index:05d}.mp4")
    return folder


def drive(source: str, output: str, workers: int) -> None:
    """The driver, in a process of its own; prints its summary as JSON."""
    config = ScrapeConfig(
        output=output,
        source=SourceConfig(path=source, license="own"),
        clip=ClipConfig(),
        workers=workers,
        unit_size=4,
    )
    print(json.dumps(asdict(scrape(config, progress=False))), flush=True)


def run_scrape(source: Path, output: Path, workers: int, kill_every_s: float = 0.0) -> Run:
    """Scrapes all of `source`; every `kill_every_s` seconds after the first commit one worker is killed."""
    args = [sys.executable, "-m", "benchmarks.goodput"]
    args += [f"drive={source}", f"output={output}", f"workers={workers}"]
    driver = subprocess.Popen(args, stdout=subprocess.PIPE, text=True)
    lines: list[str] = []
    # read while it runs: a full pipe would hold the driver up
    reader = threading.Thread(target=lambda: lines.extend(driver.stdout or []))
    reader.start()
    observed = observe(driver, output / "commits", kill_every_s)
    reader.join()
    assert driver.returncode == 0, f"the driver ended with {driver.returncode}"
    summary = json.loads(lines[-1])
    assert not summary["failed"] and set(summary["counts"]) == {"kept"}, summary
    seconds = observed.last_commit_s - observed.first_actor_s
    return Run(summary, observed, summary["worker_seconds"] / workers / seconds)


def observe(driver: subprocess.Popen[str], commits: Path, kill_every_s: float) -> Observed:
    """Looks at a driver and its workers until it ends, and kills a worker now and then."""
    observed = Observed()
    rng = random.Random(0)
    process = psutil.Process(driver.pid)
    num_commits = 0
    while driver.poll() is None:
        now_s = time.monotonic()
        num_commits_before = num_commits
        num_commits = len(os.listdir(commits)) if commits.exists() else 0
        if num_commits > num_commits_before:
            observed.first_commit_s = observed.first_commit_s or now_s
            observed.last_commit_s = now_s
        actors = actors_of(process)
        if actors:
            observed.first_actor_s = observed.first_actor_s or now_s
        for actor in actors:
            weigh(actor, observed)
        if kill_every_s and observed.first_commit_s and actors:
            next_kill_s = observed.first_commit_s + kill_every_s * (len(observed.killed_pids) + 1)
            if now_s > next_kill_s:
                victim = rng.choice(actors)
                victim.kill()
                observed.killed_pids.append(victim.pid)
        time.sleep(SAMPLE_S)
    return observed


def actors_of(driver: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        children = driver.children(recursive=True)
        return [process for process in children if process.name().startswith("ray::Worker")]
    return []


def weigh(actor: psutil.Process, observed: Observed) -> None:
    """Takes down its memory if it is the most until now, and which of torch's libraries it has loaded."""
    # it may end while it is looked at
    with contextlib.suppress(psutil.Error):
        # PSS: pages shared with other processes count by their share, so that actors can be added up
        actor_mb = actor.memory_full_info().pss / 1e6
        children = actor.children(recursive=True)
        children_mb = sum(child.memory_full_info().pss / 1e6 for child in children)
        observed.actor_mb = max(observed.actor_mb, actor_mb)
        observed.family_mb = max(observed.family_mb, actor_mb + children_mb)
        mapped_files = [Path(mapping.path).name for mapping in actor.memory_maps()]
        observed.torch_libraries.update(name for name in mapped_files if "libtorch" in name)


# --- Result -------------------------------------------------------------------------------------------------


def measure(minutes: float, kill_every_s: float, workers: int) -> dict[str, Any]:
    videos = round(60 * minutes * workers / (VIDEO_MINUTES * CPU_S_PER_VIDEO_MINUTE))
    with tempfile.TemporaryDirectory(prefix="stillsound-bench-") as name:
        root = Path(name)
        (root / "originals").mkdir()
        originals = make_videos(root / "originals", DIFFERENT_VIDEOS, VIDEO_MINUTES)
        many = link_videos(root / "many", originals, videos)
        few = link_videos(root / "few", originals, max(8, videos // 5))
        undisturbed = run_scrape(many, root / "undisturbed", workers)
        shutil.rmtree(root / "undisturbed")
        disturbed = run_scrape(many, root / "disturbed", workers, kill_every_s)
        shutil.rmtree(root / "disturbed")
        cpu_s_per_clip = {}
        for num_workers in (1, 2):
            run = run_scrape(few, root / f"workers{num_workers}", num_workers)
            cpu_s_per_clip[str(num_workers)] = round(run.cpu_s_per_clip, 4)
    assert undisturbed.summary["counts"] == disturbed.summary["counts"], "a kill cost samples"
    observed = disturbed.observed
    slowdown = disturbed.summary["seconds"] / undisturbed.summary["seconds"]
    return {
        "benchmark": "goodput",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine("ray"),
        "workers": workers,
        "videos": videos,
        "clips": disturbed.summary["counts"]["kept"],
        "kill_every_s": kill_every_s,
        "kills": len(observed.killed_pids),
        "goodput_undisturbed": round(undisturbed.goodput, 3),
        "goodput_with_kills": round(disturbed.goodput, 3),
        "seconds_over_undisturbed": round(slowdown, 3),
        "worker_pss_mb": {
            "actor": round(observed.actor_mb, 1),
            "with_its_children": round(observed.family_mb, 1),
        },
        "torch_libraries_in_workers": sorted(observed.torch_libraries),
        "cpu_s_per_clip_by_workers": cpu_s_per_clip,
        "cpu_two_over_one": round(cpu_s_per_clip["2"] / cpu_s_per_clip["1"], 3),
    }


def main() -> None:
    options = parse_options()
    workers = int(options.get("workers", 2))
    if "drive" in options:
        drive(options["drive"], options["output"], workers)
        return
    minutes = float(options.get("minutes", 5))
    kill_every_s = float(options.get("kill_every_s", 60))
    print(json.dumps(measure(minutes, kill_every_s, workers), indent=1))


if __name__ == "__main__":
    main()
