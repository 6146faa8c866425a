"""The warm child that decodes hostile media: `ingest.clip.clipper` starts one per worker by `ingest.child`.

It answers every request {"picture", "sound", "still", "start_s", "end_s"} with clips cut by playing time, or
with why it refused. `ingest.clip.tracks` reads the files, `ingest.clip.windows` plans, `ingest.clip.picture`
finishes frames; video is decoded here, only where a frame is needed. It judges no content and opens nothing
but these two files.
"""

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypedDict

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import Interpolation, VideoReformatter

from ingest.child import RefusalHeader, confine, reply, requests, take_stdout
from ingest.clip.picture import Picture, VideoPictures, still_picture
from ingest.clip.streams import holds_frame, opened, picture_stream
from ingest.clip.tracks import Tracks, first_sample_on, one_timeline, read_tracks
from ingest.clip.windows import (
    Cut,
    Packets,
    Run,
    Settings,
    Sound,
    Span,
    find_cuts,
    grid_starts,
    longest,
    plan,
    plan_runs,
    regions,
    short_piece,
)
from ingest.rights.embedded import embedded_evidence
from ingest.sample import Reason, Refused

# codecs where no frame of a lower layer ever refers to what NONREF skips
SKIPPABLE = ("h264", "vp8", "vp9")
# codecs that may refresh a picture bit by bit: without any intra frame, but between two keyframes
REFRESHED = ("h264",)
# frames that need no other; some decoders do not say, and give NONE
INTRA = (PictureType.NONE, PictureType.I, PictureType.SI, PictureType.BI)
# where keyframes turn out to be none: how much farther back each try begins than the one before, so that
# few tries reach a true one even where every packet is marked
BACK_FACTOR = 16
THUMB_PX = 32  # side of the pictures in which cuts are looked for


class Request(TypedDict):
    """What the clipper sends for one medium; `end_s` 0 is its end."""

    picture: str
    sound: str
    still: bool
    start_s: float
    end_s: float


class ClipEntry(TypedDict):
    """One clip in a reply; `audio` and `image` index the byte strings that follow the header."""

    start: int
    valid: int
    mode: str
    frame_time_s: float
    audio: int
    image: int
    width_px: int
    height_px: int


class CutHeader(TypedDict):
    """The clips of one request, and what was lost of its medium: see `cut`."""

    clips: list[ClipEntry]
    unseen: list[int]
    empty: list[int]
    embedded: str


Response = tuple[CutHeader | RefusalHeader, list[bytes]]
"""The header of a reply, as JSON, and the byte strings that follow it."""


class Chosen(NamedTuple):
    """A clip to be: first sample, picture, how it was laid, and how many samples there are."""

    start: int
    picture: Picture
    mode: str
    valid: int


class CutMedium(NamedTuple):
    """What one medium gives, and what was lost of it: see `cut`."""

    chosen: list[Chosen]
    sound: Sound
    unseen: list[int]
    empty: list[int]


def cut(request: Request, settings: Settings) -> Response:
    """The clips of one request as plain data, whose `audio` and `image` index the list of byte strings.

    `unseen` and `empty` are what was lost, by first sample: windows without a whole picture, stretches of a
    clock without any window.
    """
    embedded = embedded_evidence([request["picture"], request["sound"]])
    within = _requested_span(request)
    cut_one = _cut_still if request["still"] else _cut_film
    medium = cut_one(request["picture"], request["sound"], within, settings)
    blobs: list[bytes] = []
    index_of: dict[bytes, int] = {}  # several clips may share one picture: it crosses the pipe once
    clips: list[ClipEntry] = []
    for start, picture, mode, valid in _spread(medium.chosen, settings.max_clips):
        audio = len(blobs)
        blobs.append(_samples(medium.sound, start, valid, settings).astype("<i2").tobytes())
        if picture.jpeg not in index_of:
            index_of[picture.jpeg] = len(blobs)
            blobs.append(picture.jpeg)
        entry: ClipEntry = {
            "start": start,
            "valid": valid,
            "mode": mode,
            "frame_time_s": picture.time_s,
            "audio": audio,
            "image": index_of[picture.jpeg],
            "width_px": picture.width_px,
            "height_px": picture.height_px,
        }
        clips.append(entry)
    return {"clips": clips, "unseen": medium.unseen, "empty": medium.empty, "embedded": embedded}, blobs


def _requested_span(request: Request) -> Span | None:
    """The range of playing time that counts; None for all of it."""
    start_s = float(request.get("start_s", 0))
    end_s = float(request.get("end_s", 0))
    return Span(start_s, end_s or np.inf) if start_s or end_s else None


