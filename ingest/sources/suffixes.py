"""Which files are video, picture or sound by their suffix, and which of one name belong together.

    choose(files)      the items among files of one stem: a video, a silent video with its sound, a picture
                       with its sound

Of a video with a sound beside it, the container's header decides: only a video without a sound track of its
own takes the other file (video2dataset's mp4 and m4a; yt-dlp's unmerged x.f137.mp4 and x.f140.m4a).

Not covered: no medium is decoded here, and a header that is not understood decides nothing.
"""

import importlib.util
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

VIDEO_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .qt .f4v .3gp .3g2 .mkv .webm .ogv .ogm .avi .divx .flv .wmv .asf .mpg .mpeg .mpe .m2p"
    " .vob .mod .ts .mts .m2ts .m2t .tod .mxf .dv".split()
)
# the iPhone's photos need a decoder that not every machine has
HEIF_SUFFIXES = (".heic", ".heif") if importlib.util.find_spec("pillow_heif") else ()
# of several pictures or sounds of one stem, the first of these suffixes is taken
PICTURE_SUFFIXES = (*".jpg .jpeg .png .webp .avif .gif .bmp .tif .tiff".split(), *HEIF_SUFFIXES)
SOUND_SUFFIXES = tuple(".wav .flac .mp3 .ogg .opus .m4a .mka .aac .m4b .oga .wma .aif .aiff .amr".split())

# of a stream that yt-dlp did not merge: x.f137.mp4, x.fhls-1080.mp4
FORMAT_TAG = re.compile(r"\.f(?:\d{1,4}(?:-\w{1,20})?|(?:hls|dash)-[\w=-]{1,30})$")
MP4_SUFFIXES = frozenset(".mp4 .m4v .mov .qt .f4v .3gp .3g2 .m4a".split())
MATROSKA_SUFFIXES = frozenset(".mkv .webm .mka".split())
AVI_SUFFIXES = frozenset((".avi", ".divx"))
MAX_BOXES = 200  # at the top of an MP4: a fragmented one has a pair for every few seconds, its moov first
MAX_MOOV_BYTES = 4 << 20
MATROSKA_HEAD_BYTES = 1 << 20  # its tracks come before the first cluster
AVI_HEAD_BYTES = 64 << 10  # its headers are one list, before the media


@dataclass(frozen=True)
class File:
    """A file, or `size` bytes of one from `offset` on.

    `stem` and `suffix` make its name; the suffix is in lower case.
    """

    stem: str
    suffix: str
    path: Path
    offset: int = 0
    size: int = -1


@dataclass(frozen=True)
class Choice:
    """What becomes one item. `sound` is None where the picture is a video with its own."""

    picture: File
    sound: File | None = None

    @property
    def files(self) -> tuple[File, ...]:
        return (self.picture, self.sound) if self.sound else (self.picture,)


def untagged(stem: str) -> str:
    """The stem without yt-dlp's mark of a stream."""
    return FORMAT_TAG.sub("", stem)


def choose(files: Iterable[File]) -> list[Choice]:
    """The items among files that share a stem, apart from the marks of unmerged streams."""
    ordered = sorted(files, key=lambda file: (file.stem, file.suffix))
    merged = [file for file in ordered if not FORMAT_TAG.search(file.stem)]
    streams = [file for file in ordered if FORMAT_TAG.search(file.stem)]
    chosen = _of_one_stem(merged)
    # beside the merged video its streams are leftovers of yt-dlp's -k
    if not any(choice.picture.suffix in VIDEO_SUFFIXES for choice in chosen):
        chosen += _of_streams(streams)
    return chosen


def _of_one_stem(files: list[File]) -> list[Choice]:
    videos = [file for file in files if file.suffix in VIDEO_SUFFIXES]
    picture = _first(files, PICTURE_SUFFIXES)
    sound = _first(files, SOUND_SUFFIXES)
    chosen = []
    for video in videos:
        is_silent = sound is not None and tracks(video) == {"picture"}
        chosen.append(Choice(video, sound if is_silent else None))
    # a sound that belongs to a video is not also the picture's
    if picture and sound and not any(choice.sound for choice in chosen):
        chosen.append(Choice(picture, sound))
    return chosen


