"""Clocks that restart or jump, and two files that are joined: picture and sound of a clip are of one moment,
and nothing is lost unsaid.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from ingest.clip.clipper import ClipConfig, Clipper, FrameConfig
from ingest.clip.clocks import WRAP_S, Reach, StretchFinder, Timeline, ahead_s
from ingest.sample import Clip, Item, Media, Reason, Refused
from ingest.scrape import ScrapeConfig, ScrapeStage, scrape_item
from ingest.sources.settings import SourceConfig
from tests.fakes.cutting import cut, cutter
from tests.fakes.media import NOISE, RATE_HZ, card, film, heard_s, shown_s
from tests.ingest.clip.test_clipper import ffmpeg
from tests.ingest.clip.test_media import FEW_MS


@pytest.fixture(scope="module")
def clippers() -> Iterator[dict[str, Clipper]]:
    with cutter("keyframe") as keyframe, cutter("grid") as grid:
        yield {"keyframe": keyframe, "grid": grid}


def parts(folder: Path, kind: str, *codecs: str, at: str = "3,6") -> list[Path]:
    """A film of 9 s in pieces, each with a clock of its own; what is shown and heard goes on from one to the
    next.
    """
    rate_hz = 44100 if kind == "flv" else 48000
    film(folder / f"whole.{kind}", *codecs, duration_s=9.0, gop=15, rate_hz=rate_hz)
    arguments = ["-map", "0", "-c", "copy", "-f", "segment", "-segment_times", at, "-reset_timestamps", "1"]
    ffmpeg("-i", str(folder / f"whole.{kind}"), *arguments, str(folder / f"part%d.{kind}"))
    return sorted(folder.glob(f"part*.{kind}"))


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three transport streams of 3 s, and the second without its sound."""
    three = parts(tmp_path_factory.mktemp("pieces"), "ts")
    mute = three[1].with_stem("mute")
    ffmpeg("-i", str(three[1]), "-an", "-c", "copy", str(mute))
    return [*three, mute]


def join(path: Path, pieces: list[Path], head: int = 0) -> Path:
    """The pieces one after the other; of all but the first, `head` bytes are left out."""
    path.write_bytes(b"".join(piece.read_bytes()[head * (place > 0) :] for place, piece in enumerate(pieces)))
    return path


def moved(piece: Path, by_s: float) -> Path:
    """The same with another clock."""
    path = piece.with_stem(f"{piece.stem}-at-{by_s:.0f}")
    ffmpeg(
        "-copyts", "-i", str(piece), "-c", "copy", "-muxdelay", "0", "-output_ts_offset", str(by_s), str(path)
    )
    return path


def assert_one_moment(clips: list[Clip], least: int) -> list[float]:
    """Each clip shows the middle of what it sounds like, and lies where no other does; when each is, by its
    sound.
    """
    assert len(clips) >= least
    heard = [heard_s(clip, 0.75) for clip in clips]
    for clip, at_s in zip(clips, heard, strict=True):
        assert shown_s(clip) - at_s == pytest.approx(clip.frame_time_s - clip.start_s, abs=2 * FEW_MS)
        assert shown_s(clip) - at_s == pytest.approx(0.5, abs=0.05)
    starts = [clip.start_s for clip in clips]
    assert all(later - earlier > 0.999 for earlier, later in zip(starts, starts[1:], strict=False))
    return heard


