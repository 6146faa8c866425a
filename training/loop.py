"""The training loop, as every rank runs it: set up, resume, then batch, loss, update, EMA, log, checkpoint.

    work(plan)              # inside Ray Train, or alone after training.engine.ensure_process_group

The order of samples and all randomness depend on positions, never on ranks or restarts: a run that was killed and resumed
gives the same losses bit for bit. It starts nothing and checks no settings (training.train does).
"""

import json
import math
import os
import resource
import socket
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cluster.dataset import Dataset, Snapshot
from cluster.storage import open_store
from configs.load import UserError
from training.checkpoints import commit, committed_steps, download, find_newest, read_marker, retain, upload_part
from training.ema import FILE, Ema, read_weights
from training.engine import load_engine, prepare_process, save_engine, start_engine
from training.journal import Journal
from training.loader import Catalogue, Loader, Order
from training.settings import TrainConfig, learning_rate


@dataclass(frozen=True)
class Plan:
    """What the driver hands to every worker: settings, the pinned snapshot, the recipe's facts, a name for this start."""

    config: TrainConfig
    snapshot: dict[str, Any]
    facts: dict[str, Any]
    attempt: str


@dataclass
class Run:
    """One rank's view of the run."""

    plan: Plan
    rank: int
    world: int
    engine: Any
    ema: Ema
    attempt: str

    @property
    def store(self) -> Any:
        return open_store(self.plan.config.output)

    @property
    def device(self) -> torch.device:
        return self.engine.device


def work(plan: Plan) -> None:
    """Trains from the newest checkpoint to `steps`, and leaves the finished model in `<output>/model`."""
    config = plan.config
    check_shared(config.output)
    prepare_process(config.threads)
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(config.seed)
    run = _set_up(plan, rank, world)
    step = resume(run)
    dataset, recipe = Dataset.open(config.data), config.module
    catalogue = Catalogue.of(dataset, Snapshot.from_json(plan.snapshot), config.split, recipe.MEMBERS)
    order = Order(len(catalogue), config.lanes, config.seed)
    with ExitStack() as stack:
        metrics, events = (
            stack.enter_context(Journal(run.store, name)) if rank == 0 else None for name in ("metrics.jsonl", "events.jsonl")
        )
        pids = gather(os.getpid(), world)
        if metrics and events:
            metrics.cut(after_step=step)
            events.append({"event": "resumed" if step else "started", "step": step, "pids": pids, "time": time.time()})
        if step < config.steps:
            loader = stack.enter_context(
                Loader(catalogue, order, config.global_batch, rank, world, step * config.global_batch, config.prefetch)
            )
            for batch in loader:
                started = time.monotonic()
                step = batch.step + 1
                tensors = recipe.make_batch(batch.samples, batch.keys, config.section, plan.facts)
                loss = train_step(run, tensors, step)
                if not math.isfinite(loss):  # the same on every rank: all return, and nothing starts again
                    fix = f"start anew in another output, with a lower lr than {config.lr} or precision=fp32"
                    if events:
                        events.append(
                            {"event": "failed", "step": step, "reason": f"the loss of step {step} is {loss}: {fix}", "time": time.time()}
                        )
                    return
                run.ema.update(step)
                if metrics:
                    seconds = {"step_s": round(batch.wait_s + time.monotonic() - started, 4), "data_wait_s": round(batch.wait_s, 4)}
                    metrics.append(
                        {"step": step, "loss": loss, "samples": step * config.global_batch, "lr": learning_rate(config, step), **seconds}
                    )
                if step % config.checkpoint_every == 0 or step >= config.steps:
                    for journal in filter(None, (metrics, events)):
                        journal.sync()
                    save(run, step)
                if step >= config.steps:
                    break
        cpu_s = sum(gather(cpu_seconds(), world))
        if events:
            finish(run, step, cpu_s)
            events.append({"event": "finished", "step": step, "pids": pids, "time": time.time()})


def check_shared(output: str) -> None:
    """`UserError` where this node does not see what the driver wrote: its part of a checkpoint would be lost."""
    if not open_store(output).exists("run.json"):
        raise UserError(f"output={output}: {socket.gethostname()} does not see the run there; give a folder that all nodes share, or s3://")


