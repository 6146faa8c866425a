"""Content-Type, Content-Length, Content-Encoding and Content-Range are claims: an answer is judged by its
bytes.
"""

import gzip
import zlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

import pytest

from ingest.fetch.formats import mark_main_sounds
from ingest.sample import Media, Reason
from tests.ingest.fetch.test_fetcher import HostileSite, body, refused
from tests.ingest.fetch.test_fetcher import fetch as fetch
from tests.ingest.fetch.test_fetcher import hostile as hostile

FILM = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(range(256)) * 400
PAGE = b"<!doctype html><title>x</title><p>nothing here"


@pytest.mark.parametrize(
    "stated",
    [
        "binary/octet-stream",
        "",
        "text/plain",
        "text/html",
        "application/mp4",
        "application/x-download",
        "image/jpeg",
        "nonsense",
    ],
)
def test_a_large_medium_is_fetched_whatever_its_stated_type(
    hostile: HostileSite, fetch: Callable[..., Media], stated: str
) -> None:
    hostile.answers["/a"] = body(FILM, stated)
    assert fetch("/a", max_text_bytes=1000).picture.read_bytes() == FILM


@pytest.mark.parametrize("stated", ["video/mp4", "application/octet-stream", "image/png"])
def test_a_page_stated_to_be_a_medium_is_read_as_a_page(
    hostile: HostileSite, fetch: Callable[..., Media], stated: str
) -> None:
    hostile.answers["/a.mp4"] = body(PAGE, stated)
    assert refused(lambda: fetch("/a.mp4")) == Reason.UNSUPPORTED
    assert hostile.asked == ["/a.mp4"], "no body is saved as a medium"


@pytest.mark.parametrize(
    "stated",
    [
        "aws-chunked",
        "utf-8",
        "UTF-8",
        "binary",
        "identity",
        "aws-chunked, identity",
        "none",
        "br",
        "gzip",
        "x",
    ],
)
def test_plain_bytes_are_taken_whatever_their_stated_encoding(
    hostile: HostileSite, fetch: Callable[..., Media], stated: str
) -> None:
    hostile.answers["/a.mp4"] = body(FILM, "video/mp4", Content_Encoding=stated)
    assert fetch("/a.mp4").picture.read_bytes() == FILM


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("stated", "packed"),
    [
        ("gzip", gzip.compress(FILM)),
        ("aws-chunked,gzip", gzip.compress(FILM)),
        ("deflate", zlib.compress(FILM)),
        ("deflate", deflated(FILM)),
    ],
)
def test_packed_bytes_are_unpacked_although_identity_was_requested(
    hostile: HostileSite, fetch: Callable[..., Media], stated: str, packed: bytes
) -> None:
    hostile.answers["/a.mp4"] = body(packed, "video/mp4", Content_Encoding=stated)
    assert fetch("/a.mp4").picture.read_bytes() == FILM


