"""The warm child that decodes hostile media: started by `ingest.clip` through `ingest.sandbox`, one per worker.

It answers every request {"picture", "sound", "still"} with clips cut by presentation time, or with why it refused. Sound
is decoded once, video only where a frame is wanted. Containers and protocols are whitelisted: a playlist is never
followed. `plan_keyframes`, `plan_grid` and `plan_runs` are pure. It judges no content and opens nothing but these two files.
"""

import io
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import av
import av.audio.resampler
import numpy as np
from PIL import Image, ImageFile, ImageOps

from ingest.sample import Reason, Refused
from ingest.sandbox import confine, reply, requests, take_stdout

OPEN_OPTIONS = {
    "protocol_whitelist": "file",
    # mpegts: what yt-dlp's native HLS downloader leaves, under the name .mp4; it cannot name other files
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,ogg,wav,mp3,flac,aac,mpegts",
    "enable_drefs": "0",  # a mov may name other files as its data: never
}
STILL_FORMATS = ("JPEG", "PNG", "WEBP")
EDGE_S = 0.05  # a stream that begins or ends within this of a window still counts as covering it (codec priming)
RUN_GAP_S = 0.03  # sound whose presentation time jumps by more starts anew there; less is rounding of the container
MAX_BAD_SHARE = 0.01  # of the sound's packets that may fail to decode before the whole is refused
UPRIGHT = {90: Image.Transpose.ROTATE_90, -270: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180}
UPRIGHT |= {-180: Image.Transpose.ROTATE_180, -90: Image.Transpose.ROTATE_270, 270: Image.Transpose.ROTATE_270}


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
    """Times of a video's packets in decoding order, [num_packets] each, and when its last frame ends."""

    times_s: np.ndarray
    keys: np.ndarray
    end_s: float
    declared_s: float = 0.0


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


@dataclass(frozen=True)
class Picture:
    """A finished frame: JPEG bytes, its size and presentation time."""

    jpeg: bytes
    width_px: int
    height_px: int
    time_s: float


def cut(request: dict[str, Any], settings: Settings) -> tuple[list[dict[str, Any]], list[bytes]]:
    """The clips of one request as plain facts, whose `audio` and `image` are places in the list of byte strings."""
    if request["still"]:
        picture = still_picture(request["picture"], settings)
        sound = read_sound(request["sound"], settings)
        _check_whole(sound.end_s, sound.declared_s)
        starts = grid_starts(_first_s(sound.start_s), sound.end_s, settings)
        middle = settings.duration_s / 2
        chosen = [
            (start, Picture(picture.jpeg, picture.width_px, picture.height_px, start / settings.sample_rate_hz + middle))
            for start in starts
        ]
    else:
        packets = read_packets(request["picture"], settings)
        sound = read_sound(request["sound"], settings)
        together = request["picture"] == request["sound"]
        _check_whole(max(packets.end_s, sound.end_s) if together else sound.end_s, sound.declared_s)
        _check_whole(max(packets.end_s, sound.end_s) if together else packets.end_s, packets.declared_s)
        windows = plan(packets, sound, settings)
        pictures = read_pictures(request["picture"], packets, {window.packet for window in windows}, settings)
        if windows and not pictures:
            raise Refused(Reason.CORRUPT, "no frame could be decoded")
        chosen = [(window.start, pictures[window.packet]) for window in windows if window.packet in pictures]
    parts: list[bytes] = []
    places: dict[bytes, int] = {}
    clips = []
    for start, picture in _spread(chosen, settings.max_clips):
        parts.append(_samples(sound, start, settings.num_samples).astype("<i2").tobytes())
        audio = len(parts) - 1
        if picture.jpeg not in places:
            parts.append(picture.jpeg)
            places[picture.jpeg] = len(parts) - 1
        size = {"width_px": picture.width_px, "height_px": picture.height_px}
        clips.append({"start": start, "frame_time_s": picture.time_s, "audio": audio, "image": places[picture.jpeg], **size})
    return clips, parts


