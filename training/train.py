"""`training train`: a recipe under Ray Train and DeepSpeed; the same command again resumes, or says that it is finished.

    train(load_config(TrainConfig, ["configs/training/demo.yaml"]))

The driver checks settings and data before any machine works, pins the snapshot in `<output>/run.json`, and starts the
workers; when one dies they start again by themselves from the newest checkpoint. `workers=0` trains in this process.
"""

import contextlib
import functools
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cluster.dataset import Dataset, Snapshot
from cluster.scratch import scratch_folder
from cluster.storage import Store, open_store
from cluster.units import ensure_ray
from configs.load import StoppedError, UserError, describe_difference, semantic_hash
from training.book import check_wandb
from training.catalogue import Catalogue
from training.engine import check_compiler, ensure_process_group, wants_gpu
from training.interrupt import ASKED, listen
from training.journal import last_line, read_lines
from training.loop import Plan, mixture_of, work
from training.preview import Preview
from training.settings import TrainConfig, identity

log = logging.getLogger(__name__)


def train(config: TrainConfig) -> dict[str, Any]:
    """Runs to `steps`; returns `{"steps", "resumed_from", "seconds", "cpu_s", "finished_before", "model"}`.

    `UserError` before any work: data missing or of the wrong kind, output not writable, or made with other settings.
    `StoppedError` where workers kept failing, or the loss is no number.
    """
    started, plan = time.monotonic(), prepare(config)
    store = open_store(plan.config.output)
    done, before = finished_step(store), len(_events(store))
    if done < config.steps:
        if config.workers == 0:
            ensure_process_group()
            with _told_to_stop(ASKED.set):
                ASKED.clear()
                work(plan)
        else:
            _under_ray(plan)
        store.delete(plan.stop_name)
        if finished_step(store) < config.steps:
            raise StoppedError(_reason(store))
    finished = json.loads(store.read("FINISHED.json"))
    starts = [event["step"] for event in _events(store)[before:] if event["event"] in ("started", "resumed")]
    summary = {"steps": finished["step"], "finished_before": done >= config.steps, "resumed_from": starts[0] if starts else done}
    cpu_s = 0.0 if summary["finished_before"] else finished["cpu_s"]  # of the workers that came to the end
    return {**summary, "seconds": round(time.monotonic() - started, 1), "cpu_s": cpu_s, "model": f"{config.output}/model"}


def prepare(config: TrainConfig) -> Plan:
    """Checks everything, and writes or compares `<output>/run.json`: settings, snapshots and the recipe's facts."""
    more = [_absolute(uri) for uri in config.more_data]
    config = replace(config, data=_absolute(config.data), more_data=more, output=_absolute(config.output))
    check_compiler(config)
    check_wandb(config)
    datasets = [Dataset.open(uri) for uri in config.all_data]
    store = open_store(config.output)
    if store.exists("run.json"):
        kept = json.loads(store.read("run.json"))
        _check_same(kept, config, finished_step(store) >= config.steps)
    else:
        snapshots = [dataset.snapshot() for dataset in datasets]
        facts = _facts(config, datasets, snapshots)
        mixture_of(config, snapshots)
        store = open_store(config.output, writable=True)
        kept = {"config": identity(config), "snapshots": [snapshot.to_json() for snapshot in snapshots], "facts": facts}
        store.put("run.json", json.dumps(kept, indent=1).encode())
    pinned = Snapshot.from_json(kept["snapshots"][0])
    if config.validate_every:
        Catalogue.of(datasets[0], pinned, config.validation_split, config.module.MEMBERS)
    Preview.of(datasets[0], pinned, config, kept["facts"])
    return Plan(config, kept["snapshots"], kept["facts"], f"{time.time_ns():x}")


