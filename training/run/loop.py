"""The training loop, as every rank runs it: set up, resume, then batch, loss, update, EMA, log, validate,
checkpoint.

    work(plan)              # inside Ray Train, or alone after training.run.engine.ensure_process_group

The order of samples and all randomness depend on positions, never on ranks or restarts: a run that was killed
and resumed gives the same losses bit for bit, and one that goes on with another number of workers the same to
rounding. Where a loss or a gradient is no number, the run goes back to the newest checkpoint and leaves out
the samples since. It starts nothing and checks no settings (training.train does).
"""

import json
import logging
import math
import os
import socket
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cluster.dataset import Dataset, Snapshot
from cluster.record import cpu_seconds
from cluster.scratch import scratch_folder, sweep
from cluster.storage import Store, open_store
from configs.load import UserError
from training.checkpoints.fragments import KINDS, Fragment, held, mine, publish, shapes_of
from training.checkpoints.parts import AVERAGE, NotFiniteError, Parts, snapshot
from cluster.runs import committed_steps
from training.checkpoints.store import Checkpoint, DamagedError, Saver, quarantine, read_marker
from training.data.catalogue import Catalogue, Sample
from training.data.heldout import HeldOut, held_out, leave_out
from training.data.loader import Loader
from training.data.mixture import Mixture
from training.data.order import Order
from training.data.randomness import SampleKey
from training.data.takedown import watch_tombstones
from training.pretrained import fetch_models
from training.recipes.recipe import Geometry
from training.run.ema import Ema, averaged
from training.run.engine import count_flops, prepare_process, start_engine
from training.run.history import EVENTS, FINISHED, RESTART, NothingUsableError, work_behind
from training.run.interrupt import ASKED, watch_store
from training.run.journal import Journal
from training.run.metrics import Book
from training.run.preview import Preview
from training.run.validate import Validation
from training.settings import TrainConfig, learning_rate

log = logging.getLogger(__name__)
MAX_ROLLBACKS = 3


@dataclass(frozen=True)
class Plan:
    """What the driver hands to every worker: settings, pinned snapshots (of `data` first), the recipe's
    geometry, a name for this start.
    """

    config: TrainConfig
    snapshots: list[dict[str, Any]]
    geometry: Geometry
    attempt: str

    @property
    def stop_name(self) -> str:
        """The object that the driver writes to ask the workers to stop."""
        return f"STOP-{self.attempt}"


@dataclass(frozen=True)
class Place:
    """Where a run is: steps made, and steps' worth of samples left out after rollbacks."""

    step: int = 0
    skipped: int = 0

    def position(self, config: TrainConfig) -> int:
        """Of the next sample."""
        return (self.step + self.skipped) * config.global_batch


class Stopped(RuntimeError):
    """This worker was told that its machine goes away, and has saved. Another start goes on from there."""


@dataclass
class Run:
    """One rank's view of the run.

    `held`: all that its optimiser works on; `mine`: its share of what all ranks hold.
    """

    plan: Plan
    store: Store
    rank: int
    world: int
    engine: Any
    held: list[Fragment]
    mine: list[Fragment]
    ema: Ema
    saver: Saver
    attempt: str
    saves: int = 0

    @property
    def config(self) -> TrainConfig:
        return self.plan.config


