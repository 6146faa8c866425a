"""The training loop, as every rank runs it: set up, resume, then batch, loss, update, EMA, log, validate,
checkpoint.

    work(plan)      # inside Ray Train, or alone after training.run.engine.ensure_process_group

The order of samples and all randomness depend on positions, never on ranks or restarts: a run that was killed
and resumed gives the same losses bit for bit, and one that resumes with another number of workers the same to
rounding. If a loss or a gradient is NaN or infinite, the run goes back to the newest checkpoint and leaves
out the samples since.

It starts no process and checks no settings (training.train and training.run.prepare do).
"""

import logging
import math
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist

from cluster.record import cpu_seconds
from training.checkpoints.parts import NotFiniteError
from training.data.loader import Loader, Make
from training.recipes.recipe import Batch
from training.run.batches import make_batch
from training.run.ema import averaged
from training.run.engine import count_flops
from training.run.finish import finish
from training.run.history import NothingUsableError
from training.run.interrupt import STOP_REQUESTED, watch_store
from training.run.metrics import MetricsLog, StepMetrics
from training.run.plan import Plan, Progress
from training.run.ranks import gather
from training.run.resume import buffers_of, record_failure, resume, roll_back, save
from training.run.scaling import loss_scale, was_skipped
from training.run.setup import Run, set_up
from training.settings import learning_rate

log = logging.getLogger(__name__)


class Ending(Enum):
    """Why the batch loop ended."""

    FINISHED = "all steps are done, or validation gets no better"
    STOPPED = "a stop was requested, and the run is saved"
    FAILED = "a loss, a gradient or a weight is NaN or infinite"


class Outcome(NamedTuple):
    """`why`: for a failed one, what is not finite, at which step."""

    ending: Ending
    progress: Progress
    why: str = ""


@dataclass(frozen=True)
class StepResult:
    """`losses`: means over the `count` samples of all ranks, 0 if all are holes. They and `grad_norms` are in
    the order of the recipe's optimisers. A norm is 0 where the step changed no weight, in fp16.
    """

    losses: list[float]
    count: int
    grad_norms: list[float]
    stop_requested: bool

    def problem(self, step: int) -> str:
        """What of it is NaN or infinite; "" if nothing is."""
        for loss in self.losses:
            if not math.isfinite(loss):
                return f"the loss of step {step} is {loss}"
        for grad_norm in self.grad_norms:
            if not math.isfinite(grad_norm):
                return f"the gradient of step {step} is {grad_norm}"
        return ""


class Stopped(RuntimeError):
    """Raised after a preempted worker has saved; the next start resumes."""


def work(plan: Plan) -> None:
    """Trains from the newest checkpoint to `steps`, and leaves the finished model in `<output>/model`."""
    with ExitStack() as stack:
        run = set_up(plan, stack)
        try:
            progress = resume(run)
        except NothingUsableError as error:
            record_failure(run, str(error))
            return
        pids = open_log(run, progress, stack)
        while True:
            outcome = train_until(run, progress)
            match outcome.ending:
                case Ending.FINISHED:
                    finish_run(run, outcome.progress, pids)
                    return
                case Ending.STOPPED:
                    stop_after_save(run, outcome.progress)
                    return
                case Ending.FAILED:
                    progress = roll_back(run, outcome.progress, outcome.why)
                    if progress.step == 0:
                        return


def open_log(run: Run, progress: Progress, stack: ExitStack) -> list[int]:
    """Rank 0 opens the metrics where the run resumes, and watches for a stop. Returns all ranks' pids."""
    pids = gather(os.getpid(), run.world)
    if run.rank == 0:
        run.metrics = stack.enter_context(MetricsLog(run.store, run.config, progress.step))
        run.metrics.log_event("resumed" if progress.step else "started", progress.step, pids=pids)
        stack.enter_context(watch_store(run.store, run.plan.stop_name))
    return pids


def train_until(run: Run, progress: Progress) -> Outcome:
    """Trains from `progress` on until all steps are done, validation gets no better, a stop is requested or
    something is not finite.
    """
    config = run.config
    if progress.step >= config.steps or run.guard.is_over:
        return Outcome(Ending.FINISHED, progress)
    make = partial(make_batch, config, run.plan.geometry, run.engine.device)
    with open_loader(run, progress, make) as loader:
        for samples in loader:
            # --- Batch --------------------------------------------------------------------------------------
            started = time.monotonic()
            step = progress.step + 1
            batch = samples.tensors or make(samples.samples, samples.keys)
            # counted once: the batches of a run have one shape
            run.flops_per_step = run.flops_per_step or count_flops(run.engines, batch, config)

            # --- Loss and update ----------------------------------------------------------------------------
            result = train_step(run, batch, step)
            problem = result.problem(step)
            if problem:
                return Outcome(Ending.FAILED, progress, problem)

            # --- EMA ----------------------------------------------------------------------------------------
            for average in run.averages.values():
                average.update(step)
            progress = Progress(step, progress.skipped)

            # --- Log ----------------------------------------------------------------------------------------
            log_step(run, step, result, time.monotonic() - started, samples.wait_s)

            # --- Validate -----------------------------------------------------------------------------------
            validate_and_preview(run, step)

            # --- Checkpoint ---------------------------------------------------------------------------------
            is_done = step == config.steps or run.guard.is_over
            is_ending = is_done or result.stop_requested
            if step % config.checkpoint_every == 0 or is_ending:
                # what was removed is out of the run by the time that a checkpoint says so
                run.hide_removed()
                try:
                    save(run, progress)
                except NotFiniteError as error:
                    return Outcome(Ending.FAILED, progress, f"after step {step} {error}")
            if is_ending:
                break
    # on the last step a stop is of no use: the run is finished
    return Outcome(Ending.FINISHED if is_done else Ending.STOPPED, progress)


