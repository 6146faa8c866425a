"""Workers that turn tasks into outcomes: in this process (`LocalPool`) or as Ray actors (`RayPool`).

    for outcome in pool.stream(tasks): ...         # tasks: any iterator; read only as fast as they are done

A worker runs the stage on its own disk and commits by itself; the driver sees numbers, never a sample. One
call in flight per actor, so that memory is bounded and a death costs little; units that take milliseconds
travel several in a call. A unit that fails is tried `MAX_TRIES` times. Which units there are is decided in
cluster.units.
"""

import functools
import itertools
import logging
import os
import pickle
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.dataset import Dataset, Statistics
from cluster.record import cpu_seconds
from cluster.scratch import scratch_folder, sweep
from cluster.shards import Row, Shard, Status, write_shard
from cluster.storage import StorageDownError
from cluster.worklist import UnitTask
from configs.environment import CHECKOUT, ROOMS, set_defaults
from configs.load import UserError

log = logging.getLogger(__name__)
MAX_TRIES = 3
# a stage ends its children and removes its scratch within this, or is killed
CLOSE_S = 10.0
# a call of Ray costs about a millisecond: longer calls gain nothing, and a death costs one call
CALL_S = 0.25
MAX_UNITS_PER_CALL = 32
# how often the driver looks for workers that exceed their deadline, in seconds
POLL_S = 1.0
# an error is kept in memory and printed per unit: enough to recognise it, the log has the traceback
MAX_ERROR_CHARS = 500
CRASHED = "worker_crashed"


@dataclass(frozen=True)
class UnitOutput:
    """What a stage made of a unit: the shard on local disk and numbers to merge over the dataset.

    `retryable`: how many of its items failed transiently.
    """

    shard: Shard
    statistics: Statistics = field(default_factory=dict)
    retryable: int = 0


Stage = Callable[[UnitTask, Path], UnitOutput]
StageFactory = Callable[[], Stage]


@dataclass
class Outcome:
    """What a worker reports of a unit: committed, deferred (mostly retryable), or an error, `fatal` for all.

    `cpu_s`: CPU seconds of all units since the last outcome that set it; measuring per unit would cost more
    than a small unit does.
    """

    unit: str
    counts: dict[str, int] = field(default_factory=dict)
    num_bytes: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    deferred: bool = False
    error: str = ""
    fatal: bool = False


@dataclass(frozen=True)
class PoolConfig:
    """`unit_deadline_s`: a worker that holds a unit for longer is killed.

    `retryable`: reasons worth another attempt.
    """

    uri: str
    stage_factory: StageFactory
    columns: pa.Schema
    retryable: frozenset[str]
    num_gpus: float = 0
    unit_deadline_s: float = 86400.0


def do_unit(dataset: Dataset, stage: Stage, task: UnitTask, retryable: frozenset[str]) -> Outcome:
    """Runs one unit on local disk and commits it, unless it is mostly retryable at the first attempt.

    May raise anything.
    """
    started = time.monotonic()
    with scratch_folder(task.unit) as scratch:
        output = stage(task, scratch)
        # not committed: most of the unit would be refused for a storm that soon passes. Later attempts are
        # committed whatever comes of them, so that a run ends.
        if output.retryable * 2 > len(task.items) and task.items[0].attempt == 0:
            return Outcome(task.unit, output.shard.counts, 0, time.monotonic() - started, deferred=True)
        if any(name.removeprefix("refused:") in retryable for name in output.shard.counts):
            # before the commit: a worker that dies between the two leaves a mark too many, never one too few
            dataset.worklist.mark_retryable(task.unit)
        commit = dataset.commit(task.unit, 0, output.shard, output.statistics)
    num_bytes = commit.index.size + (commit.tar.size if commit.tar else 0)
    return Outcome(task.unit, commit.counts, num_bytes, time.monotonic() - started)


def guarded(
    open_dataset: Callable[[], Dataset], stage: Stage, task: UnitTask, retryable: frozenset[str]
) -> Outcome:
    """The one border where anything may fail: a failed unit is logged with its traceback and retried."""
    try:
        return do_unit(open_dataset(), stage, task, retryable)
    except StorageDownError as error:
        return Outcome(task.unit, error=str(error), fatal=True)
    except Exception as error:
        log.exception("shard %s failed", task.unit)
        return Outcome(task.unit, error=f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARS])


def refuse_unit(dataset: Dataset, task: UnitTask, config: PoolConfig) -> Outcome:
    """Commits refused rows for a unit that killed every worker; its follow-ups then find the item."""

    def stage(task: UnitTask, scratch: Path) -> UnitOutput:
        detail = f"the worker died {MAX_TRIES} times on shard {task.unit}"
        rows = [Row(item.item_id, None, Status.REFUSED, CRASHED, detail) for item in task.items]
        return UnitOutput(write_shard(scratch, rows, config.columns))

    return guarded(lambda: dataset, stage, task, config.retryable | {CRASHED})


