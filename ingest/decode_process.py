"""The warm child that decodes hostile media: started by `ingest.clip` through `ingest.sandbox`, one per worker.

It answers every request {"picture", "sound", "still"} with clips cut by presentation time, or with why it refused. Sound
is decoded once, video only where a frame is wanted. Containers and protocols are whitelisted: a playlist is never
followed. `ingest.windows` plans, `ingest.picture` finishes frames. It judges no content and opens nothing but these two files.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import av
import av.audio.resampler
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from ingest.picture import Picture, VideoPictures, check_size, regular_file, still_picture
from ingest.sample import Reason, Refused
from ingest.sandbox import confine, reply, requests, take_stdout
from ingest.windows import Cut, Packets, Run, Settings, Sound, find_cuts, first_s, grid_starts, plan, plan_runs

OPEN_OPTIONS = {
    "protocol_whitelist": "file",
    # none of these can name other files, but for mov (see below) and the subtitles within avi, which are under this list too
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,ogg,wav,mp3,flac,aac,mpegts,mpeg,avi,flv,asf,mxf,dv",
    "enable_drefs": "0",  # a mov may name other files as its data: never
}
ANY_CLOCK = ("mpegts", "mpeg")  # formats whose clock says anything at the start
LATE_CLOCK_S = 60.0  # in other formats, a piece cut out of a live stream
SAME_CLOCK_S = 10.0  # clocks of two files that start as near as this are one
SKIPPABLE = ("h264", "vp8", "vp9")  # codecs where no frame of a lower layer ever refers to what NONREF skips
GUESSED_TIMES = ("h264", "hevc")  # in avi, which has no presentation times: with frames out of order, none can be told
RUN_GAP_S = 0.03  # sound whose presentation time jumps by more starts anew there
DRIFT_S, DRIFT_FRAMES = 0.004, 8  # and so does sound that is this far off for this long; less is rounding and jitter
MAX_BAD_SHARE = 0.01  # of the sound's packets that may fail to decode before the whole is refused
THUMB_PX = 32  # side of the pictures in which cuts are looked for


def cut(request: dict[str, Any], settings: Settings) -> tuple[list[dict[str, Any]], list[bytes]]:
    """The clips of one request as plain facts, whose `audio` and `image` are places in the list of byte strings."""
    if request["still"]:
        picture = still_picture(request["picture"], settings)
        sound = read_sound(request["sound"], settings)
        _check_whole(sound.end_s, sound.declared_s)
        starts = grid_starts(first_s(sound.start_s), sound.end_s, settings)
        middle = settings.duration_s / 2
        chosen = [
            (start, Picture(picture.jpeg, picture.width_px, picture.height_px, start / settings.sample_rate_hz + middle))
            for start in starts
        ]
    else:
        packets = read_packets(request["picture"], settings)
        sound = read_sound(request["sound"], settings, packets.clock_s)
        together = request["picture"] == request["sound"]
        _check_whole(max(packets.end_s, sound.end_s) if together else sound.end_s, sound.declared_s)
        _check_whole(max(packets.end_s, sound.end_s) if together else packets.end_s, packets.declared_s)
        cuts = read_cuts(request["picture"], packets, settings) if settings.scene_cut else []
        windows = plan(packets, sound, settings, cuts)
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


def read_sound(path: str, settings: Settings, picture_clock_s: float | None = None) -> Sound:
    """The whole sound of a file by presentation time. Raises `Refused`: no_audio, too_long, corrupt."""
    with _opened(path, settings) as container:
        if not container.streams.audio:
            raise Refused(Reason.NO_AUDIO, "no sound in the file")
        if container.streams.audio[0].codec_context is None:
            raise Refused(Reason.UNSUPPORTED, "no decoder for the sound")
        placer, good, bad = SoundPlacer(settings), 0, 0
        clock_s = _clock_s(container)
        if clock_s is not None and picture_clock_s is not None and abs(clock_s - picture_clock_s) < SAME_CLOCK_S:
            clock_s = picture_clock_s
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
                placer.add(frame, None if frame.time is None else frame.time - (clock_s or 0.0))
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
        self.drifting, self.off_s = 0, 0.0  # frames in a row that are off to the same side, and the last one's distance

    def add(self, frame: av.AudioFrame, time_s: float | None) -> None:
        """The next frame; one without a time follows the one before. Raises `Refused` past the longest duration."""
        time_s = self.next_s if time_s is None else time_s
        if max(time_s, self.total_s) > self.settings.max_duration_s:
            raise Refused(Reason.TOO_LONG, f"the sound is longer than {self.settings.max_duration_s:g} s")
        format, off_s = (frame.format.name, frame.layout.name, frame.sample_rate), time_s - self.next_s
        self.drifting = self.drifting + 1 if abs(off_s) > DRIFT_S and off_s * self.off_s > 0 else 0
        self.off_s = off_s
        if not self.resampler or format != self.format or abs(off_s) > RUN_GAP_S or self.drifting > DRIFT_FRAMES:
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
        self.resampler, self.blocks, self.drifting = None, [], 0


def read_packets(path: str, settings: Settings) -> Packets:
    """Times and keyframes of a video without decoding it. Raises `Refused`: no_video, too_small, too_large, too_long, corrupt."""
    with _opened(path, settings) as container:
        stream, clock_s = _video_stream(container), _clock_s(container)
        check_size(stream.codec_context.width, stream.codec_context.height, settings)
        times_s, keys, shown, end_s = [], [], [], 0.0
        for packet in container.demux(stream):
            if not packet.size or packet.time_base is None:
                continue
            stamp = packet.pts if packet.pts is not None else packet.dts
            times_s.append(-1.0 if stamp is None else float(stamp * packet.time_base) - (clock_s or 0.0))
            keys.append(bool(packet.is_keyframe) and stamp is not None)
            shown.append(stamp is not None and not packet.is_discard)
            end_s = max(end_s, times_s[-1] + float((packet.duration or 0) * packet.time_base))
            if times_s[-1] > settings.max_duration_s:
                raise Refused(Reason.TOO_LONG, f"the video is longer than {settings.max_duration_s:g} s")
        if not any(keys):
            raise Refused(Reason.CORRUPT, "no keyframe in the video")
        rate = stream.average_rate or stream.guessed_rate
        end_s = max(end_s, max(times_s) + (1 / float(rate) if rate else 0.0))
        return Packets(np.array(times_s), np.array(keys), np.array(shown), end_s, _declared_s(container), clock_s)


def read_cuts(path: str, packets: Packets, settings: Settings) -> list[Cut]:
    """Hard cuts of the whole video, among its reference frames: all others are skipped, and so is the deblocking."""

    def pictures() -> Iterator[tuple[float, np.ndarray]]:
        with _opened(path, settings) as container:
            stream, reformatter = _video_stream(container), VideoReformatter()
            stream.codec_context.options = {"skip_loop_filter": "all"}
            stream.codec_context.skip_frame = "NONREF"
            for packet in container.demux(stream):
                for frame in _decoded(stream.codec_context, packet):
                    if frame.pts is not None:
                        time_s = float(frame.pts * stream.time_base) - (packets.clock_s or 0.0)
                        small = reformatter.reformat(frame, THUMB_PX, THUMB_PX, "rgb24", interpolation=Interpolation.AREA, threads=1)
                        yield time_s, small.to_ndarray()

    return find_cuts(pictures(), settings.scene_cut)


def read_pictures(path: str, packets: Packets, wanted: set[int], settings: Settings) -> dict[int, Picture]:
    """Decodes the frames of the `wanted` packets and little else; one that cannot be decoded is left out."""
    found: dict[int, Picture] = {}
    runs = plan_runs(packets, wanted)
    with _opened(path, settings) as container:
        stream, number = _video_stream(container), -1
        decoder, pictures = stream.codec_context, VideoPictures(float(stream.sample_aspect_ratio or 1), settings)
        skips = decoder.name in SKIPPABLE
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
            if skips:
                decoder.skip_frame = "DEFAULT" if number in wanted else "NONREF"
            frames = _decoded(decoder, packet)
            if number == runs[0].last:
                frames += _decoded(decoder, None)
                decoder.flush_buffers()
            for place, frame in _places(frames, runs[0], packets, float(stream.time_base)):
                if place not in found:
                    found[place] = pictures.picture(frame, float(packets.times_s[place]))
    return found


def _places(frames: list[Any], run: Run, packets: Packets, time_base_s: float) -> Iterator[tuple[int, Any]]:
    """(packet, frame) of those frames that are wanted of the run, by their time."""
    for frame in frames:
        if frame.pts is not None:
            time_s = frame.pts * time_base_s - (packets.clock_s or 0.0)
            yield from ((place, frame) for place in run.wanted if abs(packets.times_s[place] - time_s) < 1e-6)


def _opened(path: str, settings: Settings) -> Any:
    """The open container; every error of the container's is raised as `Refused` from `answer`."""
    regular_file(path)
    options = {**OPEN_OPTIONS, "max_pixels": str(settings.max_pixels)}
    return av.open(f"file:{path}", options=options, metadata_errors="replace")


