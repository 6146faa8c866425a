"""What one pass over a file gathers, and the files that it refuses."""

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import soundfile
from PIL import Image

from ingest.clip.clipper import Clipper
from ingest.clip.sound import SoundPlacer
from ingest.clip.tracks import AudioTrack, VideoTrack
from ingest.sample import Media, Reason, Refused
from tests.fakes.cutting import SETTINGS, cut, cutter
from tests.fakes.media import NOISE, RATE_HZ, card, film
from tests.ingest.clip.test_clipper import ffmpeg


def test_one_damaged_packet_of_sound_refuses_nothing(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "made.wav", NOISE[: 2 * RATE_HZ], RATE_HZ)
    ffmpeg(
        "-i", str(tmp_path / "made.wav"), "-write_xing", "0", "-id3v2_version", "0", str(tmp_path / "a.mp3")
    )
    Image.fromarray(card(1.0)).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.mp3").read_bytes()
    frame = data.index(data[:3], 10)  # the length of a frame
    with cutter("grid") as clipper:
        for damaged in (0, 20):
            broken = bytearray(data)
            for number in range(damaged):
                place = (10 + number) * frame
                broken[place + 4 : place + frame - 4] = b"\xff" * (frame - 8)
            (tmp_path / "b.mp3").write_bytes(broken + b"LYRICSBEGIN" + b"la " * 130)
            media = Media(tmp_path / "a.jpg", tmp_path / "b.mp3", True, "own")
            if not damaged:  # only the lyrics at the end are no sound
                assert len(clipper.cut(media)) >= 1
            else:
                with pytest.raises(Refused):
                    clipper.cut(media)


def test_files_with_a_half_missing_or_cut_short(tmp_path: Path, clippers: dict[str, Clipper]) -> None:
    def reason(name: str) -> Reason | None:
        with pytest.raises(Refused) as caught:
            cut(clippers["grid"], tmp_path / name)
        return caught.value.reason

    film(tmp_path / "mute.webm", "libvpx-vp9", "")
    film(tmp_path / "blind.mp4", "")
    for kind in ("mp4", "webm", "avi"):
        codecs = {"mp4": (), "webm": ("libvpx-vp9", "libopus"), "avi": ("mpeg4", "pcm_s16le")}[kind]
        film(tmp_path / f"whole.{kind}", *codecs)
        data = (tmp_path / f"whole.{kind}").read_bytes()
        (tmp_path / f"half.{kind}").write_bytes(data[: len(data) // 2])
        assert reason(f"half.{kind}") == Reason.CORRUPT
    (tmp_path / "nothing.mp4").write_bytes(b"")
    assert (reason("mute.webm"), reason("blind.mp4"), reason("nothing.mp4")) == (
        Reason.NO_AUDIO,
        Reason.NO_VIDEO,
        Reason.CORRUPT,
    )
    film(tmp_path / "one_frame.mp4", times_s=[0.0])
    assert cut(clippers["grid"], tmp_path / "one_frame.mp4") == []
    film(
        tmp_path / "out_of_order.avi", "libx264", "pcm_s16le"
    )  # frames out of order, and no presentation times to tell
    assert reason("out_of_order.avi") == Reason.UNSUPPORTED


def packet(pts: int | None, dts: int, is_keyframe: bool = False) -> Any:
    return SimpleNamespace(pts=pts, dts=dts, duration=10, is_keyframe=is_keyframe, is_discard=False)


def video_track(*packets: Any) -> VideoTrack:
    track = VideoTrack(None, Fraction(1, 100), 0.1, 0.3)
    for each in packets:
        track.add(each, 0)
    return track


def test_frames_before_the_first_keyframe_are_not_visible() -> None:
    track = video_track(packet(0, 0), packet(20, 10, is_keyframe=True), packet(10, 20), packet(30, 30))
    times_s, visible, _ = track.arrays()
    assert times_s.tolist() == [0.0, 0.2, 0.1, 0.3]
    assert visible.tolist() == [False, True, False, True]


def test_a_packet_without_a_presentation_time_is_not_visible() -> None:
    _, visible, _ = video_track(packet(0, 0, is_keyframe=True), packet(None, 5), packet(10, 10)).arrays()
    assert visible.tolist() == [True, False, True]


def test_decoding_times_serve_where_no_packet_has_another() -> None:
    times_s, visible, _ = video_track(packet(None, 0, is_keyframe=True), packet(None, 10)).arrays()
    assert times_s.tolist() == [0.0, 0.1] and visible.all()


def test_a_video_without_a_keyframe_is_refused() -> None:
    with pytest.raises(Refused) as caught:
        video_track(packet(0, 0), packet(10, 10)).arrays()
    assert caught.value.reason == Reason.CORRUPT


@pytest.mark.parametrize(
    ("num_good", "num_bad", "is_refused"), [(5, 1, False), (198, 2, False), (98, 2, True)]
)
def test_few_damaged_packets_of_sound_are_no_reason_to_refuse(
    num_good: int, num_bad: int, is_refused: bool
) -> None:
    track = AudioTrack(None, SoundPlacer(SETTINGS), 0.0, num_good, num_bad)
    if not is_refused:
        track.check()
        return
    with pytest.raises(Refused) as caught:
        track.check()
    assert caught.value.reason == Reason.CORRUPT
