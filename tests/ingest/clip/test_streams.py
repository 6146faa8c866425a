"""Which picture and which sound of a file are taken, and whose duration counts."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from ingest.clip.clipper import Clipper
from ingest.sample import Media, Reason, Refused
from tests.fakes.cutting import cut, cutter
from tests.fakes.media import NOISE, RATE_HZ, card, film, heard_s, shown_s
from tests.ingest.clip.test_clipper import ffmpeg

OTHER_S = 9.0  # of the noise of all films: where the other sound begins


@pytest.fixture(scope="module")
def clipper() -> Iterator[Clipper]:
    with cutter("grid") as clipper:
        yield clipper


@pytest.fixture(scope="module")
def four_s(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film of 4 s."""
    path = tmp_path_factory.mktemp("film") / "film.mkv"
    film(path)
    return path


def with_two_sounds(path: Path, four_s: Path, *flags: str, seconds: float = 4.0) -> Path:
    """The film with another sound before its own."""
    soundfile.write(
        path.with_suffix(".wav"),
        NOISE[round(OTHER_S * RATE_HZ) : round((OTHER_S + seconds) * RATE_HZ)],
        RATE_HZ,
    )
    inputs = ["-i", str(four_s), "-i", str(path.with_suffix(".wav"))]
    ffmpeg(
        *inputs, "-map", "0:v", "-map", "1:a", "-map", "0:a", "-c", "copy", "-c:a:0", "aac", *flags, str(path)
    )
    return path


def is_own(clipper: Clipper, path: Path) -> bool:
    clips = cut(clipper, path)
    assert len(clips) >= 3
    return all(heard_s(clip) < 5 for clip in clips)


@pytest.mark.parametrize(
    ("other", "own"),
    [
        ("comment", "default"),
        ("comment+default", "default"),
        ("default+comment", "0"),
        ("default+visual_impaired", "0"),
        ("default+hearing_impaired", "0"),
        ("default+dub", "original"),
        ("default", "original"),
        ("0", "default"),
    ],
)
def test_the_films_own_sound_is_taken(
    other: str, own: str, tmp_path: Path, four_s: Path, clipper: Clipper
) -> None:
    assert is_own(
        clipper,
        with_two_sounds(tmp_path / "two.mkv", four_s, "-disposition:a:0", other, "-disposition:a:1", own),
    )


def test_a_commentary_is_known_by_its_title(tmp_path: Path, four_s: Path, clipper: Clipper) -> None:
    arguments = [
        "-disposition:a:0",
        "default",
        "-disposition:a:1",
        "default",
        "-metadata:s:a:0",
        "title=Director's Commentary",
    ]
    assert is_own(clipper, with_two_sounds(tmp_path / "two.mkv", four_s, *arguments))


def test_the_first_of_equal_sounds_is_taken(tmp_path: Path, four_s: Path, clipper: Clipper) -> None:
    assert not is_own(
        clipper,
        with_two_sounds(
            tmp_path / "two.mkv", four_s, "-disposition:a:0", "default", "-disposition:a:1", "default"
        ),
    )


@pytest.mark.parametrize("cover", ["mjpeg", "png", "small"])
def test_a_cover_or_thumbnail_before_the_video_is_not_taken(
    cover: str, tmp_path: Path, four_s: Path, clipper: Clipper
) -> None:
    size, codec = ((64, 64), "libx264") if cover == "small" else ((640, 480), cover)
    Image.new("RGB", size, "red").save(tmp_path / "cover.png")
    picture = ["-loop", "1", "-t", "4", "-r", "1", "-i", str(tmp_path / "cover.png")]
    arguments = ["-map", "0:v", "-map", "1", "-c", "copy", "-c:v:0", codec, "-disposition:v", "default"]
    ffmpeg(*picture, "-i", str(four_s), *arguments, str(tmp_path / "both.mkv"))
    clips = cut(clipper, tmp_path / "both.mkv")
    assert len(clips) >= 3
    for clip in clips:
        assert shown_s(clip) - heard_s(clip) == pytest.approx(clip.frame_time_s - clip.start_s, abs=0.003)


