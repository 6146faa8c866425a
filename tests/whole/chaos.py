"""Long random trouble, told by its seed: `make chaos`, or `python -m tests.whole.chaos [minutes=10]
[seed=…]`.

Rounds until the time is over, of two kinds in turn. Ingest: a scrape by two workers whose driver, raylet,
workers, fetchers and decoders are killed at random moments, the same command again until it is through; every
item must end as in a run that was left alone, every byte of every sample included. Training: a run that goes
from 1 to 2, 4, 3 and 1 workers and from ZeRO 1 to 2 and back, killed on the way; every step must have the
loss of a run that was left alone, to 1e-5. The first difference ends it with code 1; what it did is printed
as it goes.
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
from cluster.jsonl import read_lines
from ingest.synth import SynthConfig, synth
from ingest.verify import verify
from tests.conftest import ROOT
from tests.fakes.latents import make_latents
from tests.fakes.runs import TINY_ARGS

LEGS = ((1, 1), (2, 2), (4, 1), (3, 2), (1, 1))  # workers, ZeRO stage
LEG_STEPS = 40


def command(words: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", *words], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def kind_of(process: psutil.Process) -> str:
    """What a descendant of a driver is, or nothing where it is none of those that we kill."""
    words = " ".join(process.cmdline())
    known = {
        "ingest.fetch.process": "fetcher",
        "ingest.clip.process": "decoder",
        "raylet/raylet": "raylet",
        "ray::Worker": "worker",
    }
    return next(
        (kind for word, kind in known.items() if word in words),
        "trainer" if "RayTrainWorker" in words else "",
    )


def kill_one(driver: subprocess.Popen[bytes], rng: random.Random) -> str:
    """Kills the driver, or something below it, each kind as likely as the others; what it was."""
    kinds: dict[str, list[psutil.Process]] = {"driver": [psutil.Process(driver.pid)]}
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            kinds.setdefault(kind_of(process), []).append(process)
        except psutil.Error:
            continue
    kinds.pop("", None)
    kind = rng.choice(sorted(kinds))
    rng.choice(sorted(kinds[kind], key=lambda process: process.pid)).kill()
    return kind


def through(words: list[str], rng: random.Random, most_kills: int, longest_s: float) -> list[str]:
    """The command, again and again until it ends well; what was killed meanwhile."""
    killed: list[str] = []
    while True:
        process = command(words)
        while len(killed) < most_kills and process.poll() is None:
            try:
                process.wait(rng.uniform(0.5, longest_s))
            except subprocess.TimeoutExpired:
                try:
                    killed.append(kill_one(process, rng))
                except psutil.NoSuchProcess:
                    continue
        _, told = process.communicate()
        if process.returncode == 0:
            return killed
        if len(killed) >= most_kills and process.returncode > 0 and killed[-1] not in ("driver", "raylet"):
            raise SystemExit(
                f"{' '.join(words)} ended with {process.returncode} after {killed}:\n{told.decode()[-3000:]}"
            )
        if len(killed) >= most_kills:
            killed.append("again")


def outcome(uri: Path) -> dict[str, list[Any]]:
    """Item -> what became of it at its last attempt: of every sample its key, status, reason and the
    checksums of its members.
    """
    dataset, found = Dataset.open(str(uri)), dict[str, tuple[str, list[Any]]]()
    for row in sorted(dataset.iter_rows(), key=lambda row: (row["unit"], row["ordinal"])):
        members = [(member["ext"], member["size"], member["crc32"]) for member in row["members"] or ()]
        unit, rows = found.get(row["item_id"], ("", []))
        rows = rows if unit == row["unit"] else []
        found[row["item_id"]] = row["unit"], [*rows, (row["key"], row["status"], row["reason"], members)]
    return {item: rows for item, (_, rows) in found.items()}


def ingest_round(root: Path, rng: random.Random) -> list[str]:
    words = [
        "ingest",
        "scrape",
        f"source.path={root / 'world/media'}",
        "source.license=own",
        "unit_size=2",
        "clip.duration_s=1.6",
    ]
    words += ["frame.short_side_px=64", "workers=2"]
    whole, broken = root / "whole", root / "broken"
    if not whole.exists():
        synth(
            SynthConfig(
                str(root / "world"), videos=40, webm=4, hls=0, dash=0, stills=1, silent=2, scenes_per_video=3
            )
        )
        through([*words, f"output={whole}"], rng, 0, 1)
    shutil.rmtree(broken, ignore_errors=True)
    killed = through([*words, f"output={broken}"], rng, rng.randint(1, 6), 8.0)
    assert outcome(broken) == outcome(whole), "what became of the items differs"
    keys = [
        row["key"]
        for row in Dataset.open(str(broken)).iter_rows(["key", "status"])
        if row["status"] == "kept"
    ]
    assert len(keys) == len(set(keys)), "a sample is there twice"
    assert not list(verify(str(broken))), "verify finds damage"
    return killed


def training_round(root: Path, rng: random.Random) -> list[str]:
    data, killed = root / "latents", []
    if not data.exists():
        make_latents(data)
    common = [
        "training",
        "train",
        f"data={data}",
        "global_batch=12",
        "lanes=12",
        "warmup_steps=3",
        "lr=1e-3",
        "checkpoint_every=7",
    ]
    common += TINY_ARGS
    steps = LEG_STEPS * len(LEGS)
    if not (root / "unbroken").exists():
        through([*common, f"output={root / 'unbroken'}", "workers=0", f"steps={steps}"], rng, 0, 1)
    shutil.rmtree(root / "run", ignore_errors=True)
    for leg, (workers, stage) in enumerate(LEGS, 1):
        words = [
            f"output={root / 'run'}",
            f"workers={workers}",
            f"zero_stage={stage}",
            f"steps={LEG_STEPS * leg}",
        ]
        killed += [f"{workers} workers", *through([*common, *words], rng, rng.randint(0, 2), 20.0)]
    ours, theirs = (read_lines(root / name / "metrics.jsonl") for name in ("run", "unbroken"))
    assert [line["step"] for line in ours] == list(range(1, steps + 1)), "a step is missing or there twice"
    worst = max(
        abs(one["loss"] - other["loss"]) / abs(other["loss"]) for one, other in zip(ours, theirs, strict=True)
    )
    assert worst < 1e-5, f"losses differ by {worst:.1e}"
    return [*killed, f"losses within {worst:.1e}"]


def main(minutes: float, seed: int) -> None:
    os.environ |= {
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    }
    deadline_s, rng, done = time.monotonic() + 60 * minutes, random.Random(seed), {"ingest": 0, "training": 0}
    with tempfile.TemporaryDirectory(prefix="stillsound-chaos-") as name:
        while time.monotonic() < deadline_s:
            for kind, round_ in (("ingest", ingest_round), ("training", training_round)):
                print(f"{kind} round {done[kind]} of seed {seed}: ", end="", flush=True)
                print(", ".join(round_(Path(name), rng)) or "nothing was killed", flush=True)
                done[kind] += 1
    print(json.dumps({"seed": seed, "rounds": done, "differences": 0}))


if __name__ == "__main__":
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    main(float(given.get("minutes", 10)), int(given.get("seed", random.randrange(10**6))))
