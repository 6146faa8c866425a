"""The token bucket, on a clock of the test's own."""

import pytest

from ingest.fetch import pacing
from ingest.fetch.pacing import TokenBucket


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now_s = [100.0]
    monkeypatch.setattr(pacing.time, "monotonic", lambda: now_s[0])
    return now_s


def test_a_full_bucket_answers_at_once_and_then_at_the_rate(clock: list[float]) -> None:
    bucket = TokenBucket(rate=4.0, capacity=2.0)
    assert [bucket.take(1) for _ in range(4)] == [0.0, 0.0, 0.25, 0.5]


def test_a_quiet_host_saves_no_more_than_the_capacity(clock: list[float]) -> None:
    bucket = TokenBucket(rate=4.0, capacity=2.0)
    clock[0] += 3600.0
    assert [bucket.take(1) for _ in range(3)] == [0.0, 0.0, 0.25]


def test_a_block_larger_than_the_capacity_gets_through(clock: list[float]) -> None:
    assert TokenBucket(rate=10.0, capacity=10.0).take(60) == 5.0
