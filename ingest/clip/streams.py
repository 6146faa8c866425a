"""Opening a media file, choosing its picture and its sound, and reading their header. Decodes nothing.

    with opened(path, settings) as container:
        stream = picture_stream(container)      # raises Refused: no_video, unsupported

Containers and protocols are whitelisted: a playlist is never followed. Runs in the decoder child only.
"""

import re
from typing import Any

import av

from ingest.clip.picture import regular_file
from ingest.clip.windows import Settings
from ingest.sample import Reason, Refused

FORMATS = (
    *("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "ogg", "wav", "mp3", "flac", "aac"),
    *("mpegts", "mpeg", "avi", "flv", "asf", "mxf", "dv", "aiff", "amr"),
)
OPEN_OPTIONS = {
    "protocol_whitelist": "file",
    # none of these can name other files, but for mov (see below) and the subtitles within avi, which are
    # under this list too
    "format_whitelist": ",".join(FORMATS),
    "enable_drefs": "0",  # a mov may name other files as its data: never
}
ANY_CLOCK = ("mpegts", "mpeg")  # formats whose clock says anything at the start
FIRST_SAMPLE = ("mp3", "aac")  # formats whose start time is the encoder's delay: their first sample is time 0
LATE_CLOCK_S = 60.0  # in other formats, a piece cut out of a live stream: times count from its start
EARLY_CLOCK_S = -0.5  # a start before this is no encoder's priming
# in avi, which has no presentation times: where frames are out of order, their times cannot be known
GUESSED_TIMES = ("h264", "hevc")
# a cover or thumbnail where there is another video
PICTURE_CODECS = ("mjpeg", "png", "bmp", "gif", "webp", "tiff", "jpeg2000")
DEFAULT_PX = 5_000_000  # what the default flag is worth in pixels, as in ffmpeg
Flag = av.stream.Disposition
COVER = Flag.attached_pic | Flag.timed_thumbnails
# tracks made for some viewers only: not what the film sounds or looks like
APART = (
    Flag.comment
    | Flag.hearing_impaired
    | Flag.visual_impaired
    | Flag.descriptions
    | Flag.karaoke
    | Flag.clean_effects
)
APART_TITLE = re.compile(r"comment|audio descri|descriptive|described", re.IGNORECASE)


def opened(path: str, settings: Settings) -> Any:
    """The open container. Its errors, also later ones, are av.FFmpegError: `process.answer` refuses."""
    regular_file(path)
    options = {**OPEN_OPTIONS, "max_pixels": str(settings.max_pixels)}
    return av.open(f"file:{path}", options=options, metadata_errors="replace")


def holds_frame(packet: Any) -> bool:
    """Whether a video packet counts in `windows.Packets`: the empty ones, which flush decoders, do not.

    All who count packets must agree on it, as a packet is known by its index.
    """
    return bool(packet.size) and packet.time_base is not None


def picture_stream(container: Any) -> Any:
    """The moving picture, ready for decoding in one thread: no cover or thumbnail, the largest of several.

    Raises `Refused`.
    """
    moving = [stream for stream in container.streams.video if not stream.disposition & COVER]
    if not moving:
        raise Refused(Reason.NO_VIDEO, "no video in the file")
    stream = min(moving, key=_picture_rank)
    if stream.codec_context is None:
        raise Refused(Reason.UNSUPPORTED, "no decoder for the video")
    decoder = stream.codec_context
    if container.format.name == "avi" and decoder.name in GUESSED_TIMES and decoder.has_b_frames:
        raise Refused(Reason.UNSUPPORTED, "frames out of order in a container without presentation times")
    decoder.thread_count = 1  # threads would delay frames, and one item has one core
    return stream


def _picture_rank(stream: Any) -> tuple[bool, bool, bool, int, int]:
    """The lowest is the one to take."""
    decoder = stream.codec_context
    area_px = decoder.width * decoder.height if decoder else 0
    if stream.disposition & Flag.default:
        area_px += DEFAULT_PX
    is_picture = decoder is not None and decoder.name in PICTURE_CODECS
    is_still = is_picture or bool(stream.disposition & Flag.still_image)
    is_apart = bool(stream.disposition & (APART | Flag.dependent))
    return (decoder is None, is_still, is_apart, -area_px, stream.index)


def sound_stream(container: Any, picture: Any = None) -> Any:
    """The film's own sound: no commentary or description, the original before a dub, the default one.

    Of a broadcast of several programs, only those of the program of the `picture` come into question.
    Raises `Refused`: no_audio, unsupported.
    """
    if not container.streams.audio:
        raise Refused(Reason.NO_AUDIO, "no sound in the file")
    sounds = container.streams.audio
    if picture is not None:  # ffmpeg names one stream of each program, the same for all of its streams
        best = container.streams.best("audio", picture)
        sounds = [sound for sound in sounds if container.streams.best("audio", sound) is best] or sounds
    stream = min(sounds, key=_sound_rank)
    if stream.codec_context is None:
        raise Refused(Reason.UNSUPPORTED, "no decoder for the sound")
    return stream


def _sound_rank(stream: Any) -> tuple[bool, bool, bool, bool, bool, int]:
    """The lowest is the one to take."""
    flags = stream.disposition
    is_apart = bool(flags & APART) or bool(APART_TITLE.search(stream.metadata.get("title", "")))
    is_empty = stream.codec_context is None or not stream.codec_context.sample_rate
    is_dub = bool(flags & Flag.dub)
    return (is_empty, is_apart, is_dub, not flags & Flag.original, not flags & Flag.default, stream.index)


def clock_s(container: Any) -> float | None:
    """What the container's clock says at presentation time 0; None where that is 0 by definition."""
    start_s = float(container.start_time or 0) / av.time_base
    is_cut = start_s > LATE_CLOCK_S or start_s < EARLY_CLOCK_S
    return start_s if container.format.name in ANY_CLOCK + FIRST_SAMPLE or is_cut else None


def declared_s(container: Any, stream: Any) -> float | None:
    """The duration of `stream` by the header; 0 where no header can be trusted for it.

    None where only the whole file's is there (`container_s`).
    """
    name = container.format.name
    if name == "avi":  # counts frames in its header, and takes its duration from what is there
        return float(stream.frames * stream.time_base) if stream.type == "video" else 0.0
    if name in FIRST_SAMPLE or clock_s(container) is not None:
        return 0.0
    if name.startswith("mov,") and stream.duration:
        return float(stream.duration * stream.time_base)
    tag = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)\s*", stream.metadata.get("DURATION", ""))
    if not tag:
        return None
    hours, minutes, seconds = tag.groups()
    # Matroska's tag may outlive an edit of the file; the container's duration bounds it
    return min(int(hours) * 3600 + int(minutes) * 60 + float(seconds), container_s(container))


def container_s(container: Any) -> float:
    """The duration of the file by its header: of the longest of all its streams."""
    return float(container.duration or 0) / av.time_base
