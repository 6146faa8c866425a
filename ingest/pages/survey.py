"""Numbers of a whole dataset of clips, in one pass over its index: for the report and the dataset card.

    numbers = survey(dataset)            # holds the names of units, and of channels up to a cap; no samples

Counts every row; for histograms it counts into fixed bins, so that memory does not grow with the dataset.
Reads no shard.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np
import pyarrow as pa

from cluster.dataset import Dataset
from cluster.shards import Status
from ingest.sample import RETRYABLE, bans_of

MAX_CHANNELS = 50_000  # of which names are held; rarer ones are dropped
# the label, and the range of the histogram, of each score that is shown
SCORES = {
    "rms_dbfs": ("loudness, dBFS", -80.0, 0.0),
    "spectral_change": ("change of the spectrum", 0.0, 1.0),
    "brightness": ("brightness of the frame", 0.0, 256.0),
    "contrast": ("contrast of the frame", 0.0, 128.0),
}
SHORTEST_S = 1.0
LONGEST_S = 36_000.0
NUM_BINS = 32


class Row(TypedDict):
    """The columns of an index that are read. A refused item has no key, an old index no reason or score."""

    item_id: str
    key: str | None
    status: str
    reason: str | None
    detail: str | None
    source: str | None
    media_id: str | None
    url: str | None
    license: str | None
    channel: str | None
    split: str | None
    start_s: float | None
    duration_s: float | None
    scores: str | None


COLUMNS = list(Row.__annotations__)


@dataclass
class Histogram:
    """`counts` of values in bins from `low` to `high`, equal ones or, by `log`, of equal ratio; what is
    outside falls into the bin at the end."""

    label: str
    low: float
    high: float
    log: bool = False
    counts: np.ndarray = field(default_factory=lambda: np.zeros(NUM_BINS, int))

    @property
    def edges(self) -> np.ndarray:
        """Where the bins begin, and where the last one ends: [NUM_BINS + 1]."""
        return (np.geomspace if self.log else np.linspace)(self.low, self.high, NUM_BINS + 1)

    def add(self, values: list[float]) -> None:
        bins = np.searchsorted(self.edges[1:-1], np.array(values), side="right")
        self.counts += np.bincount(bins, minlength=NUM_BINS)


@dataclass
class Survey:
    """`listed` items of the work list; `answered` of them have a row, `cut` gave at least one clip, `used` a
    kept one.

    `lengths_s`: of the items that gave a clip, where their last one ends. The index does not say how long a
    medium is; this is the part of it that was cut.
    """

    listed: int = 0
    answered: int = 0
    cut: int = 0
    used: int = 0
    clips: int = 0
    kept: int = 0
    seconds: float = 0.0
    num_bytes: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    licenses: Counter[str] = field(default_factory=Counter)
    channels: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    clips_per_item: Counter[int] = field(default_factory=Counter)
    lengths_s: Histogram = field(
        default_factory=lambda: Histogram(
            "length of media, as far as clips were cut", SHORTEST_S, LONGEST_S, log=True
        )
    )
    histograms: dict[str, Histogram] = field(
        default_factory=lambda: {name: Histogram(*bounds) for name, bounds in SCORES.items()}
    )

    @property
    def final(self) -> list[tuple[str, int]]:
        """Reasons for which nothing is retried, the commonest first."""
        return [(reason, count) for reason, count in self.reasons.most_common() if reason not in RETRYABLE]

    @property
    def retryable(self) -> list[tuple[str, int]]:
        """Reasons that are transient, the commonest first."""
        return [(reason, count) for reason, count in self.reasons.most_common() if reason in RETRYABLE]


def survey(dataset: Dataset) -> Survey:
    """The numbers of everything that is committed; tombstones count as refused for their reason."""
    numbers = Survey()
    buried = dataset.buried()
    # units of a later attempt retry items that are listed and counted already
    later = {unit for unit, attempt in dataset.worklist.unit_attempts() if attempt}
    first_tasks = (task for task in dataset.worklist.iter_units() if task.items[0].attempt == 0)
    numbers.listed = sum(len(task.items) for task in first_tasks)
    for commit in dataset.iter_commits():
        numbers.num_bytes += commit.tar.size if commit.tar else 0
        table = dataset.read_index(commit).select(COLUMNS)
        _count_unit(numbers, table, buried, follow_up=commit.unit in later)
    return numbers


def _count_unit(numbers: Survey, table: pa.Table, buried: dict[str, str], follow_up: bool) -> None:
    rows: list[Row] = table.to_pylist()
    kept_rows = []
    for row in rows:
        status, reason = verdict(row, buried)
        if reason:
            _add_refused(numbers, row, reason, buried)
        elif status == Status.KEPT:
            kept_rows.append(row)
    _add_clips(numbers, rows)
    _add_kept(numbers, kept_rows)
    numbers.answered += 0 if follow_up else len({row["item_id"] for row in rows})


def verdict(row: Row, buried: dict[str, str]) -> tuple[Status, str | None]:
    """What a row counts as, and why where it is not kept: a tombstone goes before the row's own status."""
    status = Status(row["status"])
    if status == Status.REFUSED:
        return status, row["reason"]
    reason = buried.get(row["key"] or "")
    return (Status.REMOVED if reason else status), reason


