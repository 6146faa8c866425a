"""What a run writes down, on rank 0: metrics, validation and events as JSON lines, and the same for
TensorBoard (and W&B).

with Book(store, config, step) as book:          # after a resume, what comes after `step` is forgotten
    book.note(step, loss, count, norm, seconds, wait_s, flops)
    book.event("finished", step)

metrics.jsonl      step, loss (the mean over the samples of this step, null where it had none), holes (places of this step without
                   a sample), samples (so far, without holes), lr, grad_norm, step_s, data_wait_s, tflops, mfu (of a known device)
validation.jsonl   step, loss, and the loss at each fixed time; ema_loss and so on by the averaged weights, which are what ships
events.jsonl       started, resumed, saved, rolled_back, damaged_validation, stopped, failed, finished
tensorboard/       for `tensorboard --logdir`
wandb-run.txt      the id of the run at W&B, and in wandb/ its files
"""

import importlib.util
import logging
import os
import tempfile
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from tensorboardX import SummaryWriter

from cluster.jsonl import last_line
from cluster.storage import Store
from configs.load import UserError
from training.run.engine import peak_flops
from training.run.journal import Journal
from training.run.preview import Drawn
from training.settings import TrainConfig, identity, learning_rate

log = logging.getLogger(__name__)
WANDB_RUN = "wandb-run.txt"


