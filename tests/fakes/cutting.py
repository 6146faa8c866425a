"""Clippers for the tests of clips: windows of a second."""

from pathlib import Path

from ingest.clip.clipper import AudioConfig, ClipConfig, Clipper, FrameConfig, MediaLimits
from ingest.clip.windows import Settings
from ingest.sample import Clip, Media
from tests.fakes.media import RATE_HZ

WINDOW_S = 1.0
SETTINGS = Settings(16000, "keyframe", 0, RATE_HZ, 64, 92, 100.0, 10**6, 1 << 31)
"""What the decoder child gets: windows of a second."""


def cutter(
    mode: str = "keyframe", scene_cut: float = 0.0, duration_s: float = WINDOW_S, short_side_px: int = 64
) -> Clipper:
    return Clipper(
        ClipConfig(duration_s, mode, 0, scene_cut),
        AudioConfig(RATE_HZ),
        FrameConfig(short_side_px, 95),
        MediaLimits(),
    )


def cut(clipper: Clipper, picture: Path, sound: Path | None = None) -> list[Clip]:
    return clipper.cut(Media(picture, sound or picture, False, "own"))