def work(plan: Plan) -> None:
    """Trains from the newest checkpoint to `steps`, and leaves the finished model in `<output>/model`."""
    config = plan.config
    sweep()
    check_shared(config.output)
    prepare_process(config.threads)
    torch.manual_seed(config.seed)
    snapshots = [Snapshot.from_json(snapshot) for snapshot in plan.snapshots]
    dataset, pinned, mixture = Dataset.open(config.data), snapshots[0], mixture_of(config, snapshots)
    with ExitStack() as stack:
        run = _set_up(plan, stack)
        validation = Validation.of(dataset, pinned, config, plan.geometry, run.rank, run.world)
        preview = Preview.of(dataset, pinned, config, plan.geometry)
        try:
            place = resume(run)
        except NothingUsableError as error:
            record_failure(run, str(error))
            return
        opened = [*mixture.catalogues, *([validation.catalogue] if validation else [])]
        datasets = [Dataset.open(uri) for uri in config.all_data]
        watched = [
            (each, [catalogue for catalogue in opened if catalogue.store.uri == each.uri])
            for each in datasets
        ]
        look_for_tombstones = stack.enter_context(watch_tombstones(watched))
        rollbacks: Counter[int] = Counter()
        flops, pids = 0.0, gather(os.getpid(), run.world)
        book = stack.enter_context(Book(run.store, config, place.step)) if run.rank == 0 else None
        make = partial(_make_batch, run)
        ahead = None if run.engine.device.type == "cpu" else make  # a CPU's cores have enough to do
        if book:
            book.event("resumed" if place.step else "started", place.step, pids=pids)
            stack.enter_context(watch_store(run.store, plan.stop_name))
        while place.step < config.steps:
            position, failed = place.position(config), ""
            with Loader(
                mixture, config.global_batch, run.rank, run.world, position, config.prefetch, ahead
            ) as loader:
                for batch in loader:
                    started = time.monotonic()
                    step = place.step + 1
                    tensors = batch.tensors or make(batch.samples, batch.keys)
                    flops = flops or count_flops(run.engine, tensors, config)
                    loss, count, norm, asked = train_step(run, tensors, step)
                    if not math.isfinite(loss + norm):
                        failed = f"the {'gradient' if math.isfinite(loss) else 'loss'} of step {step} is {norm if math.isfinite(loss) else loss}"
                        break
                    run.ema.update(step)
                    place = Place(step, place.skipped)
                    if book:
                        book.note(step, loss, count, norm, time.monotonic() - started, batch.wait_s, flops)
                    look(run, validation, preview, book, step)
                    if step % config.checkpoint_every == 0 or step == config.steps or asked:
                        look_for_tombstones()
                        try:
                            save(run, place, book)
                        except NotFiniteError as error:
                            failed = f"after step {step} {error}"
                            break
                    if step == config.steps or asked:
                        break
            if failed:
                place = roll_back(run, place, book, failed, rollbacks)
                if place.step == 0:
                    return
            elif place.step < config.steps:
                _stop(run, place, book)
                return
        run.saver.join()
        dist.barrier()
        cpu_s = sum(gather(cpu_seconds(), run.world))
        if book:
            finish(run, place.step, cpu_s)
            book.event("finished", place.step, pids=pids)


def mixture_of(config: TrainConfig, snapshots: list[Snapshot]) -> Mixture:
    """The samples of `split` of all datasets, in the order of this run. `UserError` where one has none."""
    datasets = [Dataset.open(uri) for uri in config.all_data]
    pinned = list(zip(datasets, snapshots, strict=True))
    catalogues = [
        Catalogue.of(dataset, snapshot, config.split, config.module.MEMBERS) for dataset, snapshot in pinned
    ]
    if config.more_data:
        found = held_out(*pinned[0], config.split)
        for catalogue, (dataset, snapshot) in list(zip(catalogues, pinned, strict=True))[1:]:
            _leave_out(catalogue, dataset, snapshot, found, config)
    return Mixture.of(
        catalogues, Order(0, config.lanes, config.seed, config.block_size, config.window_size), config.weights
    )


def _leave_out(
    catalogue: Catalogue, dataset: Dataset, snapshot: Snapshot, found: HeldOut, config: TrainConfig
) -> None:
    count = leave_out(catalogue, dataset, snapshot, found, config.split)
    if catalogue.holes.all():
        raise UserError(
            f"more_data={dataset.uri}: data={config.data} holds out all of its samples for validation or test; leave it out"
        )
    if count:
        log.warning(
            "more_data=%s: %d samples are left out: data=%s holds them out", dataset.uri, count, config.data
        )


def check_shared(output: str) -> None:
    """`UserError` where this node does not see what the driver wrote: its part of a checkpoint would be lost."""
    if not open_store(output).exists("run.json"):
        raise UserError(
            f"output={output}: {socket.gethostname()} does not see the run there; give a folder that all nodes share, or s3://"
        )


def _set_up(plan: Plan, stack: ExitStack) -> Run:
    config, rank, world = plan.config, dist.get_rank(), dist.get_world_size()
    engine = start_engine(config.module.build_model(config.section, plan.geometry), config, world)
    pieces = held(engine, config.zero_stage)
    share = mine(pieces, config.zero_stage, rank, world)
    store = open_store(config.output)
    saver = Saver(store, rank, world, config.keep_checkpoints)
    stack.callback(saver.close)
    (attempt,) = set(gather(f"{plan.attempt}-{time.time_ns()}" if rank == 0 else "", world)) - {""}
    return Run(plan, store, rank, world, engine, pieces, share, Ema(share, config.ema), saver, attempt)


def _make_batch(run: Run, samples: list[Sample | None], keys: list[SampleKey]) -> dict[str, torch.Tensor]:
    """As the recipe makes it; for a GPU in memory that it can read while the next kernels are launched."""
    batch = run.config.module.make_batch(samples, keys, run.config.section, run.plan.geometry)
    device = run.engine.device
    if device.type != "cuda":
        return batch
    with torch.cuda.device(device):  # a thread starts on the first GPU, whichever the rank's is
        return {name: tensor.pin_memory() for name, tensor in batch.items()}


