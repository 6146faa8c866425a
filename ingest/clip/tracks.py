"""One pass over the packets of a file: the times of its pictures, and its whole sound, decoded.

    tracks = read_tracks(path, settings, picture=True, sound=True)      # raises Refused
    packets, sound = one_timeline(tracks, tracks)

Video is not decoded here. `ingest.clip.streams` chooses what is read, `ingest.clip.clocks` numbers the
stretches of the clock, `ingest.clip.sound` mixes.
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
    holds_frame,
    opened,
    picture_stream,
    sound_stream,
)
from ingest.clip.windows import Packets, Settings, Sound, Span
from ingest.sample import Reason, Refused

RESTARTS_ALONE = (*ANY_CLOCK, "ogg", "flv")  # formats where a lone stream that jumps ahead has restarted
# of the sound's packets that may fail to decode: more than both, and the whole medium is refused
MAX_BAD = 1
MAX_BAD_SHARE = 0.01
EVERYTHING = Span(-math.inf, math.inf)
MARGIN_S = 2.0  # what is read on both sides of a range, for decoders to settle
# how a file begins that its demuxer reads no more than once or twice
SECOND_HEADER = {
    "flv": re.compile(rb"FLV\x01[\x00-\x07]\x00\x00\x00\x09"),
    "asf": re.compile(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),
    "matroska,webm": re.compile(rb"\x1a\x45\xdf\xa3.{1,8}\x42\x86\x81\x01", re.DOTALL),
}
SECOND_HEADER_BYTES = 4 << 20  # how far behind the last packet it is looked for
MAX_BOXES = 100_000  # of an mp4 that are looked at: more than a day of fragments
# a whole file may end before its header's duration by this much: headers round, and count what pads the end
MAX_MISSING_S = 1.0
MAX_MISSING_SHARE = 0.02


@dataclass
class VideoTrack:
    """The packets of a picture in decoding order, as its file has them; all lists are [num_packets]."""

    stream: Any  # unusable once its container is closed
    time_base: Fraction
    frame_s: float
    back_s: float  # by how much decoding times may go back within one stretch
    stamps: list[int] = field(default_factory=list)  # in the time base: presentation time, else decoding time
    keys: list[bool] = field(default_factory=list)
    visible: list[bool] = field(default_factory=list)
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
        self.visible.append(stamp is not None and not packet.is_discard)
        self.stretches.append(stretch)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(times [n] in seconds of the file's clock, visible [n], stretches [n]).

        Raises `Refused`: corrupt.
        """
        if not any(self.keys):
            raise Refused(Reason.CORRUPT, "no keyframe in the video")
        times_s = self._seconds(self.stamps)
        stretches = np.array(self.stretches)
        visible = np.array(self.visible)
        guessed = np.array(self.guessed)
        if not guessed.all():  # the second field of a frame, most often: the first has its time
            visible &= ~guessed
        for stretch in np.unique(stretches):  # what comes before the first keyframe cannot be decoded
            here = stretches == stretch
            keys = np.flatnonzero(here & self.keys)
            if len(keys):
                visible &= ~here | (times_s >= times_s[keys[0]])
            else:
                visible &= ~here
        return times_s, visible, stretches

    def reaches(self) -> Reaches:
        """From the first frame to the end of the last one, in each stretch."""
        times_s, visible, stretches = self.arrays()
        ends_s = self._seconds(self.ends)
        reaches: Reaches = {}
        for stretch in np.unique(stretches[visible]):
            here = visible & (stretches == stretch)
            # packets need not state a duration: the last frame lasts one frame at least
            last_s = float(times_s[here].max()) + self.frame_s
            reaches[int(stretch)] = Reach(float(times_s[here].min()), max(last_s, float(ends_s[here].max())))
        return reaches

    def _seconds(self, stamps: list[int]) -> np.ndarray:
        # multiplied first: exact for the whole seconds of any time base
        return np.array(stamps, np.float64) * self.time_base.numerator / self.time_base.denominator


