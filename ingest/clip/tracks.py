"""One pass over the packets of a file: times and keyframes of its picture, its whole sound decoded, the
stretches of its clock.

    tracks = read_tracks(path, settings, picture=True, sound=True)      # raises Refused
    packets, sound = one_timeline(tracks, tracks)

Video is not decoded here. `ingest.clip.streams` chooses what is read, `ingest.clip.clocks` tells stretches
apart, `ingest.clip.sound` mixes.
"""

import itertools
import math
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, BinaryIO

import av
import numpy as np

from ingest.clip.clocks import BACK_FRAMES, BACK_S, Reach, Reaches, StretchFinder, Timeline, ahead_s
from ingest.clip.picture import check_size
from ingest.clip.sound import SoundPlacer
from ingest.clip.streams import (
    ANY_CLOCK,
    FIRST_SAMPLE,
    clock_s,
    container_s,
    declared_s,
    opened,
    picture_stream,
    sound_stream,
)
from ingest.clip.windows import Packets, Settings, Sound, Span
from ingest.sample import Reason, Refused

RESTARTS_ALONE = (*ANY_CLOCK, "ogg", "flv")  # formats where a lone stream that jumps ahead has restarted
MAX_BAD_SHARE, MAX_BAD = (
    0.01,
    1,
)  # of the sound's packets that may fail to decode before the whole is refused: more than both
MARGIN_S = 2.0  # what is read on both sides of a range, for decoders to settle
AGAIN = {  # how a file begins that its demuxer reads no more than once or twice
    "flv": re.compile(rb"FLV\x01[\x00-\x07]\x00\x00\x00\x09"),
    "asf": re.compile(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),
    "matroska,webm": re.compile(rb"\x1a\x45\xdf\xa3.{1,8}\x42\x86\x81\x01", re.DOTALL),
}
MOST_BOXES = 100_000  # of an mp4 that are looked at: more than a day of fragments
AGAIN_BYTES = 4 << 20  # how far behind the last packet a second beginning is looked for