class Book:
    """One writer of one run."""

    def __init__(self, store: Store, config: TrainConfig, step: int):
        self.store, self.config, self.stack = store, config, ExitStack()
        self.metrics, self.validation, self.events = (
            self.stack.enter_context(Journal(store, f"{name}.jsonl"))
            for name in ("metrics", "validation", "events")
        )
        self.metrics.cut(step)
        self.validation.cut(step)
        self.samples = self._samples_until(step)
        self.damaged: list[str] = []
        remote = "://" in store.uri
        kept = (
            self.stack.enter_context(tempfile.TemporaryDirectory(prefix="stillsound-board-"))
            if remote
            else f"{store.uri}/tensorboard"
        )
        self.folder, self.uploaded = Path(kept), 0 if remote else -1
        self.board = _open_board(self.folder, step)
        self.wandb = _open_wandb(store, config, self.stack) if config.wandb else None
        device = (
            torch.device("cuda", torch.cuda.current_device())
            if torch.cuda.is_available()
            else torch.device("cpu")
        )
        self.peak_flops = peak_flops(device, config) * max(1, config.workers)

    def __enter__(self) -> "Book":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.sync()
            self.board.close()
        finally:
            if self.wandb:
                self.wandb.finish(exit_code=int(kind is not None))
            self.stack.close()

    def note(
        self, step: int, loss: float, count: int, norm: float, seconds: float, wait_s: float, flops: float
    ) -> None:
        """A line for an optimiser step of `count` samples;

        `seconds` of work after `wait_s` of waiting for data.
        """
        step_s, config = seconds + wait_s, self.config
        line: dict[str, Any] = {
            "step": step,
            "loss": loss if count else None,
            "holes": config.global_batch - count,
        }
        self.samples += count
        line |= {"samples": self.samples, "lr": learning_rate(config, step), "grad_norm": norm}
        line |= {
            "step_s": round(step_s, 4),
            "data_wait_s": round(wait_s, 4),
            "tflops": round(flops / step_s / 1e12, 4),
        }
        if self.peak_flops:
            line["mfu"] = round(flops / step_s / self.peak_flops, 4)
        self.metrics.append(line)
        hidden = ("step", "samples") if count else ("step", "samples", "loss")
        self._show("train", step, {name: value for name, value in line.items() if name not in hidden})

    def note_validation(self, step: int, found: dict[str, float], damaged: list[str]) -> None:
        """A line for a measurement;

        `damaged`: keys of its items that could not be read, named once in the journal of events.
        """
        self.validation.append({"step": step, **found})
        self._show("validation", step, found)
        if damaged != self.damaged:
            self.event("damaged_validation", step, keys=damaged)
            self.damaged = damaged

    def show_drawn(self, step: int, drawn: list[Drawn]) -> None:
        """Spectrograms, low bands at the bottom, each from its own quietest to its loudest; and players."""
        for one in drawn:
            low, high = float(one.log_mel.min()), float(one.log_mel.max())
            self.board.add_image(
                f"preview/{one.name}", (one.log_mel.T[None, ::-1] - low) / max(high - low, 1e-6), step
            )
            self.board.add_audio(f"preview/{one.name}", one.wav, step, one.sample_rate_hz)

    def event(self, name: str, step: int, **more: Any) -> None:
        self.events.append({"event": name, "step": step, **more, "time": time.time()})

    def cut(self, step: int) -> None:
        """Forgets what was written of later steps: they will be done again, with other samples."""
        self.metrics.cut(step)
        self.validation.cut(step)
        self.samples = self._samples_until(step)
        self.board.close()
        self.board = _open_board(self.folder, step)

    def _samples_until(self, step: int) -> int:
        """As the journal says, which was cut to this step; where its line is lost, as if there had been no
        holes.
        """
        line = last_line(self.metrics.path)
        return int(line["samples"]) if line and line["step"] == step else step * self.config.global_batch

    def sync(self) -> None:
        """Uploads what object storage does not have yet."""
        for journal in (self.metrics, self.validation, self.events):
            journal.sync()
        if self.uploaded >= 0:
            self.board.flush()
            for path in self.folder.iterdir():
                self.store.replace(f"tensorboard/{path.name}", path.read_bytes())

    def _show(self, group: str, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.board.add_scalar(f"{group}/{name}", value, step)
        if self.wandb:
            self.wandb.log({"step": step, **{f"{group}/{name}": value for name, value in values.items()}})


def _open_board(folder: Path, step: int) -> SummaryWriter:
    """TensorBoard's writer, from after `step` on."""
    board = SummaryWriter(str(folder), purge_step=step + 1, flush_secs=10)
    writer = board.file_writer.event_writer
    writer._ev_writer = writer._worker._record_writer = ForgivingWriter(writer._ev_writer)
    return board


class ForgivingWriter:
    """tensorboardX's file writer, which must not raise: on a full disk its thread would end, and its full
    queue block the run.
    """

    def __init__(self, writer: Any):
        self.writer, self.failed = writer, False

    def write_event(self, event: Any) -> None:
        self._try("write_event", event)

    def flush(self) -> None:
        self._try("flush")

    def close(self) -> None:
        self._try("close")

    def _try(self, name: str, *values: Any) -> None:
        try:
            getattr(self.writer, name)(*values)
        except OSError as error:
            if not self.failed:
                log.warning("TensorBoard's file lacks some values from here on: %s", error)
            self.failed = True


def check_wandb(config: TrainConfig) -> None:
    """`UserError` where W&B is asked for and its package or a key that its server takes is not there; offline
    it needs no key.
    """
    if not config.wandb:
        return
    if not importlib.util.find_spec("wandb"):
        raise UserError(
            f"wandb={config.wandb}: the package is not installed here; pip install wandb --constraint constraints.txt, or leave it out"
        )
    import wandb

    if wandb.setup().settings.mode in ("offline", "dryrun", "disabled"):
        if "://" in config.output and "WANDB_DIR" not in os.environ:
            raise UserError(
                f"wandb={config.wandb}: offline files of a run in object storage need a folder; set WANDB_DIR"
            )
        return
    try:
        problem = "" if wandb.login(prompt=False) else "no API key was found"
    except wandb.Error as error:
        problem = str(error)
    if problem:
        raise UserError(
            f"wandb={config.wandb}: {problem}; set WANDB_API_KEY or call wandb login, or set WANDB_MODE=offline"
        )


def _open_wandb(store: Store, config: TrainConfig, stack: ExitStack) -> Any:
    """The run of Weights & Biases that belongs to this output: drawn once, and gone on with by every later
    start.

    It is told numbers and settings; not the console, the code, the machine or the command line, in which a
    credential may stand. Its own files lie in the output, unless WANDB_DIR names a folder; beside an output
    in object storage only until the run ends.
    """
    import wandb

    if not store.exists(WANDB_RUN):
        store.put(WANDB_RUN, uuid.uuid4().hex[:12].encode())
    remote = "://" in store.uri
    folder = (
        stack.enter_context(tempfile.TemporaryDirectory(prefix="stillsound-wandb-")) if remote else store.uri
    )
    quiet: dict[str, Any] = {
        "x_disable_stats": True,
        "x_disable_machine_info": True,
        "x_save_requirements": False,
    }
    run = wandb.init(
        project=config.wandb,
        id=store.read(WANDB_RUN).decode(),
        name=config.output.rstrip("/").rsplit("/", 1)[-1],
        resume="allow",
        reinit="finish_previous",
        config=identity(config),
        dir=os.environ.get("WANDB_DIR", folder),
        settings=wandb.Settings(console="off", disable_code=True, disable_git=True, **quiet),
    )
    run.define_metric("*", step_metric="step")  # its own steps only grow; a rollback makes some again
    return run