def plan(packets: Packets, sound: Sound, settings: Settings) -> list[Window]:
    """The windows within the time where both picture and sound are there."""
    start_s = _first_s(max(sound.start_s, float(packets.times_s.min())))
    end_s = min(sound.end_s, packets.end_s)
    if settings.mode == "keyframe":
        return plan_keyframes(packets, start_s, end_s, settings)
    return plan_grid(packets, start_s, end_s, settings)


def plan_keyframes(packets: Packets, start_s: float, end_s: float, settings: Settings) -> list[Window]:
    """Windows around keyframes, as many as fit without overlap when taken in order of time."""
    windows: list[Window] = []
    free = round(start_s * settings.sample_rate_hz)
    for packet in np.flatnonzero(packets.keys)[np.argsort(packets.times_s[packets.keys], kind="stable")]:
        start = round(float(packets.times_s[packet]) * settings.sample_rate_hz - settings.num_samples / 2)
        if start >= free and _fits(start, end_s, settings):
            windows.append(Window(start, int(packet)))
            free = start + settings.num_samples
    return windows


def plan_grid(packets: Packets, start_s: float, end_s: float, settings: Settings) -> list[Window]:
    """Windows back to back, each with the last frame at or before its middle."""
    order = np.argsort(packets.times_s, kind="stable")
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


def read_sound(path: str, settings: Settings) -> Sound:
    """The whole sound of a file by presentation time. Raises `Refused`: no_audio, too_long, corrupt."""
    with _opened(path, settings) as container:
        if not container.streams.audio:
            raise Refused(Reason.NO_AUDIO, "no sound in the file")
        if container.streams.audio[0].codec_context is None:
            raise Refused(Reason.UNSUPPORTED, "no decoder for the sound")
        placer, zero_s, good, bad = SoundPlacer(settings), _zero_s(container), 0, 0
        for packet in container.demux(container.streams.audio[0]):
            try:
                frames = packet.decode()
                good += 1
            except av.MemoryError:
                raise
            except av.FFmpegError:
                bad += 1
                continue
            for frame in frames:
                placer.add(frame, None if frame.time is None else frame.time - zero_s)
        if bad > MAX_BAD_SHARE * (good + bad):
            raise Refused(Reason.CORRUPT, f"{bad} of {good + bad} packets of sound cannot be decoded")
        sound = placer.finish()
        sound.declared_s = _declared_s(container)
    return sound