def _video_stream(container: Any) -> Any:
    """The first video that is not a cover picture, ready for decoding in one thread."""
    moving = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not moving:
        raise Refused(Reason.NO_VIDEO, "no video in the file")
    if moving[0].codec_context is None:
        raise Refused(Reason.UNSUPPORTED, "no decoder for the video")
    if container.format.name == "avi" and moving[0].codec_context.name in GUESSED_TIMES and moving[0].codec_context.has_b_frames:
        raise Refused(Reason.UNSUPPORTED, "frames out of order in a container without presentation times")
    moving[0].codec_context.thread_count = 1
    return moving[0]


def _clock_s(container: Any) -> float | None:
    """What the container's clock says at presentation time 0, where that can be anything; else None: it says 0."""
    start_s = float(container.start_time or 0) / av.time_base
    return start_s if container.format.name in ANY_CLOCK or start_s > LATE_CLOCK_S else None


def _declared_s(container: Any) -> float:
    """The duration of the header; 0 for containers where it is only guessed from the bit rate or read off the end."""
    if container.format.name == "avi":  # counts frames in its header, and takes its duration from what is there
        return max((float(stream.frames * stream.time_base) for stream in container.streams.video), default=0.0)
    guessed = container.format.name in ("mp3", "aac") or _clock_s(container) is not None
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
