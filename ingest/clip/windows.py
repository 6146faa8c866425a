"""Which windows of a medium become clips: pure planning on times, no decoding.

`plan(packets, sound, settings, cuts, within)` gives the windows, `plan_runs` the runs of video to decode for
them, `find_cuts` the hard cuts among small pictures. All times are seconds of playing time
(`ingest.clip.clocks`). Opens no file; `ingest.clip.process` does.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

# keyframe windows that are fewer than this share of the grid's: their gaps are filled, at the grid's cost
FILL_BELOW = 1 / 3
# a stream that begins or ends within this of a window still counts as covering it (codec priming)
EDGE_S = 0.05
ROUNDING_S = 1e-6  # times are sums and products of floats: equal ones may differ by less than this

Cut = tuple[float, float]
"""Times of the last frame before a cut and of the first one after it (of those that were looked at)."""


@dataclass(frozen=True)
class Settings:
    """What the clipper sends its decoder first; built by `ingest.clip.clipper.decoder_settings`."""

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
    """Mono int16 `samples` [num_samples]; sample 0 is playing time 0.

    There is sound from `start_s` to `end_s`, silence in gaps. `spans`: the same by stretch.
    """

    samples: np.ndarray
    start_s: float
    end_s: float
    spans: dict[int, Span] = field(default_factory=dict)


@dataclass
class Packets:
    """Times of a video's packets in decoding order, [num_packets] each, and when its last frame ends.

    A packet that is not `visible` is only there for others to be decoded: an edit list cuts it off, or it
    has no time. `stretches`: of which stretch each packet is; `stamps`: its time as the file has it; `spans`,
    `begins_s`: where there is a picture, and where time begins, in each stretch.
    """

    times_s: np.ndarray
    keys: np.ndarray
    visible: np.ndarray
    end_s: float
    stretches: np.ndarray
    stamps: np.ndarray
    spans: dict[int, Span]
    begins_s: dict[int, float]

    @cached_property
    def order(self) -> np.ndarray:
        """The visible packets in order of time."""
        visible = np.flatnonzero(self.visible)
        # stable: packets of one time stay in file order, as `process._Sieve` takes them
        return visible[np.argsort(self.times_s[visible], kind="stable")]

    @cached_property
    def ordered_s(self) -> np.ndarray:
        """Their times, which are not those of `times_s` in its order: packets come in decoding order."""
        ordered_s: np.ndarray = self.times_s[self.order]
        return ordered_s

    def on_screen(self, time_s: float) -> int | None:
        """The packet of the last frame at or before `time_s`; None before the first one."""
        num_before = int(np.searchsorted(self.ordered_s, time_s + ROUNDING_S, side="right"))
        return int(self.order[num_before - 1]) if num_before else None


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
    """Packets `first` to `last` decoded in one go, from a keyframe on.

    `needed`: the packets whose frames are kept. `second_key`: of a run that can begin no earlier, the next
    keyframe.
    """

    first: int
    last: int
    needed: list[int] = field(default_factory=list)
    second_key: int | None = None


def plan(
    packets: Packets, sound: Sound, settings: Settings, cuts: Sequence[Cut] = (), within: Span | None = None
) -> list[Window]:
    """The windows within the time where both picture and sound are there.

    None spans a cut or a restart of the clock.
    """
    windows = []
    for region in regions(packets.spans, sound.spans, packets.begins_s, within):
        windows += _lay(packets, list(scenes(region, cuts)), settings)
    if windows or settings.short == "refuse":
        return windows
    # a short piece has no window that could reach over an end: it may use the whole of its region
    spans: list[Span] = []
    for region in regions(packets.spans, sound.spans, packets.begins_s, within, early_s=0.0):
        spans += scenes(region, cuts)
    return plan_short(packets, spans, settings)


def _lay(packets: Packets, spans: Sequence[Span], settings: Settings) -> list[Window]:
    """The windows of one stretch of the clock, whose scenes are `spans`."""
    grid = []  # also for `keyframe`: its length decides whether keyframes are too few
    for span in spans:
        grid += plan_grid(packets, span.start_s, span.end_s, settings)
    if settings.mode == "grid":
        return grid
    windows = []
    for span in spans:
        windows += plan_keyframes(packets, span.start_s, span.end_s, settings)
    if len(windows) >= FILL_BELOW * len(grid):
        return windows
    filled = []
    for span in spans:
        filled += _filled(packets, span, windows, settings)
    return filled


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
    spans = []
    within = within or Span(0.0, np.inf)
    for stretch in sorted(set(pictures) & set(sounds)):
        picture = pictures[stretch]
        sound = sounds[stretch]
        begin_s = max(begins_s[stretch], within.start_s)
        later_s = [later_s for later_s in begins_s.values() if later_s > begins_s[stretch]]
        # no window may reach over the end of a stretch: another recording begins there
        seam_s = min([within.end_s, *later_s])
        start_s = max(picture.start_s, sound.start_s)
        end_s = min(picture.end_s, sound.end_s, seam_s - early_s)
        # a stream that starts by a priming's length later has the whole stretch: windows count from its begin
        spans.append(Span(start_s if start_s > begin_s + EDGE_S else begin_s, end_s))
    return spans


def scenes(region: Span, cuts: Sequence[Cut]) -> Iterator[Span]:
    """The scenes between cuts; an end at a cut is EDGE_S early, as windows may reach that far over it."""
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
        # its frame becomes the exact middle, and is decoded alone: that makes this mode cheap
        middle = float(packets.times_s[packet]) * settings.sample_rate_hz
        start = round(middle - settings.num_samples / 2)
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


def _filled(packets: Packets, span: Span, windows: Sequence[Window], settings: Settings) -> list[Window]:
    """The `windows` that start in `span`, and a grid in each gap between them that is long enough."""
    rate = settings.sample_rate_hz
    filled: list[Window] = []
    free_s = span.start_s
    for window in windows:
        if span.start_s - EDGE_S <= window.start / rate < span.end_s:
            # EDGE_S early: a grid window may reach that far over the end of its gap
            filled += plan_grid(packets, free_s, window.start / rate - EDGE_S, settings)
            filled.append(window)
            free_s = (window.start + settings.num_samples) / rate
    return filled + plan_grid(packets, free_s, span.end_s, settings)


def plan_short(packets: Packets, spans: Sequence[Span], settings: Settings) -> list[Window]:
    """One window that is not full, in the longest of `spans`, with the frame at its middle."""
    start, valid = short_piece(longest(spans), settings)
    packet = packets.on_screen((start + valid / 2) / settings.sample_rate_hz)
    return [] if packet is None or valid < 1 else [Window(start, packet, "grid", valid)]


def longest(spans: Sequence[Span]) -> Span:
    """The first of the longest; an empty one where there are none."""
    return max(spans, key=lambda span: span.end_s - span.start_s, default=Span(0.0, 0.0))


def short_piece(span: Span, settings: Settings) -> tuple[int, int]:
    """First sample and number of samples of a piece that is shorter than a window."""
    start = round(span.start_s * settings.sample_rate_hz)
    end = round(span.end_s * settings.sample_rate_hz)
    return start, min(end - start, settings.num_samples)


def plan_runs(packets: Packets, needed: set[int], back: int = 0) -> list[Run]:
    """What to decode for the `needed` packets: from the keyframe before each up to it.

    Runs that overlap become one. `back`: from so many keyframes before that one, but from no other stretch.
    """
    keys = np.flatnonzero(packets.keys)
    runs: list[Run] = []
    for packet in sorted(needed):
        stretch = packets.stretches[packet]
        earlier = keys[(keys <= packet) & (packets.stretches[keys] == stretch)]
        # decoded before and displayed before: a leading picture needs the keyframe before the one it follows
        usable = np.flatnonzero(packets.times_s[earlier] <= packets.times_s[packet])
        if not len(usable):
            continue
        index = max(0, int(usable[-1]) - back)
        first = int(earlier[index])
        if runs and first <= runs[-1].last:
            runs[-1].last = packet
        else:
            # from its next keyframe on, a refresh bit by bit is complete (`process._Sieve`)
            following = keys[(keys > first) & (packets.stretches[keys] == packets.stretches[first])]
            second_key = int(following[0]) if index == 0 and len(following) else None
            runs.append(Run(first, packet, second_key=second_key))
        runs[-1].needed.append(packet)
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
    previous: np.ndarray | None = None
    previous_s = 0.0
    previous_change: float | None = None
    for time_s, picture in pictures:
        current = picture.astype(np.int16)  # differences of uint8 would wrap
        if previous is not None:
            change = float(np.abs(current - previous).mean()) / 255
            if previous_change is not None and min(change, abs(change - previous_change)) > threshold:
                cuts.append((previous_s, time_s))
            previous_change = change
        previous = current
        previous_s = time_s
    return cuts


def _fits(start: int, end_s: float, settings: Settings) -> bool:
    return (start + settings.num_samples) / settings.sample_rate_hz <= end_s + EDGE_S + ROUNDING_S
