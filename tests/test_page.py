"""What a page says about its license and about machine use."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.page import read_page
from ingest.sample import Refused

BY = "https://creativecommons.org/licenses/by/4.0/"
LD_JSON = '<script type="application/ld+json">'
CC0 = "https://creativecommons.org/publicdomain/zero/1.0/"


@pytest.mark.parametrize(
    "html",
    [
        f'<a rel="license" href="{BY}">',
        f"<A REL=LICENSE HREF={BY}>",
        f'<link rel="nofollow License" href="{BY}">',
        f'<a rel=license href="{BY}"><a rel=license href="http://creativecommons.org/licenses/by/4.0/deed.en">',
        LD_JSON + json.dumps({"@type": "VideoObject", "license": BY}) + "</script>",
        LD_JSON + json.dumps({"@graph": [{"license": {"@id": BY}}]}) + "</script>",
    ],
)
def test_a_page_states_its_license_by_link_or_json_ld(html: str) -> None:
    assert read_page(html).license == "CC-BY-4.0"


@pytest.mark.parametrize(
    "html",
    [
        "",
        f"<a href='{BY}'>CC BY</a>",  # a link that does not say it is the license
        f"<!-- <a rel=license href={BY}> -->",
        f"<script>'<a rel=license href={BY}>'</script>",
        LD_JSON + "{not json</script>",
        LD_JSON + "[" * 100_000 + "</script>",
    ],
)
def test_a_page_that_states_no_license_has_none(html: str) -> None:
    page = read_page(html)
    assert (page.license, page.licenses) == ("", ())


def test_a_page_with_several_licenses_states_none() -> None:
    page = read_page(f"<a rel=license href={BY}><a rel=license href={CC0}>")
    assert (page.license, page.licenses) == ("", ("CC-BY-4.0", "CC0-1.0"))
    assert read_page(f"<a rel=license href={BY}><a rel=license>").licenses == ("CC-BY-4.0", "unknown")


@pytest.mark.parametrize(
    "html",
    [
        '<meta name="robots" content="noai">',
        "<META NAME=Robots CONTENT='index, NoImageAI'>",
        '<meta name="stillsound" content="noai">',
        '<meta name="tdm-reservation" content="1">',
    ],
)
def test_a_page_opts_out(html: str) -> None:
    assert read_page(html).opt_out


@pytest.mark.parametrize("html", ['<meta name="robots" content="nofollow">', '<meta name="description" content="noai">'])
def test_other_marks_are_no_opt_out(html: str) -> None:
    assert not read_page(html).opt_out


def test_the_title_is_one_line() -> None:
    assert read_page("<title>\n  Two\n words &amp; more </title>").title == "Two words & more"


@given(st.text(alphabet="<>!-[]/a= \"'?&#x;", max_size=200))
def test_no_text_breaks_the_reader(html: str) -> None:
    read_page(html)


@pytest.mark.parametrize("text", ["<a ", '<a href="', "<!--", "<!-- >", "<![ ", "<a <a >", "<script>"])
def test_a_hostile_page_is_read_or_refused_in_seconds(text: str) -> None:
    started = time.process_time()
    try:
        read_page(text * 100_000)
    except Refused:
        pass
    assert time.process_time() - started < 5
