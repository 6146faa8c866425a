"""Fine-tuning on fifty pairs of new scenes: what it gains on these, what it costs on the old ones, and time.

    python -m benchmarks.finetune demo=out/demo output=out/finetune [clips=160] [base_steps=900] [a.b=c …]

The demo's diffusion is trained anew without the shapes NEW, so that no network but the encoders has met them;
then fine-tuned by configs/training/finetune_demo.yaml on PAIRS pairs of them, of which the guard's validation
takes a part. Scored as evaluate does, on held-out clips of other videos: timbre, fundamental and onset rate,
each as the share of the gap from chance to the codec that is closed, and their mean. Chance is that of the
demo over all shapes: among two alone, one half would be right by chance, and a model that plays an old
timbre worse than chance. Further settings are the fine-tuning's. Run again: what is done is not done again.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.command_line import parse_options, run
from benchmarks.latents import SPLITS, read_split, row_of, write_latents
from benchmarks.machine import machine
from cluster.dataset import Dataset
from cluster.jsonl import JsonObject
from cluster.shards import Row, Status
from ingest.scenes import SHAPES
from training.data.npy import to_npy
from training.score import ATTRIBUTES

NEW = ("star", "cross")
PAIRS = 50
GUARDED = 10  # of them, every fifth, are the guard's and not learnt from
Chosen = Callable[[JsonObject], str]
"""The split of a row in a part of the dataset; "" for none."""
Embedding = Callable[[JsonObject], np.ndarray]


def main(demo: Path, output: Path, clips: int, base_steps: int, more: list[str]) -> None:
    divide(demo, output)
    base = output / "base"
    run(
        "training",
        "train",
        "configs/training/demo.yaml",
        f"data={output}/old",
        f"output={base}",
        f"steps={base_steps}",
    )
    before = {kind: scores(demo, output, base, kind, clips) for kind in ("old", "new")}
    tuned = output / "finetuned"
    started = time.monotonic()
    settings = ("configs/training/finetune_demo.yaml", f"data={output}/new", f"more_data=[{output}/old]")
    run("training", "train", *settings, f"init_from={base}", f"output={tuned}", *more)
    seconds = time.monotonic() - started
    after = {kind: scores(demo, output, tuned, kind, clips) for kind in ("old", "new")}
    finished = json.loads((tuned / "FINISHED.json").read_text())
    record = {
        "what": "closed shares of the held-out gap before and after fine-tuning on pairs of new shapes",
        "new_shapes": list(NEW),
        "pairs": PAIRS,
        "before": before,
        "after": after,
        "gained_on_new": round(100 * (after["new"]["mean"] - before["new"]["mean"]), 1),
        "lost_on_old": round(100 * (before["old"]["mean"] - after["old"]["mean"]), 1),
        "seconds": round(seconds, 1),
        "outcome": {name: value for name, value in finished.items() if name != "files"},
        "settings": more,
        "clips": clips,
        "base_steps": base_steps,
        "machine": machine("torch", "deepspeed", "peft"),
        "date": time.strftime("%Y-%m-%d"),
    }
    print(json.dumps(record, indent=1))


# --- Data ---------------------------------------------------------------------------------------------------


def divide(demo: Path, output: Path) -> None:
    """The demo's latents as two datasets, old and new, and a folder of truths for each."""
    if (output / "new.done").exists():
        return
    for kind in ("old", "new"):
        (output / f"truth_{kind}").mkdir(parents=True, exist_ok=True)
    for path in sorted((demo / "world/truth").glob("*.json")):
        scenes = json.loads(path.read_text())
        for kind in ("old", "new"):
            kept = [scene for scene in scenes if is_new(scene) == (kind == "new")]
            (output / f"truth_{kind}" / path.name).write_text(json.dumps(kept))
    source = Dataset.open(f"{demo}/latents")
    taken: list[str] = []

    def of_new(row: JsonObject) -> str:
        if row["split"] != "train" or len(taken) == PAIRS or not is_new(scene_of(demo, row)):
            return ""
        taken.append(row["key"])
        return SPLITS[len(taken) % (PAIRS // GUARDED) == 0]

    copy_part(source, output / "old", lambda row: "" if is_new(scene_of(demo, row)) else row["split"])
    copy_part(source, output / "new", of_new)
    (output / "new.done").touch()


def is_new(scene: JsonObject) -> bool:
    return SHAPES[scene["attributes"]["timbre"]] in NEW


def scene_of(demo: Path, row: JsonObject) -> JsonObject:
    """What plays in the middle of a clip."""
    middle_s = row["start_s"] + 0.8
    scenes: list[JsonObject] = json.loads((demo / f"world/truth/{row['media_id']}.json").read_text())
    return next(scene for scene in scenes if middle_s < scene["start_s"] + scene["duration_s"])


def copy_part(source: Dataset, target: Path, split_of: Chosen, image_of: Embedding | None = None) -> None:
    """A dataset of those samples of `source` that have a split; `image_of` gives the embedding of a row in
    place of its own.
    """
    chosen = {row["key"]: row for row in source.iter_rows() if row["status"] == Status.KEPT}
    splits = {key: split for key, row in chosen.items() if (split := split_of(row))}
    rows: list[Row] = []
    for split in SPLITS:
        for key, members in read_split(source, split).items():
            if key in splits:
                own = {"image.npy": to_npy(image_of(chosen[key]))} if image_of else {}
                rows.append(row_of(chosen[key], splits[key], {**members, **own}))
    write_latents(source, target, rows)


# --- Scores -------------------------------------------------------------------------------------------------


def scores(demo: Path, output: Path, model: Path, kind: str, clips: int) -> dict[str, float]:
    """Closed shares of a model on the held-out clips of a kind."""
    folder = output / f"scores-{model.name}-{kind}"
    if not (folder / "scores.json").exists():
        places = (f"data={demo}/clips", f"truth={output}/truth_{kind}", f"output={folder}")
        run("training", "evaluate", f"model={model}", *places, f"num_clips={clips}")
    found: dict[str, Any] = json.loads((folder / "scores.json").read_text())["scores"]
    demos = json.loads((demo / "evaluation/scores.json").read_text())["scores"]
    closed = {name: _closed(found[name], demos[name]["chance"]) for name in ATTRIBUTES}
    return {name: round(share, 4) for name, share in closed.items()} | {
        "mean": round(sum(closed.values()) / len(closed), 4)
    }


def _closed(share: dict[str, float], chance: float) -> float:
    return (share["generated"] - chance) / (share["real"] - chance)


if __name__ == "__main__":
    options = parse_options()
    known = {name: options.pop(name) for name in ("demo", "output", "clips", "base_steps") if name in options}
    main(
        Path(known["demo"]),
        Path(known["output"]),
        int(known.get("clips", 160)),
        int(known.get("base_steps", 900)),
        [f"{name}={value}" for name, value in options.items()],
    )
