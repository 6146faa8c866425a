"""Which files of one stem belong together, by suffix and by header."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.sources.suffixes import Choice, File, choose, tracks, untagged
from tests.fakes.media import film
from tests.ingest.sources.test_registry import touch


def test_the_header_decides_which_tracks_a_file_has(tmp_path: Path) -> None:
    film(tmp_path / "both.mp4", duration_s=0.4)
    film(tmp_path / "picture.mp4", audio="", duration_s=0.4)
    film(tmp_path / "sound.mp4", video="", duration_s=0.4)
    film(tmp_path / "picture.webm", "libvpx", "", duration_s=0.4)
    film(tmp_path / "both.mkv", "libx264", "aac", duration_s=0.4)
    film(tmp_path / "faststart.mp4", audio="", duration_s=0.4, container={"movflags": "faststart"})
    film(tmp_path / "picture.avi", "mpeg4", "", duration_s=0.4)
    film(tmp_path / "both.avi", "mpeg4", "libmp3lame", duration_s=0.4)
    touch(tmp_path, "noise.mp4", "empty.webm", "noise.avi")
    found = {path.name: tracks(File(path.stem, path.suffix, path)) for path in tmp_path.iterdir()}
    both, picture = {"picture", "sound"}, {"picture"}
    assert found == {
        **{
            "both.mp4": both,
            "both.mkv": both,
            "both.avi": both,
            "noise.avi": None,
            "sound.mp4": {"sound"},
            "noise.mp4": None,
            "empty.webm": None,
        },
        **dict.fromkeys(("picture.mp4", "picture.webm", "picture.avi", "faststart.mp4"), picture),
    }


def file(name: str) -> File:
    """A file that does not exist: no header says which tracks it has."""
    path = Path("/nowhere") / name
    return File(path.stem, path.suffix, path)


@given(st.permutations(["a.mov", "a.mp4", "a.jpg", "a.png", "a.wav", "a.json"]))
def test_the_order_of_files_does_not_count(names: list[str]) -> None:
    assert choose(map(file, names)) == choose(map(file, sorted(names)))


def test_of_several_pictures_and_sounds_the_first_suffix_is_taken() -> None:
    names = ["a.png", "a.jpg", "a.mp3", "a.wav"]
    assert choose(map(file, names)) == [Choice(file("a.jpg"), file("a.wav"))]


def test_a_video_of_unknown_tracks_keeps_its_own_sound() -> None:
    assert choose([file("a.mp4"), file("a.m4a")]) == [Choice(file("a.mp4"))]


@pytest.mark.parametrize(
    ("stem", "plain"),
    [("x.f137", "x"), ("x.f140-drc", "x"), ("x.fhls-1080", "x"), ("x.final", "x.final"), ("x.f", "x.f")],
)
def test_a_mark_of_an_unmerged_stream_is_no_part_of_the_stem(stem: str, plain: str) -> None:
    assert untagged(stem) == plain