def _cut_still(picture_path: str, sound_path: str, within: Span | None, settings: Settings) -> CutMedium:
    """Windows back to back from the first sample on, all with the one picture."""
    picture = still_picture(picture_path, settings)
    tracks = read_tracks(sound_path, settings, False, True, within)
    channel = _loud_channel(tracks)
    if channel is not None:
        tracks = read_tracks(sound_path, settings, False, True, within, channel)
    sound, begins_s = first_sample_on(tracks)
    pieces = _still_pieces(sound, begins_s, within, settings)
    chosen = []
    for start, valid in pieces:
        middle_s = start / settings.sample_rate_hz + valid / settings.sample_rate_hz / 2
        if valid > 0:
            at_middle = replace(picture, time_s=middle_s)
            chosen.append(Chosen(start, at_middle, "still", valid))
    starts = [start for start, _ in pieces]
    empty = [] if within else _empty(begins_s, sound.spans, sound.spans, starts, settings)
    return CutMedium(chosen, sound, [], empty)


def _still_pieces(
    sound: Sound, begins_s: dict[int, float], within: Span | None, settings: Settings
) -> list[tuple[int, int]]:
    """(first sample, samples that there are) of each window of a sound over one picture."""
    pieces = []
    spans = regions(sound.spans, sound.spans, begins_s, within)
    for span in spans:
        for start in grid_starts(span.start_s, span.end_s, settings):
            pieces.append((start, settings.num_samples))
    if pieces or not spans or settings.short == "refuse":
        return pieces
    # a short piece has no window that could reach over an end: it may use the whole of its region
    whole_spans = regions(sound.spans, sound.spans, begins_s, within, early_s=0.0)
    return [short_piece(longest(whole_spans), settings)]


def _cut_film(picture_path: str, sound_path: str, within: Span | None, settings: Settings) -> CutMedium:
    """Windows in which both picture and sound are there, each with the frame at its middle."""
    video_tracks, audio_tracks = _read(picture_path, sound_path, within, settings)
    channel = _loud_channel(audio_tracks)
    if channel is not None:
        video_tracks, audio_tracks = _read(picture_path, sound_path, within, settings, channel)
    packets, sound = one_timeline(video_tracks, audio_tracks)
    cuts = read_cuts(picture_path, packets, settings) if settings.scene_cut else []
    windows = plan(packets, sound, settings, cuts, within)
    pictures = read_pictures(picture_path, packets, {window.packet for window in windows}, settings)
    if windows and not pictures:
        raise Refused(Reason.CORRUPT, "no frame could be decoded")
    chosen = []
    unseen = []
    for window in windows:
        if window.packet in pictures:
            chosen.append(Chosen(window.start, pictures[window.packet], window.mode, window.valid))
        else:
            unseen.append(window.start)
    starts = [window.start for window in windows]
    empty = [] if within else _empty(packets.begins_s, packets.spans, sound.spans, starts, settings)
    return CutMedium(chosen, sound, unseen, empty)


def _empty(
    begins_s: dict[int, float],
    pictures: dict[int, Span],
    sounds: dict[int, Span],
    starts: list[int],
    settings: Settings,
) -> list[int]:
    """The first samples of those stretches in which no window starts, though they are worth a report.

    They are where both picture and sound are there, or one of them for the length of a clip.
    """
    empty = []
    for stretch, begin_s in begins_s.items():
        spans = [spans[stretch] for spans in (pictures, sounds) if stretch in spans]
        is_long = any(span.end_s - span.start_s >= settings.duration_s for span in spans)
        begin = round(begin_s * settings.sample_rate_hz)
        later_s = [later_s for later_s in begins_s.values() if later_s > begin_s]
        end = round(min(later_s) * settings.sample_rate_hz) if later_s else sys.maxsize
        if (len(spans) == 2 or is_long) and not any(begin <= start < end for start in starts):
            empty.append(begin)
    return sorted(empty)


def _read(
    picture_path: str, sound_path: str, within: Span | None, settings: Settings, channel: int | None = None
) -> tuple[Tracks, Tracks]:
    """Picture and sound of one file, read together, or of two files.

    Two are read whole, whatever `within` is, as only their ends show how their clocks are joined.
    """
    if picture_path == sound_path:
        tracks = read_tracks(picture_path, settings, True, True, within, channel)
        return tracks, tracks
    picture = read_tracks(picture_path, settings, True, False)
    return picture, read_tracks(sound_path, settings, False, True, None, channel)


def _loud_channel(tracks: Tracks) -> int | None:
    """The one channel to read instead of the sum, where two cancel each other."""
    assert tracks.audio
    return tracks.audio.placer.loud_channel()