@pytest.mark.parametrize(
    ("kind", "codecs", "head"),
    [
        ("ts", ("libx264", "aac"), 0),
        ("m2ts", ("libx264", "ac3"), 0),
        ("mpg", ("mpeg2video", "ac3"), 0),
        ("flv", ("libx264", "aac"), 13),  # tags alone, as a recorder writes whose clock restarts
    ],
)
def test_stretches_of_a_joined_file_are_each_cut(
    kind: str, codecs: tuple[str, ...], head: int, tmp_path: Path, clippers: dict[str, Clipper]
) -> None:
    films = parts(tmp_path, kind, *codecs)[
        : 2 if kind == "mpg" else 3
    ]  # ffmpeg itself puts the third of MPEG-2 a frame off
    path = join(tmp_path / f"joined.{kind}", films, head)
    for mode, clipper in clippers.items():
        heard = assert_one_moment(cut(clipper, path), 6 if mode == "grid" else 3)
        assert {int(at_s + 0.1) // 3 for at_s in heard} >= set(range(len(films)))


def test_stretches_in_any_order_and_far_apart(
    tmp_path: Path, pieces: list[Path], clippers: dict[str, Clipper]
) -> None:
    one, two, three, mute = pieces
    for films, expected in (
        ([three, one], {2, 0}),
        ([one, moved(two, 7200), three], {0, 1, 2}),  # ahead by hours, and back
        ([moved(one, WRAP_S - 1.5), two], {0, 1}),  # a clock that wraps, then restarts
        ([moved(one, 5000), two], {0, 1}),
        ([one, mute, three], {0, 2}),
        ([mute, three], {2}),
    ):
        path = join(tmp_path / "joined.ts", films)
        for clipper in clippers.values():
            assert {
                int(at_s + 0.1) // 3 for at_s in assert_one_moment(cut(clipper, path), len(expected))
            } == expected


def test_no_window_over_a_gap_whose_length_is_kept(
    tmp_path: Path, pieces: list[Path], clippers: dict[str, Clipper]
) -> None:
    one, two, *_ = pieces
    clips = cut(clippers["grid"], join(tmp_path / "gap.ts", [one, moved(two, 20)]))
    heard = assert_one_moment(clips, 4)
    assert [at_s for at_s in heard if at_s > 2.5] == pytest.approx(
        [clip.start_s - 17 for clip in clips if clip.start_s > 3], abs=0.15
    )


@pytest.mark.parametrize("kind", ["flv", "mkv", "mp4"])
def test_a_second_file_that_is_not_read_is_a_refusal(
    kind: str, tmp_path: Path, clippers: dict[str, Clipper]
) -> None:
    path = join(tmp_path / f"joined.{kind}", parts(tmp_path, kind))
    with pytest.raises(Refused) as caught:
        cut(clippers["grid"], path)
    assert caught.value.reason == Reason.CORRUPT


def test_fragments_that_restart_are_cut_or_refused(tmp_path: Path, clippers: dict[str, Clipper]) -> None:
    fragments = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    film(tmp_path / "a.mp4", duration_s=3.0, gop=15, container=fragments)
    heard = assert_one_moment(
        cut(clippers["grid"], join(tmp_path / "joined.mp4", [tmp_path / "a.mp4"] * 2)), 4
    )
    assert any(later < earlier for earlier, later in zip(heard, heard[1:], strict=False))
    film(tmp_path / "one.mp4", duration_s=3.0, gop=1000, container=fragments)
    with pytest.raises(
        Refused
    ) as caught:  # the demuxer hides the first fragment of what follows, which is all of it
        cut(clippers["grid"], join(tmp_path / "joined.mp4", [tmp_path / "one.mp4"] * 2))
    assert caught.value.reason == Reason.CORRUPT


def test_chained_ogg_is_heard_to_its_end(tmp_path: Path, clippers: dict[str, Clipper]) -> None:
    for place in (0, 1):
        soundfile.write(
            tmp_path / f"{place}.ogg",
            NOISE[place * 3 * RATE_HZ : (place + 1) * 3 * RATE_HZ],
            RATE_HZ,
            format="OGG",
        )
    Image.fromarray(card(1.0)).save(tmp_path / "still.jpg")
    sound = join(tmp_path / "chain.ogg", [tmp_path / "0.ogg", tmp_path / "1.ogg"])
    clips = clippers["grid"].cut(Media(tmp_path / "still.jpg", sound, True, "own"))
    assert [clip.start_s for clip in clips] == pytest.approx([0, 1, 2, 3, 4, 5], abs=0.02)
    assert [heard_s(clip) for clip in clips] == pytest.approx([0, 1, 2, 3, 4, 5], abs=0.001)


def pair(
    folder: Path,
    video_start_s: float,
    audio_start_s: float,
    kind: str = "mp4",
    sound: str = "m4a",
    sound_s: float = 6.0,
) -> Media:
    """Picture and sound in two files of one clock."""
    film(folder / f"v.{kind}", audio="", duration_s=6.0, video_start_s=video_start_s)
    film(folder / f"a.{sound}", "", "aac", sound_s=sound_s, audio_start_s=audio_start_s)
    return Media(folder / f"v.{kind}", folder / f"a.{sound}", False, "own")


@pytest.mark.parametrize(
    ("video_start_s", "audio_start_s"), [(60.0, 60.01), (59.9, 60.3), (75, 76), (0, 2.5)]
)
def test_two_files_whose_clocks_start_near_each_other_have_one(
    video_start_s: float, audio_start_s: float, tmp_path: Path, clippers: dict[str, Clipper]
) -> None:
    media = pair(tmp_path, video_start_s, audio_start_s)
    late_s = audio_start_s - video_start_s
    for clipper in clippers.values():
        clips = clipper.cut(media)
        assert len(clips) >= 2
        for clip in clips:
            assert shown_s(clip) - (heard_s(clip) + late_s) == pytest.approx(
                clip.frame_time_s - clip.start_s, abs=FEW_MS
            )


def test_two_files_far_apart_are_joined_by_their_ends(tmp_path: Path, clippers: dict[str, Clipper]) -> None:
    film(tmp_path / "v.mp4", audio="", duration_s=15.0, video_start_s=75)
    film(tmp_path / "late.m4a", "", "aac", sound_s=4.0, audio_start_s=86)
    for clip in clippers["grid"].cut(Media(tmp_path / "v.mp4", tmp_path / "late.m4a", False, "own")):
        assert shown_s(clip) - (heard_s(clip) + 11) == pytest.approx(
            clip.frame_time_s - clip.start_s, abs=FEW_MS
        )
    film(tmp_path / "own.m4a", "", "aac", sound_s=15.0, audio_start_s=86)
    clips = clippers["grid"].cut(Media(tmp_path / "v.mp4", tmp_path / "own.m4a", False, "own"))
    assert len(clips) >= 14
    for clip in clips:  # to within the encoder's priming, of which this file does not tell
        assert shown_s(clip) - heard_s(clip) == pytest.approx(0.5, abs=0.05)


def test_two_files_whose_clocks_restart_apart_are_refused(
    tmp_path: Path, pieces: list[Path], clippers: dict[str, Clipper]
) -> None:
    one, two, *_ = pieces
    for name, arguments in (("v", ["-an"]), ("a", ["-vn"])):
        for place, piece in enumerate((one, two)):
            ffmpeg(
                "-copyts",
                "-i",
                str(piece),
                *arguments,
                "-c",
                "copy",
                "-muxdelay",
                "0",
                str(tmp_path / f"{name}{place}.ts"),
            )
    picture = join(tmp_path / "v.ts", [tmp_path / "v0.ts", tmp_path / "v1.ts"])
    sound = join(tmp_path / "a.ts", [tmp_path / "a0.ts", tmp_path / "a1.ts"])
    assert_one_moment(cut(clippers["grid"], picture, sound), 4)
    with pytest.raises(Refused) as caught:
        cut(clippers["grid"], picture, tmp_path / "a0.ts")
    assert caught.value.reason == Reason.CORRUPT and "restarts 1 times" in caught.value.detail


def test_one_rule_for_the_clocks_of_two_files() -> None:
    picture = Reach(95440.0, 95500.0)
    assert (
        ahead_s(picture, Reach(0.2, 56.3), wraps=True) == -WRAP_S
    )  # 33 bits of 90 kHz end between the two starts
    assert ahead_s(picture, Reach(95446.0, 95500.0), wraps=True) == 0
    assert ahead_s(picture, Reach(4242.0, 4302.0), wraps=True) == 4242.0 - 95440.0
    assert ahead_s(Reach(0, 16), Reach(11, 15), wraps=False) == 0


def test_a_gap_in_one_stream_is_no_restart() -> None:
    finder = StretchFinder([0.3, 0.3], alone_jumps=False)
    slides = [
        (0, 0.0),
        *((1, at / 10) for at in range(300)),
        (0, 30.0),
        *((1, 30 + at / 10) for at in range(10)),
    ]
    assert {finder.stretch_of(stream, time_s) for stream, time_s in slides} == {0}


def test_playing_time_never_goes_back() -> None:
    timeline = Timeline(
        {0: Reach(10, 20), 1: Reach(10, 15), 3: Reach(9000, 9001)},
        {0: Reach(10.5, 20.5), 2: Reach(18, 19)},
        10.0,
    )
    assert timeline.begin_s == {0: 0.0, 1: 10.5, 2: 18.5, 3: 19.5}
    assert [timeline.epoch_s[number] for number in (0, 1, 2, 3)] == pytest.approx([10.0, -0.5, -0.5, 8980.5])
    assert np.isclose(timeline.end_s, 20.5)


def test_a_still_picture_before_late_sound_loses_nothing() -> None:
    finder = StretchFinder([0.3, 0.3], alone_jumps=False)
    found = [
        (stream, time_s, finder.stretch_of(stream, time_s))
        for stream, time_s in ((0, 0.0), (1, 0.0), (0, 5.0), (0, 10.0))
    ]
    found += [(1, at / 10, finder.stretch_of(1, at / 10)) for at in range(1, 120)]
    assert [number for _, _, number in found[:4]] == [0, 0, 1, 2]
    assert {number for stream, time_s, number in found if stream == 1 and time_s >= 10.0} == {2}


def test_what_is_lost_with_a_stretch_gets_a_row(
    tmp_path: Path, pieces: list[Path], clippers: dict[str, Clipper]
) -> None:
    one, two, three, mute = pieces
    clipper = clippers["grid"]
    cut(clipper, join(tmp_path / "joined.ts", [one, mute, three]))
    (lost,) = clipper.lost
    assert lost.reason == Reason.TOO_SHORT and "where the clock restarts at 3." in lost.detail
    cut(clipper, join(tmp_path / "joined.ts", [one, two, three]))
    assert clipper.lost == []


def test_each_loss_is_a_refused_row(tmp_path: Path, pieces: list[Path]) -> None:
    path = join(tmp_path / "joined.ts", [pieces[0], pieces[3]])
    shape = {"clip": ClipConfig(1.0, "grid"), "frame": FrameConfig(64)}
    stage = ScrapeStage(ScrapeConfig("unused", SourceConfig("unused", license="own"), **shape))  # type: ignore[arg-type]
    try:
        rows = scrape_item(
            Item("folder", "a", str(path), "own"), "a", stage.fetcher, stage.clipper, stage.config
        )
    finally:
        stage.close()
    assert [row.reason for row in rows if row.status == "refused" and row.key is None] == [Reason.TOO_SHORT]
    assert sum(row.key is not None for row in rows) >= 2


def test_a_lone_stream_restarts_only_after_a_long_gap() -> None:
    finder = StretchFinder([0.3], alone_jumps=True)
    assert [finder.stretch_of(0, time_s) for time_s in (0.0, 0.1, 40.0, 40.1, 7200.0, 7200.1, 3.0)] == [
        0,
        0,
        0,
        0,
        1,
        1,
        2,
    ]