def open_loader(run: Run, progress: Progress, make: Make) -> Loader:
    """This rank's samples from `progress` on; for a GPU its threads also make the batches of them."""
    config = run.config
    # a CPU's cores have enough to do
    ahead = None if run.engine.device.type == "cpu" else make
    position = progress.position(config)
    return Loader(run.mixture, config.global_batch, run.rank, run.world, position, config.prefetch, ahead)


def train_step(run: Run, batch: Batch, step: int) -> StepResult:
    """One optimiser step over this rank's part of the batch.

    Holes weigh nothing: what is minimised is the mean over the samples of the global batch, wherever in it
    the holes are and whatever the number of ranks and micro batches. A batch of holes only has a loss of 0
    and counts 0 samples.
    """
    config = run.config
    device = run.engine.device
    # for layers that draw, such as dropout: from the step, so that a resumed run draws the same
    torch.manual_seed(config.seed + step)
    for engine in run.engines:
        for group in engine.optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
    # one all-reduce for both: every rank learns of a stop at the same step, so that all save the same one
    local = torch.stack([batch["weight"].sum(), torch.tensor(float(STOP_REQUESTED.is_set()))])
    totals = local.to(device)
    dist.all_reduce(totals)
    count, stop_requested = totals.tolist()
    # the engine averages over ranks and micro batches; the division by this makes it a mean over samples
    samples_per_micro_batch = max(count, 1) / (run.world * config.accumulate)
    micro_batch_size = len(batch["weight"]) // config.accumulate
    loss_sums = torch.zeros(len(run.engines), device=device)
    for index in range(config.accumulate):
        first = index * micro_batch_size
        micro_batch = {
            name: values[first : first + micro_batch_size].to(device, non_blocking=True)
            for name, values in batch.items()
        }
        if len(run.engines) > 1:
            # an opponent may be heeded from a step on
            micro_batch["step"] = torch.full((micro_batch_size,), step, device=device)
        for side, (optimiser, engine) in enumerate(zip(config.optimisers, run.engines, strict=True)):
            losses = engine(micro_batch)
            micro_batch |= {name: losses[name] for name in optimiser.gives}
            loss = losses["loss"].float().sum()
            engine.backward(loss / samples_per_micro_batch)
            # steps at the last micro batch only
            engine.step()
            loss_sums[side] += loss.detach()
    dist.all_reduce(loss_sums)
    return StepResult(
        losses=[loss_sum / max(count, 1) for loss_sum in loss_sums.tolist()],
        count=round(count),
        # of gradients that overflowed, DeepSpeed says infinite; no weight was changed by them
        grad_norms=[
            0.0 if was_skipped(engine) else float(engine.get_global_grad_norm() or 0.0)
            for engine in run.engines
        ],
        stop_requested=bool(stop_requested),
    )


def log_step(run: Run, step: int, result: StepResult, seconds: float, wait_s: float) -> None:
    """Rank 0: a line of metrics for a step."""
    if run.metrics:
        measured = StepMetrics(
            result.losses,
            result.count,
            result.grad_norms,
            seconds,
            wait_s,
            run.flops_per_step,
            loss_scale(run.engine),
        )
        run.metrics.log_step(step, measured)


def validate_and_preview(run: Run, step: int) -> None:
    """Validation, by the live and by the averaged weights, and previews, if this step or the last one is
    their turn. All ranks take part.
    """
    config = run.config
    is_last = step == config.steps
    if run.validation and (step % config.validate_every == 0 or is_last):
        losses = run.validation.measure(run.engine)
        if config.ema:
            with averaged(run.ema, run.engines, run.fragments, config.zero_stage):
                averaged_losses = run.validation.measure(run.engine)
            losses |= {f"ema_{name}": value for name, value in averaged_losses.items()}
        if run.guard.is_on:
            run.guard.heed(step, losses, run.ema.tensors, buffers_of(run))
            losses["best_step"] = run.guard.best_step
        if run.metrics:
            run.metrics.log_validation(step, losses, sorted(run.validation.damaged))
    if run.preview and (step % config.preview_every == 0 or is_last):
        drawn = run.preview.draw(run.engine)
        if run.metrics:
            run.metrics.log_previews(step, run.preview.sounds(drawn))


def stop_after_save(run: Run, progress: Progress) -> None:
    """After the checkpoint of a requested stop. `Stopped` unless the user requested it."""
    run.saver.join()
    dist.barrier()
    by_user = any(gather(run.store.exists(run.plan.stop_name), run.world))
    if run.metrics:
        advice = "saved; run the same command again to continue from there"
        reason = f"stop requested at step {progress.step}: {advice}"
        run.metrics.log_event("stopped", progress.step, reason=reason)
    # Ray Train starts failed workers again: a preempted run then resumes by itself on another machine
    if run.config.workers and not by_user:
        raise Stopped(f"saved at step {progress.step} before this machine goes away")


def finish_run(run: Run, progress: Progress, pids: list[int]) -> None:
    """Waits for the last checkpoint; rank 0 then leaves the model of it."""
    run.saver.join()
    dist.barrier()
    cpu_s = sum(gather(cpu_seconds(), run.world))
    if run.metrics:
        finish(run, progress.step, cpu_s)
        run.metrics.log_event("finished", progress.step, pids=pids, **run.guard.outcome(progress.step))
