"""Addresses, end to end: whatever a list, a page, a redirect, a manifest or a DNS answer says, nothing
private is asked.

A second server on loopback, which no exception names, stands for a private service. Names are resolved in the
fetch process by a list of the test; a public address stands for the hostile site, and is checked as such
before the connect is led to loopback.
"""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest.child import CHECKOUT
from ingest.fetch.fetcher import Fetcher
from ingest.fetch.settings import FetchConfig
from ingest.sample import Item, Media, Reason
from tests.ingest.fetch.test_fetcher import ALLOW, LICENSED, HostileSite, body, refused
from tests.ingest.fetch.test_fetcher import fetch as fetch
from tests.ingest.fetch.test_fetcher import hostile as hostile

PUBLIC, OTHER_PUBLIC, PRIVATE = "8.8.8.8", "9.9.9.9", "127.0.0.1"
HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:6\n{}#EXT-X-ENDLIST\n"
MPD = (
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT6S">'
    "<Period>{}</Period></MPD>"
)
SETS = "".join(f'<AdaptationSet mimeType="{kind}/mp4">{{0}}</AdaptationSet>' for kind in ("video", "audio"))


def dash(representation: str) -> str:
    """A picture and a sound, both of this form."""
    return MPD.format(SETS.format(representation))


@pytest.fixture
def private() -> Iterator[HostileSite]:
    """Answers whatever it is asked with a film, which nobody may ever ask for."""
    with HostileSite() as server:
        server.answers = Anything()
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


class Anything(dict[str, Any]):
    def __missing__(self, path: str) -> Any:
        return body(b"secret", "video/mp4")


def port(site: HostileSite) -> int:
    return int(site.server_address[1])


def urls(site: HostileSite, private: HostileSite) -> dict[str, str]:
    """{name: value} to fill into what the hostile site says."""
    return {
        "private": f"http://127.0.0.1:{port(private)}",
        "site": f"127.0.0.1:{port(site)}",
        "port": str(port(private)),
    }


NOTATIONS = [
    "2130706433",
    "017700000001",
    "0x7f000001",
    "0177.0.0.1",
    "0x7f.0.0.1",
    "127.1",
    "127.0.1",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[64:ff9b::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::1]",
    "[0:0:0:0:0:ffff:7f00:0001]",
    "localhost",
    "LOCALHOST",
    "0",
    "0.0.0.0",
    "[::]",
]


def test_no_notation_of_an_address_gets_past(
    private: HostileSite, hostile: HostileSite, tmp_path: Path
) -> None:
    with Fetcher(
        FetchConfig(allow_private=[f"127.0.0.1:{port(hostile)}"], retries=0, requests_per_s=0),
        tmp_path,
        ALLOW,
    ) as ours:
        for notation in NOTATIONS:
            url = f"http://{notation}:{port(private)}/a.mp4"
            hostile.answers["/a.mp4"] = body(b"", status=302, Location=url)
            for item in (Item("urls", "a", url, "CC0-1.0"), hostile.item("/a.mp4")):
                assert refused(lambda item=item: ours.fetch(item, 64)) == Reason.ADDRESS, notation
    assert private.asked == [] and len(hostile.asked) == len(NOTATIONS)


def test_an_exception_is_for_the_operators_own_server_in_every_notation(
    hostile: HostileSite, fetch: Callable[..., Media]
) -> None:
    """So that what refuses above is the address, and not the way it is written."""
    hostile.answers["/a.mp4"] = body(b"\0film", "video/mp4")
    for notation in ("2130706433", "0x7f.0.0.1", "localhost"):
        hostile.answers["/b.mp4"] = body(b"", status=302, Location=f"http://{notation}:{port(hostile)}/a.mp4")
        assert fetch("/b.mp4").picture.read_bytes() == b"\0film"


