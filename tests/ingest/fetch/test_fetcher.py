"""Fetching, against a real site of scenes and a hostile one, both on loopback: what comes down, and what is
refused and why.
"""

import contextlib
import csv
import gzip
import json
import os
import signal
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import pytest

from configs.load import UserError
from ingest.fetch.fetcher import Fetcher
from ingest.fetch.settings import FetchConfig
from ingest.rights.permission import PATHS
from ingest.sample import Item, Media, Reason, Refused
from ingest.serve import SiteServer, running_site
from ingest.synth import SynthConfig, synth

ALLOW = ("CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0")
LICENSED = '<script type="application/ld+json">{"@type": "VideoObject", "license": "CC0-1.0"}</script>'
Answer = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteServer]:
    folder = tmp_path_factory.mktemp("world")
    synth(SynthConfig(str(folder), videos=6, webm=1, hls=1, dash=1, stills=1, scenes_per_video=1, workers=1))
    with running_site(folder) as site:
        yield site


@pytest.fixture(scope="module")
def rows(world: SiteServer) -> dict[str, Item]:
    with (world.site.folder / "urls.csv").open(newline="") as file:
        return {row["id"]: Item("urls", channel="", **row) for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def fetcher(world: SiteServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fetcher]:
    with Fetcher(
        FetchConfig(allow_private=[f"127.0.0.1:{world.port}"]), tmp_path_factory.mktemp("spool"), ALLOW
    ) as ours:
        yield ours


class HostileSite(ThreadingHTTPServer):
    """Answers each path by a function of the test, and remembers who asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HostileHandler)
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.asked_first: list[str] = []  # robots.txt and its like, which most tests have none of
        self.started, self.release = threading.Event(), threading.Event()

    def item(self, path: str, license: str = "CC0-1.0") -> Item:
        return Item(
            "urls",
            path.strip("/").replace(".", "-"),
            f"http://127.0.0.1:{self.server_address[1]}{path}",
            license,
        )


class HostileHandler(BaseHTTPRequestHandler):
    server: HostileSite

    def do_GET(self) -> None:
        if self.path in PATHS.values():
            self.server.asked_first.append(self.path)
            self.server.answers.get(self.path, body(b"", status=404))(self)
            return
        self.server.asked.append(self.path)
        with contextlib.suppress(ConnectionError):
            self.server.answers[self.path](self)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hostile() -> Iterator[HostileSite]:
    with HostileSite() as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.release.set()
        server.shutdown()


@pytest.fixture
def fetch(hostile: HostileSite, tmp_path: Path) -> Iterator[Callable[..., Media]]:
    """fetch(path, license, **settings) against the hostile site."""
    with contextlib.ExitStack() as stack:

        def one(path: str, license: str = "CC0-1.0", **settings: object) -> Media:
            config = FetchConfig(allow_private=[f"127.0.0.1:{hostile.server_address[1]}"], **settings)  # type: ignore[arg-type]
            return stack.enter_context(Fetcher(config, tmp_path, ALLOW)).fetch(
                hostile.item(path, license), 64
            )

        yield one


def body(data: bytes, content_type: str = "text/html", status: int = 200, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {
            "Content_Type": content_type,
            "Content_Length": str(len(data)),
            **headers,
        }.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def stuck(handler: BaseHTTPRequestHandler) -> None:
    """Half a video, then silence until the test is over.

    The first look, which reads no body, tells nobody.
    """
    handler.send_response(200)
    handler.send_header("Content-Type", "video/mp4")
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    handler.wfile.write(bytes(50000))
    if handler.server.asked.count(handler.path) == 2:  # type: ignore[attr-defined]
        handler.server.started.set()  # type: ignore[attr-defined]
    handler.server.release.wait(20)  # type: ignore[attr-defined]


def refused(what: Callable[[], object]) -> Reason:
    with pytest.raises(Refused) as caught:
        what()
    return caught.value.reason


def codecs(path: Path) -> list[str]:
    with av.open(str(path)) as media:
        return [stream.codec_context.name for stream in media.streams]


@pytest.mark.parametrize(
    ("id", "expected"),
    [
        ("mp40000", ["h264", "aac"]),  # a page
        ("mp40001", ["h264", "aac"]),  # a direct link
        ("webm0000", ["vp9", "opus"]),
        ("hls0000", ["h264", "aac"]),
        ("silent0000", ["h264", "aac"]),
    ],
)
def test_a_video_comes_down_as_one_file_with_its_license(
    fetcher: Fetcher, rows: dict[str, Item], id: str, expected: list[str]
) -> None:
    media = fetcher.fetch(rows[id], 64)
    assert media.picture == media.sound and not media.still and media.owned
    assert codecs(media.picture) == expected
    assert media.license in ALLOW and media.num_bytes == media.picture.stat().st_size


def test_dash_comes_down_as_picture_and_sound_unmerged(fetcher: Fetcher, rows: dict[str, Item]) -> None:
    media = fetcher.fetch(rows["dash0000"], 64)
    assert (codecs(media.picture), codecs(media.sound)) == (["h264"], ["aac"])
    assert not media.still


def test_a_still_comes_down_as_photo_and_sound(fetcher: Fetcher, rows: dict[str, Item]) -> None:
    media = fetcher.fetch(rows["still0000"], 64)
    assert media.still and (codecs(media.picture), codecs(media.sound)) == (["mjpeg"], ["pcm_s16le"])


@pytest.mark.parametrize(
    ("id", "reason"),
    [
        ("dead0000", Reason.REMOVED),  # 404
        ("dead0001", Reason.REMOVED),  # 410
        ("dead0002", Reason.REMOVED),
        ("mp40003", Reason.LICENSE),
        ("mp40004", Reason.OPT_OUT),
    ],
)
def test_dead_unlicensed_and_opted_out_items_are_refused(
    fetcher: Fetcher, rows: dict[str, Item], id: str, reason: Reason
) -> None:
    assert refused(lambda: fetcher.fetch(rows[id], 64)) == reason


def test_a_busy_server_is_waited_for_as_long_as_it_asks(fetcher: Fetcher, rows: dict[str, Item]) -> None:
    started = time.monotonic()
    assert fetcher.fetch(rows["mp40002"], 64).num_bytes > 0
    assert time.monotonic() - started >= 1.0


def test_loopback_is_refused_unless_allowed(rows: dict[str, Item], tmp_path: Path) -> None:
    with Fetcher(FetchConfig(requests_per_s=0), tmp_path, ALLOW) as guarded:
        assert {refused(lambda item=item: guarded.fetch(item, 64)) for item in rows.values()} == {
            Reason.ADDRESS
        }


def test_local_paths_and_other_schemes_in_a_list_are_refused(tmp_path: Path) -> None:
    with Fetcher(FetchConfig(), tmp_path, ALLOW) as guarded:
        for url in (
            str(tmp_path),
            "file:///dev/null",
            "ftp://127.0.0.1/a.mp4",
            "data:video/mp4;base64,AAAA",
            "http://a@127.0.0.1/",
        ):
            assert (
                refused(lambda url=url: guarded.fetch(Item("urls", "a", url, "CC0-1.0"), 64))
                == Reason.ADDRESS
            )


def test_a_local_file_passes_without_a_copy(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    with Fetcher(FetchConfig(), tmp_path / "spool") as ours:
        media = ours.fetch(Item("folder", "a", str(tmp_path / "a.mp4"), "own"), 64)
    assert media.picture == tmp_path / "a.mp4" and not media.owned


def test_members_of_a_tar_are_copied_out_by_offset(tmp_path: Path) -> None:
    (tmp_path / "in.mp4").write_bytes(b"hello")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "in.mp4", "../../x.mp4")
    with tarfile.open(tmp_path / "a.tar") as tar:
        member = tar.getmembers()[0]
    place = {"picture": {"offset": member.offset_data, "size": member.size, "suffix": ".mp4"}}
    with Fetcher(FetchConfig(), tmp_path / "spool", ("own",)) as ours:
        media = ours.fetch(Item("tars", "a", str(tmp_path / "a.tar"), "own", meta={"tar": place}), 64)
    assert (
        media.picture.read_bytes() == b"hello" and media.picture.parent == tmp_path / "spool" and media.owned
    )


def test_a_redirect_to_an_address_that_is_not_allowed_is_refused_before_it_is_contacted(
    hostile: HostileSite, fetch: Callable[..., Media]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as inner:  # stands for a private service
        inner.settimeout(0.2)
        hostile.answers["/a.mp4"] = body(
            b"", status=302, Location=f"http://127.0.0.1:{inner.getsockname()[1]}/secret"
        )
        assert refused(lambda: fetch("/a.mp4")) == Reason.ADDRESS
        with pytest.raises(TimeoutError):
            inner.accept()


def test_a_redirect_to_a_file_is_refused(hostile: HostileSite, fetch: Callable[..., Media]) -> None:
    hostile.answers["/a.mp4"] = body(b"", status=302, Location="file:///etc/hostname")
    assert refused(lambda: fetch("/a.mp4")) == Reason.UNSUPPORTED


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_over_max_bytes_is_cut_off(
    hostile: HostileSite, fetch: Callable[..., Media], announced: bool, tmp_path: Path
) -> None:
    def large(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "video/mp4")
        if announced:
            handler.send_header("Content-Length", "50000000")
        handler.end_headers()
        for _ in range(50):
            handler.wfile.write(bytes(1_000_000))

    hostile.answers["/a.mp4"] = large
    assert refused(lambda: fetch("/a.mp4", max_bytes=3_000_000)) == Reason.TOO_LARGE
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 100_000


@pytest.mark.parametrize("letter", [b"<", b"\0"])
def test_a_compressed_bomb_is_refused(
    hostile: HostileSite, fetch: Callable[..., Media], letter: bytes
) -> None:
    """As a page at `max_text_bytes`, as a medium at `max_bytes`."""
    hostile.answers["/page"] = body(gzip.compress(letter * 40_000_000), Content_Encoding="gzip")
    assert refused(lambda: fetch("/page", max_bytes=30_000_000)) == Reason.TOO_LARGE


def test_a_server_that_fails_three_times_is_a_server_error(
    hostile: HostileSite, fetch: Callable[..., Media]
) -> None:
    hostile.answers["/a.mp4"] = body(b"", status=503, Retry_After="0")
    assert refused(lambda: fetch("/a.mp4", retries=2)) == Reason.SERVER_ERROR
    assert hostile.asked == ["/a.mp4"] * 3


def test_a_long_retry_after_is_not_waited_for(hostile: HostileSite, fetch: Callable[..., Media]) -> None:
    hostile.answers["/a.mp4"] = body(b"", status=429, Retry_After="3600")
    assert refused(lambda: fetch("/a.mp4")) == Reason.RATE_LIMITED
    assert hostile.asked == ["/a.mp4"]


def test_a_server_that_stops_sending_is_a_timeout(hostile: HostileSite, fetch: Callable[..., Media]) -> None:
    hostile.answers["/a.mp4"] = stuck
    assert refused(lambda: fetch("/a.mp4", timeout_s=1)) == Reason.TIMEOUT


def test_nothing_listening_is_a_network_failure(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with Fetcher(FetchConfig(allow_private=[f"127.0.0.1:{port}"], retries=0), tmp_path, ALLOW) as ours:
        assert (
            refused(lambda: ours.fetch(Item("urls", "a", f"http://127.0.0.1:{port}/a.mp4", "CC0-1.0"), 64))
            == Reason.NETWORK
        )


def test_a_killed_child_is_a_refusal_and_the_next_item_works(hostile: HostileSite, tmp_path: Path) -> None:
    hostile.answers = {"/slow.mp4": stuck, "/a.mp4": body(b"film", "video/mp4")}
    with Fetcher(
        FetchConfig(allow_private=[f"127.0.0.1:{hostile.server_address[1]}"]), tmp_path, ALLOW
    ) as ours:

        def kill() -> None:
            hostile.started.wait(20)
            assert ours.child.pid
            os.kill(ours.child.pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        assert refused(lambda: ours.fetch(hostile.item("/slow.mp4"), 64)) == Reason.WORKER_CRASHED
        killer.join()
        assert ours.fetch(hostile.item("/a.mp4"), 64).picture.read_bytes() == b"film"
        assert [path.name for path in tmp_path.iterdir()] == ["000001-media.mp4"]


def test_a_cut_download_is_resumed_where_it_was_cut(
    hostile: HostileSite, fetch: Callable[..., Media]
) -> None:
    whole = bytes(range(256)) * 2000

    def cut(handler: BaseHTTPRequestHandler) -> None:
        first = int((handler.headers.get("Range") or "bytes=0-").split("=")[1].split("-")[0])
        handler.send_response(206 if first else 200)
        handler.send_header("Content-Type", "video/mp4")
        handler.send_header("Content-Length", str(len(whole) - first))
        if first:
            handler.send_header("Content-Range", f"bytes {first}-{len(whole) - 1}/{len(whole)}")
        handler.end_headers()
        handler.wfile.write(whole[first:] if first else whole[: len(whole) // 2])

    hostile.answers["/a.mp4"] = cut
    assert fetch("/a.mp4").picture.read_bytes() == whole


@pytest.mark.parametrize("path", ["/a.mp4", "/a.m3u8"])
def test_a_download_that_is_always_cut_may_succeed_another_day(
    hostile: HostileSite, fetch: Callable[..., Media], path: str
) -> None:
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:6\n#EXTINF:6,\na.mp4\n#EXT-X-ENDLIST\n"
    hostile.answers["/a.m3u8"] = body(playlist, "application/vnd.apple.mpegurl")
    hostile.answers["/a.mp4"] = body(b"half a fi", "video/mp4", Content_Length="100000")
    assert refused(lambda: fetch(path, retries=1)) == Reason.NETWORK


@pytest.mark.parametrize(
    ("status", "headers", "reason"),
    [
        (429, "Retry-After: \u00b2", Reason.RATE_LIMITED),
        (200, "Content-Type: text/html; charset=idna", Reason.LICENSE),
        (200, "Content-Type: text/html; charset*=a'b'c; charset*0=x", Reason.LICENSE),
        (200, "Content-Type: text/html\r\nContent-Length: \u00b2", Reason.LICENSE),
    ],
)
def test_headers_that_make_no_sense_are_no_crash(
    hostile: HostileSite, fetch: Callable[..., Media], status: int, headers: str, reason: Reason
) -> None:
    hostile.answers["/a"] = lambda handler: handler.wfile.write(
        f"HTTP/1.0 {status} x\r\n{headers}\r\n\r\n\xff".encode("latin-1")
    )
    assert refused(lambda: fetch("/a", "")) == reason


def test_what_a_page_states_can_be_stored(hostile: HostileSite, fetch: Callable[..., Media]) -> None:
    media = hostile.item("/a.mp4").url
    facts = json.dumps(
        {
            "@context": "https://schema.org",
            "@type": "VideoObject",
            "contentUrl": media,
            "license": "CC0",
            "author": {"name": "\ud800"},
        }
    )
    page = f'<title>x</title><script type="application/ld+json">{facts}</script>'
    hostile.answers |= {"/page": body(page.encode()), "/a.mp4": body(b"x", "video/mp4")}
    assert fetch("/page", "").channel == "\\ud800"


def test_the_child_sees_nothing_of_our_environment(
    fetcher: Fetcher, rows: dict[str, Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    fetcher.close()
    fetcher.fetch(rows["mp40000"], 64)
    assert fetcher.child.pid
    assert b"hush" not in Path(f"/proc/{fetcher.child.pid}/environ").read_bytes()


def test_the_child_is_recycled(rows: dict[str, Item], world: SiteServer, tmp_path: Path) -> None:
    pids = set()
    with Fetcher(
        FetchConfig(allow_private=[f"127.0.0.1:{world.port}"], recycle_items=1), tmp_path, ALLOW
    ) as ours:
        for _ in range(2):
            ours.fetch(rows["mp40000"], 64)
            pids.add(ours.child.pid or 0)
    assert len(pids) == 2


def test_settings_that_cannot_work_are_refused() -> None:
    for settings in ({"allow_private": ["example.org:80"]}, {"max_bytes": 0}, {"retries": -1}):
        with pytest.raises(UserError, match=next(iter(settings))):
            FetchConfig(**settings)  # type: ignore[arg-type]
