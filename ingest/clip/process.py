"""The warm child that decodes hostile media: started by `ingest.clip.clipper` through `ingest.child`, one per
worker.

It answers every request {"picture", "sound", "still", "start_s", "end_s"} with clips cut by playing time, or
with why it refused. `ingest.clip.tracks` reads the files, `ingest.clip.windows` plans, `ingest.clip.picture`
finishes frames; video is decoded here, only where a frame is wanted. It judges no content and opens nothing
but these two files.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import Interpolation, VideoReformatter

from ingest.child import confine, reply, requests, take_stdout
from ingest.clip.picture import Picture, VideoPictures, still_picture
from ingest.clip.sound import SoundPlacer
from ingest.clip.streams import opened, picture_stream
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
    plan,
    plan_runs,
    regions,
    short_piece,
)
from ingest.rights.embedded import embedded_evidence
from ingest.sample import Reason, Refused

SKIPPABLE = ("h264", "vp8", "vp9")  # codecs where no frame of a lower layer ever refers to what NONREF skips
REFRESHED = (
    "h264",
)  # codecs that may refresh a picture bit by bit: without any intra frame, but between two keyframes
WHOLE = (
    PictureType.NONE,
    PictureType.I,
    PictureType.SI,
    PictureType.BI,
)  # frames that need no other; some decoders do not say
BACK_FACTOR = (
    16  # where keyframes turn out to be none: how much farther back each try begins than the one before
)
THUMB_PX = 32  # side of the pictures in which cuts are looked for


class Chosen(NamedTuple):
    """A clip to be: first sample, picture, how it was laid, and how many samples there are."""

    start: int
    picture: Picture
    mode: str
    valid: int


class Found(NamedTuple):
    """What one medium gives, and what was lost of it: see `cut`."""

    chosen: list[Chosen]
    sound: Sound
    unseen: list[int]
    empty: list[int]


def cut(request: dict[str, Any], settings: Settings) -> tuple[dict[str, Any], list[bytes]]:
    """The clips of one request as plain facts, whose `audio` and `image` are places in the list of byte
    strings.

    `unseen` and `empty` are what was lost, by first sample: windows without a whole picture, stretches of a
    clock without any window.
    """
    embedded = embedded_evidence([request["picture"], request["sound"]])
    start_s, end_s = float(request.get("start_s", 0)), float(request.get("end_s", 0))
    within = Span(start_s, end_s or np.inf) if start_s or end_s else None
    found = (_of_still if request["still"] else _of_film)(
        request["picture"], request["sound"], within, settings
    )
    chosen, sound = found.chosen, found.sound
    parts: list[bytes] = []
    places: dict[bytes, int] = {}
    clips = []
    for start, picture, mode, valid in _spread(chosen, settings.max_clips):
        parts.append(_samples(sound, start, valid, settings).astype("<i2").tobytes())
        audio = len(parts) - 1
        if picture.jpeg not in places:
            parts.append(picture.jpeg)
            places[picture.jpeg] = len(parts) - 1
        size = {"width_px": picture.width_px, "height_px": picture.height_px}
        where: dict[str, Any] = {"start": start, "valid": valid, "mode": mode, "frame_time_s": picture.time_s}
        clips.append({**where, "audio": audio, "image": places[picture.jpeg], **size})
    return {"clips": clips, "unseen": found.unseen, "empty": found.empty, "embedded": embedded}, parts


def _of_still(picture_path: str, sound_path: str, within: Span | None, settings: Settings) -> Found:
    """Windows back to back from the first sample on, all with the one picture."""
    picture = still_picture(picture_path, settings)
    voices = read_tracks(sound_path, settings, False, True, within)
    channel = _placer(voices).loud_channel()
    if channel is not None:
        voices = read_tracks(sound_path, settings, False, True, within, channel)
    sound, begins_s = first_sample_on(voices)
    places = regions(sound.spans, sound.spans, begins_s, within)
    pieces = [
        (start, settings.num_samples)
        for place in places
        for start in grid_starts(place.start_s, place.end_s, settings)
    ]
    if not pieces and places and settings.short != "refuse":
        places = regions(sound.spans, sound.spans, begins_s, within, early_s=0.0)
        pieces = [short_piece(max(places, key=lambda place: place.end_s - place.start_s), settings)]
    chosen = []
    for start, valid in pieces:
        time_s = start / settings.sample_rate_hz + valid / settings.sample_rate_hz / 2
        if valid > 0:
            chosen.append(
                Chosen(
                    start, Picture(picture.jpeg, picture.width_px, picture.height_px, time_s), "still", valid
                )
            )
    empty = (
        [] if within else _empty(begins_s, sound.spans, sound.spans, [start for start, _ in pieces], settings)
    )
    return Found(chosen, sound, [], empty)


def _of_film(picture_path: str, sound_path: str, within: Span | None, settings: Settings) -> Found:
    """Windows in which both picture and sound are there, each with the frame at its middle."""
    films, voices = _read(picture_path, sound_path, within, settings)
    channel = _placer(voices).loud_channel()
    if channel is not None:
        films, voices = _read(picture_path, sound_path, within, settings, channel)
    packets, sound = one_timeline(films, voices)
    cuts = read_cuts(picture_path, packets, settings) if settings.scene_cut else []
    windows = plan(packets, sound, settings, cuts, within)
    pictures = read_pictures(picture_path, packets, {window.packet for window in windows}, settings)
    if windows and not pictures:
        raise Refused(Reason.CORRUPT, "no frame could be decoded")
    chosen = [
        Chosen(window.start, pictures[window.packet], window.mode, window.valid)
        for window in windows
        if window.packet in pictures
    ]
    unseen = [window.start for window in windows if window.packet not in pictures]
    empty = (
        []
        if within
        else _empty(
            packets.begins_s, packets.spans, sound.spans, [window.start for window in windows], settings
        )
    )
    return Found(chosen, sound, unseen, empty)


def _empty(
    begins_s: dict[int, float],
    pictures: dict[int, Span],
    sounds: dict[int, Span],
    starts: list[int],
    settings: Settings,
) -> list[int]:
    """The first samples of those stretches of a clock in which no window starts, though both halves are
    there, or one for long.
    """
    found = []
    for number, begin_s in begins_s.items():
        spans = [half[number] for half in (pictures, sounds) if number in half]
        is_much = len(spans) == 2 or any(span.end_s - span.start_s >= settings.duration_s for span in spans)
        begin = round(begin_s * settings.sample_rate_hz)
        end = min(
            (round(later_s * settings.sample_rate_hz) for later_s in begins_s.values() if later_s > begin_s),
            default=sys.maxsize,
        )
        if is_much and not any(begin <= start < end for start in starts):
            found.append(begin)
    return sorted(found)


def _read(
    picture_path: str, sound_path: str, within: Span | None, settings: Settings, channel: int | None = None
) -> tuple[Tracks, Tracks]:
    """Picture and sound of one file, read together, or of two: these whole, as only their ends tell how their
    clocks are joined.
    """
    if picture_path == sound_path:
        tracks = read_tracks(picture_path, settings, True, True, within, channel)
        return tracks, tracks
    return read_tracks(picture_path, settings, True, False), read_tracks(
        sound_path, settings, False, True, None, channel
    )


def _placer(tracks: Tracks) -> SoundPlacer:
    assert tracks.voice
    return tracks.voice.placer


def read_cuts(path: str, packets: Packets, settings: Settings) -> list[Cut]:
    """Hard cuts of the whole video, among its reference frames: all others are skipped, and so is the
    deblocking.
    """

    def pictures() -> Iterator[tuple[float, np.ndarray]]:
        with opened(path, settings) as container:
            stream, reformatter, number = picture_stream(container), VideoReformatter(), -1
            places: dict[int, int] = {}
            stream.codec_context.options = {"skip_loop_filter": "all"}
            stream.codec_context.skip_frame = "NONREF"
            for packet in container.demux(stream):
                if packet.size and packet.time_base is not None:
                    number += 1
                    if number == len(packets.stamps):
                        break  # behind the range that was read
                    places[int(packets.stamps[number])] = number
                for frame in _decoded(stream.codec_context, packet):
                    if frame.pts in places:
                        small = reformatter.reformat(
                            frame, THUMB_PX, THUMB_PX, "rgb24", interpolation=Interpolation.AREA, threads=1
                        )
                        yield float(packets.times_s[places[frame.pts]]), small.to_ndarray()

    return find_cuts(pictures(), settings.scene_cut)


def read_pictures(path: str, packets: Packets, wanted: set[int], settings: Settings) -> dict[int, Picture]:
    """Decodes the frames of the `wanted` packets and little else; one that cannot be decoded is left out.

    Packets that are marked as keyframes and are none are found out by what comes of them: their runs begin
    farther back, and farther.
    """
    found: dict[int, Picture] = {}
    back, torn = 0, set(wanted)
    while torn:
        torn = _read_runs(path, packets, plan_runs(packets, torn, back), found, settings)
        farther = back * BACK_FACTOR or 1
        if plan_runs(packets, torn, farther) == plan_runs(packets, torn, back):
            break  # all of them began at the first keyframe
        back = farther
    return found


def _read_runs(
    path: str, packets: Packets, runs: list[Run], found: dict[int, Picture], settings: Settings
) -> set[int]:
    """Adds to `found` the pictures that the runs are for; those to which no whole frame led are returned."""
    torn: set[int] = set()
    waiting = list(runs)
    with opened(path, settings) as container:
        stream, number = picture_stream(container), -1
        decoder, pictures = (
            stream.codec_context,
            VideoPictures(float(stream.sample_aspect_ratio or 1), settings),
        )
        skips, sieve = decoder.name in SKIPPABLE, None
        for packet in container.demux(stream):
            if not packet.size or packet.time_base is None:
                continue
            number += 1
            if not waiting:
                break
            run = waiting[0]
            if number < run.first:
                continue
            sieve = sieve or _Sieve(packets, run, decoder.name in REFRESHED)
            if skips:
                decoder.skip_frame = "DEFAULT" if {number, number + 1} & sieve.wanted else "NONREF"
            frames = _decoded(decoder, packet)
            if number == run.last:
                frames += _decoded(decoder, None)
                decoder.flush_buffers()
            for place, time_s, frame in sieve.wanted_of(frames, number == run.last):
                found[place] = pictures.picture(frame, time_s)
            if number == run.last:
                torn |= {
                    place
                    for place in run.wanted
                    if place not in found and packets.times_s[place] < sieve.whole_from_s
                }
                waiting.pop(0)
                sieve = None
    return torn


class _Sieve:
    """Tells which of a run's decoded frames are wanted: whole ones, on screen at the time of a wanted packet."""

    def __init__(self, packets: Packets, run: Run, is_refreshed: bool):
        self.times_s = packets.times_s
        self.refreshed = (
            run.second_key if is_refreshed and run.second_key is not None else len(packets.times_s)
        )
        self.wanted = set(run.wanted)
        self.whole_from_s = np.inf  # time of the first whole frame
        self.instead: dict[
            int, tuple[int, Any]
        ] = {}  # by wanted packet: the frame before, on screen if none has its own time
        numbers = range(run.first, run.last + 1)
        self.places: dict[int, int] = {}
        for number in numbers:
            self.places.setdefault(int(packets.stamps[number]), number)
        order = sorted(
            (number for number in numbers if packets.shown[number]),
            key=lambda number: (packets.times_s[number], number),
        )
        self.after = {
            before: place for before, place in zip(order, order[1:], strict=False) if place in self.wanted
        }

    def wanted_of(self, frames: list[Any], is_last: bool) -> Iterator[tuple[int, float, Any]]:
        """(packet, time, frame) of those that are wanted.

        A second field has no frame of its own: it is in the one before.
        """
        for frame in frames:
            place = self.places.get(frame.pts, -1)
            if place < 0 or not self._is_whole(frame, place):
                continue
            self.instead.pop(place, None)
            yield from self._passed(float(self.times_s[place]))
            if place in self.wanted:
                yield place, float(self.times_s[place]), frame
            if place in self.after:
                self.instead[self.after[place]] = place, frame
        if is_last:
            yield from self._passed(np.inf)

    def _passed(self, time_s: float) -> Iterator[tuple[int, float, Any]]:
        """Those wanted before `time_s` for which no frame of their own has come."""
        for place in [place for place in self.instead if self.times_s[place] < time_s]:
            shown, frame = self.instead.pop(place)
            yield place, float(self.times_s[shown]), frame

    def _is_whole(self, frame: Any, place: int) -> bool:
        """Whether the frame needs no other, or comes after one of this run that does not, or after all of the
        picture was refreshed.
        """
        if frame.is_corrupt:
            return False
        if self.whole_from_s == np.inf and (
            frame.key_frame or frame.pict_type in WHOLE or place >= self.refreshed
        ):
            self.whole_from_s = float(self.times_s[place])
        return bool(self.times_s[place] >= self.whole_from_s)


