"""Messy real files: picture and sound of a clip are those of its time, in every container, codec and offset."""

import itertools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ingest.clip.clipper import Clipper
from ingest.sample import Clip
from tests.fakes.cutting import WINDOW_S, cut, cutter
from tests.fakes.media import CLOCK_HZ, LONGEST_S, NOISE, RATE_HZ, film, heard_s, shown_s
from tests.ingest.clip.test_clipper import ffmpeg

FEW_MS = 0.003


def assert_aligned(
    clips: list[Clip], times_s: list[float], video_start_s: float = 0.0, audio_start_s: float = 0.0
) -> None:
    """What each clip shows and sounds like is what was on screen and in the air in that window, by the times
    burnt in.
    """
    shown_at = [time_s + video_start_s for time_s in times_s]
    assert clips
    for clip in clips:
        shown, heard = shown_s(clip) + video_start_s, heard_s(clip) + audio_start_s
        middle_s = heard + WINDOW_S / 2
        place = min(range(len(shown_at)), key=lambda place: abs(shown_at[place] - shown))
        later = shown_at[place + 1] if place + 1 < len(shown_at) else np.inf
        assert shown <= middle_s + FEW_MS and later > middle_s - FEW_MS
        assert clip.frame_time_s - clip.start_s == pytest.approx(shown - heard, abs=FEW_MS)
        assert clip.frame_offset_s == pytest.approx(clip.frame_time_s - clip.start_s - WINDOW_S / 2, abs=1e-5)


FILES: dict[str, dict[str, Any]] = {
    "h264.mp4": {},
    "vp9.webm": {"video": "libvpx-vp9", "audio": "libopus"},
    "hevc.mp4": {"video": "libx265"},
    "hevc.mov": {"video": "libx265", "audio": "pcm_s16le"},
    "av1.mp4": {"video": "libsvtav1"},
    "av1.webm": {"video": "libsvtav1", "audio": "libopus"},
    "flac.mkv": {"audio": "flac"},
    "h264.ts": {},
    "mpeg2.ts": {"video": "mpeg2video", "audio": "ac3"},
    "mpeg2.mpg": {"video": "mpeg2video", "audio": "ac3"},
    "h264.flv": {"rate_hz": 44100},
    "h264.f4v": {},
    "h264.3g2": {},
    "mpeg2.vob": {"video": "mpeg2video", "audio": "ac3"},
    "mpeg2.mxf": {"video": "mpeg2video", "audio": "pcm_s16le", "layout": "mono"},
    "pal.dv": {"video": "dvvideo", "audio": "pcm_s16le", "size": (720, 576)},
    "wmv2.asf": {"video": "wmv2", "audio": "pcm_s16le"},
    "wmv2.wmv": {"video": "wmv2", "audio": "pcm_s16le"},
    "mjpeg.avi": {"video": "mjpeg", "audio": "pcm_s16le", "pix_fmt": "yuvj420p"},
    "mpeg4.avi": {"video": "mpeg4", "audio": "pcm_s16le"},
    "ten_bits.mp4": {"video": "libx265", "pix_fmt": "yuv420p10le"},
    "late_sound.mp4": {"audio_start_s": 0.7},
    "late_picture.mp4": {"video_start_s": 0.7},
    "late_sound.webm": {"video": "libvpx-vp9", "audio": "libopus", "audio_start_s": 0.713},
    "late_picture.webm": {"video": "libvpx-vp9", "audio": "libopus", "video_start_s": 0.713},
    "late_sound.ts": {"audio_start_s": 0.7},
    "late_picture.ts": {"video_start_s": 0.7},
    "any_clock.ts": {"container": {"output_ts_offset": "4242.42"}},
    "clock_that_wraps.ts": {"container": {"output_ts_offset": "95442"}},  # 33 bits of 90 kHz end at 95443.7 s
    "out_of_a_live_stream.mkv": {"video_start_s": 7000, "audio_start_s": 7000},
    "short_picture.mp4": {"duration_s": 2.5, "sound_s": 4.0},
    "short_sound.mp4": {"sound_s": 2.5},
    "one_long_gop.mp4": {"gop": 1000, "duration_s": 5.0},
    "open_gop.mp4": {"options": {"x264-params": "open-gop=1:bframes=3:b-pyramid=normal"}},
    "odd_size.webm": {"video": "libvpx-vp9", "audio": "libopus", "size": (131, 97)},
    "ntsc.mp4": {"fps": 30000 / 1001},
    "slow.mp4": {"fps": 1, "gop": 2, "duration_s": 8.0},
    "8khz.mkv": {"audio": "pcm_s16le", "rate_hz": 8000, "layout": "mono"},
    "44khz.mp4": {"rate_hz": 44100},
    "96khz.mkv": {"audio": "flac", "rate_hz": 96000},
    "surround.mp4": {"layout": "5.1"},
}