@dataclass
class AudioTrack:
    """The sound of a file, decoded as it comes.

    `origin_s`: what its clock says at its first sample, where that sample is time 0 by definition.
    """

    stream: Any  # unusable once its container is closed
    placer: SoundPlacer
    origin_s: float
    num_good: int = 0
    num_bad: int = 0

    def add(self, packet: Any, stretch: int) -> None:
        """Decodes one packet; one that is damaged is counted."""
        try:
            frames = packet.decode()
            self.num_good += 1
        except av.MemoryError:
            raise
        except av.FFmpegError:
            self.num_bad += 1
            return
        for frame in frames:
            self.placer.add(frame, None if frame.time is None else frame.time - self.origin_s, stretch)

    def check(self) -> None:
        """Raises `Refused` (corrupt) where too many packets were damaged."""
        total = self.num_good + self.num_bad
        if self.num_bad > MAX_BAD and self.num_bad > MAX_BAD_SHARE * total:
            raise Refused(Reason.CORRUPT, f"{self.num_bad} of {total} packets of sound cannot be decoded")


@dataclass
class Tracks:
    """What was read of one file.

    `start_s`: what its clock says at time 0 (of a sound alone: at its first sample). `wraps`: it is MPEG's,
    which starts again every 26.5 hours.
    """

    video: VideoTrack | None
    audio: AudioTrack | None
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
    """Reads picture, sound or both of a file in one go; `within`: that range and little more of it.

    Raises `Refused`.
    """
    with opened(path, settings) as container:
        clock = clock_s(container)
        limit_s = settings.max_duration_s + (within.start_s if within else 0.0)
        is_first = container.format.name in FIRST_SAMPLE
        video = _video_track(container, settings) if picture else None
        audio = None
        if sound:
            placer = SoundPlacer(settings, channel, limit_s)
            origin_s = (clock or 0.0) if is_first else 0.0
            audio = AudioTrack(sound_stream(container, video and video.stream), placer, origin_s)
        start_s = 0.0 if is_first else clock or 0.0
        if audio and not video and not is_first:
            start_s = clock or _start_of(audio.stream)
        reader = _Reader(container, video, audio, start_s + limit_s)
        reader.read(_with_margin(within, start_s) if within else EVERYTHING)
        if audio:
            audio.check()
            if within and not audio.placer.total_s:
                raise Refused(Reason.TOO_SHORT, f"no sound from {within.start_s:g} s on")
        reader.check_whole(path)
        return Tracks(video, audio, start_s, container.format.name in ANY_CLOCK)


def _with_margin(within: Span, start_s: float) -> Span:
    """What to read for a range of playing time, on the file's clock."""
    return Span(start_s + within.start_s - MARGIN_S, start_s + within.end_s + MARGIN_S)


def _start_of(stream: Any) -> float:
    """When a sound begins; one that seems to begin before time 0 has its encoder's priming there."""
    return max(0.0, float(stream.start_time * stream.time_base)) if stream.start_time else 0.0


def _video_track(container: Any, settings: Settings) -> VideoTrack:
    stream = picture_stream(container)
    check_size(stream.codec_context.width, stream.codec_context.height, settings)
    rate = stream.average_rate or stream.guessed_rate
    frame_s = 1 / float(rate) if rate else 0.0
    return VideoTrack(stream, stream.time_base or Fraction(1), frame_s, max(BACK_S, BACK_FRAMES * frame_s))


