"""Cooldowns on both ends of the pipe, and the reason that a failure of the network is recorded under."""

import time

import pytest
from yt_dlp.networking.exceptions import TransportError

from ingest.fetch.retries import Cooldowns, causes, retry_after_s, route_name, status_reason, transport_reason
from ingest.sample import Reason


def test_cooldowns_cross_the_pipe() -> None:
    child = Cooldowns()
    child.add("a host", 60.0)
    child.add("another", 0.0)
    parent = Cooldowns()
    parent.merge(child.take_news())
    assert child.take_news() == {} and list(parent.to_message()) == ["a host"]
    next_child = Cooldowns()
    next_child.merge(parent.to_message())
    assert 59.0 < next_child.remaining_s("a host") <= 60.0 and next_child.remaining_s("another") == 0.0


def test_merge_forgets_what_is_over() -> None:
    cooldowns = Cooldowns({"over": time.monotonic() - 1.0})
    cooldowns.merge({"new": 5.0})
    assert list(cooldowns.until_s) == ["new"]


def test_a_route_name_gives_no_password_away() -> None:
    assert "hunter22" not in route_name("http://me:hunter22@127.0.0.1:80") and route_name("") == ""


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        (" 7 ", 7.0),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 40.0),
        ("Thu, 01 Jan 1970 00:00:10 GMT", 0.0),
        ("soon", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_is_a_delta_or_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after_s(value, 60.0) == seconds


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (404, Reason.REMOVED),
        (429, Reason.RATE_LIMITED),
        (500, Reason.SERVER_ERROR),
        (418, Reason.UNSUPPORTED),
    ],
)
def test_a_status_has_a_reason(status: int, reason: Reason) -> None:
    assert status_reason(status) == reason


def test_a_timeout_is_found_below_what_it_caused() -> None:
    assert transport_reason(TransportError("x", cause=TimeoutError()))[0] == Reason.TIMEOUT
    assert transport_reason(TransportError("x", cause=ConnectionResetError()))[0] == Reason.NETWORK


def test_causes_end_where_errors_cause_each_other() -> None:
    first = ValueError()
    second = ValueError()
    first.__cause__ = second
    second.__cause__ = first
    assert list(causes(first)) == [first, second]
