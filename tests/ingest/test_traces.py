"""Names of samples in any bytes: whole ones, and no others."""

import re

from hypothesis import given
from hypothesis import strategies as st

from ingest.traces import Traces

KEY = "urls_m1_100"
AROUND = st.text("ab1_-./\0 ", max_size=8)


@given(AROUND, AROUND)
def test_a_key_is_found_where_no_letter_or_digit_goes_on(before: str, after: str) -> None:
    text = f"{before}{KEY}{after}"
    is_whole = re.search(rf"(?<![A-Za-z0-9]){KEY}(?![A-Za-z0-9])", text) is not None
    assert Traces([KEY, "x_y_0"]).find(text.encode()) == ({KEY} if is_whole else set())


def test_a_longer_key_is_not_its_beginning() -> None:
    traces = Traces([KEY, f"{KEY}0", "m1_100"])
    assert traces.find(f"a {KEY}0.flac".encode()) == {f"{KEY}0"}
    assert traces.find(f"{KEY}-m1_100".encode()) == {KEY, "m1_100"}
    assert Traces([]).find(KEY.encode()) == set()


def test_addresses_are_whole_words_as_files_write_them() -> None:
    address = "http://x.org/watch?v=1&t=2"
    traces = Traces([], [address, "/data/My Video, 1.mp4", ""])
    for text in (
        f"t,a,{address},CC0-1.0",
        "<a href='http://x.org/watch?v=1&amp;t=2'>",
        f'{{"url": "{address}"}}',
        f"See {address}.",
        f"({address})",
    ):
        assert traces.find(text.encode()) == {address}, text
    assert traces.find(b"http://x.org/watch?v=1&t=22 http://x.org/watch") == set()
    assert traces.find(b"title,/data/My Video, 1.mp4,x") == {"/data/My Video, 1.mp4"}


def test_what_gives_access_is_no_part_of_an_address() -> None:
    traces = Traces([], ["http://x.org/a?token=SECRET"])
    (found,) = traces.find(b"http://x.org/a?token=OTHER")
    assert "SECRET" not in found