class _Reader:
    """The one loop over all packets, and what it saw of those that are not used.

    Lists are by track, the video's first.
    """

    def __init__(self, container: Any, video: VideoTrack | None, audio: AudioTrack | None, limit_s: float):
        self.container = container
        self.limit_s = limit_s
        self.tracks: list[VideoTrack | AudioTrack] = [track for track in (video, audio) if track]
        self.declared_s = [declared_s(container, track.stream) for track in self.tracks]
        self.backs_s = [track.back_s if isinstance(track, VideoTrack) else BACK_S for track in self.tracks]
        self.finder = StretchFinder(self.backs_s, container.format.name in RESTARTS_ALONE)
        self.latest_s = [-math.inf] * len(self.tracks)
        self.is_hidden = [False] * len(self.tracks)  # the clock has gone back, and nothing was visible since
        self.num_read = [0] * len(self.tracks)
        # how far the unused streams reach, needed where the header gives one duration for all together
        self.unused_s = 0.0
        self.last_pos = 0  # byte of the file
        self.is_all = True  # false where reading ended behind a range

    def read(self, within: Span) -> None:
        """Fills the tracks.

        `within`, on the file's clock: no sound is decoded before it, and reading ends behind it.
        """
        streams = [track.stream for track in self.tracks]
        slot_of = {stream.index: slot for slot, stream in enumerate(streams)}
        bases = {stream.index: float(stream.time_base or 0) for stream in self.container.streams}
        is_behind = [False] * len(streams)
        for packet in _demuxed(self.container, () if None in self.declared_s else streams):
            slot = slot_of.get(packet.stream_index, -1)
            base = bases.get(packet.stream_index, 0.0)
            stamp = packet.dts if packet.dts is not None else packet.pts
            time_s = None if stamp is None else stamp * base
            if slot < 0:
                self.unused_s = max(self.unused_s, (time_s or 0.0) + (packet.duration or 0) * base)
                continue
            stretch = self._stretch(packet, slot, time_s)
            # a range is on the clock of the first stretch; what comes after a restart is read whole
            first_s = time_s if stretch == 0 else None
            if first_s is not None and first_s > within.end_s:
                is_behind[slot] = True
                if all(is_behind):
                    self.is_all = False
                    return
            self.last_pos = max(self.last_pos, packet.pos or 0)
            self.num_read[slot] += packet.size > 0
            is_before = first_s is not None and first_s < within.start_s
            self._add(packet, self.tracks[slot], stretch, is_before)

    def _add(self, packet: Any, track: VideoTrack | AudioTrack, stretch: int, is_before: bool) -> None:
        if isinstance(track, VideoTrack):
            if holds_frame(packet):  # also before the range: decoding begins at a keyframe there
                track.add(packet, stretch)
        elif not is_before:
            track.add(packet, stretch)

    def _stretch(self, packet: Any, slot: int, time_s: float | None) -> int:
        """The stretch of a packet. Raises `Refused`: too_long."""
        if time_s is None:
            return self.finder.current[slot]
        if packet.is_discard:  # an edit list hides it: what it says of the clock does not count
            self.is_hidden[slot] |= time_s < self.latest_s[slot] - self.backs_s[slot]
            self.latest_s[slot] = time_s
            return self.finder.current[slot]
        self.is_hidden[slot] = False
        self.latest_s[slot] = time_s
        # presentation times go back and forth with the order of frames: only decoding times show a restart
        stretch = (
            self.finder.stretch_of(slot, time_s) if packet.dts is not None else self.finder.current[slot]
        )
        if stretch == 0 and time_s > self.limit_s:
            raise Refused(Reason.TOO_LONG, f"longer than {self.limit_s:g} s")
        return stretch

    def check_whole(self, path: str) -> None:
        """Raises `Refused` (corrupt).

        A file cut short still demuxes without an error: it just ends before its header says.
        """
        if any(self.is_hidden):
            raise Refused(Reason.CORRUPT, "the clock goes back, and what follows is hidden")
        reaches = [_reaches(track) for track in self.tracks]
        if not self.is_all:
            return
        self._check_once(path)
        if any(set(reach) != {0} for reach in reaches):
            return  # joined recordings: the header speaks of one of them
        ends_s = [reach[0].last_s for reach in reaches]
        for slot, track in enumerate(self.tracks):
            declared = self.declared_s[slot]
            if declared is None:
                _check_end(max(self.unused_s, *ends_s), container_s(self.container))
            elif not 0 < track.stream.frames <= self.num_read[slot]:
                # else all that the header counts is there, whatever it says of the time
                _check_end(ends_s[slot], declared)

    def _check_once(self, path: str) -> None:
        """Raises `Refused` (corrupt): a second file is joined on, which the demuxer takes for the end."""
        name = self.container.format.name
        is_twice = False
        with open(path, "rb") as file:
            if name in SECOND_HEADER:
                file.seek(self.last_pos)
                # from the second byte on: without any position, `last_pos` is the file's own beginning
                is_twice = bool(SECOND_HEADER[name].search(file.read(SECOND_HEADER_BYTES), 1))
            elif name.startswith("mov,"):
                boxes = list(itertools.islice(_boxes(file), MAX_BOXES))
                # a fragmented file may repeat its header between fragments
                is_twice = boxes.count(b"moov") > 1 and b"moof" not in boxes
        if is_twice:
            raise Refused(Reason.CORRUPT, "a second file is joined to the first one")


