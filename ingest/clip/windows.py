"""Where the windows of a medium lie: pure planning on times, no decoding.

`plan(packets, sound, settings, cuts, within)` gives the windows, `plan_runs` the runs of video to decode for
them, `find_cuts` the hard cuts among small pictures. All times are seconds of playing time
(`ingest.clip.clocks`). Opens no file; `ingest.clip.process` does.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

FILL_BELOW = (
    1 / 3
)  # keyframe windows that are fewer than this share of the grid's: their gaps are filled, at the grid's cost
EDGE_S = (
    0.05  # a stream that begins or ends within this of a window still counts as covering it (codec priming)
)

Cut = tuple[float, float]
"""Times of the last frame before a cut and of the first one after it (of those that were looked at)."""


@dataclass(frozen=True)
class Settings:
    """What the parent sends first."""

    num_samples: int
    mode: str
    max_clips: int
    sample_rate_hz: int
    short_side_px: int
    quality: int
    max_duration_s: float
    max_pixels: int
    max_memory_bytes: int
    scene_cut: float = 0.0
    short: str = "refuse"

    @property
    def duration_s(self) -> float:
        return self.num_samples / self.sample_rate_hz


@dataclass(frozen=True)
class Span:
    """A piece of playing time."""

    start_s: float
    end_s: float


@dataclass
class Sound:
    """Mono int16 samples; sample 0 is playing time 0. There is sound from `start_s` to `end_s`, silence in
    gaps.

    `spans`: the same for each stretch of the clock.
    """

    samples: np.ndarray
    start_s: float
    end_s: float
    spans: dict[int, Span] = field(default_factory=dict)


@dataclass
class Packets:
    """Times of a video's packets in decoding order, [num_packets] each, and when its last frame ends.

    A packet that is not `shown` is only there for others to be decoded: an edit list cuts it off, or it has
    no time. `stretches`: of which stretch each packet is; `stamps`: its time as the file has it; `spans`,
    `begins_s`: where there is a picture, and where time begins, in each stretch.
    """

    times_s: np.ndarray
    keys: np.ndarray
    shown: np.ndarray
    end_s: float
    stretches: np.ndarray
    stamps: np.ndarray
    spans: dict[int, Span]
    begins_s: dict[int, float]

    @cached_property
    def order(self) -> np.ndarray:
        """The shown packets in order of time."""
        shown = np.flatnonzero(self.shown)
        return shown[np.argsort(self.times_s[shown], kind="stable")]

    @cached_property
    def ordered_s(self) -> np.ndarray:
        """Their times."""
        return self.times_s[self.order]

    def on_screen(self, time_s: float) -> int | None:
        """The packet of the last frame at or before `time_s`; None before the first one."""
        place = int(np.searchsorted(self.ordered_s, time_s + 1e-6, side="right")) - 1
        return int(self.order[place]) if place >= 0 else None


@dataclass(frozen=True)
class Window:
    """`start` is a sample index; `packet` the video packet of the frame on screen at the middle.

    `mode`: how it was laid; `valid`: samples that there are, where that is less than a clip.
    """

    start: int
    packet: int
    mode: str
    valid: int


@dataclass
class Run:
    """Packets `first` to `last` decoded in one go, from a keyframe on; `wanted`: packets whose frames are
    kept.

    `second_key`: of a run that can begin no earlier, the next keyframe.
    """

    first: int
    last: int
    wanted: list[int] = field(default_factory=list)
    second_key: int | None = None


def plan(
    packets: Packets, sound: Sound, settings: Settings, cuts: Sequence[Cut] = (), within: Span | None = None
) -> list[Window]:
    """The windows within the time where both picture and sound are there, none across a cut or a restart of
    the clock.
    """
    places = [
        list(scenes(region, cuts)) for region in regions(packets.spans, sound.spans, packets.begins_s, within)
    ]
    windows = [window for stretch in places for window in _lay(packets, stretch, settings)]
    if windows or settings.short == "refuse":
        return windows
    whole = regions(packets.spans, sound.spans, packets.begins_s, within, early_s=0.0)
    return plan_short(packets, [place for region in whole for place in scenes(region, cuts)], settings)


def _lay(packets: Packets, places: Sequence[Span], settings: Settings) -> list[Window]:
    """The windows of one stretch of the clock, whose scenes are `places`."""
    grid = [window for place in places for window in plan_grid(packets, place.start_s, place.end_s, settings)]
    if settings.mode == "grid":
        return grid
    windows = [
        window for place in places for window in plan_keyframes(packets, place.start_s, place.end_s, settings)
    ]
    if len(windows) >= FILL_BELOW * len(grid):
        return windows
    return [window for place in places for window in _filled(packets, place, windows, settings)]


def regions(
    pictures: dict[int, Span],
    sounds: dict[int, Span],
    begins_s: dict[int, float],
    within: Span | None,
    early_s: float = EDGE_S,
) -> list[Span]:
    """Where both are there, stretch by stretch, and `within`.

    An end at a seam, or of `within`, is `early_s` before it, as windows may reach EDGE_S over an end.
    """
    found = []
    within = within or Span(0.0, np.inf)
    for number in sorted(set(pictures) & set(sounds)):
        picture, sound = pictures[number], sounds[number]
        begin_s = max(begins_s[number], within.start_s)
        later = [begin for begin in begins_s.values() if begin > begins_s[number]]
        seam_s = min([within.end_s, *later])
        start_s = max(picture.start_s, sound.start_s)
        end_s = min(picture.end_s, sound.end_s, seam_s - early_s)
        found.append(Span(start_s if start_s > begin_s + EDGE_S else begin_s, end_s))
    return found


def scenes(region: Span, cuts: Sequence[Cut]) -> Iterator[Span]:
    """The pieces between cuts; an end at a cut is EDGE_S early, as windows may reach that far over it."""
    start_s = region.start_s
    for before_s, after_s in cuts:
        if start_s < after_s < region.end_s:
            yield Span(start_s, min(region.end_s, before_s - EDGE_S))
            start_s = after_s
    yield Span(start_s, region.end_s)


def plan_keyframes(packets: Packets, start_s: float, end_s: float, settings: Settings) -> list[Window]:
    """Windows around keyframes, as many as fit without overlap when taken in order of time."""
    windows: list[Window] = []
    free = round(start_s * settings.sample_rate_hz)
    for packet in packets.order[packets.keys[packets.order]]:
        start = round(float(packets.times_s[packet]) * settings.sample_rate_hz - settings.num_samples / 2)
        if start >= free and _fits(start, end_s, settings):
            windows.append(Window(start, int(packet), "keyframe", settings.num_samples))
            free = start + settings.num_samples
    return windows


def plan_grid(packets: Packets, start_s: float, end_s: float, settings: Settings) -> list[Window]:
    """Windows back to back, each with the last frame at or before its middle."""
    windows = []
    for start in grid_starts(start_s, end_s, settings):
        packet = packets.on_screen((start + settings.num_samples / 2) / settings.sample_rate_hz)
        if packet is not None:
            windows.append(Window(start, packet, "grid", settings.num_samples))
    return windows


def _filled(packets: Packets, place: Span, windows: Sequence[Window], settings: Settings) -> list[Window]:
    """The `windows` that lie in `place`, with those of a grid in each gap between them that is long enough."""
    rate = settings.sample_rate_hz
    found: list[Window] = []
    free_s = place.start_s
    for window in windows:
        if place.start_s - EDGE_S <= window.start / rate < place.end_s:
            found += plan_grid(packets, free_s, window.start / rate - EDGE_S, settings)
            found.append(window)
            free_s = (window.start + settings.num_samples) / rate
    return found + plan_grid(packets, free_s, place.end_s, settings)


def plan_short(packets: Packets, places: Sequence[Span], settings: Settings) -> list[Window]:
    """One window that is not full, in the longest of `places`, with the frame at the middle of what there is."""
    longest = max(places, key=lambda place: place.end_s - place.start_s, default=Span(0.0, 0.0))
    start, valid = short_piece(longest, settings)
    packet = packets.on_screen((start + valid / 2) / settings.sample_rate_hz)
    return [] if packet is None or valid < 1 else [Window(start, packet, "grid", valid)]


def short_piece(place: Span, settings: Settings) -> tuple[int, int]:
    """First sample and number of samples of a piece that is shorter than a window."""
    start, end = round(place.start_s * settings.sample_rate_hz), round(place.end_s * settings.sample_rate_hz)
    return start, min(end - start, settings.num_samples)


def plan_runs(packets: Packets, wanted: set[int], back: int = 0) -> list[Run]:
    """What to decode for the `wanted` packets: from the keyframe before each up to it, overlapping runs as
    one.

    `back`: from so many keyframes before that one, but from no other stretch.
    """
    keys = np.flatnonzero(packets.keys)
    runs: list[Run] = []
    for packet in sorted(wanted):
        here = keys[(keys <= packet) & (packets.stretches[keys] == packets.stretches[packet])]
        before = np.flatnonzero(packets.times_s[here] <= packets.times_s[packet])
        if not len(before):
            continue
        place = max(0, int(before[-1]) - back)
        first = int(here[place])
        if runs and first <= runs[-1].last:
            runs[-1].last = packet
        else:
            following = keys[(keys > first) & (packets.stretches[keys] == packets.stretches[first])]
            runs.append(
                Run(first, packet, second_key=int(following[0]) if place == 0 and len(following) else None)
            )
        runs[-1].wanted.append(packet)
    return runs


def grid_starts(start_s: float, end_s: float, settings: Settings) -> list[int]:
    """Sample indices where windows that lie back to back begin."""
    first = round(start_s * settings.sample_rate_hz)
    starts = range(first, max(first, round(end_s * settings.sample_rate_hz)), settings.num_samples)
    return [start for start in starts if _fits(start, end_s, settings)]


def find_cuts(pictures: Iterable[tuple[float, np.ndarray]], threshold: float) -> list[Cut]:
    """Hard cuts in (time_s, small picture) in order of time, by the scene score of ffmpeg's `select` filter.

    score = min(d[t], |d[t] - d[t-1]|), d = mean absolute difference to the picture before, 0 to 1: motion
    that goes on changes much from picture to picture, but as much as it did before. The first picture begins
    a scene anyhow.
    """
    cuts: list[Cut] = []
    before_s, before, earlier = 0.0, None, None
    for time_s, picture in pictures:
        now = picture.astype(np.int16)
        if before is not None:
            change = float(np.abs(now - before).mean()) / 255
            if earlier is not None and min(change, abs(change - earlier)) > threshold:
                cuts.append((before_s, time_s))
            earlier = change
        before_s, before = time_s, now
    return cuts


def _fits(start: int, end_s: float, settings: Settings) -> bool:
    return (start + settings.num_samples) / settings.sample_rate_hz <= end_s + EDGE_S + 1e-6
