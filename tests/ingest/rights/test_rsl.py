"""RSL: what a license document grants, and that a document that cannot be read grants nothing."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.rights.rsl import MAX_BYTES, UnreadableError, read_rsl, rsl_refusal

PAGE = "https://a.example/media/a.mp4"
NO_TRAINING = '<prohibits type="usage">ai-train</prohibits>'
TRAINING = '<permits type="usage">ai-train</permits>'


def document(*licenses: str, url: str = "/") -> bytes:
    terms = "".join(f"<license>{license}</license>" for license in licenses)
    return f'<rsl xmlns="https://rslstandard.org/rsl"><content url="{url}">{terms}</content></rsl>'.encode()


def refusal(*licenses: str, url: str = "/") -> str:
    return rsl_refusal(read_rsl(document(*licenses, url=url)), PAGE, PAGE)


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        (NO_TRAINING, "prohibits ai-train"),
        (f"{TRAINING}{NO_TRAINING}", "prohibits ai-train"),
        (TRAINING, ""),
        ('<permits type="usage">search</permits>', "permits only search"),
        ('<permits type="geo">EU</permits>', "depends on geo: EU"),
        (f'{TRAINING}<payment type="attribution"/>', ""),
        (f"{TRAINING}<payment><amount>1</amount></payment>", "asks for payment: as its <amount> says"),
        (f"{TRAINING}<payment/>", ""),
    ],
)
def test_terms_that_nobody_can_meet_for_free_refuse(terms: str, reason: str) -> None:
    assert refusal(terms) == reason


def test_one_license_that_grants_training_is_enough() -> None:
    assert refusal(NO_TRAINING, TRAINING) == refusal(TRAINING, NO_TRAINING) == ""


def test_the_longest_url_decides() -> None:
    contents = [["/", "refused"], ["/media/", ""]]
    assert rsl_refusal(contents, PAGE, PAGE) == ""
    assert rsl_refusal(contents, "https://a.example/b", PAGE) == "refused"


def test_a_content_of_another_host_refuses_nothing() -> None:
    assert refusal(NO_TRAINING, url="https://b.example/") == ""


@pytest.mark.parametrize(
    "data",
    [
        document(NO_TRAINING)[:-9],
        b'<!DOCTYPE rsl [<!ENTITY a "b">]>' + document(NO_TRAINING),
        document(NO_TRAINING) + b" " * MAX_BYTES,
        b"<rsl>" * 50 + b"</rsl>" * 50,
        b"<rsl>" + b"<content/>" * 25_000 + b"</rsl>",
    ],
    ids=["cut off", "document type", "too long", "too deep", "too many"],
)
def test_a_document_that_cannot_be_read_is_an_error(data: bytes) -> None:
    with pytest.raises(UnreadableError):
        read_rsl(data)


@pytest.mark.parametrize("data", [b"", b"<html>our rsl terms</html>", b"<feed>rsl</feed>", b"\0\xff"])
def test_what_is_no_rsl_document_states_nothing(data: bytes) -> None:
    assert read_rsl(data) == []


@given(st.text(alphabet="<>/rsl contenplicv=\"'&;!", max_size=200))
def test_no_text_raises_another_error(text: str) -> None:
    try:
        read_rsl(f"<rsl>{text}</rsl>".encode())
    except UnreadableError:
        pass


def test_a_document_of_many_licenses_is_read_in_bounded_time() -> None:
    started_s = time.process_time()
    assert refusal(*[NO_TRAINING] * 3000) == "prohibits ai-train"
    assert time.process_time() - started_s < 2