def _of_streams(streams: list[File]) -> list[Choice]:
    """Of yt-dlp's unmerged streams, a picture with a sound; else each that may hold both."""
    tracks_of = {file: tracks(file) for file in streams if file.suffix in VIDEO_SUFFIXES}
    pictures = [file for file in tracks_of if tracks_of[file] == {"picture"}]
    sounds = [file for file in streams if file.suffix in SOUND_SUFFIXES or tracks_of.get(file) == {"sound"}]
    if pictures and sounds:
        return [Choice(pictures[0], sounds[0])]
    return [Choice(file) for file in tracks_of if tracks_of[file] != {"sound"}]


def tracks(file: File) -> set[str] | None:
    """Which of {"picture", "sound"} an MP4, Matroska or AVI file holds; None: its header does not say."""
    try:
        with file.path.open("rb") as opened:
            size = file.size if file.size >= 0 else file.path.stat().st_size
            if file.suffix in MP4_SUFFIXES:
                return _mp4_tracks(opened, file.offset, file.offset + size)
            if file.suffix in MATROSKA_SUFFIXES:
                return _matroska_tracks(opened, file.offset, size)
            if file.suffix in AVI_SUFFIXES:
                return _avi_tracks(opened, file.offset, size)
    except OSError:
        return None
    return None


def _mp4_tracks(opened: BinaryIO, offset: int, end: int) -> set[str] | None:
    """By the handlers of the tracks in `moov` (ISO/IEC 14496-12, 8.4.3)."""
    for _ in range(MAX_BOXES):
        opened.seek(offset)
        head = opened.read(16)
        if len(head) < 8 or offset + 8 > end:
            return None
        size = int.from_bytes(head[:4], "big")
        if size == 1:  # a 64-bit size follows the type
            size = int.from_bytes(head[8:16], "big")
        if head[4:8] == b"moov":
            opened.seek(offset)
            moov = opened.read(min(size or end - offset, end - offset, MAX_MOOV_BYTES))  # 0: to the end
            handlers = set(re.findall(rb"hdlr.{8}(vide|soun)", moov, re.DOTALL))
            names = {b"vide": "picture", b"soun": "sound"}
            return {names[handler] for handler in handlers} or None
        if size < 8:  # smaller than its own header: the walk would not advance
            return None
        offset += size
    return None


def _matroska_tracks(opened: BinaryIO, offset: int, size: int) -> set[str] | None:
    """By the ids of the codecs (RFC 9559, 5.1.4.1.21), which come near the beginning."""
    opened.seek(offset)
    head = opened.read(min(size, MATROSKA_HEAD_BYTES))
    if not head.startswith(b"\x1aE\xdf\xa3"):
        return None
    kinds = set(re.findall(rb"\x86[\x81-\xa0]([VA])_[A-Z0-9]", head))
    names = {b"V": "picture", b"A": "sound"}
    return {names[kind] for kind in kinds} or None


def _avi_tracks(opened: BinaryIO, offset: int, size: int) -> set[str] | None:
    """By the headers of the streams, all of which come before the media."""
    opened.seek(offset)
    head = opened.read(min(size, AVI_HEAD_BYTES))
    if head[:4] != b"RIFF" or head[8:12] != b"AVI ":
        return None
    names = {b"vids": "picture", b"auds": "sound"}
    return {names[kind] for kind in re.findall(rb"strh.{4}(vids|auds)", head, re.DOTALL)} or None


def _first(files: list[File], suffixes: tuple[str, ...]) -> File | None:
    """The file whose suffix comes first in `suffixes`; of two such, the first."""
    candidates = [file for file in files if file.suffix in suffixes]
    return min(candidates, key=lambda file: suffixes.index(file.suffix), default=None)
