"""What a run writes down, on rank 0: metrics, validation and events as JSON lines, and the same for
TensorBoard (and W&B).

    with MetricsLog(store, config, step) as metrics:        # on resume, what came after `step` is dropped
        metrics.log_step(step, StepMetrics(loss, count, grad_norm, seconds, wait_s, flops))
        metrics.log_event("finished", step)

metrics.jsonl      step, loss (the mean over the samples of this step, null if it had none), holes (positions
                   of this step without a sample), samples (so far, without holes), lr, grad_norm, step_s,
                   data_wait_s, tflops, mfu (of a device whose peak is known), loss_scale (in fp16, where a
                   grad_norm of 0 is a step left out); loss_<name> and grad_norm_<name> of a recipe's
                   further optimisers
validation.jsonl   step, loss, and the loss of each group of the recipe; ema_loss and so on by the averaged
                   weights, which are what ships
events.jsonl       started, resumed, saved, rolled_back, damaged_validation, stopped, failed, finished
tensorboard/       for `tensorboard --logdir`
previews/          a page of what previews show (training.run.preview_page)
wandb-run.txt      the id of the run at W&B, and in wandb/ its files
"""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict, cast

import torch

from cluster.jsonl import last_line
from cluster.storage import Store
from training.run.engine import peak_flops
from training.run.history import METRICS
from training.run.journal import Journal
from training.run.preview import Drawn
from training.run.preview_page import PreviewPage
from training.run.tensorboard import Board
from training.run.wandb_run import log_previews, open_wandb
from training.settings import TrainConfig, learning_rate


@dataclass(frozen=True)
class StepMetrics:
    """What was measured of a step of `count` samples: `seconds` of work after `wait_s` of waiting for data.

    `losses`, `grad_norms`: in the order of the recipe's optimisers. `flops`: floating point operations of a
    step over all ranks. `loss_scale`: of the next step in fp16, else 0.
    """

    losses: list[float]
    count: int
    grad_norms: list[float]
    seconds: float
    wait_s: float
    flops: float
    loss_scale: float = 0.0


class StepLine(TypedDict):
    """A line of metrics.jsonl; `mfu` of a device whose peak is known. Further optimisers add theirs."""

    step: int
    loss: float | None
    holes: int
    samples: int
    lr: float
    grad_norm: float
    step_s: float
    data_wait_s: float
    tflops: float
    mfu: NotRequired[float]
    loss_scale: NotRequired[float]


class MetricsLog:
    """One writer of one run."""

    def __init__(self, store: Store, config: TrainConfig, step: int):
        self.config = config
        self.stack = ExitStack()
        self.metrics = self._journal(store, METRICS)
        self.validation = self._journal(store, "validation.jsonl")
        self.events = self._journal(store, "events.jsonl")
        self.metrics.truncate_after(step)
        self.validation.truncate_after(step)
        self.samples = self._samples_until(step)
        self.damaged: list[str] = []
        self.board = Board(store, step)
        self.stack.callback(self.board.remove_copies)
        self.page = PreviewPage(store) if config.preview_every else None
        if self.page:
            self.page.drop_after(step)
        self.wandb = open_wandb(store, config, self.stack) if config.wandb else None
        cuda = torch.cuda.is_available()
        device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
        self.peak_flops = peak_flops(device, config) * max(1, config.workers)

    def _journal(self, store: Store, name: str) -> Journal:
        return self.stack.enter_context(Journal(store, name))

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.sync()
            self.board.close()
        finally:
            if self.wandb:
                self.wandb.finish(exit_code=int(kind is not None))
            self.stack.close()

    def log_step(self, step: int, measured: StepMetrics) -> None:
        """A line for an optimiser step."""
        step_s = measured.seconds + measured.wait_s
        self.samples += measured.count
        line: StepLine = {
            "step": step,
            "loss": measured.losses[0] if measured.count else None,
            "holes": self.config.global_batch - measured.count,
            "samples": self.samples,
            "lr": learning_rate(self.config, step),
            "grad_norm": measured.grad_norms[0],
            "step_s": round(step_s, 4),
            "data_wait_s": round(measured.wait_s, 4),
            "tflops": round(measured.flops / step_s / 1e12, 4),
        }
        if self.peak_flops:
            line["mfu"] = round(measured.flops / step_s / self.peak_flops, 4)
        if measured.loss_scale:
            line["loss_scale"] = measured.loss_scale
        opponents = self._of_opponents(measured)
        self.metrics.append({**line, **opponents})
        self.metrics.sync_by_time()
        # a plot of the step or the samples over the step says nothing; a loss of no sample is NaN
        hidden = ("step", "samples") if measured.count else ("step", "samples", "loss")
        plotted = {name: value for name, value in line.items() if name not in hidden}
        self._plot("train", step, cast(dict[str, float], plotted) | opponents)

    def _of_opponents(self, measured: StepMetrics) -> dict[str, float]:
        """Losses and gradient norms of the optimisers after the first."""
        names = [optimiser.name for optimiser in self.config.optimisers]
        values: dict[str, float] = {}
        for name, loss, grad_norm in list(zip(names, measured.losses, measured.grad_norms, strict=True))[1:]:
            values[f"loss_{name}"] = loss
            values[f"grad_norm_{name}"] = grad_norm
        return values

    def log_validation(self, step: int, losses: dict[str, float], damaged: list[str]) -> None:
        """A line for a measurement.

        `damaged`: keys of its items that could not be read; each set of them is one event.
        """
        self.validation.append({"step": step, **losses})
        self._plot("validation", step, losses)
        if damaged != self.damaged:
            self.log_event("damaged_validation", step, keys=damaged)
            self.damaged = damaged

    def log_previews(self, step: int, previews: list[Drawn]) -> None:
        """Pictures and players: in TensorBoard, on the run's own page, at W&B."""
        for drawn in previews:
            self.board.add_preview(step, drawn)
        if self.page:
            self.page.add(step, previews)
        if self.wandb:
            log_previews(self.wandb, step, previews)

    def log_event(self, name: str, step: int, **details: Any) -> None:
        self.events.append({"event": name, "step": step, **details, "time": time.time()})

    def truncate_after(self, step: int) -> None:
        """Drops what was written of later steps: they will be made again, with other samples."""
        self.metrics.truncate_after(step)
        self.validation.truncate_after(step)
        self.samples = self._samples_until(step)
        self.board.truncate_after(step)
        if self.page:
            self.page.drop_after(step)

    def sync(self) -> None:
        """Uploads what object storage does not have yet."""
        for journal in (self.metrics, self.validation, self.events):
            journal.sync()
        self.board.sync()

    def _samples_until(self, step: int) -> int:
        """From the metrics, which end at this step; if its line is lost, as if there had been no holes."""
        line = last_line(self.metrics.path)
        return int(line["samples"]) if line and line["step"] == step else step * self.config.global_batch

    def _plot(self, group: str, step: int, values: Mapping[str, float]) -> None:
        self.board.add_scalars(group, step, values)
        if self.wandb:
            self.wandb.log({"step": step, **{f"{group}/{name}": value for name, value in values.items()}})