class SoundPlacer:
    """Resamples decoded frames to mono int16 and puts each stretch where its presentation time says."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.stretches: list[tuple[int, np.ndarray]] = []
        self.format: tuple[Any, ...] = ()
        self.resampler: av.audio.resampler.AudioResampler | None = None
        self.begin_s = self.next_s = self.total_s = 0.0
        self.blocks: list[np.ndarray] = []

    def add(self, frame: av.AudioFrame, time_s: float | None) -> None:
        """The next frame; one without a time follows the one before. Raises `Refused` past the longest duration."""
        time_s = self.next_s if time_s is None else time_s
        if max(time_s, self.total_s) > self.settings.max_duration_s:
            raise Refused(Reason.TOO_LONG, f"the sound is longer than {self.settings.max_duration_s:g} s")
        format = (frame.format.name, frame.layout.name, frame.sample_rate)
        if not self.resampler or format != self.format or abs(time_s - self.next_s) > RUN_GAP_S:
            self._end_stretch()
            self.format, self.begin_s, self.next_s = format, time_s, time_s
            self.resampler = av.audio.resampler.AudioResampler("s16", "mono", self.settings.sample_rate_hz)
        frame.pts = None
        self.blocks += [block.to_ndarray()[0] for block in self.resampler.resample(frame)]
        self.next_s += frame.samples / frame.sample_rate
        self.total_s += frame.samples / frame.sample_rate

    def finish(self) -> Sound:
        """All that was added. `Refused` (no_audio) where that is nothing."""
        self._end_stretch()
        rate = self.settings.sample_rate_hz
        ends = [start + len(samples) for start, samples in self.stretches]
        if not ends or max(ends) <= 0:
            raise Refused(Reason.NO_AUDIO, "the sound holds no samples")
        whole = np.zeros(max(ends), np.int16)
        for start, samples in self.stretches:
            whole[max(start, 0) : max(start + len(samples), 0)] = samples[max(-start, 0) :]
        return Sound(whole, max(0.0, min(start for start, _ in self.stretches) / rate), len(whole) / rate)

    def _end_stretch(self) -> None:
        if self.resampler:
            self.blocks += [block.to_ndarray()[0] for block in self.resampler.resample(None)]
        if self.blocks:
            self.stretches.append((round(self.begin_s * self.settings.sample_rate_hz), np.concatenate(self.blocks)))
        self.resampler, self.blocks = None, []


def read_packets(path: str, settings: Settings) -> Packets:
    """Times and keyframes of a video without decoding it. Raises `Refused`: no_video, too_small, too_large, too_long, corrupt."""
    with _opened(path, settings) as container:
        stream, zero_s = _video_stream(container), _zero_s(container)
        _check_size(stream.codec_context.width, stream.codec_context.height, settings)
        times_s, keys, end_s = [], [], 0.0
        for packet in container.demux(stream):
            if not packet.size or packet.time_base is None:
                continue
            stamp = packet.pts if packet.pts is not None else packet.dts
            times_s.append(-1.0 if stamp is None else float(stamp * packet.time_base) - zero_s)
            keys.append(bool(packet.is_keyframe) and stamp is not None)
            end_s = max(end_s, times_s[-1] + float((packet.duration or 0) * packet.time_base))
            if times_s[-1] > settings.max_duration_s:
                raise Refused(Reason.TOO_LONG, f"the video is longer than {settings.max_duration_s:g} s")
        if not any(keys):
            raise Refused(Reason.CORRUPT, "no keyframe in the video")
        rate = stream.average_rate or stream.guessed_rate
        end_s = max(end_s, max(times_s) + (1 / float(rate) if rate else 0.0))
        return Packets(np.array(times_s), np.array(keys), end_s, _declared_s(container))


def read_pictures(path: str, packets: Packets, wanted: set[int], settings: Settings) -> dict[int, Picture]:
    """Decodes the frames of the `wanted` packets and little else; one that cannot be decoded is left out."""
    found: dict[int, Picture] = {}
    runs = plan_runs(packets, wanted)
    with _opened(path, settings) as container:
        stream, zero_s, number = _video_stream(container), _zero_s(container), -1
        decoder = stream.codec_context
        for packet in container.demux(stream):
            if not packet.size or packet.time_base is None:
                continue
            number += 1
            if runs and number > runs[0].last:
                runs.pop(0)
            if not runs:
                break
            if number < runs[0].first:
                continue
            frames = _decoded(decoder, packet)
            if number == runs[0].last:
                frames += _decoded(decoder, None)
                decoder.flush_buffers()
            for frame in frames:
                if frame.pts is None:
                    continue
                time_s = float(frame.pts * stream.time_base) - zero_s
                place = next((w for w in runs[0].wanted if abs(packets.times_s[w] - time_s) < 1e-6), None)
                if place is not None and place not in found:
                    found[place] = _video_picture(frame, float(packets.times_s[place]), settings)
    return found


def still_picture(path: str, settings: Settings) -> Picture:
    """A photo as a frame, upright. Raises `Refused`: too_small, too_large, unsupported, corrupt."""
    Image.MAX_IMAGE_PIXELS = settings.max_pixels
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with Image.open(path, formats=STILL_FORMATS) as opened:
            _check_size(*opened.size, settings)
            upright = ImageOps.exif_transpose(opened)
            return _finish(upright.convert("RGB"), 0.0, settings)
    except Image.DecompressionBombError as error:
        raise Refused(Reason.TOO_LARGE, str(error)) from None
    except Image.UnidentifiedImageError:
        raise Refused(Reason.UNSUPPORTED, f"not a picture of {', '.join(STILL_FORMATS)}") from None
    except MemoryError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise Refused(Reason.CORRUPT, str(error)) from None


def _opened(path: str, settings: Settings) -> Any:
    """The open container; every error of the container's is raised as `Refused` from `answer`."""
    options = {**OPEN_OPTIONS, "max_pixels": str(settings.max_pixels)}
    return av.open(f"file:{path}", options=options, metadata_errors="replace")