def _decoded(decoder: Any, packet: Any) -> list[Any]:
    """The frames that come out; none where the packet is damaged."""
    try:
        return list(decoder.decode(packet))
    except av.MemoryError:
        raise
    except av.FFmpegError:
        return []


def _samples(sound: Sound, start: int, valid: int, settings: Settings) -> np.ndarray:
    """int16 [num_samples]; beyond the `valid` ones, and beyond the end (by less than EDGE_S), silence or the
    same again.
    """
    found = sound.samples[start : start + valid]
    if settings.short == "loop" and 0 < len(found) and valid < settings.num_samples:
        return np.resize(found, settings.num_samples)
    return np.pad(found, (0, settings.num_samples - len(found)))


def _spread(chosen: Sequence[Chosen], most: int) -> Iterator[Chosen]:
    """All of them, or `most`, evenly spread."""
    if not most or len(chosen) <= most:
        yield from chosen
        return
    yield from (chosen[int((place + 0.5) * len(chosen) / most)] for place in range(most))


def answer(request: dict[str, Any], settings: Settings) -> tuple[dict[str, Any], list[bytes]]:
    """One request -> the header and byte strings of the reply.

    An error nobody expected ends the process: a crash.
    """
    try:
        return cut(request, settings)
    except Refused as refusal:
        return {"refused": str(refusal.reason), "detail": refusal.detail}, []
    except MemoryError:
        return {
            "refused": str(Reason.TOO_LARGE),
            "detail": f"needs more than {settings.max_memory_bytes >> 20} MB to decode",
        }, []
    except (av.DecoderNotFoundError, av.DemuxerNotFoundError) as error:
        return {"refused": str(Reason.UNSUPPORTED), "detail": _without_path(error)}, []
    except av.FFmpegError as error:
        return {"refused": str(Reason.CORRUPT), "detail": _without_path(error)}, []


def _without_path(error: av.FFmpegError) -> str:
    return error.strerror or type(error).__name__


def main() -> None:
    replies = take_stdout()
    asked = requests()
    settings = Settings(**next(asked))
    confine(settings.max_memory_bytes)
    reply(replies, {"ready": True})
    for request in asked:
        reply(replies, *answer(request, settings))


if __name__ == "__main__":
    main()
