"""Of several sounds the original's is taken: not a dub, a description or a compressed variant of it."""

from typing import Any

import pytest

from ingest.fetch.formats import choose_formats
from ingest.sample import Refused

PICTURE = {
    "format_id": "p",
    "url": "https://a.example/p",
    "protocol": "https",
    "vcodec": "avc1",
    "acodec": "none",
    "width": 640,
    "height": 360,
}


def sound(
    id: str, language: int | None = None, source: int | None = None, kbps: float | None = 130.0, **more: Any
) -> dict[str, Any]:
    known = {
        "format_id": id,
        "url": f"https://a.example/{id}",
        "protocol": "https",
        "vcodec": "none",
        "acodec": "mp4a.40.2",
    }
    return {**known, "language_preference": language, "source_preference": source, "abr": kbps, **more}


def muxed(id: str, language: int | None, height: int = 360) -> dict[str, Any]:
    return {**sound(id, language), "vcodec": "avc1", "width": 640, "height": height}


@pytest.mark.parametrize(
    ("sounds", "expected"),
    [
        ([sound("de", -1), sound("en", 10, kbps=200)], "en"),
        ([sound("en", 10, kbps=20), sound("de", -1)], "en"),
        ([sound("de", -10), sound("fr", None)], "fr"),
        ([sound("de"), sound("fr", 5), sound("en", 10)], "en"),
        ([sound("only", -10)], "only"),
        ([sound("140-drc", source=-2), sound("140", source=-1)], "140"),
        ([sound("140-drc", kbps=100), sound("140")], "140"),
        ([sound("a", format_note="English, DRC", kbps=100), sound("b")], "b"),
        ([sound("a", format_note="English descriptive", kbps=100), sound("b", format_note="English")], "b"),
        ([sound("nopot", source=-21, kbps=100), sound("140", source=-1)], "140"),
        ([sound("lean", kbps=70), sound("rich", kbps=200)], "lean"),
        ([sound("first", kbps=None), sound("second", kbps=None)], "first"),
    ],
)
def test_the_sound_of_a_pair_is_the_originals(sounds: list[dict[str, Any]], expected: str) -> None:
    assert [f["format_id"] for f in choose_formats([*sounds, PICTURE], 256)] == ["p", expected]


def test_a_progressive_file_of_the_original_goes_before_a_pair_with_a_dub() -> None:
    assert [f["format_id"] for f in choose_formats([sound("de", -1), PICTURE, muxed("18", 10)], 256)] == [
        "18"
    ]


def test_of_progressive_files_the_original_goes_before_a_smaller_dub() -> None:
    assert [f["format_id"] for f in choose_formats([muxed("de", -1, 360), muxed("en", 10, 720)], 256)] == [
        "en"
    ]


def test_what_is_protected_or_no_medium_is_never_taken() -> None:
    protected = [{**sound("drm", 10), "has_drm": True}, {**sound("maybe", 10), "has_drm": "maybe"}]
    storyboard = {**muxed("sb0", 10), "protocol": "mhtml"}
    assert [f["format_id"] for f in choose_formats([*protected, storyboard, sound("en"), PICTURE], 256)] == [
        "p",
        "en",
    ]


def stream(id: str, height: int = 0, **more: object) -> dict[str, object]:
    size = {"height": height, "width": height * 16 // 9} if height else {}
    return {"format_id": id, "url": f"https://example.org/{id}", "protocol": "https", **size, **more}


@pytest.mark.parametrize(
    ("formats", "chosen"),
    [
        (
            ["a", "v144", "v360", "v720", "p720"],
            ["v360", "a"],
        ),  # the smallest stream that reaches 256 px, and a sound
        (["a", "v144", "p720"], ["p720"]),  # no stream is large enough, a file is
        (["a", "v144", "p96"], ["v144", "a"]),  # nothing is: the largest
        (["p360", "p720"], ["p360"]),
    ],
)
def test_the_smallest_sufficient_format_is_chosen(formats: list[str], chosen: list[str]) -> None:
    only = {
        "a": {"vcodec": "none", "abr": 128},
        "v": {"acodec": "none", "vcodec": "h264"},
        "p": {"vcodec": "h264", "acodec": "aac"},
    }
    offered = [stream(name, int(name[1:] or 0), **only[name[0]]) for name in formats]
    assert [f["format_id"] for f in choose_formats(offered, 256)] == chosen


def test_formats_that_only_ffmpeg_could_download_are_never_chosen() -> None:
    with pytest.raises(Refused, match="native"):
        choose_formats([stream("a", 360, protocol="rtmp"), stream("b", 360, has_drm=True)], 256)
