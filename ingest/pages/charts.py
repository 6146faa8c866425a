"""Histograms of a dataset, as numbers for the template of the report.

    charts_of(survey(dataset))       # bars, 320 wide and 90 high

Sizes are those of the SVG view boxes in dataset.html.j2. Nothing here knows HTML.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ingest.pages.survey import NUM_BINS, Histogram, Survey

# the view boxes of dataset.html.j2
WIDTH = 320
HEIGHT = 90
# seconds at which a logarithmic axis of lengths has a label
LENGTH_TICKS = {1: "1 s", 10: "10 s", 60: "1 min", 600: "10 min", 3600: "1 h", 36000: "10 h"}


@dataclass(frozen=True)
class Bar:
    """`name`: what it counts and how many, shown where one points at it."""

    x: float
    height: float
    name: str


@dataclass(frozen=True)
class Tick:
    """A label of an axis; `anchor`: which end of the text is at `x`."""

    x: float
    text: str
    anchor: str


@dataclass(frozen=True)
class Chart:
    """Bars of one `width`; `top`: what the highest stands for."""

    label: str
    top: str
    bars: list[Bar]
    ticks: list[Tick]
    width: float


def charts_of(survey: Survey) -> list[Chart]:
    """Lengths of items, clips per item, then measures of the kept clips; empty ones are left out."""
    charts = []
    if survey.lengths_s.counts.any():
        charts.append(_lengths(survey.lengths_s))
    if survey.clips_per_item:
        charts.append(_clips_per_item(survey))
    charts += [_measures(histogram) for histogram in survey.histograms.values() if histogram.counts.any()]
    return charts


def _lengths(histogram: Histogram) -> Chart:
    ratio = histogram.high / histogram.low
    ticks = [(math.log(value / histogram.low, ratio), text) for value, text in LENGTH_TICKS.items()]
    return _chart(histogram.label, "items", _ranges(histogram, _duration), histogram.counts.tolist(), ticks)


def _measures(histogram: Histogram) -> Chart:
    span = histogram.high - histogram.low
    ticks = [(share, f"{histogram.low + share * span:.3g}") for share in (0, 0.25, 0.5, 0.75, 1)]
    names = _ranges(histogram, "{:.3g}".format)
    return _chart(histogram.label, "clips", names, histogram.counts.tolist(), ticks)


def _ranges(histogram: Histogram, text_of: Callable[[float], str]) -> list[str]:
    """A name for each bin: from where to where it goes."""
    return [f"{text_of(low)} to {text_of(high)}" for low, high in zip(histogram.edges, histogram.edges[1:])]


def _clips_per_item(survey: Survey) -> Chart:
    """A bar for each number of clips, or for several; the last bar holds the tail above 99 in 100 items."""
    values = sorted(survey.clips_per_item)
    # a few items of thousands of clips would press all others into the first bar
    most = _percentile(survey, values, 0.99)
    step = math.ceil(most / NUM_BINS)
    counts = [0] * math.ceil(most / step)
    for value, count in survey.clips_per_item.items():
        counts[min((value - 1) // step, len(counts) - 1)] += count
    lows = [1 + step * bar for bar in range(len(counts))]
    names = [f"{low} clips" if step == 1 else f"{low} to {low + step - 1} clips" for low in lows]
    if values[-1] > most:
        names[-1] = f"{lows[-1]} to {values[-1]} clips"
    label = f"clips kept of an item, {survey.seconds / survey.kept:.3g} s each"
    labelled = sorted({0, len(counts) // 2, len(counts) - 1})
    ticks = [((bar + 0.5) / len(counts), str(lows[bar])) for bar in labelled]
    return _chart(label, "items", names, counts, ticks)


def _percentile(survey: Survey, values: list[int], share: float) -> int:
    """The number of clips that this share of items does not exceed; `values` are sorted."""
    below = np.cumsum([survey.clips_per_item[value] for value in values])
    return values[int(np.searchsorted(below, share * survey.clips_per_item.total()))]


def _chart(
    label: str, unit: str, names: list[str], counts: list[int], ticks: list[tuple[float, str]]
) -> Chart:
    """Bars with a name each; `ticks`: a position between 0 and 1, and a text."""
    width = WIDTH / len(counts)
    top = max(counts)
    bars = [
        Bar(round(index * width, 1), round(HEIGHT * count / top, 1), f"{name}: {count:,} {unit}")
        for index, (name, count) in enumerate(zip(names, counts, strict=True))
        if count
    ]
    # texts at the ends would stick out of the view box
    anchors = {0.0: "start", 1.0: "end"}
    marks = [
        Tick(round(WIDTH * position, 1), text, anchors.get(position, "middle")) for position, text in ticks
    ]
    return Chart(label, f"{top:,} {unit}", bars, marks, round(width - 1, 1))


def _duration(seconds: float) -> str:
    """Such as 8 s, 1.5 min, 2 h.

    >>> _duration(90)
    '1.5 min'
    """
    for name, size_s in (("h", 3600), ("min", 60)):
        if seconds >= size_s:
            return f"{seconds / size_s:.2g} {name}"
    return f"{seconds:.2g} s"
