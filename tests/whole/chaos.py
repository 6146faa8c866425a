"""Random kills of scrapes and training runs, repeatable by their seed.

    python -m tests.whole.chaos [minutes=10] [seed=…]     # or: make chaos

Rounds until the minutes are over, of two kinds in turn:

- ingest: a scrape by two workers whose driver, raylet, workers, fetchers and decoders are killed at random
  moments; the same command is repeated until it succeeds. Every item must end as in an undisturbed run, to
  the checksum of every member.
- training: a run that goes from 1 to 2, 4, 3 and 1 workers and from ZeRO 1 to 2 and back, with kills in
  between. Every step must have the loss of an undisturbed run, to 1e-5.

Each round prints its kills. The first difference ends it with code 1.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from cluster.dataset import Dataset
from ingest.synth import SynthConfig, synth
from ingest.verify import verify
from tests.conftest import ROOT
from tests.fakes.latents import make_latents
from tests.fakes.runs import TINY_ARGS, losses

LEGS = ((1, 1), (2, 2), (4, 1), (3, 2), (1, 1))  # workers, ZeRO stage
LEG_STEPS = 40
# in a process's command line -> what it is called here
KINDS = {
    "ingest.fetch.process": "fetcher",
    "ingest.clip.process": "decoder",
    "raylet/raylet": "raylet",
    "ray::Worker": "worker",
    "RayTrainWorker": "trainer",
}
# a command that lost one of these ends with an error and has to be run again
FATAL_KINDS = ("driver", "raylet")


def start(args: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", *args], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def kind_of(process: psutil.Process) -> str:
    """The kind of a descendant of a driver, "" for those that are not killed."""
    command_line = " ".join(process.cmdline())
    return next((kind for mark, kind in KINDS.items() if mark in command_line), "")


def kill_one(driver: subprocess.Popen[bytes], rng: random.Random) -> str:
    """Kills the driver, or a process below it, each kind as likely as the others; returns its kind."""
    by_kind: dict[str, list[psutil.Process]] = {"driver": [psutil.Process(driver.pid)]}
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            by_kind.setdefault(kind_of(process), []).append(process)
        except psutil.Error:
            continue
    by_kind.pop("", None)
    kind = rng.choice(sorted(by_kind))
    # sorted: the same seed makes the same choice
    rng.choice(sorted(by_kind[kind], key=lambda process: process.pid)).kill()
    return kind


def run_with_kills(args: list[str], rng: random.Random, max_kills: int, max_wait_s: float) -> list[str]:
    """Repeats the command until it succeeds; returns the kinds of the processes that were killed."""
    killed: list[str] = []
    while True:
        process = start(args)
        while len(killed) < max_kills and process.poll() is None:
            try:
                process.wait(rng.uniform(0.5, max_wait_s))
            except subprocess.TimeoutExpired:
                try:
                    killed.append(kill_one(process, rng))
                except psutil.NoSuchProcess:
                    continue
        _, stderr = process.communicate()
        if process.returncode == 0:
            return killed
        if len(killed) >= max_kills:
            if process.returncode > 0 and not (killed and killed[-1] in FATAL_KINDS):
                raise SystemExit(
                    f"{' '.join(args)} ended with {process.returncode} after {killed}:\n"
                    f"{stderr.decode()[-3000:]}"
                )
            killed.append("repeated")


# --- Ingest -------------------------------------------------------------------------------------------------


def outcome(uri: Path) -> dict[str, list[Any]]:
    """Item -> its samples at its last attempt: key, status, reason, checksums of the members."""
    dataset = Dataset.open(str(uri))
    units: dict[str, str] = {}
    samples: dict[str, list[Any]] = {}
    for row in sorted(dataset.iter_rows(), key=lambda row: (row["unit"], row["ordinal"])):
        item = row["item_id"]
        # units of later attempts come last and replace what the earlier ones gave
        if units.get(item) != row["unit"]:
            units[item] = row["unit"]
            samples[item] = []
        members = [(member["ext"], member["size"], member["crc32"]) for member in row["members"] or ()]
        samples[item].append((row["key"], row["status"], row["reason"], members))
    return samples


def ingest_round(root: Path, rng: random.Random) -> list[str]:
    args = ["ingest", "scrape", f"source.path={root / 'world/media'}", "source.license=own", "unit_size=2"]
    args += ["clip.duration_s=1.6", "frame.short_side_px=64", "workers=2"]
    undisturbed = root / "undisturbed"
    disturbed = root / "disturbed"
    if not undisturbed.exists():
        world = str(root / "world")
        synth(SynthConfig(world, videos=40, webm=4, hls=0, dash=0, stills=1, silent=2, scenes_per_video=3))
        run_with_kills([*args, f"output={undisturbed}"], rng, 0, 1)
    shutil.rmtree(disturbed, ignore_errors=True)
    killed = run_with_kills([*args, f"output={disturbed}"], rng, rng.randint(1, 6), 8.0)
    assert outcome(disturbed) == outcome(undisturbed), "the results of the items differ"
    rows = Dataset.open(str(disturbed)).iter_rows(["key", "status"])
    keys = [row["key"] for row in rows if row["status"] == "kept"]
    assert len(keys) == len(set(keys)), "a sample exists twice"
    assert not list(verify(str(disturbed))), "verify finds damage"
    return killed


# --- Training -----------------------------------------------------------------------------------------------


def training_round(root: Path, rng: random.Random) -> list[str]:
    data = root / "latents"
    if not data.exists():
        make_latents(data)
    args = ["training", "train", f"data={data}", "global_batch=12", "lanes=12", "warmup_steps=3"]
    args += ["lr=1e-3", "checkpoint_every=7", *TINY_ARGS]
    steps = LEG_STEPS * len(LEGS)
    undisturbed = root / "undisturbed-run"
    disturbed = root / "disturbed-run"
    if not undisturbed.exists():
        run_with_kills([*args, f"output={undisturbed}", "workers=0", f"steps={steps}"], rng, 0, 1)
    shutil.rmtree(disturbed, ignore_errors=True)
    killed: list[str] = []
    for leg, (workers, stage) in enumerate(LEGS, 1):
        leg_args = [f"output={disturbed}", f"workers={workers}", f"zero_stage={stage}"]
        leg_args.append(f"steps={LEG_STEPS * leg}")
        killed.append(f"{workers} workers")
        killed += run_with_kills([*args, *leg_args], rng, rng.randint(0, 2), 20.0)
    difference = largest_difference(losses(disturbed), losses(undisturbed))
    assert difference < 1e-5, f"losses differ by {difference:.1e}"
    return [*killed, f"losses within {difference:.1e}"]


def largest_difference(losses: list[float], expected: list[float]) -> float:
    """Relative to the expected losses."""
    pairs = zip(losses, expected, strict=True)
    return max(abs(loss - expected_loss) / abs(expected_loss) for loss, expected_loss in pairs)


ROUNDS = (("ingest", ingest_round), ("training", training_round))


def main(minutes: float, seed: int) -> None:
    os.environ |= {
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    }
    deadline_s = time.monotonic() + 60 * minutes
    rng = random.Random(seed)
    done = {"ingest": 0, "training": 0}
    with tempfile.TemporaryDirectory(prefix="stillsound-chaos-") as name:
        while time.monotonic() < deadline_s:
            for kind, run_round in ROUNDS:
                print(f"{kind} round {done[kind]} of seed {seed}: ", end="", flush=True)
                print(", ".join(run_round(Path(name), rng)) or "nothing was killed", flush=True)
                done[kind] += 1
    print(json.dumps({"seed": seed, "rounds": done, "differences": 0}))


if __name__ == "__main__":
    options = dict(arg.split("=", 1) for arg in sys.argv[1:])
    main(float(options.get("minutes", 10)), int(options.get("seed", random.randrange(10**6))))
