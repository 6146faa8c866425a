"""What a run of units shows while it works, and what it has done: display and counts, no running.

    with run_progress(enabled=True) as progress:
        line = progress.add_task("units", total=100, summary="")
        progress.update(line, advance=1, summary=summary_line(summary))
        progress.log_progress()                   # the same, once a minute, where there is no terminal

A terminal shows two lines that fit 80 characters: numbers, and below them kept, refused and why.
"""

import datetime
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rich.console import RenderableType
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from cluster.pool import Outcome

log = logging.getLogger(__name__)
# a job's log is read by people: often enough to see that it lives, seldom enough for a run of days
LOG_EVERY_S = 60.0
# a unit may take minutes; rich's own 30 s would show neither a rate nor a remaining time
RATE_OVER_S = 600.0
# with the numbers beside it, the widest bar that fits a terminal of 80 characters
BAR_WIDTH = 20
# more reasons than this push the bytes off the line
REASONS_SHOWN = 3


@dataclass
class RunSummary:
    """One run of the runner.

    `counts`: rows by status over the units done in this run. `failed`: unit -> error. `deferred`: units left
    for the next run, and `deferred_counts` their rows by status.
    """

    units_before: int = 0
    units_done: int = 0
    deferred: list[str] = field(default_factory=list)
    deferred_counts: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    num_bytes: int = 0
    seconds: float = 0.0
    worker_seconds: float = 0.0
    cpu_s: float = 0.0

    def add(self, outcome: Outcome) -> None:
        self.worker_seconds += outcome.seconds
        self.cpu_s += outcome.cpu_s
        if outcome.error:
            self.failed[outcome.unit] = outcome.error
        elif outcome.deferred:
            self.deferred.append(outcome.unit)
            _add_counts(self.deferred_counts, outcome.counts)
        else:
            self.units_done += 1
            self.num_bytes += outcome.num_bytes
            _add_counts(self.counts, outcome.counts)


def _add_counts(total: dict[str, int], counts: dict[str, int]) -> None:
    for name, count in counts.items():
        total[name] = total.get(name, 0) + count


def summary_line(summary: RunSummary) -> str:
    """One line of the run so far: rows kept, rows refused and why, bytes, units deferred and failed."""
    num_kept = summary.counts.get("kept", 0)
    refused = sum(summary.counts.values()) - num_kept
    columns = [
        f"kept {num_kept:,}",
        f"refused {refused:,}{_top_reasons(summary.counts)}",
        decimal(summary.num_bytes),
    ]
    if summary.deferred:
        reasons = _top_reasons(summary.deferred_counts)
        columns.append(f"to try later: {_count_units(len(summary.deferred))}{reasons}")
    if summary.failed:
        columns.append(f"failed: {_count_units(len(summary.failed))}")
    return " · ".join(columns)


def _top_reasons(counts: dict[str, int]) -> str:
    """The most frequent reasons for refusal, in brackets; "" where nothing was refused."""
    refused = {name.removeprefix("refused:"): count for name, count in counts.items() if name != "kept"}
    if not refused:
        return ""
    by_count = sorted(refused.items(), key=lambda item: -item[1])
    top = [f"{name} {count:,}" for name, count in by_count[:REASONS_SHOWN]]
    ellipsis = ", …" if len(refused) > REASONS_SHOWN else ""
    return f" ({', '.join(top)}{ellipsis})"


def _count_units(count: int) -> str:
    return f"{count:,} shard{'s' if count > 1 else ''}"


def rate_of(units_per_s: float | None) -> str:
    """Units per second, minute or hour: the shortest that gives a number of one or more.

    >>> rate_of(2.0), rate_of(0.5), rate_of(None)
    ('2.0/s', '30.0/min', '-/s')
    """
    for name, seconds in (("s", 1), ("min", 60), ("h", 3600)):
        # slower than one an hour stays per hour: a day is longer than most people watch
        if units_per_s and (units_per_s * seconds >= 1 or name == "h"):
            return f"{units_per_s * seconds:,.1f}/{name}"
    return "-/s"


class RateColumn(ProgressColumn):
    """Units per second, minute or hour."""

    def render(self, task: Task) -> Text:
        return Text(rate_of(task.speed))


class RunProgress(Progress):
    """Two lines in a terminal: numbers, and below them the summary so far.

    Without a terminal, as in a cluster job, `log_progress` writes the same as one line of the log a minute.
    """

    def __init__(self, *columns: ProgressColumn, **settings: Any):
        super().__init__(*columns, **settings)
        self.last_logged_at = self.get_time()

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        # not a column: rich would cut it to one line beside the numbers
        yield from (Text(task.fields["summary"]) for task in self.tasks)

    def log_progress(self) -> None:
        """Logs a line for each task, at most once in `LOG_EVERY_S`, and only where there is no terminal."""
        if self.disable or self.console.is_terminal or self.get_time() - self.last_logged_at < LOG_EVERY_S:
            return
        self.last_logged_at = self.get_time()
        for task in self.tasks:
            done = f"{task.completed:,.0f} of {task.total or 0:,.0f} {task.description}"
            log.info(
                "%s · %s · %s left · %s", done, rate_of(task.speed), _remaining(task), task.fields["summary"]
            )


def _remaining(task: Task) -> str:
    return "-" if task.time_remaining is None else str(datetime.timedelta(seconds=task.time_remaining))


def run_progress(enabled: bool) -> RunProgress:
    """The progress of a run of units; `enabled=False` shows and logs nothing."""
    return RunProgress(
        TextColumn("{task.description}"),
        BarColumn(BAR_WIDTH),
        MofNCompleteColumn(),
        RateColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        disable=not enabled,
        refresh_per_second=4,
        speed_estimate_period=RATE_OVER_S,
    )