@pytest.mark.parametrize("name", FILES)
def test_picture_and_sound_are_of_their_time(name: str, tmp_path: Path, clippers: dict[str, Clipper]) -> None:
    made = FILES[name]
    times_s = film(tmp_path / name, **made)
    starts = made.get("video_start_s", 0.0), made.get("audio_start_s", 0.0)
    covered_s = min(times_s[-1] + times_s[1], made.get("sound_s", 9.0)) - abs(starts[0] - starts[1])
    grid = cut(clippers["grid"], tmp_path / name)
    assert len(grid) in (int(covered_s), int(covered_s + 0.03))
    assert_aligned(grid, times_s, *starts)
    assert grid[0].start_s == pytest.approx(abs(starts[0] - starts[1]), abs=0.1)  # whatever the clock says
    keyframes = cut(clippers["keyframe"], tmp_path / name)
    assert_aligned(keyframes, times_s, *starts)
    assert all(abs(clip.frame_offset_s) < 1e-4 for clip in keyframes if clip.mode == "keyframe")
    assert {clip.mode for clip in keyframes} == ({"grid"} if name == "one_long_gop.mp4" else {"keyframe"})


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    kind=st.sampled_from(["mp4", "mkv", "ts", "mov"]),
    gaps_s=st.lists(st.integers(8, 400), min_size=30, max_size=60),
    starts_s=st.tuples(st.integers(0, 1500), st.integers(0, 1500)),
    gop=st.integers(1, 40),
)
def test_whatever_the_frame_times_and_offsets(
    kind: str,
    gaps_s: list[int],
    starts_s: tuple[int, int],
    gop: int,
    tmp_path: Path,
    clippers: dict[str, Clipper],
) -> None:
    times_s = [at / 1000 for at in itertools.accumulate(gaps_s, initial=0) if at < 12000]
    video_start_s, audio_start_s = starts_s[0] / 1000, starts_s[1] / 1000
    path = tmp_path / f"vfr.{kind}"
    sound_s = min(times_s[-1] + 1, LONGEST_S)
    film(
        path,
        times_s=times_s,
        video_start_s=video_start_s,
        audio_start_s=audio_start_s,
        sound_s=sound_s,
        gop=gop,
    )
    for clipper in clippers.values():
        clips = cut(clipper, path)
        if clips:
            assert_aligned(clips, times_s, video_start_s, audio_start_s)
        else:
            assert times_s[-1] < 3.5


def test_an_edit_list_that_begins_between_keyframes(tmp_path: Path, clippers: dict[str, Clipper]) -> None:
    times_s = film(tmp_path / "whole.mp4", duration_s=6.0, gop=60)
    ffmpeg("-ss", "1.48", "-i", str(tmp_path / "whole.mp4"), "-c", "copy", str(tmp_path / "cut.mp4"))
    for clipper in clippers.values():
        clips = cut(clipper, tmp_path / "cut.mp4")
        assert_aligned(clips, times_s, -1.48, -1.48)
        assert [heard_s(clip) - 1.48 for clip in clips] == pytest.approx(
            [clip.start_s for clip in clips], abs=FEW_MS
        )


