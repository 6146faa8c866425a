"""What a page says about its license and about machine use."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.rights.page import read_page
from ingest.sample import Refused


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


@pytest.mark.parametrize(
    "html", ['<meta name="robots" content="nofollow">', '<meta name="description" content="noai">']
)
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
