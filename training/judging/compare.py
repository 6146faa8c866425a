"""Two evaluations beside each other: which figures are better, which worse, and which do not differ.

    comparison = compare("out/new", "out/old")        # folders that evaluate wrote
    compared(evaluate_real, config)                    # an evaluation, then against.json and against.md

No single judge decides: where one rises and another falls, the verdict says so. A figure differs where the
difference is more than the two 95 % intervals allow, their half widths added as squares, as of independent
samples. Of the same clips both vary together, so that this errs to the side of "no difference". Judges are
told apart by the sha256 of their weights, whatever they are called.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from cluster.files import replacing
from cluster.learnt import last_name
from configs.load import UserError
from training.evaluation import EvaluateConfig
from training.judging.figures import Cell
from training.judging.page import JUDGED, plain, shown

log = logging.getLogger(__name__)
SCORES, ROUNDTRIP = "scores.json", "roundtrip.json"
AGAINST, MARKDOWN = "against.json", "against.md"
KNOWN_ANSWERS = "known answers"
Change = Literal["better", "worse", "no difference", "not known"]
Key = tuple[str, str]
"""The name of a figure, and the sha256 of its judge, or its name where it has no weights."""


class Line(TypedDict):
    """A figure of both. `change`: not known where one has no interval."""

    name: str
    judge: str
    better: str
    before: Cell
    now: Cell
    change: Change


class Comparison(TypedDict):
    """against.json. `notes`: why the two may not be comparable."""

    before: str
    now: str
    lines: list[Line]
    verdict: str
    notes: list[str]


def compare(now: str, before: str) -> Comparison:
    """Of two folders. `UserError` where one has no scores, or they have no figure in common."""
    new = _figures_of(now, "output")
    old = _figures_of(before, "against")
    lines: list[Line] = []
    for key in new.keys() & old.keys():
        figure = new[key]
        change = _change(old[key]["generated"], figure["generated"], figure["better"])
        lines.append(
            {
                "name": figure["name"],
                "judge": figure["judge"],
                "better": figure["better"],
                "before": old[key]["generated"],
                "now": figure["generated"],
                "change": change,
            }
        )
    if not lines:
        raise UserError(
            f"against={before}: has no figure by a judge that judged {now}, too; give both the same judges "
            "(told apart by the sha256 of their weights)"
        )
    lines.sort(key=lambda line: (line["judge"], line["name"]))
    notes = _notes(new, old, len(lines))
    return {"before": before, "now": now, "lines": lines, "verdict": verdict(lines), "notes": notes}


def compared(run: Callable[[EvaluateConfig], Mapping[str, Any]], config: EvaluateConfig) -> dict[str, Any]:
    """What an evaluation gives, with its comparison as `against` where one is asked for. `UserError` before
    any work where there is nothing to compare with.
    """
    if config.against:
        _check(config)
    summary = dict(run(config))
    folder = Path(config.output)
    for name in (AGAINST, MARKDOWN):
        (folder / name).unlink(missing_ok=True)
    if config.against:
        try:
            summary["against"] = compare_finished(config)
        except UserError as error:  # the scores are there, and nothing is wrong with them
            log.warning("%s", error)
    return summary


def compare_finished(config: EvaluateConfig) -> Comparison:
    """Of the evaluations in `output` and `against`, which are not done again; writes against.json and
    against.md into the first.
    """
    _check(config)
    comparison = compare(config.output, config.against)
    write_comparison(Path(config.output), comparison)
    return comparison


def _check(config: EvaluateConfig) -> None:
    """`UserError` where `against` is no other evaluation."""
    if Path(config.against).absolute() == Path(config.output).absolute():
        raise UserError(f"against={config.against}: is the output itself; give an older one")
    _figures_of(config.against, "against")


def verdict(lines: Sequence[Line]) -> str:
    """What all judges say together."""
    named: dict[str, list[str]] = {}
    for line in lines:
        named.setdefault(line["change"], []).append(f"{line['name']} ({last_name(line['judge'])})")
    better, worse = (named.get(change, []) for change in ("better", "worse"))
    if better and worse:
        sides = f"better by {', '.join(better)}; worse by {', '.join(worse)}"
        return f"judges disagree: {sides}. None decides alone."
    if better or worse:
        side, names = ("better", better) if better else ("worse", worse)
        rest = len(lines) - len(names)
        return f"{side} by {', '.join(names)}" + (f"; {rest} without a difference" if rest else "")
    return f"no difference in any of {len(lines)} figures"


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """against.json and against.md."""
    with replacing(folder / MARKDOWN) as partial:
        partial.write_text(markdown(comparison), encoding="utf-8")
    with replacing(folder / AGAINST) as partial:
        partial.write_text(json.dumps(comparison, indent=1))


def markdown(comparison: Comparison) -> str:
    """A table, with the verdict above it."""
    lines = [
        f"# {plain(comparison['now'])} against {plain(comparison['before'])}",
        "",
        f"**{plain(comparison['verdict'])}**",
        "",
        *(f"{plain(note)}\n" for note in comparison["notes"]),
        "| figure | judge | better | before | now | change |",
        "| --- | --- | --- | ---: | ---: | --- |",
    ]
    for line in comparison["lines"]:
        cells = (
            line["name"],
            plain(line["judge"]),
            line["better"],
            shown(line["before"]),
            shown(line["now"]),
        )
        lines.append(f"| {' | '.join(cells)} | {line['change']} |")
    return "\n".join([*lines, ""])


def _change(before: Cell, now: Cell, better: str) -> Change:
    if not before["interval"] or not now["interval"]:
        return "not known"
    halves = [(cell["interval"][1] - cell["interval"][0]) / 2 for cell in (before, now) if cell["interval"]]
    risen = now["value"] - before["value"]
    if abs(risen) <= sum(half**2 for half in halves) ** 0.5:
        return "no difference"
    return "better" if (risen > 0) == (better == "higher") else "worse"


def _figures_of(folder: str, setting: str) -> dict[Key, dict[str, Any]]:
    """Of judged.json, and what is said of known answers."""
    judged = _read(folder, JUDGED, setting)
    # of a model, or of a codec alone
    scores = _read(folder, SCORES, setting) or _read(folder, ROUNDTRIP, setting)
    if not judged and not scores:
        fix = "give a folder that evaluate wrote"
        raise UserError(f"{setting}={folder}: has neither {JUDGED} nor {SCORES} nor {ROUNDTRIP}; {fix}")
    hashes = {judge["name"]: judge["sha256"] or judge["name"] for judge in judged.get("judges", ())}
    figures = {(each["name"], hashes[each["judge"]]): each for each in judged.get("figures", ())}
    for name, shares in scores.get("scores", {}).items():
        bounds = scores["intervals"].get(name, {}).get("closed")
        figures[f"closed_{name}", KNOWN_ANSWERS] = {
            "name": f"closed_{name}",
            "judge": KNOWN_ANSWERS,
            "better": "higher",
            "n": scores["num_clips"],
            "generated": {"value": shares["closed"], "interval": bounds},
        }
    return figures


def _read(folder: str, name: str, setting: str) -> Mapping[str, Any]:
    path = Path(folder) / name
    try:
        content: Mapping[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{setting}={folder}: {name} cannot be read ({error}); evaluate again") from error
    return content


def _notes(new: Mapping[Key, Any], old: Mapping[Key, Any], both: int) -> list[str]:
    """What a reader has to know before believing the table."""
    notes: list[str] = []
    if any(new[key]["n"] != old[key]["n"] for key in new.keys() & old.keys()):
        notes.append("Not of equally many pairs: a Frechet distance falls as n grows, whatever the sounds.")
    left = len(new) + len(old) - 2 * both
    if left:
        notes.append(f"{left} figures are in one of the two only, and not compared.")
    return notes
