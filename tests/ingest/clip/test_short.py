"""What is kept of short media, of a range of a medium, of slightly damaged sound and of media whose keyframes
are far apart.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from configs.load import UserError
from ingest.clip.clipper import AudioConfig, ClipConfig, Clipper, FrameConfig, MediaLimits
from ingest.clip.filter import FilterConfig, judge_clip
from ingest.sample import Clip, Item, Media, Reason, Refused
from ingest.scrape import ScrapeConfig, semantic
from ingest.shard import clip_row
from ingest.sources.settings import SourceConfig
from tests.fakes.media import NOISE, RATE_HZ, card, film, heard_s, shown_s
from tests.ingest.clip.test_media import FEW_MS

CLIP_S = 4.0


def cutter(short: str = "refuse", mode: str = "grid", duration_s: float = CLIP_S) -> Clipper:
    return Clipper(
        ClipConfig(duration_s, mode, short=short), AudioConfig(RATE_HZ), FrameConfig(64), MediaLimits()
    )


@pytest.fixture(scope="module")
def clippers() -> Iterator[dict[str, Clipper]]:
    with cutter() as refuse, cutter("pad") as pad, cutter("loop") as loop:
        yield {"refuse": refuse, "pad": pad, "loop": loop}


def still(folder: Path, seconds: float, **within: float) -> Media:
    soundfile.write(folder / "a.wav", NOISE[: round(seconds * RATE_HZ)], RATE_HZ)
    Image.fromarray(card(1.0)).save(folder / "a.jpg")
    return Media(folder / "a.jpg", folder / "a.wav", True, "own", **within)  # type: ignore[arg-type]


def video(path: Path, gop: int = 20, duration_s: float = 8.0, **within: float) -> Media:
    film(path, duration_s=duration_s, gop=gop)
    return Media(path, path, False, "own", **within)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["still", "video"])
def test_a_medium_shorter_than_a_clip_is_refused_padded_or_looped(
    kind: str, tmp_path: Path, clippers: dict[str, Clipper]
) -> None:
    media = still(tmp_path, 1.6) if kind == "still" else video(tmp_path / "v.mkv", duration_s=1.6)
    assert clippers["refuse"].cut(media) == []
    (padded,), (looped,) = clippers["pad"].cut(media), clippers["loop"].cut(media)
    for clip in (padded, looped):
        assert clip.valid_s == pytest.approx(1.6, abs=0.03) and len(clip.audio) == CLIP_S * RATE_HZ
        assert len(clip.own_audio) == round((clip.valid_s or 0) * RATE_HZ)
        assert clip.frame_offset_s == pytest.approx(0, abs=0.05)
        assert heard_s(Clip(**{**vars(clip), "audio": clip.own_audio})) == pytest.approx(0, abs=FEW_MS)
    count = len(padded.own_audio)
    assert not padded.audio[count:].any()
    assert np.array_equal(looped.audio[count : 2 * count], looped.own_audio)
    if kind == "video":
        assert shown_s(padded) == pytest.approx(padded.frame_time_s, abs=FEW_MS)


def test_long_media_are_cut_alike_whatever_short_is(tmp_path: Path, clippers: dict[str, Clipper]) -> None:
    media = still(tmp_path, 9.0)
    found = {
        name: [(clip.start_s, clip.audio.tobytes(), clip.valid_s) for clip in clipper.cut(media)]
        for name, clipper in clippers.items()
    }
    assert found["refuse"] == found["pad"] == found["loop"] and [start_s for start_s, *_ in found["pad"]] == [
        0,
        4,
    ]


def test_filters_judge_what_is_the_mediums_own(tmp_path: Path, clippers: dict[str, Clipper]) -> None:
    (short,), (whole,) = clippers["pad"].cut(still(tmp_path, 1.6)), clippers["pad"].cut(still(tmp_path, 4.0))
    config = FilterConfig(min_rms_dbfs=-15.0, min_sharpness=0)
    reason, scores = judge_clip(short, config)
    assert reason is None
    assert scores["rms_dbfs"] == pytest.approx(judge_clip(whole, config)[1]["rms_dbfs"], abs=0.5)


def test_a_row_states_mode_and_valid_length(tmp_path: Path, clippers: dict[str, Clipper]) -> None:
    media = still(tmp_path, 1.6)
    (clip,) = clippers["pad"].cut(media)
    row = clip_row(Item("folder", "a", "/a", "own"), "folder:a", media, clip, "train", None, {})
    assert row.members is not None
    facts = json.loads(row.members["json"])
    assert (facts["mode"], facts["valid_s"], facts["duration_s"]) == ("still", 1.6, CLIP_S)


def test_short_is_a_setting_that_decides_the_bytes() -> None:
    with pytest.raises(UserError, match="clip.short=fill: give one of refuse, pad, loop"):
        ClipConfig(short="fill")
    config = ScrapeConfig("unused", SourceConfig("unused", license="own"))
    assert semantic(config)["clip"]["short"] == "refuse" and semantic(config)["clipping"] == 2


@pytest.mark.parametrize("kind", ["still", "video"])
def test_windows_lie_within_the_range(kind: str, tmp_path: Path) -> None:
    whole = still(tmp_path, 8.0) if kind == "still" else video(tmp_path / "v.mp4")
    ranges = [(2.5, 6.0, 3), (2.5, 4.5, 2), (5.25, 0.0, 2), (3.0, 3.5, 0), (7.5, 30.0, 0), (20.0, 30.0, 0)]
    with cutter(duration_s=1.0) as grid, cutter(mode="keyframe", duration_s=1.0) as keyframe:
        for clipper, (start_s, end_s, expected) in itertools.product((grid, keyframe), ranges):
            try:
                clips = clipper.cut(replace(whole, start_s=start_s, end_s=end_s))
            except Refused as refused:
                assert refused.reason == Reason.TOO_SHORT
                clips = []
            assert (
                (expected if clipper is grid or kind == "still" else min(expected, 1))
                <= len(clips)
                <= expected
            )
            for clip in clips:
                assert clip.start_s >= start_s and (not end_s or clip.start_s + 1 <= end_s)
                assert heard_s(clip) == pytest.approx(clip.start_s, abs=FEW_MS)
                if kind == "video":
                    assert shown_s(clip) == pytest.approx(clip.frame_time_s, abs=FEW_MS)


def test_a_range_as_long_as_a_clip_gives_just_that_clip(tmp_path: Path) -> None:
    media = video(tmp_path / "v.mp4", start_s=1.37, end_s=5.37)
    with cutter(mode="keyframe") as clipper:
        (clip,) = clipper.cut(media)
    assert clip.start_s == pytest.approx(1.37, abs=1e-4) and clip.mode == "grid"


@pytest.mark.parametrize("kind", ["still", "video"])
def test_a_short_range_is_padded_with_silence(
    kind: str, tmp_path: Path, clippers: dict[str, Clipper]
) -> None:
    within = {"start_s": 2.0, "end_s": 4.5}
    media = still(tmp_path, 8.0, **within) if kind == "still" else video(tmp_path / "v.mp4", **within)
    assert clippers["refuse"].cut(media) == []
    (clip,) = clippers["pad"].cut(media)
    assert (clip.start_s, clip.valid_s) == (2.0, 2.5) and not clip.audio[len(clip.own_audio) :].any()
    assert clip.frame_offset_s == pytest.approx(0, abs=0.04)


def test_a_range_of_two_files_and_of_a_late_clock(tmp_path: Path) -> None:
    film(tmp_path / "v.mp4", audio="", duration_s=8.0)
    film(tmp_path / "a.m4a", "", "aac", sound_s=8.0)
    film(tmp_path / "late.ts", duration_s=8.0, container={"output_ts_offset": "4242"})
    pair = Media(tmp_path / "v.mp4", tmp_path / "a.m4a", False, "own", start_s=3.0, end_s=6.0)
    late = Media(tmp_path / "late.ts", tmp_path / "late.ts", False, "own", start_s=3.0, end_s=6.0)
    with cutter(duration_s=1.0) as clipper:
        for media in (pair, late):
            clips = clipper.cut(media)
            assert [clip.start_s for clip in clips] == pytest.approx([3, 4, 5], abs=1e-3)
            assert [heard_s(clip) for clip in clips] == pytest.approx([3, 4, 5], abs=0.1)


def test_rare_keyframes_are_filled_by_the_grid(tmp_path: Path) -> None:
    with (
        cutter(mode="keyframe") as clipper,
        cutter(mode="keyframe", duration_s=1.0) as short,
        cutter(duration_s=1.0) as grid,
    ):
        assert [clip.mode for clip in clipper.cut(video(tmp_path / "a.mp4", gop=250, duration_s=5.0))] == [
            "grid"
        ]
        rare = video(tmp_path / "b.mp4", gop=100, duration_s=9.0)
        clips = short.cut(rare)
        assert {clip.mode for clip in clips} == {"keyframe", "grid"} and len(clips) >= len(grid.cut(rare)) - 2
        starts = [clip.start_s for clip in clips]
        assert all(later - earlier > 0.999 for earlier, later in zip(starts, starts[1:], strict=False))
        assert {clip.mode for clip in short.cut(video(tmp_path / "c.mp4", gop=50, duration_s=9.0))} == {
            "keyframe"
        }
