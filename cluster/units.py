"""The unit runner: maps what is not yet committed over Ray actors, and serves every stage (scrape, precompute, rewrite).

    summary = run_units(dataset, stage_factory, workers=8, retryable_reasons=RETRYABLE, columns=CLIP_COLUMNS)

A *stage* is a plain function `(task, scratch_folder) -> UnitOutput`; `stage_factory()` makes one per worker (warm models and
children live in its closure). Workers commit by themselves; the driver holds the work list (about 3 kB per item), never a sample.
`workers=0` runs in this process without Ray. Running again resumes: committed units are skipped. A crashed worker's unit is
tried again, then refused row by row and retried one item at a time; a unit that is mostly retryable is left for later.
"""

import contextlib
import logging
import os
import pickle
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cluster.dataset import Dataset, UnitTask
from cluster.shards import Row, Shard, write_shard
from configs.load import UserError

log = logging.getLogger(__name__)
MAX_TRIES = 3
CLOSE_S = 10.0
FOLLOW_UP_UNIT_SIZE = 4
CRASHED = "worker_crashed"


@dataclass(frozen=True)
class UnitOutput:
    """What a stage made of a unit: the shard on local disk, numbers to merge, and how many of its items are retryable."""

    shard: Shard
    facts: dict[str, Any] = field(default_factory=dict)
    retryable: int = 0


Stage = Callable[[UnitTask, Path], UnitOutput]
StageFactory = Callable[[], Stage]


@dataclass
class Outcome:
    """What a worker tells the driver of one unit: exactly one of committed, deferred (mostly retryable) or an error."""

    unit: str
    counts: dict[str, int] = field(default_factory=dict)
    num_bytes: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    deferred: bool = False
    error: str = ""


@dataclass
class RunSummary:
    """One run of the runner. `counts`: rows by status over the units done in this run; `failed`: unit -> error."""

    units_before: int = 0
    units_done: int = 0
    deferred: list[str] = field(default_factory=list)
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
        else:
            self.units_done += 1
            self.num_bytes += outcome.num_bytes
            for name, count in outcome.counts.items():
                self.counts[name] = self.counts.get(name, 0) + count


def ensure_ray(num_cpus: int | None = None, log_to_driver: bool = True) -> None:
    """Connects to the cluster of RAY_ADDRESS, or starts a local Ray on loopback that ends with this process."""
    import ray

    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet: dict[str, Any] = {"log_to_driver": log_to_driver, "logging_level": logging.WARNING}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
        return
    cpus = max(num_cpus or 1, os.cpu_count() or 1)
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)


def run_units(
    dataset: Dataset,
    stage_factory: StageFactory,
    workers: int,
    *,
    retryable_reasons: frozenset[str] = frozenset({CRASHED}),
    columns: pa.Schema | None = None,
    max_attempts: int = 3,
    num_gpus: float = 0,
    progress: bool = True,
) -> RunSummary:
    """Does every unit of the work list that has no commit, then follow-ups of retryable rows, up to `max_attempts` each.

    Errors: `UserError` for a negative `workers`. Failures of single units are in the summary, never raised.
    """
    if workers < 0:
        raise UserError(f"workers={workers}: give 0 (in this process) or more")
    columns = columns if columns is not None else pa.schema([])
    started, summary = time.monotonic(), RunSummary(units_before=len(dataset.committed_units()))
    with contextlib.ExitStack() as stack:
        pool: _Pool | None = None
        tried: set[str] = set()
        while todo := _missing(dataset, tried):
            pool = pool or stack.enter_context(_open_pool(dataset.uri, stage_factory, workers, columns, num_gpus))
            tried |= {task.unit for task in todo}
            show = stack.enter_context(_progress(progress))
            line = show.add_task("units", total=len(todo), said="")
            for outcome in pool.stream(todo):
                summary.add(outcome)
                show.update(line, advance=1, said=_said(summary))
            show.stop()
            _append_follow_ups(dataset, retryable_reasons, max_attempts)
    summary.seconds = time.monotonic() - started
    return summary


def _missing(dataset: Dataset, tried: set[str]) -> list[UnitTask]:
    done = dataset.committed_units() | tried
    return [task for task in dataset.units() if task.unit not in done]


