"""What people see of a loop that they wait for."""

import io
import logging

import pytest
from rich.console import Console

from training import progress
from training.progress import LOG_EVERY_S, track


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def walk(console: Console, clock: list[float], count: int, seconds: float) -> list[int]:
    seen = []
    for item in track(list(range(count)), "sounds made", total=47, console=console):
        seen.append(item)
        clock[0] += seconds
    return seen


def test_without_a_terminal_the_log_has_a_line_a_minute(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "training.progress")
    file = io.StringIO()
    assert walk(Console(file=file), clock, 6, LOG_EVERY_S / 2) == [0, 1, 2, 3, 4, 5]
    assert caplog.messages == [
        "sounds made: 15 of 47 · 120 s left",
        "sounds made: 31 of 47 · 60 s left",
    ]
    assert file.getvalue() == ""
    caplog.clear()
    # a short loop says nothing
    walk(Console(file=file), clock, 6, 1.0)
    assert not caplog.messages


def test_a_terminal_has_one_live_line(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "training.progress")
    file = io.StringIO()
    walk(Console(file=file, force_terminal=True, width=100), clock, 6, LOG_EVERY_S)
    assert "sounds made" in file.getvalue() and "47/47" in file.getvalue()
    assert not caplog.messages