def _facts(config: TrainConfig, datasets: list[Dataset], snapshots: list[Snapshot]) -> dict[str, Any]:
    """The recipe's facts of all datasets together. `UserError` unless they were made alike: latents by the same encoders, for one."""
    recipe, first = config.module, datasets[0]
    alike = [
        dataset.meta["config"] if dataset.meta["kind"] == "latents" else recipe.facts(snapshot, dataset.meta, config.section)
        for dataset, snapshot in zip(datasets, snapshots, strict=True)
    ]
    for dataset, theirs in zip(datasets, alike, strict=True):
        if dataset.meta["kind"] != first.meta["kind"] or semantic_hash(theirs) != semantic_hash(alike[0]):
            difference = describe_difference(alike[0], theirs) or f"{first.meta['kind']} and {dataset.meta['kind']}"
            raise UserError(f"more_data={dataset.uri}: was not made as {first.uri} was: {difference}; mix only what was made alike")
    commits = [commit for snapshot in snapshots for commit in snapshot.commits]
    return recipe.facts(Snapshot.of(first.uri, commits), first.meta, config.section)


def _check_same(kept: dict[str, Any], config: TrainConfig, finished: bool) -> None:
    ours = identity(config)
    stored = {**kept["config"], "numbers": ours["numbers"]}
    if kept["config"].get("numbers") != ours["numbers"] and not finished:
        raise UserError(
            f"output={config.output}: begun by an older version, whose steps compute other numbers; finish it there or start another output"
        )
    if semantic_hash(stored) != semantic_hash(ours):
        difference = describe_difference(stored, ours)
        raise UserError(f"output={config.output}: this run was started with other settings: {difference}; use these, or another output")
    pinned = [str(snapshot["uri"]) for snapshot in kept["snapshots"]]
    if len(pinned) != len(config.all_data) or (pinned != config.all_data and sorted(pinned) == sorted(config.all_data)):
        first, more = pinned[0], ",".join(pinned[1:])
        raise UserError(
            f"more_data={config.more_data}: this run was started with data={first} 'more_data=[{more}]'; give these, in this order"
        )
    for before, now in zip(pinned, config.all_data, strict=True):
        if before != now:
            log.warning("this run learns from the snapshot of %s, now read at %s", before, now)


def _events(store: Store) -> list[dict[str, Any]]:
    return [json.loads(line) for line in store.read("events.jsonl").splitlines()] if store.exists("events.jsonl") else []


def _reason(store: Store) -> str:
    told = (event["reason"] for event in reversed(_events(store)) if event["event"] in ("failed", "stopped"))
    return next(told, "the workers ended without a word")


def finished_step(store: Store) -> int:
    """The step at which the run was finished, or 0."""
    return int(json.loads(store.read("FINISHED.json"))["step"]) if store.exists("FINISHED.json") else 0


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
        log.warning("the cluster has %d GPUs for workers=%d: training on CPUs; give workers=%d for GPUs", gpus, config.workers, gpus)
    with scratch_folder("ray-train") as folder:
        trainer = TorchTrainer(
            functools.partial(_work_in_ray, plan),
            scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=gpu),
            torch_config=_listening(TorchConfig)(backend="nccl" if gpu else "gloo"),
            run_config=RunConfig(storage_path=str(folder), failure_config=FailureConfig(max_failures=config.max_failures)),
        )
        try:
            stop = functools.partial(open_store(config.output).replace, plan.stop_name, b"")
            with watch(config.output, config.steps), _told_to_stop(stop):
                trainer.fit()
        except TrainingFailedError as error:
            failures = list(getattr(error, "worker_failures", {}).values()) or [error]
            raise StoppedError(f"stopped after {config.max_failures} new starts: {str(failures[0]).strip().splitlines()[-1]}") from error


def _listening(torch_config: Any) -> Any:
    """Ray's way to start a process group, and in the same place, which is each worker's main thread, to heed SIGTERM."""

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
    """A live line of the run's own journal while the block runs: step, loss, resumes. On stderr, for runs in a folder."""
    stop = threading.Event()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    shown = Progress(*columns, TextColumn("{task.fields[said]}"), console=Console(stderr=True), disable="://" in output)

    def follow() -> None:
        line = shown.add_task("steps", total=steps, said="")
        while not stop.wait(1.0):
            newest, events = last_line(Path(output) / "metrics.jsonl"), read_lines(Path(output) / "events.jsonl")
            resumed = [event["step"] for event in events if event["event"] == "resumed"]
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


def _absolute(uri: str) -> str:
    return uri if "://" in uri else os.path.abspath(uri)
