"""An evaluation as the page shows it: scores between chance and ceiling, and what is right in each pair.

    evaluation_of(Path("out/evaluation"))       # reads scores.json, heard.jsonl, wavs/ and images/

These are read as files by their documented form (training.evaluate, training.heard); nothing of `training` is
imported. Evaluations from before heard.jsonl have no marks.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.jsonl import JsonObject, read_lines
from configs.load import UserError
from ingest.pages.player import Player, data_uri, player_of
from ingest.scenes import SHAPES

MOST_PAIRS = 12
# what one sees and what one hears, of each attribute that is scored
LABELS = {
    "timbre": ("shape", "timbre"),
    "f0": ("size", "pitch"),
    "rate": ("stripes", "rhythm"),
}


@dataclass(frozen=True)
class ScoreBar:
    """Shares in percent, of an attribute; `closed`: of the gap from chance to the ceiling, and its interval
    where there is one. `low`, `high`: the interval of `generated`, or None.
    """

    visible: str
    audible: str
    generated: float
    ceiling: float
    chance: float
    shuffled: float
    closed: float
    closed_interval: tuple[float, float] | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class PairMark:
    """An attribute of a pair: what the picture calls for, what was heard, how far off it is."""

    visible: str
    audible: str
    truth: str
    heard: str
    off: str
    right: bool


@dataclass(frozen=True)
class ShownPair:
    """A picture (a data URI), what it sounded like, what a model made of it, and what is right of that."""

    key: str
    image: str
    real: Player
    generated: Player
    marks: list[PairMark]


@dataclass(frozen=True)
class ShownEvaluation:
    """What the page shows of an evaluation."""

    num_clips: int
    bars: list[ScoreBar]
    pairs: list[ShownPair]


def evaluation_of(folder: Path) -> ShownEvaluation:
    """`UserError` where there is no scores.json."""
    path = folder / "scores.json"
    if not path.exists():
        raise UserError(f"scores={folder}: no scores.json there; run python -m training evaluate first")
    table: JsonObject = json.loads(path.read_text())
    heard = {str(row["key"]): row for row in read_lines(folder / "heard.jsonl")}
    pairs: list[ShownPair] = []
    for generated in sorted((folder / "wavs").glob("*.generated.wav"))[:MOST_PAIRS]:
        key = generated.name.removesuffix(".generated.wav")
        image = data_uri("image/jpeg", (folder / "images" / f"{key}.jpg").read_bytes())
        real = player_of(generated.with_name(f"{key}.real.wav"))
        pairs.append(ShownPair(key, image, real, player_of(generated), _marks(heard.get(key))))
    return ShownEvaluation(table["num_clips"], _bars(table), pairs)


def _bars(table: JsonObject) -> list[ScoreBar]:
    bars = []
    for name, scores in table["scores"].items():
        intervals = table.get("intervals", {}).get(name, {})
        low, high = _percent(intervals.get("generated")) or (None, None)
        chance, ceiling = scores["chance"], scores["real"]
        gap = ceiling - chance
        closed = (scores["generated"] - chance) / gap if gap > 0 else 0.0
        visible, audible = LABELS.get(name, (name, name))
        bars.append(
            ScoreBar(
                visible,
                audible,
                generated=100 * scores["generated"],
                ceiling=100 * ceiling,
                chance=100 * chance,
                shuffled=100 * scores["shuffled"],
                closed=100 * closed,
                closed_interval=_percent(intervals.get("closed")),
                low=low,
                high=high,
            )
        )
    return bars


def _percent(interval: list[float] | None) -> tuple[float, float] | None:
    return (100 * interval[0], 100 * interval[1]) if interval else None


def _marks(row: JsonObject | None) -> list[PairMark]:
    """One for each attribute; none for a clip of which nothing is known."""
    if row is None:
        return []
    truth: dict[str, Any] = row["truth"]
    heard: dict[str, Any] = row["generated"]
    cents = 1200 * math.log2(heard["f0_hz"] / truth["f0_hz"])
    percent = 100 * (heard["rate_hz"] / truth["rate_hz"] - 1)
    texts = {
        "timbre": (SHAPES[truth["timbre"]], SHAPES[heard["timbre"]], ""),
        "f0": (f"{truth['f0_hz']:.0f} Hz", f"{heard['f0_hz']:.0f} Hz", f"{_signed(cents)} cents"),
        "rate": (f"{truth['rate_hz']:.1f}/s", f"{heard['rate_hz']:.1f}/s", f"{_signed(percent)} %"),
    }
    return [PairMark(*LABELS[name], *texts[name], right=row["right"][name]) for name in LABELS]


def _signed(value: float) -> str:
    """With a true minus; one decimal where the limits of what is right are.

    >>> _signed(-3.42), _signed(376.4), _signed(0.02)
    ('−3.4', '+376', '0')
    """
    text = f"{value:+.0f}" if abs(value) >= 100 else f"{value:+.1f}"
    return text.replace("-", "−") if float(text) else "0"