def _append_follow_ups(dataset: Dataset, retryable: frozenset[str], max_attempts: int) -> None:
    """Lists the items of retryable rows again, as later units with the next attempt number; crashed ones one by one."""
    tasks = {task.unit: task for task in dataset.units()}
    again: dict[tuple[int, int], list[tuple[str, dict[str, Any]]]] = {}
    for unit, commit in sorted(dataset.commits().items()):
        if not any(name.removeprefix("refused:") in retryable for name in commit.counts):
            continue
        items = {item.item_id: item for item in tasks[unit].items}
        table = dataset.read_index(commit).select(["item_id", "status", "reason"])
        for row in table.to_pylist():
            item = items[row["item_id"]]
            if row["status"] == "refused" and row["reason"] in retryable and item.attempt + 1 < max_attempts:
                size = 1 if row["reason"] == CRASHED else FOLLOW_UP_UNIT_SIZE
                again.setdefault((item.attempt + 1, size), []).append((item.item_id, item.payload))
    for (attempt, size), found in sorted(again.items()):
        dataset.append_items(found, size, attempt)


def do_unit(dataset: Dataset, stage: Stage, task: UnitTask) -> Outcome:
    """Runs one unit on local disk and commits it, unless it is mostly retryable at the first attempt. May raise anything."""
    started, cpu_before_s = time.monotonic(), cpu_seconds()
    scratch = Path(tempfile.mkdtemp(prefix=f"stillsound-{task.unit}-"))
    try:
        output = stage(task, scratch)
        if output.retryable * 2 > len(task.items) and task.items[0].attempt == 0:
            return Outcome(task.unit, deferred=True, seconds=time.monotonic() - started, cpu_s=cpu_seconds() - cpu_before_s)
        commit = dataset.commit(task.unit, 0, output.shard, output.facts)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    num_bytes = commit.index.size + (commit.tar.size if commit.tar else 0)
    return Outcome(task.unit, commit.counts, num_bytes, time.monotonic() - started, cpu_seconds() - cpu_before_s)


def cpu_seconds() -> float:
    """CPU-seconds of this process, of its children that ended, and of all its living descendants."""
    own = os.times()
    total = own.user + own.system + own.children_user + own.children_system
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            times = child.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def _guarded(open_dataset: Callable[[], Dataset], stage: Stage, task: UnitTask) -> Outcome:
    """The one border where anything may go wrong: a failed unit is told, with its traceback in the log, and tried again."""
    try:
        return do_unit(open_dataset(), stage, task)
    except Exception as error:
        log.exception("unit %s failed", task.unit)
        return Outcome(task.unit, error=f"{type(error).__name__}: {error}"[:500])


def refuse_unit(dataset: Dataset, task: UnitTask, columns: pa.Schema) -> Outcome:
    """Commits a unit that killed its worker every time as refused rows; the follow-up units then isolate the poison."""

    def stage(task: UnitTask, scratch: Path) -> UnitOutput:
        detail = f"the worker died {MAX_TRIES} times on unit {task.unit}"
        rows = [Row(item.item_id, None, "refused", CRASHED, detail) for item in task.items]
        return UnitOutput(write_shard(scratch, rows, columns))

    return _guarded(lambda: dataset, stage, task)


class _Pool:
    """Workers that turn tasks into outcomes; in this process, or (`_RayPool`) on the cluster."""

    def __init__(self, uri: str, stage_factory: StageFactory):
        self.dataset, self.stage = Dataset.open(uri), stage_factory()

    def stream(self, tasks: list[UnitTask]) -> Iterator[Outcome]:
        for task in tasks:
            outcome = _guarded(lambda: self.dataset, self.stage, task)
            for _ in range(MAX_TRIES - 1):
                if outcome.error:
                    outcome = _guarded(lambda: self.dataset, self.stage, task)
            yield outcome

    def close(self) -> None:
        close = getattr(self.stage, "close", None)
        if close:
            close()