def read_cuts(path: str, packets: Packets, settings: Settings) -> list[Cut]:
    """Hard cuts of the whole video, among its reference frames."""
    return find_cuts(_thumbnails(path, packets, settings), settings.scene_cut)


def _thumbnails(path: str, packets: Packets, settings: Settings) -> Iterator[tuple[float, np.ndarray]]:
    """(time_s, uint8 [THUMB_PX, THUMB_PX, 3]) of the frames that others refer to."""
    with opened(path, settings) as container:
        stream = picture_stream(container)
        reformatter = VideoReformatter()
        index = -1
        index_of: dict[int, int] = {}  # packet by stamp
        # the cheapest decoding in which a cut still shows
        stream.codec_context.options = {"skip_loop_filter": "all"}
        stream.codec_context.skip_frame = "NONREF"
        for packet in container.demux(stream):
            if holds_frame(packet):
                index += 1
                if index == len(packets.stamps):
                    break  # behind the range that was read
                index_of[int(packets.stamps[index])] = index
            for frame in _decoded(stream.codec_context, packet):
                if frame.pts in index_of:
                    small = reformatter.reformat(
                        frame, THUMB_PX, THUMB_PX, "rgb24", interpolation=Interpolation.AREA, threads=1
                    )
                    yield float(packets.times_s[index_of[frame.pts]]), small.to_ndarray()


def read_pictures(path: str, packets: Packets, needed: set[int], settings: Settings) -> dict[int, Picture]:
    """Decodes the frames of the `needed` packets and little else; one that cannot be decoded is left out.

    Containers mark packets as keyframes that are none (ASF, 3GP, MPEG-4 without a table of them). Only what
    comes of decoding shows it: the runs that brought no whole frame begin farther back, and farther.
    """
    pictures: dict[int, Picture] = {}
    back = 0
    torn = set(needed)
    while torn:
        torn = _read_runs(path, packets, plan_runs(packets, torn, back), pictures, settings)
        farther = back * BACK_FACTOR or 1
        if plan_runs(packets, torn, farther) == plan_runs(packets, torn, back):
            break  # all of them began at the first keyframe
        back = farther
    return pictures


def _read_runs(
    path: str, packets: Packets, runs: list[Run], pictures: dict[int, Picture], settings: Settings
) -> set[int]:
    """Adds to `pictures` those that the runs are for; returns the packets to which no whole frame led."""
    torn: set[int] = set()
    with opened(path, settings) as container:
        stream = picture_stream(container)
        decoder = stream.codec_context
        finisher = VideoPictures(float(stream.sample_aspect_ratio or 1), settings)
        is_skippable = decoder.name in SKIPPABLE
        numbered = enumerate(packet for packet in container.demux(stream) if holds_frame(packet))
        for run in runs:
            sieve = _Sieve(packets, run, decoder.name in REFRESHED)
            for index, packet in _packets_of(numbered, run):
                if is_skippable:
                    # the one before a needed packet, too: of a second field, that one has the frame
                    is_near = index in sieve.needed or index + 1 in sieve.needed
                    decoder.skip_frame = "DEFAULT" if is_near else "NONREF"
                frames = _decoded(decoder, packet)
                is_last = index == run.last
                if is_last:
                    frames += _decoded(decoder, None)  # what the decoder holds back for reordering
                    decoder.flush_buffers()
                for needed, time_s, frame in sieve.needed_of(frames, is_last):
                    pictures[needed] = finisher.picture(frame, time_s)
                if is_last:
                    torn |= sieve.torn(pictures)
    return torn


def _packets_of(numbered: Iterator[tuple[int, Any]], run: Run) -> Iterator[tuple[int, Any]]:
    """(index, packet) from the run's first packet to its last; those before are skipped.

    `numbered` continues behind it: runs are in order and share no packet, so one pass serves all of them.
    """
    for index, packet in numbered:
        if index >= run.first:
            yield index, packet
        if index >= run.last:
            return