@pytest.mark.parametrize(
    "location",
    [
        "{private}/secret",
        "//127.0.0.1:{port}/secret",
        "http://2130706433:{port}/secret",
        "http://[::ffff:127.0.0.1]:{port}/secret",
        "http://{site}@127.0.0.1:{port}/secret",
        "http://{site}%40127.0.0.1:{port}/secret",
        "http://{site}\\@127.0.0.1:{port}/secret",
        "http://127.0.0.1:{port}\\@{site}/secret",
        # the site itself, which has no such page
        "http://{site}/?@127.0.0.1:{port}/secret#@127.0.0.1:{port}/secret",
        "http://user:word@{site}/a.mp4",
    ],
)
def test_a_redirect_at_the_second_hop_leads_nowhere_private(
    hostile: HostileSite, private: HostileSite, fetch: Callable[..., Media], location: str
) -> None:
    hostile.answers = {
        "/a.mp4": body(b"", status=302, Location="/b.mp4"),
        "/b.mp4": body(b"", status=307, Location=location.format(**urls(hostile, private))),
        f"/?@127.0.0.1:{port(private)}/secret": body(b"", status=404),
    }
    assert refused(lambda: fetch("/a.mp4", retries=0)) == (
        Reason.REMOVED if "/?" in location else Reason.ADDRESS
    )
    assert (
        private.asked == []
        and hostile.asked[:2] == ["/a.mp4", "/b.mp4"]
        and len(hostile.asked) == (3 if "/?" in location else 2)
    )


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/a.m3u8", HLS.format("#EXTINF:6,\n{private}/a.ts\n")),
        ("/a.m3u8", HLS.format("#EXTINF:6,\nhttp://{site}@127.0.0.1:{port}/a.ts\n")),
        ("/a.m3u8", HLS.format("#EXTINF:6,\nhttp://0x7f000001:{port}/a.ts\n")),
        ("/a.m3u8", HLS.format("#EXTINF:6,\ngood.ts\n#EXTINF:6,\n{private}/a.ts\n")),
        ("/a.m3u8", HLS.format("#EXTINF:6,\nmoved.ts\n")),
        ("/a.m3u8", HLS.format('#EXT-X-MAP:URI="{private}/init.mp4"\n#EXTINF:6,\ngood.ts\n')),
        ("/a.m3u8", HLS.format('#EXT-X-KEY:METHOD=AES-128,URI="{private}/key"\n#EXTINF:6,\ngood.ts\n')),
        ("/a.m3u8", "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1000,RESOLUTION=64x64\n{private}/b.m3u8\n"),
        (
            "/a.mpd",
            dash('<Representation id="1" bandwidth="1"><BaseURL>{private}/a.mp4</BaseURL></Representation>'),
        ),
        (
            "/a.mpd",
            dash(
                '<SegmentTemplate timescale="1" duration="6" initialization="{private}/i.mp4" media="{private}/$Number$.m4s"/>'
                '<Representation id="1" bandwidth="1" width="64" height="64"/>'
            ),
        ),
        (
            "/a.mpd",
            dash(
                '<Representation id="1" bandwidth="1"><SegmentList><SegmentURL media="good.ts"/>'
                '<SegmentURL media="{private}/a.m4s"/></SegmentList></Representation>'
            ),
        ),
    ],
)
def test_a_manifest_leads_nowhere_private(
    hostile: HostileSite, private: HostileSite, fetch: Callable[..., Media], path: str, text: str
) -> None:
    kind = {".mpd": "application/dash+xml", ".m3u8": "application/vnd.apple.mpegurl"}[Path(path).suffix]
    hostile.answers = {
        path: body(text.format(**urls(hostile, private)).encode(), kind),
        "/good.ts": body(b"film", "video/mp2t"),
    }
    hostile.answers["/moved.ts"] = body(b"", status=302, Location=f"{urls(hostile, private)['private']}/a.ts")
    assert refused(lambda: fetch(path, retries=0)) == Reason.ADDRESS
    assert private.asked == [] and path in hostile.asked


@pytest.mark.parametrize(
    "place", ["{private}/a.mp4", "http://{site}@127.0.0.1:{port}/a.mp4", "//127.0.0.1:{port}/a.mp4"]
)
def test_a_page_leads_nowhere_private(
    hostile: HostileSite, private: HostileSite, fetch: Callable[..., Media], place: str
) -> None:
    hostile.answers["/page"] = body(
        f'{LICENSED}<video src="{place.format(**urls(hostile, private))}"></video>'.encode()
    )
    assert refused(lambda: fetch("/page", retries=0)) in (Reason.ADDRESS, Reason.UNSUPPORTED)
    assert private.asked == [] and hostile.asked == ["/page"]