def train_step(run: Run, tensors: dict[str, torch.Tensor], step: int) -> tuple[float, int, float, bool]:
    """One optimiser step over this rank's part of the batch: the mean loss over the samples of all ranks and
    how many these are, the gradient's norm, and whether any rank was asked to stop.

    Holes weigh nothing: what is minimised is the mean over the samples of the global batch, wherever in it
    the holes are and whatever the number of ranks and micro batches. A batch of holes only has a loss of 0
    and counts 0 samples.
    """
    config, engine = run.config, run.engine
    torch.manual_seed(config.seed + step)
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate(config, step)
    size = len(tensors["weight"]) // config.accumulate
    before = torch.stack([tensors["weight"].sum(), torch.tensor(float(ASKED.is_set()))]).to(engine.device)
    dist.all_reduce(before)
    count, asked = before.tolist()
    samples_a_part = max(count, 1) / (
        run.world * config.accumulate
    )  # the engine averages over ranks and parts
    total = torch.zeros(1, device=engine.device)
    for part in range(config.accumulate):
        losses = engine(
            {
                name: tensor[part * size : (part + 1) * size].to(engine.device, non_blocking=True)
                for name, tensor in tensors.items()
            }
        )["loss"]
        loss = losses.float().sum()
        engine.backward(loss / samples_a_part)
        engine.step()
        total += loss.detach()
    dist.all_reduce(total)
    norm = engine.get_global_grad_norm()
    return float(total) / max(count, 1), round(count), float(norm if norm is not None else 0.0), bool(asked)


def look(
    run: Run, validation: Validation | None, preview: Preview | None, book: Book | None, step: int
) -> None:
    """Validation, by the live and by the averaged weights, and previews, where this step or the last one is
    their turn.

    All ranks take part.
    """
    config = run.config
    if validation and (step % config.validate_every == 0 or step == config.steps):
        found = validation.measure(run.engine)
        if config.ema:
            with averaged(run.ema, run.engine, run.held, config.zero_stage):
                shipped = validation.measure(run.engine)
            found |= {f"ema_{name}": value for name, value in shipped.items()}
        if book:
            book.note_validation(step, found, sorted(validation.damaged))
    if preview and (step % config.preview_every == 0 or step == config.steps):
        drawn = preview.draw(run.engine)
        if book:
            book.show_drawn(step, preview.sounds(drawn))


def save(run: Run, place: Place, book: Book | None) -> None:
    """Begins the checkpoint of a place; all ranks take part.

    `NotFiniteError` on all where it is worth none on one.
    """
    config, run.saves = run.config, run.saves + 1
    parameters = dict(run.engine.module.named_parameters())
    buffers = (
        {name: value for name, value in run.engine.module.state_dict().items() if name not in parameters}
        if run.rank == 0
        else {}
    )
    try:
        write, problem = (
            snapshot(run.mine, run.ema.tensors, buffers, shapes_of(run.engine) if run.rank == 0 else {}),
            "",
        )
    except NotFiniteError as error:
        write, problem = None, str(error)
    problems = [text for text in gather(problem, run.world) if text]
    if problems or write is None:
        raise NotFiniteError(problems[0])
    facts = {
        "workers": run.world,
        "zero_stage": config.zero_stage,
        "precision": config.precision,
        "ema": config.ema,
    }
    facts |= {
        "position": place.position(config),
        "skipped": place.skipped,
        "snapshots": [snapshot["id"] for snapshot in run.plan.snapshots],
    }
    run.saver.save(
        place.step, f"{run.attempt}-{run.saves}", write, facts, book.sync if book else lambda: None
    )


def resume(run: Run) -> Place:
    """Back to the newest checkpoint that is valid for all ranks; damaged newer ones are then put into
    quarantine by rank 0.

    `NothingUsableError` on all ranks where the run has steps behind it and none is valid: nothing is changed
    then.
    """
    found = gather((committed_steps(run.store), work_behind(run.store)) if run.rank == 0 else None, run.world)
    steps, behind = next(one for one in found if one is not None)
    damaged: dict[int, str] = {}
    for step in reversed(steps):
        with scratch_folder("resume") as folder:
            checkpoint, problem = None, ""
            try:
                checkpoint = read_marker(run.store, step)
                fill = _fetch(run, checkpoint, folder)
            except (DamagedError, FileNotFoundError) as error:
                problem = str(error)
            problems = [text for text in gather(problem, run.world) if text]
            if checkpoint and not problems:
                fill()
                _quarantine_all(run, damaged)
                return Place(step, checkpoint.facts["skipped"])
            damaged[step] = problems[0]
    if behind and not run.config.restart:
        said = "; ".join(
            f"the checkpoint of step {step} is damaged: {problem}" for step, problem in damaged.items()
        )
        raise NothingUsableError(
            f"output={run.config.output}: {behind}, but {said or 'its checkpoints are missing'}; {RESTART}"
        )
    _quarantine_all(run, damaged)
    return Place()


