"""Every form in which a site states machine use today: a medium is fetched, or refused before its body is.

Each row of `STATEMENTS` is what a loopback site states; `REFUSED_BY` is a piece of the detail of the refusal,
or "" where the medium is taken. The fetch runs in this process, with a fresh memory each time.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from yt_dlp.utils import YoutubeDLError

from ingest.fetch.guard import Abort
from ingest.fetch.process import Task, fetch_item, refusal_of
from ingest.fetch.settings import FetchConfig
from ingest.fetch.web import Web
from ingest.rights.permission import PATHS
from ingest.sample import RETRYABLE, Item, Reason, Refused
from tests.ingest.fetch.test_fetcher import HostileSite, body, stuck
from tests.ingest.fetch.test_fetcher import hostile as hostile

RSL = '<rsl xmlns="https://rslstandard.org/rsl"><content url="{url}"{server}><license>{terms}</license></content></rsl>'
NO_TRAINING = '<prohibits type="usage">ai-train</prohibits>'


def rsl(terms: str, url: str = "/", server: str = "") -> str:
    return RSL.format(terms=terms, url=url, server=f' server="{server}"' if server else "")


def with_our_group(text: str, other: str = "Disallow:") -> str:
    return f"User-agent: *\n{other}\n\nUser-agent: Stillsound\n{text}\n"


ENTITIES = "".join(f'<!ENTITY a{n + 1} "{f"&a{n};" * 9}">' for n in range(9))
BOMB = f'<!DOCTYPE rsl [<!ENTITY a0 "xxxxxxxxx">{ENTITIES}]>{rsl("&a9;")}'
BAD_LOCATIONS = (
    "{not json",
    "[" * 50_000,
    '[1, null, {"location": 3}]',
    '[{"location": "/", "tdm-reservation": 7}]',
)
GRANTED = rsl('<permits type="usage">ai-train</permits>', "")
INLINE = '<script type="application/rsl+xml">{}</script>'
TWO_INLINE = INLINE.format(GRANTED) + INLINE.format(rsl(NO_TRAINING, "/media/a.mp4"))
STATEMENTS: list[tuple[dict[str, str], str]] = [
    # RFC 9309
    ({"robots": "User-agent: *\nDisallow: /"}, "Disallow: /"),
    ({"robots": "User-agent: *\nDisallow:"}, ""),
    ({"robots": "User-agent: *\nDisallow: /page"}, "Disallow: /page"),
    ({"robots": "User-agent: *\nDisallow: /media/"}, "Disallow: /media/"),
    ({"robots": "User-agent: *\nDisallow: /*.mp4$"}, "Disallow: /*.mp4$"),
    ({"robots": "User-agent: *\nDisallow: /media/a.mp4$"}, "a.mp4$"),
    ({"robots": "User-agent: *\nDisallow: /media$"}, ""),
    ({"robots": "User-agent: *\nDisallow: /private/\nDisallow: /PAGE"}, ""),
    ({"robots": "User-agent: *\nDisallow: /\nAllow: /page\nAllow: /media/"}, ""),
    ({"robots": "User-agent: *\nAllow: /media/\nDisallow: /media/a"}, "Disallow: /media/a"),
    ({"robots": "User-agent: *\nAllow: /media/a\nDisallow: /*a/a.mp4"}, "Disallow: /*a/a.mp4"),
    ({"robots": "User-agent: *\nDisallow: /media/\nAllow: /media/"}, ""),
    ({"robots": with_our_group("Disallow: /")}, "Disallow: /"),
    ({"robots": with_our_group("Allow: /", other="Disallow: /")}, ""),
    ({"robots": "User-agent: GPTBot\nUser-agent: CCBot\nDisallow: /"}, ""),
    ({"robots": "User-agent: GPTBot\nUser-agent: stillsound/1.0\nDisallow: /"}, "Disallow: /"),
    ({"robots": "User-agent: stillsounds\nDisallow: /"}, ""),
    ({"robots": "user-agent:*\r\ndisallow:/page # not for robots\r\n"}, "Disallow: /page"),
    ({"robots": "User-agent: *\rDisallow: /page"}, "Disallow: /page"),
    ({"robots": "\ufeffUser-agent: *\nDisallow: /page"}, "Disallow: /page"),
    (
        {"robots": with_our_group("Disallow: /a\n\nUser-agent: stillsound\nDisallow: /page")},
        "Disallow: /page",
    ),
    (
        {"robots": "User-agent: *\nCrawl-delay: 9\nSitemap: /x\nwhat is this\nDisallow: /p%61ge"},
        "Disallow: /page",
    ),
    ({"robots": "User-agent: *\nDisallow: page"}, "Disallow: /page"),
    ({"robots": "Disallow: /"}, ""),  # of no group
    ({"robots": "<html>User-agent: none of this is a rule</html>"}, ""),
    ({"robots": "\x00\xff" * 1000}, ""),
    ({"robots": "#" * 600_000 + "\nUser-agent: *\nDisallow: /"}, ""),  # behind the first 500 KiB
    ({"robots": "User-agent: *\nDisallow: /page\n" + "#" * 600_000}, "Disallow: /page"),
    # AIPREF and Content-Signal
    ({"robots": "User-agent: *\nContent-Usage: train-ai=n"}, "content-usage: train-ai=n"),
    (
        {
            "robots": "User-agent: *\nContent-Usage: / train-ai=n\nContent-Usage: /page train-ai=y\nContent-Usage: /media train-ai=y"
        },
        "",
    ),
    (
        {"robots": "User-agent: *\nContent-Usage: / train-ai=y\nContent-Usage: /media/ train-ai=n"},
        "train-ai=n",
    ),
    ({"robots": "User-agent: *\nContent-Usage: / train-ai=y\nContent-Usage: / train-ai=n"}, "train-ai=n"),
    ({"robots": "User-agent: GPTBot\nContent-Usage: train-ai=n"}, ""),
    ({"robots": with_our_group("Content-Usage: train-ai=y", other="Content-Usage: train-ai=n")}, ""),
    ({"robots": "User-agent: *\nContent-Usage: search=n, ai-use=n"}, ""),
    (
        {"robots": "User-agent: *\nContent-Signal: search=yes,ai-train=no\nAllow: /"},
        "content-signal: search=yes,ai-train=no",
    ),
    ({"robots": "User-agent: *\nContent-Signal: search=no, ai-input=no"}, ""),
    ({"page": "Content-Usage: train-ai=n, search=y"}, "Content-Usage: train-ai=n"),
    ({"page": "Content-Usage: train-ai=y"}, ""),
    ({"page": "Content-Usage: train-genai=n;exceptions=cc-cr"}, "train-genai=n"),
    ({"page": "Content-Usage: bots=n"}, "bots=n"),
    ({"page": "Content-Usage: bots=n, train-ai=y"}, ""),
    ({"page": 'Content-Usage: ="=,,'}, ""),
    ({"media": "Content-Usage: train-ai=n"}, "Content-Usage: train-ai=n"),
    ({"head": '<meta name="Content-Usage" content="train-ai=n">'}, "meta content-usage"),
    # X-Robots-Tag and meta
    *[
        ({"page": f"X-Robots-Tag: {word}"}, f"X-Robots-Tag: {word}")
        for word in ("noai", "noimageai", "noindex", "none", "NoImageIndex")
    ],
    *[
        ({"page": f"X-Robots-Tag: {word}"}, "")
        for word in ("nofollow", "all", "noarchive", "nosnippet, max-image-preview: none")
    ],
    ({"page": "X-Robots-Tag: googlebot: noindex, noai"}, ""),
    ({"page": "X-Robots-Tag: googlebot: noindex, stillsound: noai"}, "X-Robots-Tag"),
    ({"page": "X-Robots-Tag: stillsound: noindex"}, "X-Robots-Tag"),
    ({"page": "X-Robots-Tag: unavailable_after: 25 Jun 2010 15:00:00 GMT"}, "X-Robots-Tag"),
    ({"page": "X-Robots-Tag: unavailable_after: Friday, 25-Jun-10 15:00:00 UTC"}, "X-Robots-Tag"),
    ({"page": "X-Robots-Tag: unavailable_after: 2090-01-01"}, ""),
    ({"page": "X-Robots-Tag: unavailable_after: soon"}, ""),
    ({"media": "X-Robots-Tag: noindex"}, "X-Robots-Tag: noindex"),
    ({"head": '<meta name="robots" content="noindex, follow">'}, "meta robots"),
    ({"head": '<META NAME="STILLSOUND" CONTENT="NOAI">'}, "meta stillsound"),
    ({"head": '<meta name="robots" content="unavailable_after: 2010-01-01T00:00:00Z">'}, "meta robots"),
    ({"head": '<meta name="googlebot" content="noindex"><meta name="GPTBot" content="noai">'}, ""),
    ({"head": '<!-- <meta name="robots" content="noai"> --><meta name="robots" content="index">'}, ""),
    # TDMRep
    ({"page": "tdm-reservation: 1"}, "tdm-reservation: 1"),
    (
        {"page": "tdm-reservation: 1\ntdm-policy: https://a.example/policy"},
        "tdm-policy: https://a.example/policy",
    ),
    ({"page": "tdm-reservation: 0"}, ""),
    ({"page": "tdm-reservation: 2"}, ""),  # an error, by the report not set
    ({"media": "tdm-reservation: 1"}, "tdm-reservation: 1"),
    ({"head": '<meta name="tdm-reservation" content="1">'}, "meta tdm-reservation"),
    ({"head": '<meta name="tdm-reservation" content="0">'}, ""),
    (
        {"tdmrep": '[{"location": "/", "tdm-reservation": 1, "tdm-policy": "https://a.example/p"}]'},
        "tdmrep.json: tdm-reservation 1 for /",
    ),
    ({"tdmrep": '[{"location": "/media/*.mp4", "tdm-reservation": "1"}]'}, "for /media/*.mp4"),
    (
        {
            "tdmrep": '[{"location": "/other/", "tdm-reservation": 1}, {"location": "/page/$", "tdm-reservation": 1}]'
        },
        "",
    ),
    (
        {
            "tdmrep": '[{"location": "/media", "tdm-reservation": 0}, {"location": "/m", "tdm-reservation": 1}]'
        },
        "",
    ),
    (
        {"tdmrep": '[{"location": "/", "tdm-reservation": 0}, {"location": "/media", "tdm-reservation": 1}]'},
        "for /media",
    ),
    *[
        ({"tdmrep": text}, "")
        for text in (
            "{not json",
            "[" * 50_000,
            '[1, null, {"location": 3}]',
            '[{"location": "/", "tdm-reservation": 7}]',
        )
    ],
    # RSL
    ({"robots": "License: /rsl.xml", "rsl": rsl(NO_TRAINING)}, "RSL: prohibits ai-train"),
    ({"robots": "User-agent: *\nDisallow:\nLicense: /rsl.xml", "rsl": rsl(NO_TRAINING)}, "RSL"),
    ({"robots": "User-agent: GPTBot\nLicense: /rsl.xml", "rsl": rsl(NO_TRAINING)}, ""),
    ({"robots": "User-agent: GPTBot\nDisallow: /\n\nLicense: /rsl.xml", "rsl": rsl(NO_TRAINING)}, "RSL"),
    ({"robots": "License: /rsl.xml", "rsl": rsl('<prohibits type="usage">search</prohibits>')}, ""),
    ({"robots": "License: /rsl.xml", "rsl": rsl('<prohibits type="usage">all</prohibits>')}, "prohibits all"),
    (
        {"robots": "License: /rsl.xml", "rsl": rsl('<permits type="usage">search</permits>')},
        "permits only search",
    ),
    ({"robots": "License: /rsl.xml", "rsl": rsl('<permits type="usage">search ai-train</permits>')}, ""),
    (
        {
            "robots": "License: /rsl.xml",
            "rsl": rsl('<permits type="usage">all</permits><payment type="free"/>'),
        },
        "",
    ),
    (
        {
            "robots": "License: /rsl.xml",
            "rsl": rsl('<permits type="usage">all</permits><payment type="attribution"/>'),
        },
        "",
    ),
    (
        {
            "robots": "License: /rsl.xml",
            "rsl": rsl('<permits type="usage">ai-all</permits><payment type="training"/>'),
        },
        "payment",
    ),
    (
        {
            "robots": "License: /rsl.xml",
            "rsl": rsl('<permits type="usage">all</permits>', server="https://l.example"),
        },
        "license server",
    ),
    (
        {"robots": "License: /rsl.xml", "rsl": rsl('<permits type="user">non-commercial</permits>')},
        "depends on user",
    ),
    (
        {
            "robots": "License: /rsl.xml",
            "rsl": rsl(f'{NO_TRAINING}</license><license><permits type="usage">ai-train</permits>'),
        },
        "",
    ),
    ({"robots": "License: /rsl.xml", "rsl": rsl(NO_TRAINING, "/private/")}, ""),
    ({"robots": "License: /rsl.xml", "rsl": rsl(NO_TRAINING, "/media/*.mp4$")}, "RSL"),
    ({"robots": "License: /rsl.xml", "rsl": rsl(NO_TRAINING, "https://a.example/")}, ""),
    ({"robots": "License: /rsl.xml", "rsl": "<!doctype html><html>our rsl terms</html>"}, ""),
    ({"robots": "License: /nowhere.xml"}, ""),
    ({"robots": "License: file:///etc/hostname\nLicense: http://[", "rsl": ""}, ""),
    ({"robots": "License: /rsl.xml", "rsl": rsl(NO_TRAINING)[:-9]}, "cannot be read"),
    ({"robots": "License: /rsl.xml", "rsl": BOMB}, "cannot be read"),
    ({"robots": "License: /rsl.xml", "rsl": "<rsl>" + "<content>" * 100_000}, "cannot be read"),
    ({"page": 'Link: </rsl.xml>; rel="license"; type="application/rsl+xml"', "rsl": rsl(NO_TRAINING)}, "RSL"),
    (
        {
            "page": 'Link: </rsl.xml>; rel="license"; type="application/rsl+xml"',
            "rsl": rsl(NO_TRAINING, "/media/"),
        },
        "RSL",
    ),
    ({"media": "Link: </rsl.xml>; rel=license; type=application/rsl+xml", "rsl": rsl(NO_TRAINING)}, "RSL"),
    ({"page": 'Link: </rsl.xml>; rel="license"; type="text/html"', "rsl": rsl(NO_TRAINING)}, ""),
    (
        {
            "head": '<link rel="license" type="application/rsl+xml" href="/rsl.xml">',
            "rsl": rsl(NO_TRAINING, "/media/"),
        },
        "RSL",
    ),
    ({"head": f'<script type="application/rsl+xml">{rsl(NO_TRAINING, "")}</script>'}, "RSL"),
    ({"head": f'<script type="application/rsl+xml">{rsl(NO_TRAINING, "/media/a.mp4")}</script>'}, "RSL"),
    ({"head": f'<script type="application/rsl+xml">{GRANTED}</script>'}, ""),
    ({"head": TWO_INLINE}, "RSL"),
    # ai.txt
    ({"ai": "User-Agent: *\nDisallow: /"}, "ai.txt: Disallow: /"),
    ({"ai": "User-Agent: *\nDisallow: *.mp4"}, "ai.txt: Disallow: *.mp4"),
    ({"ai": "User-Agent: *\nDisallow: *.html\nDisallow: *.txt\nDisallow: *.jpg"}, ""),
    ({"ai": "User-Agent: *\nDisallow: *.jpg\nAllow: *.mp4\nAllow: /page\nDisallow: /\nDisallow: *"}, ""),
    ({"ai": "User-Agent: GPTBot\nDisallow: /"}, ""),
    ({"ai": "<html><body>Page not found</body></html>"}, ""),
    # JSON-LD
    (
        {
            "head": '<script type="application/ld+json">{"usageInfo": "http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED"}</script>'
        },
        "usageInfo",
    ),
    (
        {"head": '<script type="application/ld+json">{"@graph": [{"usageInfo": {"name": "noai"}}]}</script>'},
        "usageInfo: noai",
    ),
    ({"head": '<script type="application/ld+json">{"usageInfo": "https://a.example/terms"}</script>'}, ""),
    (
        {
            "head": '<script type="application/ld+json">{"usageInfo": "http://ns.useplus.org/ldf/vocab/DMI-ALLOWED"}</script>'
        },
        "",
    ),
    ({"head": '<script type="application/ld+json">{"tdm:reservation": 1}</script>'}, "tdm:reservation"),
    ({"head": '<script type="application/ld+json">{"usageInfo": {not json</script>'}, ""),
]


def web_of(site: HostileSite, **settings: object) -> Web:
    """A client without any memory."""
    allowed = [f"127.0.0.1:{site.server_address[1]}"]
    network = FetchConfig(
        **{"retries": 0, "timeout_s": 5.0, "socket_timeout_s": 2.0, "allow_private": allowed, **settings}
    )  # type: ignore[arg-type]
    return Web(network, ("^generic$", "^html5$"))


def fetch(web: Web, item: Item, folder: Path) -> dict:
    """What `fetch_item` gives. Raises `Refused`."""
    web.begin()
    web.permission.begin(item.source)
    try:
        return fetch_item(web, Task(item, folder, 64, ("CC0-1.0",)))
    except (Abort, Refused, YoutubeDLError, OSError) as error:
        raise refusal_of(error) from None


def headers(text: str) -> dict[str, str]:
    return {
        name.replace("-", "_"): value.strip()
        for name, _, value in (line.partition(":") for line in text.splitlines())
    }


def set_up(site: HostileSite, statements: dict[str, str]) -> None:
    """A page with a video, and what the site says."""
    page = f'<html><head><title>t</title>{statements.get("head", "")}</head><body><video src="/media/a.mp4"></video></body></html>'
    site.answers["/page"] = body(
        page.encode(), "text/html; charset=utf-8", **headers(statements.get("page", ""))
    )
    site.answers["/media/a.mp4"] = body(b"film", "video/mp4", **headers(statements.get("media", "")))
    for kind, path in {**PATHS, "rsl": "/rsl.xml", "missing": "/nowhere.xml"}.items():
        site.answers[path] = (
            body(statements[kind].encode(), "text/plain") if kind in statements else body(b"", status=404)
        )


@pytest.mark.parametrize(("statements", "refused_by"), STATEMENTS)
def test_a_statement_of_a_site_is_obeyed_before_any_body(
    hostile: HostileSite, tmp_path: Path, statements: dict[str, str], refused_by: str
) -> None:
    set_up(hostile, statements)
    if not refused_by:
        assert (
            tmp_path / fetch(web_of(hostile), hostile.item("/page"), tmp_path)["picture"]
        ).read_bytes() == b"film"
        return
    with pytest.raises(Refused) as caught:
        fetch(web_of(hostile), hostile.item("/page"), tmp_path)
    assert caught.value.reason == Reason.OPT_OUT and refused_by in caught.value.detail
    assert f"http://127.0.0.1:{hostile.server_address[1]}/" in caught.value.detail
    assert list(tmp_path.iterdir()) == [], "nothing of the medium may be kept"
    assert "media" in statements or "/media/a.mp4" not in hostile.asked


def test_a_disallowed_page_is_not_requested(hostile: HostileSite, tmp_path: Path) -> None:
    set_up(hostile, {"robots": "User-agent: *\nDisallow: /"})
    with pytest.raises(Refused):
        fetch(web_of(hostile), hostile.item("/page"), tmp_path)
    assert (hostile.asked, hostile.asked_first) == ([], ["/robots.txt"])


@pytest.mark.parametrize("kind", PATHS)
def test_a_private_host_that_hangs_up_states_nothing(hostile: HostileSite, tmp_path: Path, kind: str) -> None:
    set_up(hostile, {})
    hostile.answers |= {PATHS[kind]: lambda handler: None}
    assert fetch(web_of(hostile), hostile.item("/page"), tmp_path)["picture"]


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (body(b"", status=403), ("", "", "")),
        (body(b"", status=503), (Reason.SERVER_ERROR, "", "")),
        (body(b"", status=429), (Reason.RATE_LIMITED, Reason.RATE_LIMITED, Reason.RATE_LIMITED)),
        (body(b"User-agent: *", Content_Length="900"), (Reason.NETWORK, Reason.NETWORK, Reason.NETWORK)),
        (lambda handler: handler.wfile.write(b"?"), (Reason.NETWORK, Reason.NETWORK, Reason.NETWORK)),
        (body(b"", status=302, Location="/robots.txt?1"), ("", "", "")),  # to a 404
        (body(b"\x1f\x8bno gzip", Content_Encoding="gzip"), (Reason.CORRUPT, "", "")),
    ],
)
def test_a_statement_that_fails(
    hostile: HostileSite, tmp_path: Path, kind: str, answer: Callable, expected: tuple[str, str, str]
) -> None:
    set_up(hostile, {})
    hostile.answers |= {PATHS[kind]: answer, "/robots.txt?1": body(b"", status=404)}
    reason = expected[list(PATHS).index(kind)]
    if not reason:
        assert fetch(web_of(hostile), hostile.item("/page"), tmp_path)["picture"]
        return
    with pytest.raises(Refused) as caught:
        fetch(web_of(hostile), hostile.item("/page"), tmp_path)
    assert caught.value.reason == reason and PATHS[kind] in caught.value.detail
    assert reason == Reason.CORRUPT or reason in RETRYABLE
    assert "/media/a.mp4" not in hostile.asked


def test_a_robots_txt_that_never_ends_is_a_timeout_or_is_cut(hostile: HostileSite, tmp_path: Path) -> None:
    def endless(handler: object) -> None:
        handler.send_response(200)  # type: ignore[attr-defined]
        handler.end_headers()  # type: ignore[attr-defined]
        with contextlib.suppress(OSError):
            handler.wfile.write(b"User-agent: *\nDisallow: /page\n")  # type: ignore[attr-defined]
            while True:
                handler.wfile.write(b"#" * 100_000)  # type: ignore[attr-defined]

    set_up(hostile, {})
    for answer, reason in ((endless, Reason.OPT_OUT), (stuck, Reason.TIMEOUT)):
        hostile.answers["/robots.txt"] = answer
        with pytest.raises(Refused) as caught:
            fetch(web_of(hostile, socket_timeout_s=0.5), hostile.item("/page"), tmp_path)
        assert caught.value.reason == reason


def test_a_license_document_that_fails_is_retryable(hostile: HostileSite, tmp_path: Path) -> None:
    set_up(hostile, {"robots": "License: /rsl.xml"})
    hostile.answers["/rsl.xml"] = body(b"", status=500)
    with pytest.raises(Refused) as caught:
        fetch(web_of(hostile), hostile.item("/page"), tmp_path)
    assert caught.value.reason == Reason.SERVER_ERROR and "rsl.xml" in caught.value.detail


def test_ai_txt_holds_for_a_medium_without_an_extension(hostile: HostileSite, tmp_path: Path) -> None:
    set_up(hostile, {"ai": "User-Agent: *\nDisallow: *.mp4"})
    hostile.answers["/clip/7"] = hostile.answers["/media/a.mp4"]
    with pytest.raises(Refused) as caught:
        fetch(web_of(hostile), hostile.item("/clip/7"), tmp_path)
    assert (
        caught.value.reason == Reason.OPT_OUT
        and "video/mp4" in caught.value.detail
        and list(tmp_path.iterdir()) == []
    )


@pytest.mark.parametrize("source", ["youtube", "inaturalist", ""])
def test_statements_of_exempt_sources_are_not_requested(hostile: HostileSite, source: str) -> None:
    set_up(hostile, {"robots": "User-agent: *\nDisallow: /", "media": "X-Robots-Tag: noindex"})
    web = web_of(hostile)
    web.begin()
    web.permission.begin(source)
    web.urlopen(hostile.item("/media/a.mp4").url).close()
    assert hostile.asked_first == [] and web.permission.evidence() == {"asked": []}
    set_up(hostile, {"media": "X-Robots-Tag: noai"})
    with pytest.raises(Abort):
        web.urlopen(hostile.item("/media/a.mp4").url)
