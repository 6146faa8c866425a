"""What a run shows: a summary in one line, rates that are easy to read, the log where there is no terminal."""

import io
import logging

import pytest
from rich.console import Console

from cluster.pool import Outcome
from cluster.progress import RunProgress, RunSummary, rate_of, run_progress, summary_line


def test_the_summary_line_has_reasons_bytes_and_deferred_units() -> None:
    summary = RunSummary()
    assert summary_line(summary) == "kept 0 · refused 0 · 0 bytes"
    summary.add(Outcome("u0", {"kept": 1200, "refused:silent": 2, "refused:timeout": 1}, num_bytes=1_500_000))
    summary.add(Outcome("u1", {"kept": 34, "refused:corrupt": 7, "refused:license": 3}, num_bytes=500_000))
    assert summary_line(summary) == "kept 1,234 · refused 13 (corrupt 7, license 3, silent 2, …) · 2.0 MB"
    for unit in ("u2", "u3"):  # a storm of 429: nothing of them is committed
        summary.add(
            Outcome(unit, {"kept": 1, "refused:rate_limited": 6, "refused:timeout": 1}, deferred=True)
        )
    later = "to try later: 2 shards (rate_limited 12, timeout 2)"
    assert (
        summary_line(summary)
        == f"kept 1,234 · refused 13 (corrupt 7, license 3, silent 2, …) · 2.0 MB · {later}"
    )
    summary.add(Outcome("u4", error="KeyError: a defect"))
    assert summary_line(summary).endswith(f"{later} · failed: 1 shard")


@pytest.mark.parametrize(
    ("units_per_s", "shown"),
    [
        (None, "-/s"),
        (0.0, "-/s"),
        (1234.5, "1,234.5/s"),
        (1.0, "1.0/s"),
        (0.5, "30.0/min"),
        (1 / 90, "40.0/h"),
        (1e-4, "0.4/h"),
    ],
)
def test_a_rate_is_one_or_more(units_per_s: float | None, shown: str) -> None:
    assert rate_of(units_per_s) == shown


SUMMARY = "kept 5 · refused 3 (silent 3) · 1.0 MB · to try later: 2 shards (rate_limited 14)"


def shown_after(units: int, each_s: float, clock: list[float]) -> RunProgress:
    """What shows the progress after `units` of 100, which took `each_s` on a clock of our own."""
    show = run_progress(False)
    show.get_time = lambda: clock[0]
    line = show.add_task("units", total=100, summary="")
    for _ in range(units):
        clock[0] += each_s
        show.update(line, advance=1, summary=SUMMARY)
    return show


@pytest.mark.parametrize(
    ("each_s", "rate", "remaining"),
    [(0.5, "2.0/s", "0:00:45"), (60.0, "1.0/min", "1:30:00"), (120.0, "30.0/h", "3:00:00")],
)
def test_a_narrow_terminal_shows_count_rate_and_remaining_time(
    each_s: float, rate: str, remaining: str
) -> None:
    terminal = Console(file=io.StringIO(), width=80)
    for line in shown_after(10, each_s, [1000.0]).get_renderables():
        terminal.print(line)
    numbers, *summary = terminal.file.getvalue().splitlines()
    assert numbers.split()[-4:-2] == ["10/100", rate] and numbers.split()[-1] == remaining
    assert " ".join(" ".join(summary).split()) == SUMMARY


def test_without_a_terminal_the_log_has_a_line_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "cluster.progress")
    monkeypatch.setattr("sys.stdout", io.StringIO())
    clock = [1000.0]
    show = shown_after(10, 60.0, clock)
    show.last_logged_at = 0.0
    show.log_progress()
    assert not caplog.messages, "nothing is to be shown at all"
    show.disable = False
    for _ in range(5):
        show.log_progress()
        clock[0] += 29
    assert caplog.messages == [f"10 of 100 units · 1.0/min · 1:30:00 left · {SUMMARY}"] * 2