def _quarantine_all(run: Run, damaged: dict[int, str]) -> None:
    for step, problem in damaged.items() if run.rank == 0 else ():
        quarantine(run.store, step, problem)


def _fetch(run: Run, checkpoint: Checkpoint, folder: Path) -> Any:
    """Downloads what this rank needs of a checkpoint; nothing changes before the function returned is called."""
    parts = Parts(run.store, checkpoint, folder)
    fills = [
        parts.fetch(kind, [(piece.address, piece.values(kind)) for piece in run.held], run.rank)
        for kind in KINDS
    ]
    fills.append(
        parts.fetch(
            AVERAGE, list(zip([piece.address for piece in run.mine], run.ema.tensors, strict=True)), run.rank
        )
    )
    buffers = parts.buffers()

    def fill() -> None:
        with torch.no_grad():
            for put in fills:
                put()
            for piece in run.held:
                piece.set_step(checkpoint.step)
            for name, value in buffers.items():
                run.engine.module.get_buffer(name).copy_(value)
        publish(run.engine, run.config.zero_stage)

    return fill


def roll_back(run: Run, place: Place, book: Book | None, why: str, rollbacks: "Counter[int]") -> Place:
    """To the newest checkpoint, past the samples since; step 0, and the reason in the journal, where that is
    of no use.

    `rollbacks` counts by checkpoint: bad batches far apart do not add up, the run made progress between them.
    """
    run.saver.join()
    dist.barrier()
    try:
        back, fix = (
            resume(run),
            f"start anew in another output, with a lower lr than {run.config.lr} or precision=fp32",
        )
    except NothingUsableError as error:
        back, fix = Place(), str(error)
    rollbacks[back.step] += 1
    if back.step == 0 or rollbacks[back.step] > MAX_ROLLBACKS:
        again = (
            f" after {MAX_ROLLBACKS} rollbacks to step {back.step}"
            if back.step
            else " before the first checkpoint"
        )
        if book:
            book.event("failed", place.step, reason=f"{why}{again}: {fix}")
        return Place()
    back = Place(back.step, place.step + place.skipped + 1 - back.step)
    if book:
        book.cut(back.step)
        book.event(
            "rolled_back", back.step, reason=why, skipped_samples=back.skipped * run.config.global_batch
        )
    return back


def record_failure(run: Run, reason: str) -> None:
    """Rank 0: why no step was made, for the driver; no line of what was done before is touched."""
    if run.rank == 0:
        with Journal(run.store, EVENTS) as journal:
            journal.append({"event": "failed", "step": 0, "reason": reason, "time": time.time()})


def _stop(run: Run, place: Place, book: Book | None) -> None:
    """After a checkpoint that was made because a rank was asked to stop.

    `Stopped` where it was not the user who asked.
    """
    run.saver.join()
    dist.barrier()
    told = gather(run.store.exists(run.plan.stop_name), run.world)
    if book:
        book.event(
            "stopped",
            place.step,
            reason=f"asked to stop at step {place.step}: saved; run the same command again to go on",
        )
    if run.config.workers and not any(told):
        raise Stopped(f"saved at step {place.step} before this machine goes away")


def finish(run: Run, step: int, cpu_s: float) -> None:
    """Rank 0: the model as its recipe saves it, from the averaged weights, with its codec, and FINISHED.json
    last.
    """
    config, store = run.config, run.store
    with scratch_folder("finish") as scratch:
        folder, model = scratch / "parts", scratch / "model"
        model.mkdir()
        state = Parts(store, read_marker(store, step), folder).average()
        config.module.save(state, config.section, run.plan.geometry, model)
        if config.module.LEARNS_FROM == "latents":
            fetch_models(
                Dataset.open(config.data), model
            )  # what decodes it belongs to the model, wherever the latents go
        store.delete(FINISHED)  # of a shorter run: its model is replaced file by file
        files = {
            f"model/{path.relative_to(model)}": path for path in sorted(model.rglob("*")) if path.is_file()
        }
        for name, path in files.items():
            store.replace(name, path.read_bytes())
        sizes = {name: path.stat().st_size for name, path in files.items()}
    ended = {"step": step, "cpu_s": round(cpu_s, 1), "time": time.time(), "files": sizes}
    store.replace(FINISHED, json.dumps(ended).encode())


def gather(value: Any, world: int) -> list[Any]:
    """Every rank's value, on every rank."""
    values: list[Any] = [None] * world
    dist.all_gather_object(values, value)
    return values