@pytest.mark.parametrize("kind", ["mkv", "mp4"])
def test_longer_subtitles_and_sounds_refuse_nothing(
    kind: str, tmp_path: Path, four_s: Path, clipper: Clipper
) -> None:
    (tmp_path / "s.srt").write_text(
        "1\n00:00:00,000 --> 00:00:02,000\na\n\n2\n00:00:22,000 --> 00:00:24,000\nb\n"
    )
    subtitles = [
        "-i",
        str(tmp_path / "s.srt"),
        "-map",
        "0",
        "-map",
        "1",
        "-c",
        "copy",
        "-c:s",
        "srt" if kind == "mkv" else "mov_text",
    ]
    ffmpeg("-i", str(four_s), *subtitles, str(tmp_path / f"subtitles.{kind}"))
    assert len(cut(clipper, tmp_path / f"subtitles.{kind}")) >= 3
    arguments = ["-disposition:a:0", "0", "-disposition:a:1", "default"]
    assert (
        len(cut(clipper, with_two_sounds(tmp_path / f"sounds.{kind}", four_s, *arguments, seconds=7.0))) >= 3
    )


@pytest.mark.parametrize("kind", ["mkv", "mp4", "webm"])
@pytest.mark.parametrize("is_tagged", [True, False])
def test_a_file_that_is_cut_short_is_still_refused(
    kind: str, is_tagged: bool, tmp_path: Path, clipper: Clipper
) -> None:
    codecs = ("libvpx-vp9", "libopus") if kind == "webm" else ()
    film(
        tmp_path / f"film.{kind}",
        *codecs,
        duration_s=6.0,
        container={"movflags": "faststart"} if kind == "mp4" else None,
    )
    (tmp_path / "s.srt").write_text(
        "1\n00:00:00,000 --> 00:00:01,000\na\n\n2\n00:00:04,000 --> 00:00:05,000\nb\n"
    )
    arguments = ["-map", "0:v", "-map", "0:a", "-c", "copy"]
    if kind == "mkv":
        arguments += ["-map", "1", "-c:s", "srt"]
    ffmpeg(
        "-i",
        str(tmp_path / f"film.{kind}"),
        "-i",
        str(tmp_path / "s.srt"),
        *arguments,
        "-movflags",
        "+faststart",
        str(tmp_path / f"a.{kind}"),
    )
    data = (tmp_path / f"a.{kind}").read_bytes()
    data = data if is_tagged else data.replace(b"DURATION", b"DURATYON")
    (tmp_path / f"a.{kind}").write_bytes(data)
    assert len(cut(clipper, tmp_path / f"a.{kind}")) >= 5
    (tmp_path / f"half.{kind}").write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(Refused) as caught:
        cut(clipper, tmp_path / f"half.{kind}")
    assert caught.value.reason == Reason.CORRUPT


def sounds_of(
    clipper: Clipper, folder: Path, wave: np.ndarray, name: str = "a.wav", rate_hz: int = 48000
) -> np.ndarray:
    """The samples of a sound, cut with a still: int16."""
    soundfile.write(folder / "made.wav", wave, rate_hz)
    if name.endswith(".wav"):
        (folder / name).write_bytes((folder / "made.wav").read_bytes())
    else:
        ffmpeg("-i", str(folder / "made.wav"), str(folder / name))
    Image.fromarray(card(1.0)).save(folder / "still.jpg")
    return np.concatenate(
        [clip.audio for clip in clipper.cut(Media(folder / "still.jpg", folder / name, True, "own"))]
    )


@pytest.mark.parametrize("share", [-1.0, -0.9, -0.6])
@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.flac"])
def test_channels_that_cancel_each_other_are_not_summed(
    name: str, share: float, tmp_path: Path, clipper: Clipper
) -> None:
    wave = np.repeat(NOISE[: 2 * RATE_HZ], 3)
    heard = sounds_of(clipper, tmp_path, np.stack([wave, share * wave], 1), name)
    assert heard.std() / 32768 == pytest.approx(wave.std(), rel=0.1)


