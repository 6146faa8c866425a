"""Checkpoints of a run: save one, resume from the newest, roll back when a loss is NaN or infinite.

    progress = resume(run)                  # Progress(0) for a new run
    save(run, progress)                     # starts; the upload goes on beside the training
    progress = roll_back(run, progress, why)

All ranks call these together. What a checkpoint holds is training.checkpoints.parts's, where it is stored
training.checkpoints.store's.
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from cluster.runs import committed_steps
from cluster.scratch import scratch_folder
from training.checkpoints.fragments import KINDS, publish, shapes_of
from training.checkpoints.parts import BEST, Kept, NotFiniteError, Parts, snapshot
from training.checkpoints.store import (
    Checkpoint,
    DamagedError,
    Draft,
    Metadata,
    Write,
    quarantine,
    read_marker,
)
from training.run.history import EVENTS, RESTART, NothingUsableError, work_behind
from training.run.journal import Journal
from training.run.plan import Progress
from training.run.ranks import broadcast, gather
from training.run.scaling import restore_scale, scale_of
from training.run.setup import Run
from training.run.trained import fill_frozen

# a run that meets the same NaN again and again makes no progress; three leave room for bad luck
MAX_ROLLBACKS = 3


# --- Save ---------------------------------------------------------------------------------------------------


def save(run: Run, progress: Progress) -> None:
    """Starts the checkpoint of `progress`. `NotFiniteError` on all ranks if a weight of any is not finite."""
    run.saves += 1
    write: Write | None = None
    problem = ""
    try:
        write = _snapshot(run)
    except NotFiniteError as error:
        problem = str(error)
    # no rank may save alone: the others would wait for a part that never comes
    problems = [text for text in gather(problem, run.world) if text]
    if problems or write is None:
        raise NotFiniteError(problems[0])
    sync = run.metrics.sync if run.metrics else lambda: None
    # numbered: a run that was rolled back saves the same step again, and must not write into its old parts
    attempt = f"{run.attempt}-{run.saves}"
    run.saver.save(Draft(progress.step, attempt, write, _metadata(run, progress), sync))


def _snapshot(run: Run) -> Write:
    """Rank 0 also keeps what all ranks have alike: buffers, frozen weights and shapes."""
    buffers = buffers_of(run)
    shapes: dict[str, list[int]] = {}
    if run.rank == 0:
        shapes = shapes_of(run.model, run.frozen)
    averages = {kind: average.tensors for kind, average in run.averages.items()}
    return snapshot(run.owned, averages, buffers | run.frozen, shapes, run.guard.kept)


def buffers_of(run: Run) -> dict[str, torch.Tensor]:
    """What the model keeps beside its parameters, on rank 0, which saves it."""
    if run.rank > 0:
        return {}
    parameters = dict(run.model.named_parameters())
    return {name: value for name, value in run.model.state_dict().items() if name not in parameters}


def _metadata(run: Run, progress: Progress) -> Metadata:
    metadata: Metadata = {
        "workers": run.world,
        "zero_stage": run.config.zero_stage,
        "precision": run.config.precision,
        "ema": run.config.ema,
        "position": progress.position(run.config),
        "skipped": progress.skipped,
        "snapshots": [snapshot.id for snapshot in run.plan.snapshots],
    }
    if run.guard.state:
        metadata["guard"] = run.guard.state
    scales = [state for engine in run.engines if (state := scale_of(engine))]
    if scales:
        metadata["scales"] = scales
    return metadata


# --- Resume -------------------------------------------------------------------------------------------------


def resume(run: Run) -> Progress:
    """Back to the newest checkpoint that is valid for all ranks; rank 0 quarantines damaged newer ones.

    `NothingUsableError` on all ranks if the run has steps behind it and no checkpoint is valid: nothing is
    changed then.
    """
    # one listing for all ranks: another start of this run could commit between two
    steps: list[int] = []
    behind = ""
    if run.rank == 0:
        steps = committed_steps(run.store)
        behind = work_behind(run.store)
    steps, behind = broadcast((steps, behind))
    damaged: dict[int, str] = {}
    for step in reversed(steps):
        progress, problem = _resume_from(run, step)
        if progress:
            _quarantine_all(run, damaged)
            return progress
        damaged[step] = problem
    if behind and not run.config.restart:
        problems = [f"the checkpoint of step {step} is damaged: {text}" for step, text in damaged.items()]
        reason = "; ".join(problems) or "its checkpoints are missing"
        raise NothingUsableError(f"output={run.config.output}: {behind}, but {reason}; {RESTART}")
    _quarantine_all(run, damaged)
    return Progress()


def _resume_from(run: Run, step: int) -> tuple[Progress | None, str]:
    """The progress of a step's checkpoint, or None and why it cannot be used."""
    checkpoint: Checkpoint | None = None
    problem = ""
    with scratch_folder("resume") as folder:
        try:
            checkpoint = read_marker(run.store, step)
            fill = _fetch(run, checkpoint, folder)
        except (DamagedError, FileNotFoundError) as error:
            problem = str(error)
        # filled on all ranks or on none: half a checkpoint is no state
        problems = [text for text in gather(problem, run.world) if text]
        if problems or checkpoint is None:
            return None, problems[0]
        fill()
        return Progress(step, checkpoint.metadata["skipped"]), ""


