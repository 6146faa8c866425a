"""The unit runner: does what is not yet committed, on Ray actors, for every stage (scrape, precompute).

    summary = run_units(dataset, stage_factory, workers=8, retryable_reasons=RETRYABLE, columns=CLIP_COLUMNS)

A *stage* is a plain function `(task, scratch_folder) -> UnitOutput`; `stage_factory()` makes one per worker
(warm models and children live in its closure). `workers=0` runs in this process without Ray. Running again
resumes: committed units are skipped. The driver streams the work list and keeps the names of units, nothing
of their content.

Transient failures are retried once at the end of the run, `retry_after_s` later, and then by the next runs,
up to `max_attempts` in all; items of a unit that killed its worker are retried one by one. A unit that is
mostly retryable is not committed at all, and left for the next run. A run ends early, with one line, where
the storage is down or nothing succeeds.

What workers do is cluster.pool's, what a person sees cluster.progress's.
"""

import contextlib
import itertools
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from cluster.dataset import Commit, Dataset
from cluster.jsonl import JsonObject
from cluster.pool import CRASHED, LocalPool, PoolConfig, RayPool, StageFactory
from cluster.progress import RunSummary, run_progress, summary_line
from cluster.shards import Status
from cluster.worklist import UnitTask
from configs.load import StoppedError, UserError

log = logging.getLogger(__name__)
# small, so that a few hosts that stay down do not hold back the items of the others
FOLLOW_UP_UNIT_SIZE = 4
# one retry within a run: what fails again soon after is better left to a later run
ATTEMPTS_PER_RUN = 2
# this many failures and no success is a defect or a wrong setting, not bad luck
HOPELESS_UNITS = 20


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
    retryable = retryable_reasons | {CRASHED}
    config = PoolConfig(dataset.uri, stage_factory, columns, retryable, num_gpus, unit_deadline_s)
    started = time.monotonic()
    committed = dataset.committed_units()
    summary = RunSummary(units_before=len(committed))
    with contextlib.ExitStack() as stack:
        pool: LocalPool | RayPool | None = None
        for current in rounds(dataset, committed, retryable, max_attempts):
            if current.retries_transient and retry_after_s:
                log.info("transient failures are retried in %g s", retry_after_s)
                time.sleep(retry_after_s)
            # opened only now: where all is committed, no worker has to start
            pool = pool or stack.enter_context(_open_pool(config, workers))
            _do_round(dataset, pool, current, summary, progress)
    summary.seconds = time.monotonic() - started
    return summary


@dataclass(frozen=True)
class Round:
    """Part of the work list: `is_due` says for each unit from `first_unit` on whether it is to be done.

    `retries_transient`: some of them failed transiently before, so that a pause may help.
    """

    first_unit: int
    is_due: list[bool]
    retries_transient: bool

    def tasks(self, dataset: Dataset) -> Iterator[UnitTask]:
        return itertools.compress(dataset.worklist.iter_units(self.first_unit), self.is_due)


def rounds(
    dataset: Dataset, committed: set[str], retryable: frozenset[str], max_attempts: int
) -> Iterator[Round]:
    """First the units without a commit, then, as long as a round made some, the follow-ups of its failures.

    The next round is worked out when it is requested, from the commits of those before.
    """
    first_unit = 0
    while True:
        has_transient = follow_up(dataset, retryable, max_attempts)
        # the first round also does what earlier runs left for this one, whichever attempt that is
        attempts = ATTEMPTS_PER_RUN if first_unit else max_attempts
        units = dataset.worklist.unit_attempts(first_unit)
        is_due = [attempt < attempts and unit not in committed for unit, attempt in units]
        if not any(is_due):
            return
        yield Round(first_unit, is_due, retries_transient=bool(first_unit) and has_transient)
        first_unit += len(is_due)


def _do_round(
    dataset: Dataset, pool: LocalPool | RayPool, current: Round, summary: RunSummary, progress: bool
) -> None:
    with run_progress(progress) as display:
        line = display.add_task("shards", total=sum(current.is_due), summary="")
        for outcome in pool.stream(current.tasks(dataset)):
            if outcome.fatal:
                hint = "nothing is lost: run the same command again when it answers"
                raise StoppedError(f"{dataset.uri}: {outcome.error}; {hint}")
            summary.add(outcome)
            display.update(line, advance=1, summary=summary_line(summary))
            display.log_progress()
            if len(summary.failed) == HOPELESS_UNITS and not (summary.units_done or summary.deferred):
                raise StoppedError(
                    f"the first {HOPELESS_UNITS} shards all failed, the last one with: {outcome.error}"
                )


Entry = tuple[str, JsonObject]


def follow_up(dataset: Dataset, retryable: frozenset[str], max_attempts: int) -> bool:
    """Appends the items of retryable rows to the work list, as units with the next attempt number.

    Returns whether any of them failed transiently, and so needs a pause; a crash does not.

    Workers leave a mark before they commit a unit that has such rows, so no commit has to be read to find
    them; a mark is cleared once its items are listed.
    """
    commits = dataset.commits_of(dataset.worklist.retryable_units())
    if not commits:
        return False
    tasks = {task.unit: task for task in dataset.worklist.iter_units() if task.unit in commits}
    retries: dict[tuple[int, int], list[Entry]] = {}
    has_transient = False
    for unit, commit in sorted(commits.items()):
        items = {item.item_id: item for item in tasks[unit].items}
        for item_id, reason in _refused_rows(dataset, commit):
            item = items[item_id]
            attempt = item.attempt + 1
            if reason not in retryable or attempt >= max_attempts:
                continue
            # a crash is isolated: the next one may take its neighbours with it again
            unit_size = 1 if reason == CRASHED else FOLLOW_UP_UNIT_SIZE
            retries.setdefault((attempt, unit_size), []).append((item_id, item.payload))
            has_transient = has_transient or reason != CRASHED
    for (attempt, unit_size), entries in sorted(retries.items()):
        dataset.worklist.append(entries, unit_size, attempt)
    # after the append: a driver that dies between the two lists them once more, which appends nothing
    for unit in commits:
        dataset.worklist.clear_retryable(unit)
    return has_transient


def _refused_rows(dataset: Dataset, commit: Commit) -> Iterator[tuple[str, str]]:
    """(item id, reason) of every refused row of a unit."""
    for row in dataset.read_index(commit).select(["item_id", "status", "reason"]).to_pylist():
        if row["status"] == Status.REFUSED:
            yield row["item_id"], row["reason"]


@contextlib.contextmanager
def _open_pool(config: PoolConfig, workers: int) -> Iterator[LocalPool | RayPool]:
    pool = RayPool(config, workers) if workers else LocalPool(config)
    try:
        yield pool
    finally:
        pool.close()