def test_ordinary_stereo_is_summed(tmp_path: Path, clipper: Clipper) -> None:
    left, right = np.random.default_rng(0).standard_normal((2, 2 * RATE_HZ)) * 0.1
    for other, share in ((right, 0.5), (left, 1.0), (0 * left, 0.5), (-0.3 * left, 0.35)):
        heard = sounds_of(clipper, tmp_path, np.stack([left, other], 1), rate_hz=RATE_HZ)
        if other is not right:
            assert np.abs(heard / 32768 - share * left).max() < 2e-4
        else:
            assert np.abs(heard / 32768 - (left + right) / 2).max() < 2e-4


@pytest.mark.parametrize("name", ["a.mp3", "a.m4a", "a.opus", "a.aac", "late.mka", "late.ts"])
def test_a_sound_begins_at_its_first_sample(name: str, tmp_path: Path, clipper: Clipper) -> None:
    if name.startswith("late"):
        film(tmp_path / name, "", "flac" if name.endswith("mka") else "ac3", audio_start_s=2.5)
    else:
        soundfile.write(tmp_path / "made.wav", NOISE[: 3 * RATE_HZ], RATE_HZ)
        ffmpeg("-i", str(tmp_path / "made.wav"), str(tmp_path / name))
    Image.fromarray(card(1.0)).save(tmp_path / "still.jpg")
    clips = clipper.cut(Media(tmp_path / "still.jpg", tmp_path / name, True, "own"))
    assert clips[0].start_s == 0 and len(clips) >= 2
    delay_s = (
        0.064 if name == "a.aac" else 0.012 if name.endswith("ts") else 0.001
    )  # of the encoder, where a file does not tell it
    assert heard_s(clips[1], 0.75) == pytest.approx(1.0, abs=delay_s + 0.001)


def test_picture_and_sound_are_of_one_program(tmp_path: Path, clipper: Clipper) -> None:
    film(tmp_path / "small.ts", "libx264", "ac3", size=(64, 64))
    film(tmp_path / "large.mkv", audio="")
    soundfile.write(
        tmp_path / "large.wav", NOISE[round(OTHER_S * RATE_HZ) : round((OTHER_S + 4) * RATE_HZ)], RATE_HZ
    )
    inputs = [
        word for name in ("small.ts", "large.mkv", "large.wav") for word in ("-i", str(tmp_path / name))
    ]
    programs = ["-program", "title=one:st=0:st=1", "-program", "title=two:st=2:st=3"]
    arguments = [
        "-map",
        "0:v",
        "-map",
        "0:a",
        "-map",
        "1:v",
        "-map",
        "2:a",
        "-c:v",
        "copy",
        "-c:a",
        "ac3",
        "-ar",
        "48000",
        *programs,
    ]
    ffmpeg(*inputs, *arguments, str(tmp_path / "both.ts"))
    clips = cut(clipper, tmp_path / "both.ts")
    assert len(clips) >= 3 and all(heard_s(clip) > OTHER_S - 0.1 for clip in clips)
    assert {(clip.width_px, clip.height_px) for clip in clips} == {(85, 64)}


def test_an_mp3_beside_a_video_has_no_delay(tmp_path: Path, clipper: Clipper) -> None:
    film(tmp_path / "v.mp4", audio="", duration_s=3.0)
    soundfile.write(tmp_path / "made.wav", NOISE[: 3 * RATE_HZ], RATE_HZ)
    ffmpeg("-i", str(tmp_path / "made.wav"), str(tmp_path / "a.mp3"))
    clips = cut(clipper, tmp_path / "v.mp4", tmp_path / "a.mp3")
    assert len(clips) == 3
    for clip in clips:
        assert heard_s(clip) == pytest.approx(clip.start_s, abs=0.002)
