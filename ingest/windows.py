"""Where the windows of a medium lie: pure planning on times, no decoding.

`plan(packets, sound, settings, cuts)` gives the windows, `plan_runs` the stretches of video to decode for them, `find_cuts`
the hard cuts among small pictures. All times are seconds of presentation time. Opens no file; `ingest.decode_process` does.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

EDGE_S = 0.05  # a stream that begins or ends within this of a window still counts as covering it (codec priming)

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

    @property
    def duration_s(self) -> float:
        return self.num_samples / self.sample_rate_hz


@dataclass
class Sound:
    """Mono int16 samples; sample 0 is presentation time 0. There is sound from `start_s` to `end_s`, silence in gaps."""

    samples: np.ndarray
    start_s: float
    end_s: float
    declared_s: float = 0.0  # what the container says of its duration; 0 = nothing reliable


@dataclass
class Packets:
    """Times of a video's packets in decoding order, [num_packets] each, and when its last frame ends.

    A packet that is not `shown` is only there for others to be decoded: an edit list cuts it off, or it has no time.
    """

    times_s: np.ndarray
    keys: np.ndarray
    shown: np.ndarray
    end_s: float
    declared_s: float = 0.0
    clock_s: float | None = None  # what the file's clock said at time 0, where clocks start anywhere


@dataclass(frozen=True)
class Window:
    """`start` is a sample index; `packet` the video packet of the frame on screen at the middle."""

    start: int
    packet: int


@dataclass
class Run:
    """Packets `first` to `last` decoded in one go, from a keyframe on; `wanted`: packets whose frames are kept."""

    first: int
    last: int
    wanted: list[int] = field(default_factory=list)


def plan(packets: Packets, sound: Sound, settings: Settings, cuts: Sequence[Cut] = ()) -> list[Window]:
    """The windows within the time where both picture and sound are there, none across a cut."""
    if not packets.shown.any():
        return []
    start_s = first_s(max(sound.start_s, float(packets.times_s[packets.shown].min())))
    end_s = min(sound.end_s, packets.end_s)
    lay = plan_keyframes if settings.mode == "keyframe" else plan_grid
    return [window for scene in scenes(start_s, end_s, cuts) for window in lay(packets, *scene, settings)]


def scenes(start_s: float, end_s: float, cuts: Sequence[Cut]) -> Iterator[tuple[float, float]]:
    """The stretches between cuts; an end at a cut is EDGE_S early, as windows may reach that far over it."""
    for before_s, after_s in cuts:
        if after_s > start_s:
            yield start_s, min(end_s, before_s - EDGE_S)
            start_s = after_s
    yield start_s, end_s


def plan_keyframes(packets: Packets, start_s: float, end_s: float, settings: Settings) -> list[Window]:
    """Windows around keyframes, as many as fit without overlap when taken in order of time."""
    windows: list[Window] = []
    free = round(start_s * settings.sample_rate_hz)
    keys = packets.keys & packets.shown
    for packet in np.flatnonzero(keys)[np.argsort(packets.times_s[keys], kind="stable")]:
        start = round(float(packets.times_s[packet]) * settings.sample_rate_hz - settings.num_samples / 2)
        if start >= free and _fits(start, end_s, settings):
            windows.append(Window(start, int(packet)))
            free = start + settings.num_samples
    return windows


def plan_grid(packets: Packets, start_s: float, end_s: float, settings: Settings) -> list[Window]:
    """Windows back to back, each with the last frame at or before its middle."""
    shown = np.flatnonzero(packets.shown)
    order = shown[np.argsort(packets.times_s[shown], kind="stable")]
    windows = []
    for start in grid_starts(start_s, end_s, settings):
        middle_s = (start + settings.num_samples / 2) / settings.sample_rate_hz
        place = int(np.searchsorted(packets.times_s[order], middle_s + 1e-6, side="right")) - 1
        if place >= 0:
            windows.append(Window(start, int(order[place])))
    return windows


def plan_runs(packets: Packets, wanted: set[int]) -> list[Run]:
    """What to decode for the `wanted` packets: from the keyframe before each up to it, overlapping stretches as one."""
    keys = np.flatnonzero(packets.keys)
    runs: list[Run] = []
    for packet in sorted(wanted):
        before = keys[(keys <= packet) & (packets.times_s[keys] <= packets.times_s[packet])]
        if not len(before):
            continue
        if runs and before[-1] <= runs[-1].last:
            runs[-1].last = packet
        else:
            runs.append(Run(int(before[-1]), packet))
        runs[-1].wanted.append(packet)
    return runs


def grid_starts(start_s: float, end_s: float, settings: Settings) -> list[int]:
    """Sample indices where windows that lie back to back begin."""
    first = round(start_s * settings.sample_rate_hz)
    starts = range(first, max(first, round(end_s * settings.sample_rate_hz)), settings.num_samples)
    return [start for start in starts if _fits(start, end_s, settings)]


def find_cuts(pictures: Iterable[tuple[float, np.ndarray]], threshold: float) -> list[Cut]:
    """Hard cuts in (time_s, small picture) in order of time, by the scene score of ffmpeg's `select` filter.

    score = min(d[t], |d[t] - d[t-1]|), d = mean absolute difference to the picture before, 0 to 1: motion that goes on
    changes much from picture to picture, but as much as it did before. The first picture begins a scene anyhow.
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


def first_s(start_s: float) -> float:
    """Where windows may begin: at 0 unless a stream really begins later."""
    return start_s if start_s > EDGE_S else 0.0


def _fits(start: int, end_s: float, settings: Settings) -> bool:
    return (start + settings.num_samples) / settings.sample_rate_hz <= end_s + EDGE_S
