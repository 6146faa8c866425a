"""`training train`: a recipe under Ray Train and DeepSpeed; the same command again resumes, or reports that
the run is finished.

    train(load_config(TrainConfig, ["configs/training/demo.yaml"]))

`training.run.prepare` checks settings and data before any machine works and pins the snapshot in
`<output>/run.json`; the driver starts the workers; when one dies, all start again by themselves from the
newest checkpoint. `workers=0` trains in this process.
"""

import contextlib
import errno
import functools
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypedDict

from cluster.pool import ensure_ray
from cluster.scratch import scratch_folder
from cluster.storage import Store, open_store
from configs.load import StoppedError
from training.run.engine import ensure_process_group, wants_gpu
from training.run.history import FINISHED, events, finished_step, is_finished
from training.run.interrupt import STOP_REQUESTED, listen
from training.run.loop import work
from training.run.plan import Plan
from training.run.prepare import prepare
from training.settings import TrainConfig
from training.watch import watch

log = logging.getLogger(__name__)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# Ray Train looks at its workers every 2 s; a short run would wait for it longer than it trains
HEALTH_CHECK_S = "0.5"


class Summary(TypedDict):
    """What a run came to. `cpu_s`: of the workers that came to the end; 0 if the run was finished before.

    `shipped_step`: whose weights the model has. `reason`: why it ended there, of a run with a guard.
    """

    steps: int
    finished_before: bool
    resumed_from: int
    shipped_step: int
    reason: str
    seconds: float
    cpu_s: float
    model: str


def train(config: TrainConfig) -> Summary:
    """Runs to `steps`.

    `UserError` before any work: data missing or of the wrong kind, output not writable, or made with other
    settings. `StoppedError` if workers kept failing, the loss is NaN or infinite, or no checkpoint of a run
    with steps behind it is usable.
    """
    started = time.monotonic()
    plan = prepare(config)
    store = open_store(plan.config.output)
    step_before = finished_step(store)
    num_events_before = len(events(store))
    finished_before = is_finished(store, config.steps, config.patience)
    if not finished_before:
        _run_workers(plan)
        store.delete(plan.stop_name)
        if not is_finished(store, config.steps, config.patience):
            raise StoppedError(_reason(store))
    finished = json.loads(store.read(FINISHED))
    new_events = events(store)[num_events_before:]
    starts = [line["step"] for line in new_events if line.get("event") in ("started", "resumed")]
    return {
        "steps": finished["step"],
        "finished_before": finished_before,
        "resumed_from": starts[0] if starts else step_before,
        "shipped_step": finished.get("shipped_step", finished["step"]),
        "reason": finished.get("reason", ""),
        "seconds": round(time.monotonic() - started, 1),
        "cpu_s": 0.0 if finished_before else finished["cpu_s"],
        "model": f"{config.output}/model",
    }


def _run_workers(plan: Plan) -> None:
    if plan.config.workers > 0:
        _under_ray(plan)
        return
    ensure_process_group()
    with _on_sigterm(STOP_REQUESTED.set):
        # of a run that this process trained before
        STOP_REQUESTED.clear()
        with watch(open_store(plan.config.output), plan.config.steps):
            _work_here(plan)


def _work_here(plan: Plan) -> None:
    """`workers=0`.

    A full disk, a lost mount or damaged data end the run with one line, as they do under Ray.
    """
    try:
        work(plan)
    except OSError as error:
        if isinstance(error, StoppedError):
            raise
        hint = "make room there" if error.errno in DISK_FULL else "mend it"
        raise StoppedError(
            f"stopped: {error}; {hint}, then run the same command again: "
            "it resumes from the newest checkpoint"
        ) from error


def _reason(store: Store) -> str:
    """Why the workers ended without a finished model, by the newest event that has a reason."""
    for line in reversed(events(store)):
        if line.get("event") in ("failed", "stopped"):
            return str(line["reason"])
    return "the workers ended without a reason"


def _under_ray(plan: Plan) -> None:
    """`workers` processes under Ray Train; it starts them again, all together, when one of them dies."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    config = plan.config
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", HEALTH_CHECK_S)
    # one CPU more, for Ray Train's controller
    ensure_ray(config.workers + 1, log_to_driver=False)
    use_gpu = _use_gpus(config.workers)
    store = open_store(config.output)
    with scratch_folder("ray-train") as folder:
        trainer = TorchTrainer(
            functools.partial(_work_in_ray, plan),
            scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=use_gpu),
            torch_config=_listening(TorchConfig)(backend="nccl" if use_gpu else "gloo"),
            # the checkpoints are ours: Ray stores nothing worth keeping
            run_config=RunConfig(
                storage_path=str(folder), failure_config=FailureConfig(max_failures=config.max_failures)
            ),
        )
        request_stop = functools.partial(store.replace, plan.stop_name, b"")
        try:
            with watch(store, config.steps), _on_sigterm(request_stop):
                trainer.fit()
        except TrainingFailedError as error:
            failures = list(getattr(error, "worker_failures", {}).values()) or [error]
            last_line_of_error = str(failures[0]).strip().splitlines()[-1]
            raise StoppedError(
                f"stopped after {config.max_failures} new starts: {last_line_of_error}"
            ) from error


def _use_gpus(workers: int) -> bool:
    """Whether the cluster has a GPU for every worker; a warning if it has some."""
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpus = int(resources.get("GPU", 0)) if wants_gpu() else 0
    if 0 < gpus < workers:
        log.warning(
            "the cluster has %d GPUs for workers=%d: training on CPUs; give workers=%d for GPUs",
            *(gpus, workers, gpus),
        )
    return gpus >= workers


def _listening(torch_config: Any) -> Any:
    """Ray's start of a process group that also begins to listen for SIGTERM: it runs in each worker's main
    thread, where alone signals can be set.
    """

    class Backend(torch_config().backend_cls):  # type: ignore[misc]
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            super().on_start(worker_group, backend_config)
            worker_group.execute(listen)

    class Config(torch_config):  # type: ignore[misc]
        @property
        def backend_cls(self) -> type:
            return Backend

    return Config


def _work_in_ray(plan: Plan) -> None:
    logging.basicConfig(level=logging.WARNING)
    work(plan)


@contextlib.contextmanager
def _on_sigterm(request_stop: Callable[[], object]) -> Iterator[None]:
    """For the block, SIGTERM to this command calls `request_stop`: the run saves before it ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGTERM, lambda *_: request_stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