def _fetch(run: Run, checkpoint: Checkpoint, folder: Path) -> Callable[[], None]:
    """Downloads what this rank needs of a checkpoint; the function returned then sets the rank's state."""
    parts = Parts(run.store, checkpoint, folder)
    fills = []
    for kind in KINDS:
        targets = [(fragment.address, fragment.values(kind)) for fragment in run.fragments]
        fills.append(parts.fetch(kind, targets, run.rank))
    addresses = [fragment.address for fragment in run.owned]
    for kind, average in run.averages.items():
        fills.append(parts.fetch(kind, list(zip(addresses, average.tensors, strict=True)), run.rank))
    kept: Kept | None = None
    if run.guard.keeps and parts.has_best:
        kept = Kept([torch.empty(address.size) for address in addresses], parts.best_buffers())
        fills.append(parts.fetch(BEST, list(zip(addresses, kept.average, strict=True)), run.rank))
    parameters = dict(run.model.named_parameters())
    untrained = parts.untrained()
    frozen = {name: value for name, value in untrained.items() if name in parameters}

    @torch.no_grad()
    def fill() -> None:
        for fill_kind in fills:
            fill_kind()
        # AdamW made no step where gradients overflowed
        skipped: dict[int, int] = {}
        for engine, state in zip(run.engines, checkpoint.metadata.get("scales", ())):
            restore_scale(engine, state)
            skipped[id(engine.optimizer.optimizer.state)] = state["skipped"]
        for fragment in run.fragments:
            fragment.set_step(checkpoint.step - skipped.get(id(fragment.states), 0))
        for name in untrained.keys() - frozen.keys():
            run.model.get_buffer(name).copy_(untrained[name])
        fill_frozen(run.model, frozen, run.config.zero_stage)
        if run.rank == 0:
            run.frozen = frozen
        run.guard.restore(checkpoint.metadata.get("guard", {}), kept)
        for engine in run.engines:
            publish(engine, run.config.zero_stage)

    return fill


def _quarantine_all(run: Run, damaged: dict[int, str]) -> None:
    if run.rank == 0:
        for step, problem in damaged.items():
            quarantine(run.store, step, problem)


# --- Roll back ----------------------------------------------------------------------------------------------


def roll_back(run: Run, progress: Progress, why: str) -> Progress:
    """To the newest checkpoint, past the samples since.

    Progress(0), and the reason in the events, where that is of no use: there is no checkpoint, or the run has
    come back to this one MAX_ROLLBACKS times. Rollbacks are counted by checkpoint: bad batches far apart do
    not add up, because the run made progress between them.
    """
    run.saver.join()
    dist.barrier()
    fix = f"start anew in another output, with a lower lr than {run.config.lr} or precision=fp32"
    try:
        newest = resume(run)
    except NothingUsableError as error:
        newest = Progress()
        fix = str(error)
    run.rollbacks[newest.step] += 1
    if newest.step == 0 or run.rollbacks[newest.step] > MAX_ROLLBACKS:
        when = f"after {MAX_ROLLBACKS} rollbacks to step {newest.step}"
        if newest.step == 0:
            when = "before the first checkpoint"
        if run.metrics:
            run.metrics.log_event("failed", progress.step, reason=f"{why} {when}: {fix}")
        return Progress()
    # past the batch that failed, which made no step: hence one more
    skipped = progress.step + progress.skipped + 1 - newest.step
    if run.metrics:
        run.metrics.truncate_after(newest.step)
        samples = skipped * run.config.global_batch
        run.metrics.log_event("rolled_back", newest.step, reason=why, skipped_samples=samples)
    return Progress(newest.step, skipped)


def record_failure(run: Run, reason: str) -> None:
    """Rank 0: why no step was made, for the driver; no line that was written before is changed."""
    if run.rank == 0:
        with Journal(run.store, EVENTS) as journal:
            journal.append({"event": "failed", "step": 0, "reason": reason, "time": time.time()})