def chunked(data: bytes, ends: bytes, content_type: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Content-Type", content_type)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"%x\r\n" % len(data) + data + ends)
        handler.close_connection = True

    return answer


@pytest.mark.parametrize("ends", [b"", b"\r\n", b"\r\nffff\r\nx"])
@pytest.mark.parametrize(
    ("data", "stated"),
    [(FILM, "video/mp4"), (PAGE, "text/html"), (b"#EXTM3U\n", "application/vnd.apple.mpegurl")],
)
def test_a_chunked_answer_that_is_cut_may_succeed_another_day(
    hostile: HostileSite, fetch: Callable[..., Media], data: bytes, stated: str, ends: bytes
) -> None:
    hostile.answers["/a"] = chunked(data, ends, stated)
    assert refused(lambda: fetch("/a", retries=0)) == Reason.NETWORK


def ranged(how: str) -> Callable[[BaseHTTPRequestHandler], None]:
    """Cuts the first whole answers in the middle; then answers the rest as `how` says."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range")
        count = handler.server.asked.count(handler.path)  # type: ignore[attr-defined]
        if not asked and count <= 2:
            body(FILM[:50_000], "video/mp4", Content_Length=str(len(FILM)))(handler)
        elif not asked:
            body(FILM, "video/mp4")(handler)
        elif how == "no Content-Range":
            body(FILM[50_000:], "video/mp4", 206)(handler)
        elif how == "another part":
            body(FILM[60_000:], "video/mp4", 206, Content_Range=f"bytes 60000-{len(FILM) - 1}/{len(FILM)}")(
                handler
            )
        elif how == "416":
            body(b"", "video/mp4", 416)(handler)
        else:
            body(FILM, "video/mp4", 200)(handler)

    return answer


@pytest.mark.parametrize("how", ["no Content-Range", "another part", "416", "the whole"])
def test_a_cut_download_is_completed_however_a_range_is_answered(
    hostile: HostileSite, fetch: Callable[..., Media], how: str
) -> None:
    hostile.answers["/a.mp4"] = ranged(how)
    assert fetch("/a.mp4").picture.read_bytes() == FILM


def test_a_whole_that_is_a_part_is_no_whole(hostile: HostileSite, fetch: Callable[..., Media]) -> None:
    hostile.answers["/a.mp4"] = body(FILM[:500], "video/mp4", 206, Content_Range=f"bytes 0-499/{len(FILM)}")
    assert refused(lambda: fetch("/a.mp4")) == Reason.NETWORK
    hostile.answers["/b.mp4"] = body(FILM, "video/mp4", 206)
    assert fetch("/b.mp4").picture.read_bytes() == FILM


def test_byte_range_segments_are_cut_out_of_a_full_answer(
    hostile: HostileSite, fetch: Callable[..., Media]
) -> None:
    places = ((0, 1000), (1000, 500), (2000, 300))
    parts = "".join(f"#EXTINF:1.0,\n#EXT-X-BYTERANGE:{size}@{start}\nall.ts\n" for start, size in places)
    hostile.answers["/list.m3u8"] = body(
        f"#EXTM3U\n#EXT-X-VERSION:4\n#EXT-X-TARGETDURATION:1\n{parts}#EXT-X-ENDLIST\n".encode(), "text/plain"
    )
    hostile.answers["/all.ts"] = body(FILM, "video/mp2t")
    assert fetch("/list.m3u8").picture.read_bytes() == FILM[:1500] + FILM[2000:2300]


MASTER = """#EXTM3U
#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",NAME="Deutsch",LANGUAGE="de",AUTOSELECT=YES,URI="de.m3u8"
#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",NAME="English",LANGUAGE="en",DEFAULT=YES,AUTOSELECT=YES,URI="en.m3u8"
#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",NAME="AD",LANGUAGE="en",CHARACTERISTICS="public.accessibility.describes-video",URI="ad.m3u8"
#EXT-X-STREAM-INF:BANDWIDTH=300000,CODECS="avc1.4d401e,mp4a.40.2",RESOLUTION=640x360,AUDIO="a"
picture.m3u8
"""


def test_of_several_sounds_of_a_playlist_the_default_one_is_taken(
    hostile: HostileSite, fetch: Callable[..., Media]
) -> None:
    def one_segment(name: str) -> str:
        return f"#EXTM3U\n#EXTINF:1.0,\n{name}.ts\n#EXT-X-ENDLIST\n"

    hostile.answers["/master.m3u8"] = body(MASTER.encode(), "text/plain")
    for name in ("de", "en", "ad", "picture"):
        hostile.answers[f"/{name}.m3u8"] = body(one_segment(name).encode(), "text/plain")
        hostile.answers[f"/{name}.ts"] = body(name.encode() + bytes(500), "video/mp2t")
    media = fetch("/master.m3u8")
    assert media.sound.read_bytes().startswith(b"en") and media.picture.read_bytes().startswith(b"picture")
    assert media.meta["language"] == "en"


@pytest.mark.parametrize(
    ("main", "other"), [("main", "dub"), ("main", "description"), ("", "commentary"), ("", "alternate")]
)
def test_of_several_sounds_of_a_dash_manifest_the_main_one_is_preferred(main: str, other: str) -> None:
    def adaptation(id: str, role: str) -> str:
        said = f'<Role schemeIdUri="urn:mpeg:dash:role:2011" value="{role}"/>' if role else ""
        return f'<AdaptationSet contentType="audio">{said}<Representation id="{id}"/></AdaptationSet>'

    manifest = f'<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period>{adaptation("1", other)}{adaptation("2", main)}</Period></MPD>'
    formats = [{"format_id": id, "vcodec": "none", "url": f"x/{id}"} for id in ("1", "2")]
    mark_main_sounds(formats, {"x": manifest})
    first, second = (f.get("language_preference") or 0 for f in formats)
    assert first < second
