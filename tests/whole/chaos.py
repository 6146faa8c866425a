"""Random kills of scrapes and training runs, repeatable by their seed.

    python -m tests.whole.chaos [minutes=10] [seed=…]     # or: make chaos

Rounds until the minutes are over, of two kinds in turn:

- ingest: a scrape by two workers whose driver, raylet, workers, fetchers and decoders are killed at random
  moments; the same command is repeated until it succeeds. Every item must end as in an undisturbed run, to
  the checksum of every member.
- training (tests.whole.chaos_training): a run of a recipe drawn from all, that goes from one number of
  workers and ZeRO stage to others, with kills in between; bit for bit as without kills.

A scrape's round follows all recipes. Each round prints its kills. The first difference ends it with code 1.
"""

import itertools
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from cluster.dataset import Dataset
from ingest.synth import SynthConfig, synth
from ingest.verify import verify
from tests.whole.chaos_training import RECIPES, training_round
from tests.whole.random_kills import run_with_kills

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


def recipes_in_turn(rng: random.Random) -> Iterator[str]:
    """All recipes, drawn in any order, again and again."""
    while True:
        yield from rng.sample(sorted(RECIPES), len(RECIPES))


def rounds(root: Path, rng: random.Random) -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """Kind and work of each round: a scrape, then every recipe once, and so on."""
    recipes = recipes_in_turn(rng)
    while True:
        yield "ingest", partial(ingest_round, root, rng)
        for recipe in itertools.islice(recipes, len(RECIPES)):
            yield recipe, partial(training_round, root, rng, recipe)


def main(minutes: float, seed: int) -> None:
    os.environ |= {
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    }
    deadline_s = time.monotonic() + 60 * minutes
    rng = random.Random(seed)
    done = {"ingest": 0, "training": 0}
    recipes = dict.fromkeys(sorted(RECIPES), 0)
    with tempfile.TemporaryDirectory(prefix="stillsound-chaos-") as name:
        for kind, run_round in rounds(Path(name), rng):
            if time.monotonic() > deadline_s:
                break
            number = recipes[kind] if kind in recipes else done[kind]
            print(f"{kind} round {number} of seed {seed}: ", end="", flush=True)
            print(", ".join(run_round()) or "nothing was killed", flush=True)
            done["training" if kind in recipes else kind] += 1
            if kind in recipes:
                recipes[kind] += 1
    print(json.dumps({"seed": seed, "rounds": done, "recipes": recipes, "differences": 0}))


if __name__ == "__main__":
    options = dict(arg.split("=", 1) for arg in sys.argv[1:])
    main(float(options.get("minutes", 10)), int(options.get("seed", random.randrange(10**6))))