def _set_up(plan: Plan, rank: int, world: int) -> Run:
    config = plan.config
    model = config.module.build_model(config.section, plan.facts)
    engine = start_engine(model, config, world)
    ema = Ema(engine.module, rank, world, config.ema)
    (attempt,) = set(gather(f"{plan.attempt}-{time.time_ns()}" if rank == 0 else "", world)) - {""}
    return Run(plan, rank, world, engine, ema, attempt)


def train_step(run: Run, tensors: dict[str, torch.Tensor], step: int) -> float:
    """One optimiser step over this rank's part of the batch; the loss is the mean over all ranks' positions.

    Holes weigh nothing and divide as if they were there, so that a step is the same sum at every world size.
    """
    config = run.plan.config
    torch.manual_seed(config.seed + step)
    for group in run.engine.optimizer.param_groups:
        group["lr"] = learning_rate(config, step)
    size = len(tensors["weight"]) // config.accumulate
    total = torch.zeros((), device=run.device)
    for part in range(config.accumulate):
        losses = run.engine({name: tensor[part * size : (part + 1) * size].to(run.device) for name, tensor in tensors.items()})["loss"]
        loss = losses.float().sum() / size
        run.engine.backward(loss)
        run.engine.step()
        total += loss.detach() / config.accumulate
    dist.all_reduce(total)
    return float(total) / run.world


def save(run: Run, step: int) -> None:
    """Writes, uploads and commits the checkpoint of a step; all ranks take part."""
    config, store = run.plan.config, run.store
    with tempfile.TemporaryDirectory(prefix="stillsound-checkpoint-") as name:
        folder = Path(name)
        save_engine(run.engine, folder)
        run.ema.save(folder / FILE)
        entries = upload_part(store, step, run.attempt, run.rank, folder)
    files = [entry for part in gather(entries, run.world) for entry in part]
    if run.rank == 0:
        facts = {"workers": run.world, "zero_stage": config.zero_stage, "precision": config.precision}
        commit(store, step, {**facts, "position": step * config.global_batch, "snapshot": run.plan.snapshot["id"]}, files)
        retain(store, config.keep_checkpoints)
    dist.barrier()


def resume(run: Run) -> int:
    """Loads the newest valid checkpoint into engine and EMA; the step it was made at, 0 where there is none."""
    store = run.store
    with tempfile.TemporaryDirectory(prefix="stillsound-resume-") as name:
        folder = Path(name)
        found = find_newest(store, folder) if run.rank == 0 else None
        step = max(gather(found.step if found else 0, run.world))
        if step == 0:
            return 0
        if found is None:
            found = read_marker(store, step)
            download(store, found, folder)
        load_engine(run.engine, folder, found, run.plan.config, run.world)
        run.ema.load(sorted(folder.glob(f"rank-*/{FILE}")))
    return step


def finish(run: Run, step: int, cpu_s: float) -> None:
    """Rank 0: the model as its recipe saves it, from the averaged weights, and FINISHED.json last."""
    config, store = run.plan.config, run.store
    with tempfile.TemporaryDirectory(prefix="stillsound-finish-") as name:
        download(store, read_marker(store, committed_steps(store)[-1]), Path(name) / "checkpoint")
        state = read_weights(sorted(Path(name).glob(f"checkpoint/rank-*/{FILE}")))
        model = Path(name) / "model"
        model.mkdir()
        config.module.save(state, config.section, run.plan.facts, model)
        store.delete("FINISHED.json")  # of a shorter run: its model is replaced file by file
        for path in sorted(path for path in model.rglob("*") if path.is_file()):
            store.replace(f"model/{path.relative_to(model)}", path.read_bytes())
    store.replace("FINISHED.json", json.dumps({"step": step, "cpu_s": round(cpu_s, 1), "time": time.time()}).encode())


def gather(value: Any, world: int) -> list[Any]:
    """Every rank's value, on every rank."""
    values: list[Any] = [None] * world
    dist.all_gather_object(values, value)
    return values


def cpu_seconds() -> float:
    """Of this process and its ended children."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