def _reaches(track: VideoTrack | AudioTrack) -> Reaches:
    return track.reaches() if isinstance(track, VideoTrack) else track.placer.reaches()


def _boxes(file: BinaryIO) -> Iterator[bytes]:
    """The names of the outermost boxes of an mp4 (ISO/IEC 14496-12, 4.2)."""
    offset = 0
    end = file.seek(0, 2)
    while offset < end:
        file.seek(offset)
        head = file.read(16)
        if len(head) < 16:
            return
        size, name = struct.unpack(">I4s", head[:8])
        if size == 1:  # the size of a large box follows in 64 bits
            (size,) = struct.unpack(">Q", head[8:])
        yield name
        if size < 8:  # 0: the box reaches to the end; less than its own header: damaged
            return
        offset += size


def _demuxed(container: Any, streams: Sequence[Any]) -> Iterator[Any]:
    """The packets of `streams`, or of all."""
    try:
        yield from container.demux(*streams)
    except IndexError:  # PyAV, at the end: streams that a damaged file brought late are none of its
        return


def _check_end(end_s: float, declared: float) -> None:
    if end_s < declared - max(MAX_MISSING_S, MAX_MISSING_SHARE * declared):
        raise Refused(Reason.CORRUPT, f"the file ends at {end_s:.1f} s of {declared:.1f} s")


def first_sample_on(tracks: Tracks) -> tuple[Sound, dict[int, float]]:
    """A sound whose first sample is time 0, and where each stretch begins.

    Raises `Refused`: no_audio, too_long.
    """
    assert tracks.audio
    timeline = Timeline({}, tracks.audio.placer.reaches(), tracks.start_s)
    return tracks.audio.placer.finish(timeline), timeline.begin_s


def one_timeline(picture: Tracks, sound: Tracks) -> tuple[Packets, Sound]:
    """Both on one playing time: of one file (given twice) or of two.

    Raises `Refused`: corrupt, too_long, no_audio.
    """
    assert picture.video and sound.audio
    placer = sound.audio.placer
    pictures = picture.video.reaches()
    sounds = placer.reaches()
    wraps = picture.wraps and sound.wraps
    ahead = {} if picture is sound else _ahead(pictures, sounds, wraps)
    timeline = Timeline(pictures, sounds, picture.start_s, ahead)
    # one stretch was checked while it was read; together, they may still be too long
    if len(timeline.begin_s) > 1 and timeline.end_s > placer.limit_s:
        raise Refused(Reason.TOO_LONG, f"longer than {placer.limit_s:g} s")
    return _packets(picture.video, pictures, timeline), placer.finish(timeline)


def _ahead(pictures: Reaches, sounds: Reaches, wraps: bool) -> dict[int, float]:
    """How far the clock of the sound's file is ahead of the picture's. Raises `Refused`: corrupt."""
    if (len(pictures) > 1 or len(sounds) > 1) and set(pictures) != set(sounds):
        message = (
            f"the picture's clock restarts {len(pictures) - 1} times, the sound's {len(sounds) - 1} times"
        )
        raise Refused(Reason.CORRUPT, message)
    both = [stretch for stretch in pictures if stretch in sounds]
    return {stretch: ahead_s(pictures[stretch], sounds[stretch], wraps) for stretch in both}


def _packets(video: VideoTrack, reaches: Reaches, timeline: Timeline) -> Packets:
    """The packets of a video on playing time."""
    times_s, visible, stretches = video.arrays()
    epochs_s = np.zeros(int(stretches.max()) + 1)
    for stretch, epoch_s in timeline.epoch_s.items():
        if stretch < len(epochs_s):
            epochs_s[stretch] = epoch_s
    spans = {}
    for stretch, reach in reaches.items():
        epoch_s = timeline.epoch_s[stretch]
        spans[stretch] = Span(reach.first_s - epoch_s, reach.last_s - epoch_s)
    return Packets(
        times_s=times_s - epochs_s[stretches],
        keys=np.array(video.keys),
        visible=visible,
        end_s=max((span.end_s for span in spans.values()), default=0.0),
        stretches=stretches,
        stamps=np.array(video.stamps),
        spans=spans,
        begins_s=timeline.begin_s,
    )