class Worker:
    """The Ray actor: a warm stage and its own view of the dataset, both made at the first unit, inside the guard.

    The factory travels as bytes: one that cannot be imported here is then an error of the unit, not a dead actor.
    """

    def __init__(self, uri: str, stage_factory: bytes):
        logging.basicConfig(level=logging.WARNING)
        self.uri, self.stage_factory = uri, stage_factory
        self.stage: Stage | None = None

    def ready(self) -> None:
        """Answers once the actor runs."""

    def close(self) -> None:
        """Ends the stage's children and takes its scratch folders away."""
        close = getattr(self.stage, "close", None)
        if close:
            close()

    def run(self, task: UnitTask) -> Outcome:
        def stage(task: UnitTask, scratch: Path) -> UnitOutput:
            if self.stage is None:
                self.stage = pickle.loads(self.stage_factory)()
            return self.stage(task, scratch)

        return _guarded(lambda: Dataset.open(self.uri), stage, task)


class _RayPool:
    """One unit in flight per actor, so that memory is bounded and a death costs one unit; dead actors are replaced.

    An actor gets units once it runs: where the cluster has less room than `workers` ask for, the others do the work.
    """

    def __init__(self, uri: str, stage_factory: StageFactory, workers: int, columns: pa.Schema, num_gpus: float):
        import ray

        ensure_ray(workers)
        self.ray = ray
        self.deaths = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError)
        self.dataset, self.columns = Dataset.open(uri), columns
        actor: Any = ray.remote(Worker).options(num_cpus=1, num_gpus=num_gpus, max_restarts=0)
        pickled = ray.cloudpickle.dumps(stage_factory)
        self.new_actor = lambda: actor.remote(uri, pickled)
        self.starting: dict[Any, Any] = {}
        self.idle: list[Any] = []
        for _ in range(workers):
            self._start()

    def stream(self, tasks: list[UnitTask]) -> Iterator[Outcome]:
        queue, tries = deque(tasks), dict.fromkeys((task.unit for task in tasks), 0)
        flying: dict[Any, tuple[Any, UnitTask]] = {}
        while queue or flying:
            while queue and self.idle:
                actor, task = self.idle.pop(), queue.popleft()
                flying[actor.run.remote(task)] = (actor, task)
            if not (flying or self.starting):
                raise RuntimeError("no worker could be started; the log of Ray says why")
            (ready,), _ = self.ray.wait([*flying, *self.starting], num_returns=1)
            if ready in self.starting:
                self._started(ready)
                continue
            actor, task = flying.pop(ready)
            tries[task.unit] += 1
            outcome = self._collect(ready, actor)
            if outcome and not outcome.error:
                yield outcome
            elif tries[task.unit] < MAX_TRIES:
                queue.append(task)
            else:
                yield outcome or refuse_unit(self.dataset, task, self.columns)

    def _start(self) -> None:
        actor = self.new_actor()
        self.starting[actor.ready.remote()] = actor

    def _started(self, ready: Any) -> None:
        actor = self.starting.pop(ready)
        try:
            self.ray.get(ready)
        except self.deaths as error:
            log.warning("a worker could not be started: %s", str(error).splitlines()[0])
        else:
            self.idle.append(actor)

    def _collect(self, ready: Any, actor: Any) -> Outcome | None:
        """The outcome, or None where the actor died; puts the actor, or a new one, back to the idle ones."""
        try:
            outcome = self.ray.get(ready)
        except self.deaths as error:
            log.warning("a worker died: %s", str(error).splitlines()[0])
            self._start()
            return None
        self.idle.append(actor)
        return outcome

    def close(self) -> None:
        closing = [actor.close.remote() for actor in self.idle]
        if closing:
            self.ray.wait(closing, num_returns=len(closing), timeout=CLOSE_S)
        for actor in (*self.idle, *self.starting.values()):
            self.ray.kill(actor)


@contextlib.contextmanager
def _open_pool(uri: str, stage_factory: StageFactory, workers: int, columns: pa.Schema, num_gpus: float) -> Iterator[Any]:
    pool = _RayPool(uri, stage_factory, workers, columns, num_gpus) if workers else _Pool(uri, stage_factory)
    try:
        yield pool
    finally:
        pool.close()


def _said(summary: RunSummary) -> str:
    kept = summary.counts.get("kept", 0)
    refused = sum(summary.counts.values()) - kept
    return f"kept {kept} · refused {refused} · {summary.num_bytes / 1e6:.1f} MB · failed {len(summary.failed)}"


def _progress(shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("{task.fields[said]}"), disable=not shown, refresh_per_second=4)