def test_an_edit_list_that_leaves_out_the_middle(tmp_path: Path, clippers: dict[str, Clipper]) -> None:
    """0 to 2 s, then 3.2 to 6 s: the frames from the keyframe at 2.4 s on are only there for others to be
    decoded.

    Frames in order only: with B-frames, libavformat 62 itself puts what follows a second edit too late, by
    their delay.
    """
    film(tmp_path / "whole.mov", audio="pcm_s16le", duration_s=6.0, gop=60, options={"bf": "0"})
    data = (tmp_path / "whole.mov").read_bytes()
    for rate_hz in (CLOCK_HZ, 48000):  # the tracks' own units; the film's is the millisecond
        place = data.index(b"elst") if rate_hz == CLOCK_HZ else data.rindex(b"elst")
        size, edits, (begin,) = (
            *struct.unpack(">I8xI", data[place - 4 : place + 12]),
            struct.unpack(">i", data[place + 16 : place + 20]),
        )
        assert (size, edits) == (28, 1)
        both = struct.pack(">IiIIiI", 2000, begin, 1 << 16, 2800, begin + round(3.2 * rate_hz), 1 << 16)
        boxes = [
            (place - 4, 12),
            (place - 12, 12),
            (data.rindex(b"trak", 0, place) - 4, 12),
            (data.rindex(b"moov", 0, place) - 4, 12),
        ]
        for at, more in boxes:
            data = (
                data[:at]
                + struct.pack(">I", struct.unpack(">I", data[at : at + 4])[0] + more)
                + data[at + 4 :]
            )
        data = data[: place + 8] + struct.pack(">I", 2) + both + data[place + 24 :]
    (tmp_path / "cut.mov").write_bytes(data)
    for clipper in clippers.values():
        clips = cut(clipper, tmp_path / "cut.mov")
        assert [clip.start_s for clip in clips] == [0, 1, 2, 3 if clipper is clippers["grid"] else 3.1]
        for clip in clips:
            left_out_s = 1.2 if clip.start_s >= 2 - FEW_MS else 0.0
            # the packet across the edit is not cut: the sound is 5 ms late until that counts as more than
            # jitter
            assert heard_s(clip, 0.75) == pytest.approx(clip.start_s + left_out_s, abs=FEW_MS)
            assert shown_s(clip) == pytest.approx(clip.frame_time_s + left_out_s, abs=FEW_MS)


def test_two_transport_streams_on_one_clock(tmp_path: Path, clippers: dict[str, Clipper]) -> None:
    """HLS with its sound apart: neither file begins at the same time, only their clock is the same."""
    times_s = film(tmp_path / "whole.ts", audio_start_s=0.4)
    for half, name in (("v", "picture.ts"), ("a", "sound.ts")):
        ffmpeg(
            "-copyts",
            "-i",
            str(tmp_path / "whole.ts"),
            "-map",
            f"0:{half}",
            "-c",
            "copy",
            "-muxdelay",
            "0",
            str(tmp_path / name),
        )
    assert_aligned(cut(clippers["grid"], tmp_path / "picture.ts", tmp_path / "sound.ts"), times_s, 0.0, 0.4)


def moving(path: Path, scenes: list[tuple[float, float]], rate: int = 25) -> None:
    """A video whose n-th scene, (seconds, speed in px a frame), is a textured picture of its own that drifts;
    and the noise.
    """
    frames, rng = [], np.random.default_rng(5)
    for seconds, speed in scenes:
        small = rng.integers(20, 235, (6, 24, 3)).astype(np.uint8)
        wide = np.asarray(Image.fromarray(small).resize((512, 96), Image.Resampling.BICUBIC))
        frames += [
            np.roll(wide, round(speed * number), axis=1)[:, :128] for number in range(round(seconds * rate))
        ]
    soundfile.write(path.with_suffix(".wav"), NOISE[: RATE_HZ * len(frames) // rate], RATE_HZ)
    source = [
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-s",
        "128x96",
        "-r",
        str(rate),
        "-i",
        "pipe:",
        "-i",
        str(path.with_suffix(".wav")),
    ]
    coding = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-g", "40", "-bf", "3", "-b_strategy", "0"]
    ffmpeg(*source, *coding, str(path), stdin=b"".join(frame.tobytes() for frame in frames))


@pytest.mark.parametrize("mode", ["keyframe", "grid"])
def test_no_clip_spans_a_cut(mode: str, tmp_path: Path) -> None:
    moving(tmp_path / "cuts.mp4", [(2.6, 1), (0.8, 0), (3.4, 3), (3.2, 0.3)])
    cuts = [2.6, 3.4, 6.8]
    with cutter(mode) as careless, cutter(mode, scene_cut=0.1) as careful:
        spans = [(clip.start_s, clip.start_s + WINDOW_S) for clip in cut(careless, tmp_path / "cuts.mp4")]
        assert any(start < at < end for start, end in spans for at in cuts)
        spans = [(clip.start_s, clip.start_s + WINDOW_S) for clip in cut(careful, tmp_path / "cuts.mp4")]
    assert not any(start < at < end for start, end in spans for at in cuts)
    assert [
        sum(first <= start < last for start, _ in spans) for first, last in itertools.pairwise([0, *cuts, 10])
    ] == ([2, 0, 3, 3] if mode == "grid" else [1, 0, 1, 1])


def test_motion_is_no_cut(tmp_path: Path) -> None:
    moving(tmp_path / "pan.mp4", [(6.0, 4)])
    with cutter("grid", scene_cut=0.1) as careful:
        assert len(cut(careful, tmp_path / "pan.mp4")) == 6
