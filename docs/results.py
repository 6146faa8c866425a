"""Writes README's table of results from benchmarks/results/*.json, between its two markers.

    python docs/results.py                             # after a result has changed
    python docs/results.py demo=out/demo/evaluation    # benchmarks/results/demo.json of a finished demo, too

tests/test_results.py says when. A row is a function below: its figures come from the file that it names.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import machine  # noqa: E402

README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks/results"
START, END = "<!-- results: python docs/results.py -->", "<!-- end of results -->"
HEADER = ["| what | figure | of | date | file |", "| --- | --- | --- | --- | --- |"]
ATTRIBUTES = {"timbre": "timbre", "rate": "onset rate", "f0": "fundamental"}
Record = dict[str, Any]
"""The content of a file of results."""


def demo(record: Record) -> tuple[str, str, str]:
    closed = []
    for name, words in ATTRIBUTES.items():
        low, high = record["intervals"][name]["closed"]
        closed.append(f"{words} {record['scores'][name]['closed']:.2f} [{low:.2f}, {high:.2f}]")
    of = f"{record['num_clips']} held-out clips, {record['num_media']} media; 95 %"
    return "the demo: gap from chance to the codec closed", ", ".join(closed), of


def science(record: Record) -> tuple[str, str, str]:
    """The mean of all seeds, on what no model has met."""
    unseen = record["closed"]["scraped, unseen combinations"]
    figure = ", ".join(f"{words} {unseen[name]['mean']:.2f}" for name, words in ATTRIBUTES.items())
    seeds = f"{len(record['seeds'])} seed{'s' if len(record['seeds']) > 1 else ''}"
    return "the same, trained longer, of combinations never seen", figure, f"{record['clips']} clips, {seeds}"


def real_media(record: Record) -> tuple[str, str, str]:
    low, high = record["generated"]["interval"]
    place = f"place {record['generated']['mean_place']:.1f} [{low:.1f}, {high:.1f}] of 20, chance 10.5"
    of = f"{record['generated']['media']} held-out media; trained on {record['media']}"
    return "real photographs: the own sound, by the one made", place, of


def finetuned(record: Record) -> tuple[str, str, str]:
    figure = f"+{record['gained_on_new']} points on these, -{record['lost_on_old']} on the old ones"
    return f"fine-tuning on {record['pairs']} pairs of new scenes", figure, f"{record['clips']} clips a kind"


def vocoder(record: Record) -> tuple[str, str, str]:
    ratio = record["ratio"]
    figure = (
        f"STFT distance {ratio['stft_distance']:.2f} of Griffin-Lim's, in {ratio['cpu_s_per_sound_s']:.2f}"
    )
    return "the light vocoder on true mels", f"{figure} of its time", f"{record['clips']} held-out clips"


def restarts(record: Record) -> tuple[str, str, str]:
    figure = (
        f"losses within {record['losses_within']:.0e} of an undisturbed run, {record['differences']} samples"
    )
    return "workers, drivers and nodes killed", f"{figure} lost or doubled", f"{record['kills']} kills"


def training(record: Record) -> tuple[str, str, str]:
    rounds = record["plain_over_ours_by_round"]
    low, high = (f"{share:.2f}" for share in (min(rounds), max(rounds)))
    encoding = f"{record['ours_over_online_b32']:.1f}x that of one that encodes"
    figure = f"{low} to {high} of the speed of a plain loop, {encoding}"
    return "a training step on stored latents", figure, f"AudioLDM-S, {len(rounds)} rounds"


ROWS: dict[str, Callable[[Record], tuple[str, str, str]]] = {
    "demo.json": demo,
    "science.json": science,
    "real_media.json": real_media,
    "finetune.json": finetuned,
    "vocoder.json": vocoder,
    "chaos.json": restarts,
    "training.json": training,
}


def table(results: Path = RESULTS) -> str:
    """README's rows, from the files there."""
    lines = list(HEADER)
    for name, row in ROWS.items():
        record = json.loads((results / name).read_text())
        lines.append(f"| {' | '.join([*row(record), record['date'], f'`{name}`'])} |")
    return "\n".join(lines)


def written(readme: str, rows: str) -> str:
    """A README with these rows between its markers. `ValueError` where they are missing."""
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"README.md has not the lines {START} and {END}; write them where the table goes")
    return f"{before}{START}\n{rows}\n{END}{after}"


def keep_demo(evaluation: Path) -> None:
    """benchmarks/results/demo.json, from what `training evaluate` wrote of a finished demo."""
    path = evaluation / "scores.json"
    scores = json.loads(path.read_text())
    names = ("scores", "intervals", "num_clips", "num_media", "guidance", "steps", "seed", "vocoder")
    record = {
        "what": "make demo: shares of held-out clips that are right, and of the gap that is closed",
        "command": "make demo; python docs/results.py demo=out/demo/evaluation",
        "date": time.strftime("%Y-%m-%d", time.gmtime(path.stat().st_mtime)),
        "machine": machine("torch", "diffusers"),
        **{name: scores[name] for name in names},
    }
    (RESULTS / "demo.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        keep_demo(Path(argument.removeprefix("demo=")))
    README.write_text(written(README.read_text(), table()))
    print(f"wrote the table of {README.relative_to(ROOT)}")