class _Sieve:
    """Picks a run's needed frames: whole ones, on screen at the time of a needed packet."""

    def __init__(self, packets: Packets, run: Run, is_refreshed: bool):
        self.times_s = packets.times_s
        self.needed = set(run.needed)
        # the packet from which on all of the picture was refreshed
        self.refreshed = len(packets.times_s)
        if is_refreshed and run.second_key is not None:
            self.refreshed = run.second_key
        self.whole_from_s = np.inf  # time of the first whole frame
        # by needed packet: the frame before, on screen if none has its own time
        self.fallback: dict[int, tuple[int, Any]] = {}
        indices = range(run.first, run.last + 1)
        self.index_of: dict[int, int] = {}  # packet by stamp; of two with one stamp, the first has the frame
        for index in indices:
            self.index_of.setdefault(int(packets.stamps[index]), index)
        visible = [index for index in indices if packets.visible[index]]
        visible.sort(key=lambda index: (packets.times_s[index], index))
        # the needed packet that is displayed right after this one
        self.next_needed = {
            before: after for before, after in itertools.pairwise(visible) if after in self.needed
        }

    def needed_of(self, frames: list[Any], is_last: bool) -> Iterator[tuple[int, float, Any]]:
        """(packet, time, frame) of those that are needed.

        A second field has no frame of its own: it is in the one before.
        """
        for frame in frames:
            index = self.index_of.get(frame.pts, -1)
            if index < 0 or not self._is_whole(frame, index):
                continue
            self.fallback.pop(index, None)
            yield from self._overdue(float(self.times_s[index]))
            if index in self.needed:
                yield index, float(self.times_s[index]), frame
            if index in self.next_needed:
                self.fallback[self.next_needed[index]] = (index, frame)
        if is_last:
            yield from self._overdue(np.inf)

    def torn(self, pictures: dict[int, Picture]) -> set[int]:
        """The needed packets without a picture that come before the first whole frame."""
        missing = self.needed - pictures.keys()
        return {index for index in missing if self.times_s[index] < self.whole_from_s}

    def _overdue(self, time_s: float) -> Iterator[tuple[int, float, Any]]:
        """Those needed before `time_s` for which no frame of their own has come."""
        overdue = [index for index in self.fallback if self.times_s[index] < time_s]
        for index in overdue:
            before, frame = self.fallback.pop(index)
            yield index, float(self.times_s[before]), frame

    def _is_whole(self, frame: Any, index: int) -> bool:
        """Whether the frame needs no other frame that was not decoded.

        So is an intra frame, what is displayed after one of this run, and all after a complete refresh.
        """
        if frame.is_corrupt:
            return False
        is_start = frame.key_frame or frame.pict_type in INTRA or index >= self.refreshed
        if self.whole_from_s == np.inf and is_start:
            self.whole_from_s = float(self.times_s[index])
        return bool(self.times_s[index] >= self.whole_from_s)


def _decoded(decoder: Any, packet: Any) -> list[Any]:
    """The frames that come out; none where the packet is damaged."""
    try:
        return list(decoder.decode(packet))
    except av.MemoryError:
        raise  # of this process, not of the packet: `answer` refuses the medium as too large
    except av.FFmpegError:
        return []


def _samples(sound: Sound, start: int, valid: int, settings: Settings) -> np.ndarray:
    """int16 [num_samples]: the `valid` ones, then silence, or the same again for `short=loop`.

    At the end of the sound, a full window may lack less than EDGE_S, which is silence.
    """
    samples = sound.samples[start : start + valid]
    if settings.short == "loop" and 0 < len(samples) and valid < settings.num_samples:
        return np.resize(samples, settings.num_samples)
    return np.pad(samples, (0, settings.num_samples - len(samples)))


def _spread(chosen: Sequence[Chosen], most: int) -> Iterator[Chosen]:
    """All of them, or `most`, evenly spread: the middle of each of `most` equal segments."""
    if not most or len(chosen) <= most:
        yield from chosen
        return
    for segment in range(most):
        yield chosen[int((segment + 0.5) * len(chosen) / most)]


def answer(request: Request, settings: Settings) -> Response:
    """One request -> the header and byte strings of the reply.

    An unexpected error ends the process: the parent sees a crash, and the next item gets a fresh child.
    """
    try:
        return cut(request, settings)
    except Refused as refusal:
        return _refusal(refusal.reason, refusal.detail)
    except MemoryError:
        max_mb = settings.max_memory_bytes >> 20
        return _refusal(Reason.TOO_LARGE, f"needs more than {max_mb} MB to decode")
    except (av.DecoderNotFoundError, av.DemuxerNotFoundError) as error:
        return _refusal(Reason.UNSUPPORTED, _without_path(error))
    except av.FFmpegError as error:
        return _refusal(Reason.CORRUPT, _without_path(error))


def _refusal(reason: Reason, detail: str) -> Response:
    return {"refused": str(reason), "detail": detail}, []


def _without_path(error: av.FFmpegError) -> str:
    return error.strerror or type(error).__name__


def main() -> None:
    replies = take_stdout()
    lines: Iterator[Any] = requests()
    settings = Settings(**next(lines))
    confine(settings.max_memory_bytes)
    reply(replies, {"ready": True})
    for request in lines:
        reply(replies, *answer(request, settings))


if __name__ == "__main__":
    main()
