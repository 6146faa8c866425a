"""Which frame is decoded from where: flags that lie, pictures that refresh bit by bit, fields; no grey or
torn frame is stored.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest

from ingest.clip.clipper import AudioConfig, ClipConfig, Clipper, FrameConfig, MediaLimits
from ingest.sample import Clip, Media
from tests.fakes.cutting import cut, cutter
from tests.fakes.fields import field_film
from tests.fakes.media import film, heard_s, shown_s
from tests.ingest.clip.test_media import FEW_MS


@pytest.fixture(scope="module")
def clippers() -> Iterator[dict[str, Clipper]]:
    with cutter("keyframe") as keyframe, cutter("grid") as grid:
        yield {"keyframe": keyframe, "grid": grid}


def assert_whole(clips: list[Clip], least: int) -> None:
    """Every frame is sharp (`shown_s` sees to it) and of the middle of its sound."""
    assert len(clips) >= least
    for clip in clips:
        assert shown_s(clip) - heard_s(clip) == pytest.approx(clip.frame_time_s - clip.start_s, abs=FEW_MS)
        assert clip.frame_offset_s == pytest.approx(0, abs=0.05)


LYING: dict[str, dict[str, Any]] = {
    "mpeg4.mp4": {"video": "mpeg4", "gop": 600},
    "h263.3gp": {"video": "h263", "gop": 300, "fps": 15, "size": (176, 144)},
    "h264.mp4": {"gop": 300},
    "hevc.mp4": {"video": "libx265", "gop": 300},
}


@pytest.mark.parametrize("name", LYING)
def test_false_keyframes_are_not_decoded_from(
    name: str, tmp_path: Path, clippers: dict[str, Clipper]
) -> None:
    film(tmp_path / name, duration_s=6.0, **LYING[name])
    data = (tmp_path / name).read_bytes()
    assert data.count(b"stss") == 1  # the list of keyframes; without it, every packet is taken for one
    (tmp_path / name).write_bytes(data.replace(b"stss", b"free"))
    for clipper in clippers.values():
        assert_whole(cut(clipper, tmp_path / name), 6)


def test_a_picture_that_refreshes_bit_by_bit(tmp_path: Path, clippers: dict[str, Clipper]) -> None:
    film(tmp_path / "whole.ts", duration_s=8.0, gop=50, options={"intra-refresh": "1", "bf": "0"})
    data = (tmp_path / "whole.ts").read_bytes()
    packets = len(data) // 188
    (tmp_path / "cut_in.ts").write_bytes(data[packets // 3 * 188 :])  # has no intra frame at all
    for clipper in clippers.values():
        assert_whole(cut(clipper, tmp_path / "whole.ts"), 3)
        assert_whole(cut(clipper, tmp_path / "cut_in.ts"), 2)
        assert clipper.lost and "no whole picture" in clipper.lost[0].detail


@pytest.mark.parametrize("video", ["libx264", "mpeg2video"])
def test_a_recording_that_begins_between_keyframes(
    video: str, tmp_path: Path, clippers: dict[str, Clipper]
) -> None:
    film(tmp_path / "whole.ts", video, duration_s=6.0, gop=40)
    data = (tmp_path / "whole.ts").read_bytes()
    (tmp_path / "cut_in.ts").write_bytes(data[len(data) // 188 // 4 * 188 :])
    for clipper in clippers.values():
        assert_whole(cut(clipper, tmp_path / "cut_in.ts"), 2)
        assert not clipper.lost


def test_every_field_of_a_field_coded_film_is_on_screen(tmp_path: Path) -> None:
    field_film(tmp_path / "v.mts", 150)
    with av.open(str(tmp_path / "v.mts")) as made:
        assert sum(1 for packet in made.demux(video=0) if packet.size) == 300
    settings = ClipConfig(0.5, "grid"), AudioConfig(), FrameConfig(64), MediaLimits()
    with Clipper(*settings) as clipper:
        clips = clipper.cut(Media(tmp_path / "v.mts", tmp_path / "v.mts", False, "own"))
    assert len(clips) >= 11
    for clip in clips:
        assert -0.04 < clip.frame_offset_s <= 0
        moment_s = shown_s(clip) - heard_s(clip, 0.75)
        assert moment_s == pytest.approx(
            clip.frame_time_s - clip.start_s, abs=0.022
        )  # ffmpeg puts such a stream a field late