class LocalPool:
    """No Ray: one unit after the other, in this process."""

    def __init__(self, config: PoolConfig):
        self.config = config
        self.dataset = Dataset.open(config.uri)
        sweep()
        self.stage = config.stage_factory()

    def stream(self, tasks: Iterable[UnitTask]) -> Iterator[Outcome]:
        for task in tasks:
            cpu_before_s = cpu_seconds(living=True)
            for _ in range(MAX_TRIES):
                outcome = guarded(lambda: self.dataset, self.stage, task, self.config.retryable)
                if outcome.fatal or not outcome.error:
                    break
            outcome.cpu_s = cpu_seconds(living=True) - cpu_before_s
            yield outcome

    def close(self) -> None:
        close = getattr(self.stage, "close", None)
        if close:
            close()


class Worker:
    """The Ray actor: a warm stage and its own view of the dataset, both made at the first unit, in `guarded`.

    The factory travels as bytes: one that cannot be imported here is then an error of the unit, not a dead
    actor.
    """

    def __init__(self, uri: str, stage_factory: bytes, retryable: frozenset[str]):
        logging.basicConfig(level=logging.WARNING)
        self.uri = uri
        self.stage_factory = stage_factory
        self.retryable = retryable
        self.stage: Stage | None = None
        self.dataset: Dataset | None = None

    def ready(self) -> None:
        """Answers once the actor runs."""
        sweep()

    def close(self) -> None:
        """Ends the stage's children and takes its scratch folders away."""
        close = getattr(self.stage, "close", None)
        if close:
            close()

    def run(self, tasks: list[UnitTask]) -> list[Outcome]:
        """Ends early after a fatal error: the units after it would fail alike."""
        outcomes = list[Outcome]()
        cpu_before_s = cpu_seconds(living=True)
        for task in tasks:
            outcomes.append(guarded(self._open, self._do, task, self.retryable))
            if outcomes[-1].fatal:
                break
        outcomes[-1].cpu_s = cpu_seconds(living=True) - cpu_before_s
        return outcomes

    def _open(self) -> Dataset:
        self.dataset = self.dataset or Dataset.open(self.uri)
        return self.dataset

    def _do(self, task: UnitTask, scratch: Path) -> UnitOutput:
        if self.stage is None:
            self.stage = pickle.loads(self.stage_factory)()
        return self.stage(task, scratch)


@dataclass
class Flight:
    """A call that is running on an actor. `started`: seconds, monotonic; infinite once it was killed."""

    actor: Any
    tasks: list[UnitTask]
    started: float