@dataclass
class Film:
    """The packets of a picture in decoding order, as its file has them."""

    stream: Any  # gone with its container
    time_base: Fraction
    frame_s: float
    back_s: float
    stamps: list[int] = field(
        default_factory=list
    )  # presentation time in the stream's time base, else decoding time
    keys: list[bool] = field(default_factory=list)
    shown: list[bool] = field(default_factory=list)
    stretches: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    guessed: list[bool] = field(default_factory=list)  # of packets without a presentation time

    def add(self, packet: Any, stretch: int) -> None:
        """One packet of a stretch."""
        stamp = packet.pts if packet.pts is not None else packet.dts
        self.stamps.append(0 if stamp is None else stamp)
        self.ends.append(0 if stamp is None else stamp + (packet.duration or 0))
        self.guessed.append(packet.pts is None)
        self.keys.append(bool(packet.is_keyframe) and stamp is not None)
        self.shown.append(stamp is not None and not packet.is_discard)
        self.stretches.append(stretch)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(times [n] in seconds of the file's clock, shown [n], stretches [n]). Raises `Refused`: corrupt."""
        if not any(self.keys):
            raise Refused(Reason.CORRUPT, "no keyframe in the video")
        times_s, stretches = self._seconds(self.stamps), np.array(self.stretches)
        shown, guessed = np.array(self.shown), np.array(self.guessed)
        if not guessed.all():  # the second field of a frame, most often: the first has its time
            shown &= ~guessed
        for number in np.unique(stretches):  # what comes before the first keyframe cannot be decoded
            here = stretches == number
            first = np.flatnonzero(here & self.keys)[:1]
            shown &= ~here | (times_s >= times_s[first].max(initial=-np.inf)) if len(first) else ~here
        return times_s, shown, stretches

    def reaches(self) -> Reaches:
        """From the first frame to the end of the last one, in each stretch."""
        times_s, shown, stretches = self.arrays()
        ends_s = self._seconds(self.ends)
        found: Reaches = {}
        for number in np.unique(stretches[shown]):
            here = shown & (stretches == number)
            last_s = float(times_s[here].max()) + self.frame_s
            found[int(number)] = Reach(float(times_s[here].min()), max(last_s, float(ends_s[here].max())))
        return found

    def _seconds(self, stamps: list[int]) -> np.ndarray:
        return np.array(stamps, np.float64) * self.time_base.numerator / self.time_base.denominator


@dataclass
class Voice:
    """The sound of a file, decoded as it comes;

    `origin_s`: what its clock says at its first sample, where that is time 0.
    """

    stream: Any
    placer: SoundPlacer
    origin_s: float
    good = 0
    bad = 0

    def add(self, packet: Any, stretch: int) -> None:
        """Decodes one packet; one that is damaged is counted."""
        try:
            frames = packet.decode()
            self.good += 1
        except av.MemoryError:
            raise
        except av.FFmpegError:
            self.bad += 1
            return
        for frame in frames:
            self.placer.add(frame, None if frame.time is None else frame.time - self.origin_s, stretch)

    def check(self) -> None:
        """Raises `Refused` (corrupt) where too many packets were damaged."""
        if self.bad > MAX_BAD and self.bad > MAX_BAD_SHARE * (self.good + self.bad):
            raise Refused(
                Reason.CORRUPT, f"{self.bad} of {self.good + self.bad} packets of sound cannot be decoded"
            )


@dataclass
class Tracks:
    """What was read of one file.

    `start_s`: what its clock says at time 0 (of a sound alone: at its first sample); `wraps`: MPEG's.
    """

    film: Film | None
    voice: Voice | None
    start_s: float
    wraps: bool


def read_tracks(
    path: str,
    settings: Settings,
    picture: bool,
    sound: bool,
    within: Span | None = None,
    channel: int | None = None,
) -> Tracks:
    """Reads what is wanted of a file in one go; `within`: and little more than that. Raises `Refused`."""
    with opened(path, settings) as container:
        clock, limit_s = clock_s(container), settings.max_duration_s + (within.start_s if within else 0.0)
        is_first = container.format.name in FIRST_SAMPLE
        film = _film(container, settings) if picture else None
        voice = None
        if sound:
            placer = SoundPlacer(settings, channel, limit_s)
            voice = Voice(
                sound_stream(container, film and film.stream), placer, clock or 0.0 if is_first else 0.0
            )
        start_s = 0.0 if is_first else clock or 0.0
        if voice and not film and not is_first:
            start_s = clock or _start_of(voice.stream)
        reader = _Reader(container, film, voice, start_s + limit_s)
        margin = (
            Span(start_s + within.start_s - MARGIN_S, start_s + within.end_s + MARGIN_S) if within else None
        )
        reader.read(margin)
        if voice:
            voice.check()
            if within and not voice.placer.total_s:
                raise Refused(Reason.TOO_SHORT, f"no sound from {within.start_s:g} s on")
        reader.check_whole(path)
        return Tracks(film, voice, start_s, container.format.name in ANY_CLOCK)


def _start_of(stream: Any) -> float:
    """When a sound begins; one that seems to begin before time 0 has its encoder's priming there."""
    return max(0.0, float(stream.start_time * stream.time_base)) if stream.start_time else 0.0


def _film(container: Any, settings: Settings) -> Film:
    stream = picture_stream(container)
    check_size(stream.codec_context.width, stream.codec_context.height, settings)
    rate = stream.average_rate or stream.guessed_rate
    frame_s = 1 / float(rate) if rate else 0.0
    return Film(stream, stream.time_base or Fraction(1), frame_s, max(BACK_S, BACK_FRAMES * frame_s))


class _Reader:
    """The one loop over all packets, and what it saw of those that are not used."""

    def __init__(self, container: Any, film: Film | None, voice: Voice | None, limit_s: float):
        self.container, self.film, self.voice, self.limit_s = container, film, voice, limit_s
        self.halves = [half for half in (film, voice) if half]
        self.declared_s = [declared_s(container, half.stream) for half in self.halves]
        backs_s = [film.back_s] if film else []
        self.backs_s = [*backs_s, BACK_S] if voice else backs_s
        self.finder = StretchFinder(self.backs_s, container.format.name in RESTARTS_ALONE)
        self.latest_s = [-math.inf] * len(self.halves)
        self.is_hidden = [False] * len(self.halves)  # the clock has gone back, and nothing was shown since
        self.others_s = (
            0.0  # how far the streams reach that are not used, where the header speaks of all together
        )
        self.num_read = [0] * len(self.halves)
        self.last_pos, self.is_all = 0, True

    def read(self, wanted: Span | None) -> None:
        """Fills film and voice.

        `wanted`, in the file's clock: nothing is decoded before it, and reading ends behind it.
        """
        used = [half.stream for half in self.halves]
        places = {stream.index: place for place, stream in enumerate(used)}
        bases = {stream.index: float(stream.time_base or 0) for stream in self.container.streams}
        passed = [False] * len(used)
        for packet in _demuxed(self.container, () if None in self.declared_s else used):
            index = packet.stream_index
            stamp, place = packet.dts if packet.dts is not None else packet.pts, places.get(index, -1)
            time_s = None if stamp is None else stamp * bases.get(index, 0.0)
            if place < 0:
                self.others_s = max(
                    self.others_s, (time_s or 0.0) + (packet.duration or 0) * bases.get(index, 0.0)
                )
                continue
            number = self._stretch(packet, place, time_s)
            if wanted and number == 0 and time_s is not None and time_s > wanted.end_s:
                passed[place] = True
                if all(passed):
                    self.is_all = False
                    return
            self.last_pos = max(self.last_pos, packet.pos or 0)
            self.num_read[place] += packet.size > 0
            half = self.halves[place]
            if isinstance(half, Film):
                if packet.size and packet.time_base is not None:
                    half.add(packet, number)
            elif not (wanted and number == 0 and time_s is not None and time_s < wanted.start_s):
                half.add(packet, number)

    def _stretch(self, packet: Any, place: int, time_s: float | None) -> int:
        """The stretch of a packet. Raises `Refused`: too_long."""
        if time_s is None:
            return self.finder.current[place]
        if packet.is_discard:  # an edit list hides it: what it says of the clock does not count
            self.is_hidden[place] |= time_s < self.latest_s[place] - self.backs_s[place]
            self.latest_s[place] = time_s
            return self.finder.current[place]
        self.is_hidden[place] = False
        self.latest_s[place] = time_s
        number = self.finder.number(place, time_s) if packet.dts is not None else self.finder.current[place]
        if number == 0 and time_s > self.limit_s:
            raise Refused(Reason.TOO_LONG, f"longer than {self.limit_s:g} s")
        return number

    def check_whole(self, path: str) -> None:
        """Raises `Refused` (corrupt).

        A file cut short still demuxes without an error: it just ends before its header says.
        """
        if any(self.is_hidden):
            raise Refused(Reason.CORRUPT, "the clock goes back, and what follows is hidden")
        reaches = [
            half.reaches() if isinstance(half, Film) else half.placer.reaches() for half in self.halves
        ]
        if not self.is_all:
            return
        self._check_once(path)
        if any(set(reach) != {0} for reach in reaches):
            return
        furthest_s = max(self.others_s, *(reach[0].last_s for reach in reaches))
        for half, declared, reach, num_read in zip(
            self.halves, self.declared_s, reaches, self.num_read, strict=True
        ):
            if declared is None:
                _check_end(furthest_s, container_s(self.container))
            elif (
                not 0 < half.stream.frames <= num_read
            ):  # else all that the header counts is there, whatever it says of the time
                _check_end(reach[0].last_s, declared)

    def _check_once(self, path: str) -> None:
        """Raises `Refused` (corrupt) where a second file is joined to the first, which the demuxer takes for
        the end.
        """
        mark, is_twice = AGAIN.get(self.container.format.name), False
        with open(path, "rb") as file:
            if mark:
                file.seek(self.last_pos)
                is_twice = bool(mark.search(file.read(AGAIN_BYTES), 1))
            elif self.container.format.name.startswith("mov,"):
                boxes = list(itertools.islice(_boxes(file), MOST_BOXES))
                is_twice = boxes.count(b"moov") > 1 and b"moof" not in boxes
        if is_twice:
            raise Refused(Reason.CORRUPT, "a second file is joined to the first one")


def _boxes(file: BinaryIO) -> Iterator[bytes]:
    """The names of the outermost boxes of an mp4."""
    place, end = 0, file.seek(0, 2)
    while place < end and file.seek(place) == place and len(head := file.read(16)) == 16:
        size, name = struct.unpack(">I4s", head[:8])
        size = struct.unpack(">Q", head[8:])[0] if size == 1 else size
        yield name
        if size < 8:
            return
        place += size


def _demuxed(container: Any, streams: Sequence[Any]) -> Iterator[Any]:
    """The packets of `streams`, or of all."""
    try:
        yield from container.demux(*streams)
    except IndexError:  # PyAV, at the end: streams that a damaged file brought late are none of its
        return


def _check_end(end_s: float, declared: float) -> None:
    if end_s < declared - max(1.0, 0.02 * declared):
        raise Refused(Reason.CORRUPT, f"the file ends at {end_s:.1f} s of {declared:.1f} s")


def first_sample_on(sound: Tracks) -> tuple[Sound, dict[int, float]]:
    """A sound whose first sample is time 0, and where each stretch begins.

    Raises `Refused`: no_audio, too_long.
    """
    assert sound.voice
    timeline = Timeline({}, sound.voice.placer.reaches(), sound.start_s)
    return sound.voice.placer.finish(timeline), timeline.begin_s


def one_timeline(picture: Tracks, sound: Tracks) -> tuple[Packets, Sound]:
    """Both on one playing time: of one file (given twice) or of two.

    Raises `Refused`: corrupt, too_long, no_audio.
    """
    assert picture.film and sound.voice
    films, voices = picture.film.reaches(), sound.voice.placer.reaches()
    ahead: dict[int, float] = {}
    if picture is not sound:
        if (len(films) > 1 or len(voices) > 1) and set(films) != set(voices):
            told = f"the picture's clock restarts {len(films) - 1} times, the sound's {len(voices) - 1} times"
            raise Refused(Reason.CORRUPT, told)
        ahead = {
            number: ahead_s(films[number], voices[number], picture.wraps and sound.wraps)
            for number in films
            if number in voices
        }
    timeline, limit_s = Timeline(films, voices, picture.start_s, ahead), sound.voice.placer.limit_s
    if len(timeline.begin_s) > 1 and timeline.end_s > limit_s:
        raise Refused(Reason.TOO_LONG, f"longer than {limit_s:g} s")
    return _packets(picture.film, films, timeline), sound.voice.placer.finish(timeline)


def _packets(film: Film, reaches: Reaches, timeline: Timeline) -> Packets:
    times_s, shown, stretches = film.arrays()
    epochs_s = np.zeros(int(stretches.max()) + 1)
    for number, epoch_s in timeline.epoch_s.items():
        if number < len(epochs_s):
            epochs_s[number] = epoch_s
    spans = {
        number: Span(reach.first_s - timeline.epoch_s[number], reach.last_s - timeline.epoch_s[number])
        for number, reach in reaches.items()
    }
    end_s = max((span.end_s for span in spans.values()), default=0.0)
    begins_s = timeline.begin_s
    return Packets(
        times_s - epochs_s[stretches],
        np.array(film.keys),
        shown,
        end_s,
        stretches,
        np.array(film.stamps),
        spans,
        begins_s,
    )
