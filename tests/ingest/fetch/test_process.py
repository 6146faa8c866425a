"""What the fetch child lets in: licenses and opt-outs are judged before any medium is requested."""

from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from ingest.sample import Media, Reason
from tests.ingest.fetch.test_fetcher import LICENSED, HostileSite, body, refused
from tests.ingest.fetch.test_fetcher import fetch as fetch
from tests.ingest.fetch.test_fetcher import hostile as hostile

BAD_SEGMENTS = (
    '<MPD mediaPresentationDuration="PT9S"><Period><AdaptationSet mimeType="video/mp4">'
    '<SegmentTemplate timescale="x" media="$Number$"><SegmentTimeline><S t="q" d="z"/></SegmentTimeline>'
    '</SegmentTemplate><Representation id="1" bandwidth="y"/></AdaptationSet></Period></MPD>'
)


def test_no_media_before_the_license_is_known(hostile: HostileSite, fetch: Callable[..., Media]) -> None:
    hostile.answers["/page"] = body(b'<title>t</title><video src="/a.mp4"></video>')
    assert refused(lambda: fetch("/page", "")) == Reason.LICENSE
    assert hostile.asked == ["/page"]


def test_the_license_of_a_pages_text_brings_no_medium(
    hostile: HostileSite, fetch: Callable[..., Media]
) -> None:
    text = '<link rel="license" href="https://creativecommons.org/publicdomain/zero/1.0/">'
    hostile.answers["/page"] = body(f'{text}<title>t</title><video src="/a.mp4"></video>'.encode())
    assert refused(lambda: fetch("/page", "")) == Reason.LICENSE
    assert "/a.mp4" not in hostile.asked


def test_of_two_licenses_the_allowed_one_is_taken(hostile: HostileSite, fetch: Callable[..., Media]) -> None:
    boxes = "".join(
        f'<p class="licensetpl"><b class="licensetpl_short">{name}</b></p>' for name in ("GFDL 1.2", "CC0")
    )
    hostile.answers["/page"] = body(f'<title>t</title><video src="/a.mp4"></video>{boxes}'.encode())
    hostile.answers["/a.mp4"] = body(b"film", "video/mp4")
    media = fetch("/page", "")
    assert media.license == "CC0-1.0" and media.meta["licenses"] == ["CC0-1.0", "GFDL-1.2-only"]


@pytest.mark.parametrize("header", ["X_Robots_Tag", "tdm_reservation"])
def test_an_opt_out_in_headers_is_obeyed_before_the_body(
    hostile: HostileSite, fetch: Callable[..., Media], header: str, tmp_path: Path
) -> None:
    sent: list[int] = []

    def large(handler: BaseHTTPRequestHandler) -> None:
        body(
            b"",
            "video/mp4",
            **{header: "noai" if header.startswith("X") else "1", "Content_Length": "100000000"},
        )(handler)
        for _ in range(100):
            handler.wfile.write(bytes(1_000_000))
            sent.append(1_000_000)

    hostile.answers["/a.mp4"] = large
    assert refused(lambda: fetch("/a.mp4")) == Reason.OPT_OUT
    assert hostile.asked == ["/a.mp4"] and sum(sent) < 50_000_000  # the kernel takes some on its own
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) == 0


@pytest.mark.parametrize(
    ("head", "headers"),
    [
        ('<meta name="robots" content="noindex, noai">', {}),
        ('<meta name="robots" content="noimageai">', {}),
        ('<meta name="tdm-reservation" content="1">', {}),
        ("", {"X_Robots_Tag": "noai"}),
        ("", {"tdm_reservation": "1"}),
    ],
)
def test_an_opt_out_of_a_page_is_obeyed_before_any_medium(
    hostile: HostileSite, fetch: Callable[..., Media], head: str, headers: dict[str, str]
) -> None:
    page = (
        f'<html><head>{head}<title>t</title></head><body>{LICENSED}<video src="/a.mp4"></video></body></html>'
    )
    hostile.answers = {"/page": body(page.encode(), **headers), "/a.mp4": body(b"film", "video/mp4")}
    assert refused(lambda: fetch("/page")) == Reason.OPT_OUT
    assert hostile.asked == ["/page"]


@pytest.mark.parametrize(
    ("path", "text", "reason"),
    [
        ("/cut.mpd", "<MPD><Period><broken", Reason.UNSUPPORTED),
        ("/bad.mpd", BAD_SEGMENTS, Reason.CORRUPT),
        ("/page", f"{LICENSED}<video></video>", Reason.UNSUPPORTED),
        ("/gone.m3u8", "#EXTINF:6,\ngone.ts\n", Reason.REMOVED),
        (
            "/encrypted.m3u8",
            '#EXT-X-KEY:METHOD=SAMPLE-AES,URI="k"\n#EXTINF:6,\ngone.ts\n',
            Reason.UNSUPPORTED,
        ),
        ("/bad.m3u8", "#EXT-X-BYTERANGE:x@y\n#EXTINF:6,\ngone.ts\n", Reason.CORRUPT),
        ("/local.m3u8", "#EXTINF:6,\nfile:///etc/hostname\n", Reason.ADDRESS),
    ],
)
def test_what_cannot_be_read_is_a_final_refusal(
    hostile: HostileSite, fetch: Callable[..., Media], path: str, text: str, reason: Reason
) -> None:
    types = {".mpd": "application/dash+xml", ".m3u8": "application/vnd.apple.mpegurl"}
    whole = f"#EXTM3U\n#EXT-X-TARGETDURATION:6\n{text}#EXT-X-ENDLIST\n" if path.endswith(".m3u8") else text
    hostile.answers = {
        path: body(whole.encode(), types.get(Path(path).suffix, "text/html")),
        "/gone.ts": body(b"", status=404),
    }
    assert refused(lambda: fetch(path, retries=1)) == reason
