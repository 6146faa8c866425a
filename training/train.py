"""`training train`: a recipe under Ray Train and DeepSpeed; the same command again resumes, or says that it
is finished.

    train(load_config(TrainConfig, ["configs/training/demo.yaml"]))

`training.run.prepare` checks settings and data before any machine works and pins the snapshot in
`<output>/run.json`; the driver starts the workers; when one dies they start again by themselves from the
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
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from cluster.jsonl import last_line, read_lines
from cluster.pool import ensure_ray
from cluster.scratch import scratch_folder
from cluster.storage import Store, open_store
from configs.load import StoppedError
from training.run.engine import ensure_process_group, wants_gpu
from training.run.history import EVENTS, FINISHED, events, finished_step
from training.run.interrupt import ASKED, listen
from training.run.loop import Plan, work
from training.run.prepare import prepare
from training.settings import TrainConfig

log = logging.getLogger(__name__)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def train(config: TrainConfig) -> dict[str, Any]:
    """Runs to `steps`; returns `{"steps", "resumed_from", "seconds", "cpu_s", "finished_before", "model"}`.

    `UserError` before any work: data missing or of the wrong kind, output not writable, or made with other
    settings. `StoppedError` where workers kept failing, the loss is NaN or infinite, or no checkpoint of a
    run with steps behind it is usable.
    """
    started = time.monotonic()
    plan = prepare(config)
    store = open_store(plan.config.output)
    done = finished_step(store)
    before = len(events(store))
    if done < config.steps:
        if config.workers == 0:
            ensure_process_group()
            with _told_to_stop(ASKED.set):
                ASKED.clear()
                _work_here(plan)
        else:
            _under_ray(plan)
        store.delete(plan.stop_name)
        if finished_step(store) < config.steps:
            raise StoppedError(_reason(store))
    finished = json.loads(store.read(FINISHED))
    starts = [
        event["step"] for event in events(store)[before:] if event.get("event") in ("started", "resumed")
    ]
    summary = {
        "steps": finished["step"],
        "finished_before": done >= config.steps,
        "resumed_from": starts[0] if starts else done,
    }
    cpu_s = 0.0 if summary["finished_before"] else finished["cpu_s"]  # of the workers that came to the end
    return {
        **summary,
        "seconds": round(time.monotonic() - started, 1),
        "cpu_s": cpu_s,
        "model": f"{config.output}/model",
    }


def _work_here(plan: Plan) -> None:
    """`workers=0`.

    A full disk, a lost mount or damaged data end the run with one line, as they do under Ray.
    """
    try:
        work(plan)
    except OSError as error:
        if isinstance(error, StoppedError):
            raise
        hint = "make room there" if error.errno in NO_ROOM else "see to it"
        raise StoppedError(
            f"stopped: {error}; {hint}, then run the same command again: it goes on from the newest checkpoint"
        ) from error


def _reason(store: Store) -> str:
    reasons = (
        event["reason"] for event in reversed(events(store)) if event.get("event") in ("failed", "stopped")
    )
    return next(reasons, "the workers ended without a reason")


def _under_ray(plan: Plan) -> None:
    """`workers` processes under Ray Train; it starts them again, all together, when one of them dies."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    config = plan.config
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    ensure_ray(config.workers + 1, log_to_driver=False)
    gpus = int(ray.cluster_resources().get("GPU", 0)) if wants_gpu() else 0
    gpu = gpus >= config.workers
    if gpus and not gpu:
        log.warning(
            "the cluster has %d GPUs for workers=%d: training on CPUs; give workers=%d for GPUs",
            gpus,
            config.workers,
            gpus,
        )
    with scratch_folder("ray-train") as folder:
        trainer = TorchTrainer(
            functools.partial(_work_in_ray, plan),
            scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=gpu),
            torch_config=_listening(TorchConfig)(backend="nccl" if gpu else "gloo"),
            run_config=RunConfig(
                storage_path=str(folder), failure_config=FailureConfig(max_failures=config.max_failures)
            ),
        )
        try:
            stop = functools.partial(open_store(config.output).replace, plan.stop_name, b"")
            with watch(config.output, config.steps), _told_to_stop(stop):
                trainer.fit()
        except TrainingFailedError as error:
            failures = list(getattr(error, "worker_failures", {}).values()) or [error]
            raise StoppedError(
                f"stopped after {config.max_failures} new starts: {str(failures[0]).strip().splitlines()[-1]}"
            ) from error


def _listening(torch_config: Any) -> Any:
    """Ray's way to start a process group, and in the same place, which is each worker's main thread, to heed
    SIGTERM.
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


@contextlib.contextmanager
def _told_to_stop(stop: Callable[[], object]) -> Iterator[None]:
    """For the block, SIGTERM to this command calls `stop`: the run saves before it ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def watch(output: str, steps: int) -> Iterator[None]:
    """A live line of the run's own journal while the block runs: step, loss, resumes.

    On stderr, for runs in a folder.
    """
    stop = threading.Event()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    shown = Progress(
        *columns, TextColumn("{task.fields[said]}"), console=Console(stderr=True), disable="://" in output
    )

    def follow() -> None:
        line = shown.add_task("steps", total=steps, said="")
        while not stop.wait(1.0):
            newest, events = last_line(Path(output) / "metrics.jsonl"), read_lines(Path(output) / EVENTS)
            resumed = [event["step"] for event in events if event.get("event") == "resumed"]
            said = f"loss {newest['loss']:.4f}" if newest else "starting"
            said += f" · resumed at step {resumed[-1]}" if resumed else ""
            shown.update(line, completed=newest["step"] if newest else 0, said=said)

    thread = threading.Thread(target=follow, name="watch", daemon=True)
    with shown:
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def _work_in_ray(plan: Plan) -> None:
    logging.basicConfig(level=logging.WARNING)
    work(plan)