RESOLVER = """
import json, os, socket, sys
answers = json.loads({answers!r})
real_connect, real_lookup = socket.socket.connect, socket.getaddrinfo

def lookup(host, port, *more, **named):
    if host not in answers:
        return real_lookup(host, port, *more, **named)
    found = answers[host].pop(0) if len(answers[host]) > 1 else answers[host][0]
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

def connect(self, address):
    if address[0] not in {public!r}:
        return real_connect(self, address)
    sys.audit("socket.connect", self, address)  # as the real one would; nothing leaves this machine
    if address[0] == {other!r}:
        raise ConnectionRefusedError("nobody there")
    return real_connect(self, ("127.0.0.1", {port}))

socket.getaddrinfo, socket.socket.connect = lookup, connect
"""


@pytest.fixture
def resolved(hostile: HostileSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """resolved(*answers): what `site.example` resolves to in the fetch process, an answer each time; the last
    one stays.
    """

    def resolves_to(*answers: list[str]) -> None:
        names = json.dumps({"site.example": list(answers)})
        text = RESOLVER.format(
            answers=names, public=(PUBLIC, OTHER_PUBLIC), other=OTHER_PUBLIC, port=port(hostile)
        )
        (tmp_path / "patch").mkdir()
        (tmp_path / "patch/sitecustomize.py").write_text(text)
        monkeypatch.setattr("ingest.child.CHECKOUT", f"{tmp_path / 'patch'}:{CHECKOUT}")

    return resolves_to


def named(private: HostileSite, path: str) -> Item:
    return Item("urls", "a", f"http://site.example:{port(private)}{path}", "CC0-1.0")


def test_a_name_with_a_public_address_is_fetched(
    hostile: HostileSite,
    private: HostileSite,
    fetch: Callable[..., Media],
    resolved: Callable[..., None],
    tmp_path: Path,
) -> None:
    """The counter-example to the next two: the patched resolver works, and a dead address among public ones
    is passed over.
    """
    resolved([OTHER_PUBLIC, PUBLIC])
    hostile.answers["/a.mp4"] = body(b"\0film", "video/mp4")
    config = FetchConfig(allow_private=[f"127.0.0.1:{port(hostile)}"])
    with Fetcher(config, tmp_path / "spool", ALLOW) as ours:
        assert ours.fetch(named(private, "/a.mp4"), 64).picture.read_bytes() == b"\0film"
    assert private.asked == []


@pytest.mark.parametrize(
    ("answers", "asked"),
    [
        ([[PRIVATE]], []),
        ([[PUBLIC], [PRIVATE]], []),  # public for robots.txt only
        (
            [[PUBLIC]] * 4 + [[PRIVATE]],
            ["/a.mp4"],
        ),  # public when it is looked at, private when it is downloaded
        ([[PUBLIC]] * 5 + [[PRIVATE]], ["/a.mp4"] * 2),  # and where it is resumed
        ([[PRIVATE, PUBLIC]], []),
        ([[OTHER_PUBLIC, PRIVATE]], []),
        ([[OTHER_PUBLIC, PRIVATE, PUBLIC]], []),
    ],
)
def test_a_name_that_resolves_to_something_private_is_refused_at_the_connect(
    hostile: HostileSite,
    private: HostileSite,
    resolved: Callable[..., None],
    tmp_path: Path,
    answers: list[list[str]],
    asked: list[str],
) -> None:
    resolved(*answers)
    hostile.answers["/a.mp4"] = body(b"\0half a fi", "video/mp4", Content_Length="100")
    with Fetcher(
        FetchConfig(allow_private=[f"127.0.0.1:{port(hostile)}"], retries=1), tmp_path / "spool", ALLOW
    ) as ours:
        assert refused(lambda: ours.fetch(named(private, "/a.mp4"), 64)) == Reason.ADDRESS
    assert private.asked == [] and hostile.asked == asked