class RayPool:
    """One call in flight per actor; dead actors are replaced.

    An actor gets units once it runs: where the cluster has less room than `workers` ask for, those that fit
    do the work. The units of a call that ended with the actor's death are done again one by one, so that
    only the one that kills is refused.
    """

    def __init__(self, config: PoolConfig, workers: int):
        import ray

        ensure_ray(workers)
        self.ray = ray
        self.config = config
        self.deaths = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError)
        self.dataset = Dataset.open(config.uri)
        actor: Any = ray.remote(Worker).options(num_cpus=1, num_gpus=config.num_gpus, max_restarts=0)
        pickled = ray.cloudpickle.dumps(config.stage_factory)  # type: ignore[no-untyped-call]
        self.new_actor = lambda: actor.remote(config.uri, pickled, config.retryable)
        self.starting: dict[Any, Any] = {}
        self.idle: list[Any] = []
        self.per_call = 1
        for _ in range(workers):
            self._start()

    def stream(self, tasks: Iterable[UnitTask]) -> Iterator[Outcome]:
        source = iter(tasks)
        retry = deque[UnitTask]()
        failures: Counter[str] = Counter()
        flying: dict[Any, Flight] = {}
        while True:
            self._launch(source, retry, flying)
            if not flying and self.idle:
                return
            if not flying and not self.starting:
                raise RuntimeError("no worker could be started; see the log of Ray")
            ready, _ = self.ray.wait([*flying, *self.starting], num_returns=1, timeout=POLL_S)
            self._end_overdue(flying)
            for reference in ready:
                if reference in self.starting:
                    self._started(reference)
                else:
                    yield from self._settle(reference, flying.pop(reference), failures, retry)

    def _launch(self, source: Iterator[UnitTask], retry: deque[UnitTask], flying: dict[Any, Flight]) -> None:
        """Gives every idle actor a call: a unit to retry, alone, or the next ones of the list."""
        while self.idle:
            tasks = [retry.popleft()] if retry else self._take(source)
            if not tasks:
                return
            actor = self.idle.pop()
            flying[actor.run.remote(tasks)] = Flight(actor, tasks, time.monotonic())

    def _settle(
        self, reference: Any, flight: Flight, failures: Counter[str], retry: deque[UnitTask]
    ) -> Iterator[Outcome]:
        """The final outcomes of a call that ended; its other units go to `retry`."""
        for task, outcome in self._collect(reference, flight):
            if outcome and (outcome.fatal or not outcome.error):
                failures.pop(task.unit, None)
                yield outcome
                continue
            # an actor that died with several units may have died of any of them: none is blamed
            blamed = outcome is not None or len(flight.tasks) == 1
            failures[task.unit] += blamed
            if failures[task.unit] < MAX_TRIES:
                retry.append(task)
            else:
                del failures[task.unit]
                yield outcome or refuse_unit(self.dataset, task, self.config)

    def _take(self, source: Iterator[UnitTask]) -> list[UnitTask]:
        return list(itertools.islice(source, self.per_call))

    def _start(self) -> None:
        actor = self.new_actor()  # type: ignore[no-untyped-call]
        self.starting[actor.ready.remote()] = actor

    def _started(self, ready: Any) -> None:
        actor = self.starting.pop(ready)
        try:
            self.ray.get(ready)
        except self.deaths as error:
            log.warning("a worker could not be started: %s", str(error).splitlines()[0])
        else:
            self.idle.append(actor)

    def _end_overdue(self, flying: dict[Any, Flight]) -> None:
        """Kills workers that hang; their units are then retried like those of any dead worker."""
        deadline_s = self.config.unit_deadline_s
        for flight in flying.values():
            if time.monotonic() - flight.started > deadline_s * len(flight.tasks):
                units = ", ".join(task.unit for task in flight.tasks)
                log.warning("a worker is killed: it holds %s for more than %.0f s", units, deadline_s)
                self.ray.kill(flight.actor)
                flight.started = float("inf")

    def _collect(self, ready: Any, flight: Flight) -> list[tuple[UnitTask, Outcome | None]]:
        """Each task with its outcome, None where the actor died.

        The actor becomes idle again; a dead one is replaced.
        """
        try:
            outcomes: list[Outcome] = self.ray.get(ready)
        except self.deaths as error:
            log.warning("a worker died: %s", str(error).splitlines()[0])
            self._start()
            return [(task, None) for task in flight.tasks]
        self.idle.append(flight.actor)
        per_unit_s = (time.monotonic() - flight.started) / len(flight.tasks)
        # doubled at most: one quick unit must not make calls of many slow ones
        self.per_call = max(1, min(MAX_UNITS_PER_CALL, 2 * self.per_call, int(CALL_S / per_unit_s)))
        # a worker ends early after a fatal error: the outcomes are then fewer than the tasks
        return list(zip(flight.tasks, outcomes, strict=False))

    def close(self) -> None:
        closing = [actor.close.remote() for actor in self.idle]
        if closing:
            self.ray.wait(closing, num_returns=len(closing), timeout=CLOSE_S)
        for actor in (*self.idle, *self.starting.values()):
            self.ray.kill(actor)


def ensure_ray(num_cpus: int | None = None, log_to_driver: bool = True) -> None:
    """Connects to the cluster of RAY_ADDRESS, or starts a local Ray that ends with this process."""
    loaded = sys.modules.get("ray")
    if loaded is not None and loaded.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    # before it is loaded: that and the start take seconds in which nothing else is said
    log.info("%s", f"connecting to Ray at {address} …" if address else "starting Ray …")
    import ray

    set_defaults()
    _check_folder()
    # whoever used Ray before in this process made it read the environment: it has to read it again
    ray._raylet.Config.initialize("")  # type: ignore[attr-defined]  # made by Cython
    start = functools.partial(ray.init, log_to_driver=log_to_driver, logging_level=logging.WARNING)
    if address:
        # its workers were started in another environment: the checkout is handed to them
        start(job_config=ray.job_config.JobConfig(_py_driver_sys_path=[str(CHECKOUT)]))
        return
    cpus = max(num_cpus or 1, os.cpu_count() or 1)
    start(address="local", num_cpus=cpus, include_dashboard=False)


def _check_folder() -> None:
    """`UserError` where workers would import a module of the working folder in place of ours."""
    for room in ROOMS:
        found = next(
            (path for path in (Path(f"{room}.py"), Path(room, "__init__.py")) if path.is_file()), None
        )
        if found and not Path.cwd().samefile(CHECKOUT):
            problem = f"{found.absolute()} would hide ours from the workers"
            raise UserError(f"{problem}: type the command in another folder, or rename it")
