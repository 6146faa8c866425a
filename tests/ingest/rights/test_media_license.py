"""Which license a page states of the medium on it; a license of the page's text never counts."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.rights.page import read_page

BY = "https://creativecommons.org/licenses/by/4.0/"
SA = "https://creativecommons.org/licenses/by-sa/4.0/"
NC = "https://creativecommons.org/licenses/by-nc/4.0/"
PAGE = "https://a.example/watch/1"
VIDEO = '<video src="/x.mp4"></video>'
LINK = f'<a rel="license" href="{BY}">CC BY</a>'
OBJECT = 'itemscope itemtype="https://schema.org/VideoObject"'
RSS = '<rss><channel><item><enclosure url="/x.mp4"/>{}</item></channel></rss>'


def ld(*objects: dict[str, Any] | list[Any]) -> str:
    return "".join(f'<script type="application/ld+json">{json.dumps(node)}</script>' for node in objects)


def video(**properties: Any) -> dict[str, Any]:
    return {"@type": "VideoObject", **properties}


def box(link: str, short: str) -> str:
    """A license box of a MediaWiki file page."""
    return (
        f'<table class="licensetpl"><tr><td><span class="licensetpl_link" style="display:none;">{link}</span>'
        f'<span class="licensetpl_short" style="display:none;">{short}</span></td></tr></table>'
    )


@pytest.mark.parametrize(
    "html",
    [
        f"<figure>{VIDEO}<figcaption>{LINK}</figcaption></figure>",
        f'<figure>{VIDEO}<div><div><a rel="nofollow LICENSE" href={BY}></div></div></figure>',
        f'<video><source src="/x.mp4"><source src="/x.webm">{LINK}</video>',
        f'<audio src="/x.mp4">{LINK}</audio>',
        f"<figure><video></video>{LINK}</figure>",
        f'<div {OBJECT}>{VIDEO}<link itemprop="license" href="{BY}"></div>',
        f'<div {OBJECT}><div></div><meta itemprop="license" content="CC BY 4.0"><link itemprop="contentUrl" href="/x.mp4"></div>',
        f"<div {OBJECT}>{VIDEO}<p>{LINK}</p></div>",
        f'{VIDEO}<span about="/x.mp4">A film. {LINK}</span>',
        f'{VIDEO}<a about="https://a.example/x.mp4" rel="license" href="{BY}">',
        f'{VIDEO}<p about="/x.mp4"><a rel="cc:license" href="{BY}"></p>',
        VIDEO + ld(video(license=BY)),
        ld(video(license=BY)),
        VIDEO + ld(video(license={"@id": BY}, contentUrl="/x.mp4")),
        VIDEO + ld({"@graph": [{"@type": ["schema:VideoObject"], "license": [BY]}]}),
        VIDEO + ld({"@type": "Article", "license": NC, "video": video(license=BY)}),
        VIDEO + ld(video(license=BY), video(license=BY)),
        VIDEO
        + ld(video(license=BY, url=PAGE), {"@type": "ImageObject", "license": NC, "contentUrl": "/logo.png"}),
        VIDEO + box(BY, "CC BY 4.0") + f'<link rel="license" href="{SA}">',
        VIDEO + box("", "CC BY 4.0"),
        RSS.format(f'<media:license type="text/html" href="{BY}">CC</media:license>'),
        RSS.format(f"<creativeCommons:license>{BY}</creativeCommons:license>"),
        RSS.format(f"<dc:license>{BY}</dc:license>"),
        f"<body itemscope itemtype='https://schema.org/Article'>{VIDEO}<figure>{VIDEO}{LINK}</figure>{LINK}",
    ],
)
def test_a_page_states_the_license_of_its_medium(html: str) -> None:
    page = read_page(html, PAGE)
    assert page.license == "CC-BY-4.0"
    assert page.media.of({"https://a.example/x.mp4"}) == ("CC-BY-4.0",)


@pytest.mark.parametrize(
    "html",
    [
        "",
        f'<head><link rel="license" href="{BY}"></head>{VIDEO}',
        f"{VIDEO}<footer>{LINK}</footer>",
        f"<article>{VIDEO}<p>{LINK}</p></article>",
        f"<body>{VIDEO}{LINK}</body>",
        f"{VIDEO}<figure><img src=/map.png>{LINK}</figure>",
        f"{VIDEO}<figure><blockquote>{LINK}</blockquote></figure>",
        f"<figure>{VIDEO}</figure><div>{LINK}</div>",
        f'<figure>{VIDEO}<div itemscope itemtype="https://schema.org/Person">{LINK}</div></figure>',
        f'<figure>{VIDEO}<p about="/text.html">{LINK}</p></figure>',
        f'{VIDEO}<span about="/other.mp4">{LINK}</span>',
        f'{VIDEO}<span about="">{LINK}</span>',
        f"<figure>{VIDEO}<a href='{BY}'>CC BY</a></figure>",  # a link that does not say it is the license
        f"<!-- <figure>{VIDEO}{LINK}</figure> -->{VIDEO}",
        f'<div itemscope itemtype="https://schema.org/Article"><link itemprop="license" href="{BY}">{VIDEO}</div>',
        f'<div {OBJECT}><meta itemprop="name" content="x"></div><p><link itemprop="license" href="{BY}"></p>{VIDEO}',
        VIDEO + ld({"license": BY}),
        VIDEO + ld({"@type": "WebPage", "license": BY}),
        VIDEO + ld({"@type": "Article", "license": BY, "video": video(name="x")}),
        VIDEO + ld({"@type": "ImageObject", "license": BY}),
        VIDEO + ld(video(license=BY, contentUrl="/other.mp4")),
        VIDEO + ld(video(license=BY, name="a"), video(name="b")),  # which of the two is it?
        f'{VIDEO}<video src="/y.mp4"></video>' + ld(video(license=BY)),
        VIDEO + '<script type="application/ld+json">{not json</script>',
        VIDEO + '<script type="application/ld+json">' + "[" * 100_000 + "</script>",
        f"<rss><channel><creativeCommons:license>{BY}</creativeCommons:license><item><enclosure url='/x.mp4'/></item></channel></rss>",
        f'<meta property="og:video" content="/x.mp4"><link rel="license" href="{BY}">',
    ],
)
def test_a_license_of_something_else_is_not_the_mediums(html: str) -> None:
    page = read_page(html, PAGE)
    assert page.license == "" and page.media.of({"https://a.example/x.mp4"}) == ()


def test_each_of_several_media_has_its_own_license() -> None:
    figures = [
        f'<figure><video src="/{name}.mp4"></video><a rel=license href={url}></figure>'
        for name, url in (("x", BY), ("y", NC))
    ]
    page = read_page("".join(figures), PAGE)
    assert page.media.of({"https://a.example/x.mp4"}) == ("CC-BY-4.0",)
    assert page.media.of({"https://a.example/y.mp4"}) == ("CC-BY-NC-4.0",)
    assert page.media.of({"https://a.example/z.mp4"}) == ()
    assert page.license == "" and page.licenses == ("CC-BY-4.0", "CC-BY-NC-4.0")


@pytest.mark.parametrize(
    "html",
    [
        f'<figure>{VIDEO}{LINK}<a rel="license" href="{NC}"></figure>',
        f"<figure>{VIDEO}{LINK}</figure>" + ld(video(license=NC, contentUrl="/x.mp4")),
        f"<figure>{VIDEO}{LINK}</figure>" + ld(video(license=NC)),
        f"<figure>{VIDEO}{LINK}<a rel=license></figure>",
        VIDEO + ld(video(license=[BY, NC])),
        f'{VIDEO}<p about="/x.mp4">{LINK}</p><p about="/x.mp4"><a rel=license href="{SA}"></p>',
    ],
)
def test_a_page_that_contradicts_itself_states_nothing(html: str) -> None:
    page = read_page(html, PAGE)
    assert page.license == "" and len(page.licenses) == 2


@pytest.mark.parametrize(
    ("boxes", "codes"),
    [
        (box("https://www.gnu.org/copyleft/fdl.html", "GFDL") + box(SA, "CC BY-SA 4.0"), ("CC-BY-SA-4.0",)),
        (box(SA, "CC BY-SA 4.0") + box(BY, "CC BY 4.0"), ("CC-BY-4.0", "CC-BY-SA-4.0")),  # one may choose
        (box(NC, "CC BY-NC 4.0"), ("CC-BY-NC-4.0",)),
        (box("", "Public domain"), ("public-domain",)),
        (box(BY, "CC BY-NC 4.0"), ("unknown",)),  # its link and its name differ
        (box("https://www.gnu.org/copyleft/fdl.html", "GFDL"), ("unknown",)),
    ],
)
def test_boxes_of_a_file_page_are_alternatives(boxes: str, codes: tuple[str, ...]) -> None:
    page = read_page(f'<link rel="license" href="{BY}">{VIDEO}{boxes}', PAGE)
    assert page.media.of() == codes and page.license == codes[0]


def test_a_license_that_is_not_understood_is_unknown() -> None:
    assert read_page(f"<figure>{VIDEO}<a rel=license></figure>").license == "unknown"
    assert read_page(VIDEO + ld(video(license="Free to look at"))).license == "unknown"


TAGS = (
    "<figure>",
    "</figure>",
    VIDEO,
    LINK,
    "<div about='/x.mp4'>",
    "</div>",
    f"<div {OBJECT}>",
    "<item>",
    "</item>",
    box(BY, "CC0"),
)


@given(st.lists(st.sampled_from(TAGS), max_size=30))
def test_no_order_of_tags_makes_up_a_license(tags: list[str]) -> None:
    page = read_page("".join(tags), PAGE)
    assert page.license in ("", "CC-BY-4.0", "unknown")


@pytest.mark.parametrize(
    "text",
    [f"<div {OBJECT}>", "<figure><video>", VIDEO + LINK, f"<figure>{VIDEO}{LINK}", box(BY, "CC BY 4.0")],
)
def test_a_page_of_a_hundred_thousand_statements_is_read_in_seconds(text: str) -> None:
    started = time.process_time()
    read_page(text * 20_000, PAGE)
    assert time.process_time() - started < 5


def test_nested_objects_are_read_in_seconds() -> None:
    node: dict[str, Any] = video(license=BY)
    for n in range(200):
        node = video(license=BY, name=str(n), hasPart=[node] * (1 if n > 10 else 2))
    started = time.process_time()
    read_page(ld(node), PAGE)
    assert time.process_time() - started < 5
