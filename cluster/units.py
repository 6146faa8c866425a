"""The unit runner: does what is not yet committed, on Ray actors, and serves every stage (scrape, precompute,
rewrite).

    summary = run_units(dataset, stage_factory, workers=8, retryable_reasons=RETRYABLE, columns=CLIP_COLUMNS)

A *stage* is a plain function `(task, scratch_folder) -> UnitOutput`; `stage_factory()` makes one per worker
(warm models and children live in its closure). `workers=0` runs in this process without Ray. Running again
resumes: committed units are skipped. The driver streams the work list and keeps the names of units, nothing
of their content.

What failed in passing is tried again once at the end of the run, `retry_after_s` later, and then by the next
runs, up to `max_attempts` in all; items of a unit that killed its worker are tried one by one. A unit that is
mostly retryable is not committed at all, and left for the next run. A run ends early, with one line, where
the storage is down or nothing succeeds.
"""

import contextlib
import datetime
import itertools
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
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

from cluster.dataset import Dataset
from cluster.pool import (
    CRASHED,
    LocalPool,
    Outcome,
    PoolConfig,
    RayPool,
    StageFactory,
)
from cluster.shards import Status
from cluster.worklist import UnitTask
from configs.load import StoppedError, UserError

log = logging.getLogger(__name__)
FOLLOW_UP_UNIT_SIZE = 4
ATTEMPTS_PER_RUN = 2
HOPELESS_UNITS = 20
LOG_EVERY_S = 60.0
RATE_OVER_S = 600.0  # a unit may take minutes; by rich's own 30 s there would be neither rate nor time left


@dataclass
class RunSummary:
    """One run of the runner. `counts`: rows by status over the units done in this run; `failed`: unit ->
    error; `deferred`: units left for the next run, and `deferred_counts` their rows by status."""

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
            _merge(self.deferred_counts, outcome.counts)
        else:
            self.units_done += 1
            self.num_bytes += outcome.num_bytes
            _merge(self.counts, outcome.counts)


def _merge(total: dict[str, int], counts: dict[str, int]) -> None:
    for name, count in counts.items():
        total[name] = total.get(name, 0) + count


def run_units(
    dataset: Dataset,
    stage_factory: StageFactory,
    workers: int,
    *,
    retryable_reasons: frozenset[str] = frozenset({CRASHED}),
    columns: pa.Schema | None = None,
    max_attempts: int = 3,
    retry_after_s: float = 0.0,
    unit_deadline_s: float = 86400.0,
    num_gpus: float = 0,
    progress: bool = True,
) -> RunSummary:
    """Does every unit of the work list that has no commit, then follow-ups of retryable rows.

    Errors: `UserError` for a negative `workers`; `StoppedError` where the storage is down, or the first units
    all failed. Failures of single units are in the summary, never raised.
    """
    if workers < 0:
        raise UserError(f"workers={workers}: give 0 (in this process) or more")
    columns = columns if columns is not None else pa.schema([])
    config = PoolConfig(
        dataset.uri, stage_factory, columns, retryable_reasons | {CRASHED}, num_gpus, unit_deadline_s
    )
    started, done = time.monotonic(), dataset.committed_units()
    summary, first_unit = RunSummary(units_before=len(done)), 0
    with contextlib.ExitStack() as stack:
        pool: LocalPool | RayPool | None = None
        while True:
            passing = follow_up(dataset, config.retryable, max_attempts)
            attempts = ATTEMPTS_PER_RUN if first_unit else max_attempts
            wanted = [
                attempt < attempts and unit not in done
                for unit, attempt in dataset.worklist.unit_attempts(first_unit)
            ]
            if not any(wanted):
                break
            if first_unit and passing and retry_after_s:
                log.info("what failed in passing is tried again in %g s", retry_after_s)
                time.sleep(retry_after_s)
            pool = pool or stack.enter_context(_open_pool(config, workers))
            _do(
                dataset.uri,
                pool,
                itertools.compress(dataset.worklist.iter_units(first_unit), wanted),
                sum(wanted),
                summary,
                progress,
            )
            first_unit += len(wanted)
    summary.seconds = time.monotonic() - started
    return summary


def _do(
    dataset_uri: str,
    pool: LocalPool | RayPool,
    todo: Iterator[UnitTask],
    total: int,
    summary: RunSummary,
    progress: bool,
) -> None:
    with _progress(progress) as show:
        line = show.add_task("units", total=total, said="")
        for outcome in pool.stream(todo):
            if outcome.fatal:
                raise StoppedError(
                    f"{dataset_uri}: {outcome.error}; nothing is lost: run the same command again when it answers"
                )
            summary.add(outcome)
            show.update(line, advance=1, said=_said(summary))
            show.tell_log()
            if len(summary.failed) == HOPELESS_UNITS and not (summary.units_done or summary.deferred):
                raise StoppedError(
                    f"the first {HOPELESS_UNITS} units all failed, the last one with: {outcome.error}"
                )