def _video_stream(container: Any) -> Any:
    """The first video that is not a cover picture, ready for decoding in one thread."""
    moving = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not moving:
        raise Refused(Reason.NO_VIDEO, "no video in the file")
    if moving[0].codec_context is None:
        raise Refused(Reason.UNSUPPORTED, "no decoder for the video")
    moving[0].codec_context.thread_count = 1
    return moving[0]


def _zero_s(container: Any) -> float:
    """The container's time that is presentation time 0: a transport stream starts its clock anywhere, others at 0."""
    return float(container.start_time or 0) / av.time_base if container.format.name == "mpegts" else 0.0


def _check_size(width: int, height: int, settings: Settings) -> None:
    if not width or not height:
        raise Refused(Reason.CORRUPT, "a picture without a size")
    if width * height > settings.max_pixels:
        raise Refused(Reason.TOO_LARGE, f"{width} x {height} pixels, {settings.max_pixels} allowed")
    if min(width, height) < settings.short_side_px:
        raise Refused(Reason.TOO_SMALL, f"{width} x {height} pixels, the short side needs {settings.short_side_px}")


def _declared_s(container: Any) -> float:
    """The duration of the header; 0 for containers where it is only guessed from the bit rate or read off the end."""
    guessed = container.format.name in ("mp3", "aac", "mpegts")
    return 0.0 if guessed else float(container.duration or 0) / av.time_base


def _check_whole(end_s: float, declared_s: float) -> None:
    """A file cut short still demuxes without an error: it just ends before its header says."""
    if end_s < declared_s - max(1.0, 0.02 * declared_s):
        raise Refused(Reason.CORRUPT, f"the file ends at {end_s:.1f} s of {declared_s:.1f} s")


def _decoded(decoder: Any, packet: Any) -> list[Any]:
    """The frames that come out; none where the packet is damaged."""
    try:
        return list(decoder.decode(packet))
    except av.MemoryError:
        raise
    except av.FFmpegError:
        return []


def _video_picture(frame: Any, time_s: float, settings: Settings) -> Picture:
    _check_size(frame.width, frame.height, settings)
    picture = frame.to_image()
    if frame.rotation in UPRIGHT:
        picture = picture.transpose(UPRIGHT[frame.rotation])
    return _finish(picture, time_s, settings)


def _finish(picture: Image.Image, time_s: float, settings: Settings) -> Picture:
    scale = settings.short_side_px / min(picture.size)
    width, height = (max(settings.short_side_px, round(side * scale)) for side in picture.size)
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    jpeg = io.BytesIO()
    picture.save(jpeg, "JPEG", quality=settings.quality)
    return Picture(jpeg.getvalue(), width, height, time_s)


def _first_s(start_s: float) -> float:
    """Where windows may begin: at 0 unless a stream really begins later."""
    return start_s if start_s > EDGE_S else 0.0


def _fits(start: int, end_s: float, settings: Settings) -> bool:
    return (start + settings.num_samples) / settings.sample_rate_hz <= end_s + EDGE_S


def _samples(sound: Sound, start: int, count: int) -> np.ndarray:
    """int16 [count]; beyond the end (by less than EDGE_S) silence."""
    found = sound.samples[start : start + count]
    return np.pad(found, (0, count - len(found)))


def _spread(chosen: Sequence[tuple[int, Picture]], most: int) -> Iterator[tuple[int, Picture]]:
    """All of them, or `most`, evenly spread."""
    if not most or len(chosen) <= most:
        yield from chosen
        return
    yield from (chosen[int((place + 0.5) * len(chosen) / most)] for place in range(most))


def answer(request: dict[str, Any], settings: Settings) -> tuple[dict[str, Any], list[bytes]]:
    """One request -> the header and byte strings of the reply. An error nobody expected ends the process: a crash."""
    try:
        clips, parts = cut(request, settings)
        return {"clips": clips}, parts
    except Refused as refusal:
        return {"refused": str(refusal.reason), "detail": refusal.detail}, []
    except MemoryError:
        return {"refused": str(Reason.TOO_LARGE), "detail": f"needs more than {settings.max_memory_bytes >> 20} MB to decode"}, []
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
