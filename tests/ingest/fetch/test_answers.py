"""Ranges: what a request asks for, and what a 206 states. The web's answers are in test_web_claims."""

import io

import pytest
from yt_dlp.networking import Request, Response

from ingest.fetch.answers import is_part, range_of, states_whole


def answer(content_range: str) -> Response:
    headers = {"Content-Range": content_range} if content_range else {}
    return Response(io.BytesIO(b""), "http://a.example/", headers, 206)


@pytest.mark.parametrize(
    ("text", "part"), [("bytes=2-5", (2, 5)), ("bytes=7-", (7, None)), ("", None), ("nonsense", None)]
)
def test_a_range_is_read_from_its_header(text: str, part: tuple[int, int | None] | None) -> None:
    assert range_of(Request("http://a.example/", headers={"Range": text} if text else {})) == part


@pytest.mark.parametrize(
    ("stated", "part", "holds"),
    [
        ("bytes 2-5/10", (2, 5), True),
        ("bytes 3-5/10", (2, 5), False),
        ("bytes 2-9/10", (2, None), True),
        ("bytes 2-5/10", (2, None), False),
        ("", None, True),
        ("", (2, 5), False),
    ],
)
def test_a_206_holds_what_was_requested(
    stated: str, part: tuple[int, int | None] | None, holds: bool
) -> None:
    assert is_part(answer(stated), part) == holds


def test_a_206_may_hold_everything() -> None:
    assert states_whole(answer("bytes 0-9/10")) and not states_whole(answer("bytes 0-5/10"))