def follow_up(dataset: Dataset, retryable: frozenset[str], max_attempts: int) -> bool:
    """Lists the items of retryable rows again, as later units with the next attempt number; crashed ones one
    by one. Whether any of them failed in passing, and so needs waiting; a crash does not.

    Workers leave a note before they commit a unit that has such rows, so no commit has to be read to find
    them; a note is taken away when its items are listed.
    """
    commits = dataset.commits_of(dataset.worklist.retryable_units())
    tasks = (
        {task.unit: task for task in dataset.worklist.iter_units() if task.unit in commits} if commits else {}
    )
    again: dict[tuple[int, int], list[tuple[str, dict[str, Any]]]] = {}
    passing = False
    for unit, commit in sorted(commits.items()):
        items = {item.item_id: item for item in tasks[unit].items}
        for row in dataset.read_index(commit).select(["item_id", "status", "reason"]).to_pylist():
            item = items[row["item_id"]]
            if (
                row["status"] == Status.REFUSED
                and row["reason"] in retryable
                and item.attempt + 1 < max_attempts
            ):
                size = 1 if row["reason"] == CRASHED else FOLLOW_UP_UNIT_SIZE
                again.setdefault((item.attempt + 1, size), []).append((item.item_id, item.payload))
                passing |= row["reason"] != CRASHED
    for (attempt, size), found in sorted(again.items()):
        dataset.worklist.append(found, size, attempt)
    for unit in commits:
        dataset.worklist.clear_retryable(unit)
    return passing


@contextlib.contextmanager
def _open_pool(config: PoolConfig, workers: int) -> Iterator[LocalPool | RayPool]:
    pool = RayPool(config, workers) if workers else LocalPool(config)
    try:
        yield pool
    finally:
        pool.close()


def _said(summary: RunSummary) -> str:
    """What came of it so far: rows kept, and refused by reason, bytes, and the units that a later run tries
    again, with why.
    """
    kept = summary.counts.get("kept", 0)
    parts = [
        f"kept {kept:,}",
        f"refused {sum(summary.counts.values()) - kept:,}{_reasons(summary.counts)}",
        decimal(summary.num_bytes),
    ]
    parts += (
        [f"to try later: {_units(summary.deferred)}{_reasons(summary.deferred_counts)}"]
        if summary.deferred
        else []
    )
    parts += [f"failed: {_units(summary.failed)}"] if summary.failed else []
    return " · ".join(parts)


def _reasons(counts: dict[str, int]) -> str:
    """The three commonest reasons for which rows were not kept, in brackets."""
    refused = {name.removeprefix("refused:"): count for name, count in counts.items() if name != "kept"}
    common = [f"{name} {count:,}" for name, count in sorted(refused.items(), key=lambda pair: -pair[1])[:3]]
    return f" ({', '.join(common)}{', …' if len(refused) > 3 else ''})" if common else ""


def _units(units: Iterable[str]) -> str:
    count = len(list(units))
    return f"{count:,} unit{'s' if count > 1 else ''}"


def rate_of(units_per_s: float | None) -> str:
    """Units per second, minute or hour: the shortest that gives a number of one or more."""
    for name, seconds in (("s", 1), ("min", 60), ("h", 3600)):
        if units_per_s and (units_per_s * seconds >= 1 or name == "h"):
            return f"{units_per_s * seconds:,.1f}/{name}"
    return "-/s"


class RateColumn(ProgressColumn):
    """Units per second, minute or hour."""

    def render(self, task: Task) -> Text:
        return Text(rate_of(task.speed))


class RunProgress(Progress):
    """A line of numbers and under it what came of them; the two fit a terminal of 80 characters. Where there
    is none, as in a cluster job, the same as a line of the log, once a minute."""

    def __init__(self, *columns: ProgressColumn, **settings: Any):
        super().__init__(*columns, **settings)
        self.told_at = self.get_time()

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield from (Text(task.fields["said"]) for task in self.tasks)

    def tell_log(self) -> None:
        if self.disable or self.console.is_terminal or self.get_time() - self.told_at < LOG_EVERY_S:
            return
        self.told_at = self.get_time()
        for task in self.tasks:
            left = (
                "-" if task.time_remaining is None else f"{datetime.timedelta(seconds=task.time_remaining)}"
            )
            done = f"{task.completed:,.0f} of {task.total or 0:,.0f} {task.description}"
            log.info("%s · %s · %s left · %s", done, rate_of(task.speed), left, task.fields["said"])


def _progress(shown: bool) -> RunProgress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(20),
        MofNCompleteColumn(),
        RateColumn(),
        TimeElapsedColumn(),
    )
    return RunProgress(
        *columns,
        TimeRemainingColumn(),
        disable=not shown,
        refresh_per_second=4,
        speed_estimate_period=RATE_OVER_S,
    )