def _add_refused(numbers: Survey, row: Row, reason: str, buried: dict[str, str]) -> None:
    numbers.reasons[reason] += 1
    if row["url"] and reason not in numbers.examples and not _is_taken_down(row, buried):
        numbers.examples[reason] = _example(row)


def _add_clips(numbers: Survey, rows: list[Row]) -> None:
    """Rows with a key are clips, kept or not; the end of the last one is how far an item was cut."""
    ends_s: dict[str, float] = {}
    for row in rows:
        if row["key"]:
            numbers.clips += 1
            end_s = (row["start_s"] or 0.0) + (row["duration_s"] or 0.0)
            ends_s[row["item_id"]] = max(ends_s.get(row["item_id"], 0.0), end_s)
    numbers.cut += len(ends_s)
    numbers.lengths_s.add([end_s for end_s in ends_s.values() if end_s])


def _add_kept(numbers: Survey, rows: list[Row]) -> None:
    clips_of_item: Counter[str] = Counter()
    scores: dict[str, list[float]] = {name: [] for name in SCORES}
    for row in rows:
        clips_of_item[row["item_id"]] += 1
        numbers.seconds += row["duration_s"] or 0
        numbers.licenses[row["license"] or ""] += 1
        numbers.sources[row["source"] or ""] += 1
        numbers.splits[row["split"] or ""] += 1
        numbers.channels[row["channel"] or ""] += 1
        for name, value in json.loads(row["scores"] or "{}").items():
            if name in scores:
                scores[name].append(value)
    numbers.kept += clips_of_item.total()
    numbers.used += len(clips_of_item)
    numbers.clips_per_item.update(clips_of_item.values())
    for name, values in scores.items():
        numbers.histograms[name].add(values)
    # trimmed at twice the cap only: sorting at every unit would cost more than counting
    if len(numbers.channels) > 2 * MAX_CHANNELS:
        numbers.channels = Counter(dict(numbers.channels.most_common(MAX_CHANNELS)))


def _is_taken_down(row: Row, buried: dict[str, str]) -> bool:
    """By its own tombstone, or by that of its medium, channel or license: such rows are not shown."""
    bans = bans_of(row["source"] or "", row["media_id"] or "", row["channel"] or "", row["license"] or "")
    return row["key"] in buried or bool(buried.keys() & bans)


def _example(row: Row) -> str:
    """Where a refused item or clip is, and the detail of its refusal."""
    address = f"{row['url']} at {row['start_s']:.1f} s" if row["start_s"] is not None else str(row["url"])
    return f"{address}: {row['detail']}" if row["detail"] else address
