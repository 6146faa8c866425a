"""Answers that never end, slow and fast: each item ends with a reason at its cap of time or bytes, and the
next one is fetched.
"""

import itertools
import time
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from ingest.fetch.fetcher import Fetcher
from ingest.fetch.settings import FetchConfig
from ingest.sample import Reason, Refused
from tests.ingest.fetch.test_fetcher import ALLOW, LICENSED, Answer, HostileSite, body
from tests.ingest.fetch.test_fetcher import hostile as hostile

TIMEOUT_S = 1.5
PLAYLIST = "application/vnd.apple.mpegurl"
HEAD = b"HTTP/1.0 200 OK\r\nContent-Type: "


def dripping(start: bytes, drops: Iterable[bytes]) -> Answer:
    """`start` at once, then a drop now and then, long before a socket would time out."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(start)
        for drop in drops:
            handler.wfile.write(drop)
            if handler.server.release.wait(0.1):  # type: ignore[attr-defined]
                return

    return answer


@pytest.mark.parametrize(
    ("path", "start", "drop"),
    [
        ("/a.mp4", HEAD + b"video/mp4\r\n\r\n", b"x"),
        ("/a.mp4", HEAD + b"video/mp4\r\nContent-Length: 100000\r\n\r\n", b"x"),
        ("/page", HEAD + b"text/html\r\n\r\n" + LICENSED.encode(), b" "),
        ("/page", HEAD + b"text/html\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b", b"\0"),
        ("/a.m3u8", HEAD + PLAYLIST.encode() + b"\r\n\r\n#EXTM3U\n", b"#\n"),
        ("/a.m3u8", HEAD + b"video/mp2t\r\n\r\n", b"x"),  # of its segment
        ("/a.mp4", HEAD, b"x"),  # in the middle of a header
        ("/a.mp4", b"", b"H"),  # of the status line
    ],
)
def test_an_answer_that_drips_ends_with_the_items_time(
    hostile: HostileSite, tmp_path: Path, path: str, start: bytes, drop: bytes
) -> None:
    drip = dripping(start, itertools.repeat(drop))
    hostile.answers = {path: drip, "/good.mp4": body(b"film", "video/mp4")}
    if b"mp2t" in start:
        hostile.answers |= {
            "/a.ts": drip,
            path: body(b"#EXTM3U\n#EXT-X-TARGETDURATION:6\n#EXTINF:6,\na.ts\n#EXT-X-ENDLIST\n", PLAYLIST),
        }
    config = FetchConfig(
        allow_private=[f"127.0.0.1:{hostile.server_address[1]}"], timeout_s=TIMEOUT_S, socket_timeout_s=20.0
    )
    with Fetcher(config, tmp_path, ALLOW) as ours:
        ours.fetch(hostile.item("/good.mp4"), 64).picture.unlink()  # the start of the child is no item's time
        child, started_s = ours.child.pid, time.monotonic()
        with pytest.raises(Refused, match="took too long") as caught:
            ours.fetch(hostile.item(path), 64)
        assert caught.value.reason == Reason.TIMEOUT and time.monotonic() - started_s >= TIMEOUT_S
        assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) == 0
        assert (
            ours.fetch(hostile.item("/good.mp4"), 64).picture.read_bytes() == b"film"
            and ours.child.pid == child
        )
    assert path in hostile.asked


def flooding(start: bytes, block: bytes, sent: list[int]) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(start)
        while not handler.server.release.is_set():  # type: ignore[attr-defined]
            handler.wfile.write(block)
            sent.append(len(block))

    return answer


@pytest.mark.parametrize(
    ("path", "start", "block", "reason", "message"),
    [
        ("/a.mp4", HEAD + b"video/mp4\r\n\r\n", bytes(100_000), Reason.TOO_LARGE, "more than 3000000"),
        (
            "/page",
            HEAD + b"text/html\r\n\r\n" + LICENSED.encode(),
            b" " * 100_000,
            Reason.TOO_LARGE,
            "a text of more than 1000000",
        ),
        (
            "/a.m3u8",
            HEAD + PLAYLIST.encode() + b"\r\n\r\n#EXTM3U\n",
            b"#EXTINF:6,\na.ts\n" * 1000,
            Reason.TOO_LARGE,
            "a text of more than 1000000",
        ),
        (
            "/page",
            HEAD + b"text/html\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b",
            bytes(100_000),
            Reason.CORRUPT,
            "content encoding",
        ),
        (
            "/a.mp4",
            HEAD + b"video/mp4\r\n",
            b"X-More: x\r\n" * 1000,
            Reason.NETWORK,
            "(?i)header line|status line|100 headers",
        ),
        ("/a.mp4", HEAD, b"x" * 100_000, Reason.NETWORK, "(?i)header line|status line|100 headers"),
        ("/a.mp4", b"", b"x" * 100_000, Reason.NETWORK, "(?i)header line|status line|100 headers"),
    ],
)
def test_an_answer_without_end_is_cut_off(
    hostile: HostileSite, tmp_path: Path, path: str, start: bytes, block: bytes, reason: Reason, message: str
) -> None:
    sent: list[int] = []
    hostile.answers = {path: flooding(start, block, sent), "/good.mp4": body(b"film", "video/mp4")}
    caps = {"max_bytes": 3_000_000, "max_text_bytes": 1_000_000, "retries": 0}
    with Fetcher(
        FetchConfig(allow_private=[f"127.0.0.1:{hostile.server_address[1]}"], **caps), tmp_path, ALLOW
    ) as ours:  # type: ignore[arg-type]
        with pytest.raises(Refused, match=message) as caught:
            ours.fetch(hostile.item(path), 64)
        assert caught.value.reason == reason, caught.value.detail
        assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) == 0
        assert ours.fetch(hostile.item("/good.mp4"), 64).picture.read_bytes() == b"film"
    assert sum(sent) < 60_000_000  # the kernel takes some on its own


def test_the_body_of_a_redirect_is_not_read(hostile: HostileSite, tmp_path: Path) -> None:
    sent: list[int] = []
    flood = flooding(b"HTTP/1.0 302 Found\r\nLocation: /good.mp4\r\n\r\n", bytes(100_000), sent)
    hostile.answers = {"/a.mp4": flood, "/good.mp4": body(b"film", "video/mp4")}
    with Fetcher(
        FetchConfig(allow_private=[f"127.0.0.1:{hostile.server_address[1]}"], timeout_s=5.0), tmp_path, ALLOW
    ) as ours:
        assert ours.fetch(hostile.item("/a.mp4"), 64).picture.read_bytes() == b"film"
    assert sum(sent) < 60_000_000


def test_segments_and_redirects_without_end_are_cut_off(hostile: HostileSite, tmp_path: Path) -> None:
    class Site(dict[str, Answer]):
        def __missing__(self, path: str) -> Answer:
            if path.startswith("/hop"):
                return body(b"", status=302, Location=f"/hop{len(path)}{path[-40:]}")
            return lambda handler: handler.wfile.write(HEAD + b"video/mp2t\r\n\r\n" + bytes(500_000))

    segments = "".join(f"#EXTINF:1,\n{number}.ts\n" for number in range(2000))
    hostile.answers = Site(
        {"/a.m3u8": body(f"#EXTM3U\n#EXT-X-TARGETDURATION:6\n{segments}#EXT-X-ENDLIST\n".encode(), PLAYLIST)}
    )
    config = FetchConfig(
        allow_private=[f"127.0.0.1:{hostile.server_address[1]}"], max_bytes=3_000_000, retries=0
    )
    with Fetcher(config, tmp_path, ALLOW) as ours:
        for path, reason, most in (("/a.m3u8", Reason.TOO_LARGE, 9), ("/hop", Reason.UNSUPPORTED, 20)):
            hostile.asked.clear()
            with pytest.raises(Refused) as caught:
                ours.fetch(hostile.item(path), 64)
            assert caught.value.reason == reason, caught.value.detail
            assert len(hostile.asked) <= most
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) == 0
