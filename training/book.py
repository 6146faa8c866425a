"""What a run writes down, on rank 0: metrics, validation and events as JSON lines, and the same for TensorBoard (and W&B).

with Book(store, config, step) as book:          # after a resume, what comes after `step` is forgotten
    book.note(step, loss, norm, seconds, wait_s, flops)
    book.event("finished", step)

metrics.jsonl      step, loss, samples, lr, grad_norm, step_s, data_wait_s, tflops, mfu (where the device's peak is known)
validation.jsonl   step, loss, and the loss at each fixed time
events.jsonl       started, resumed, saved, rolled_back, stopped, failed, finished
tensorboard/       for `tensorboard --logdir`
"""

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from tensorboardX import SummaryWriter

from cluster.storage import Store
from training.engine import peak_flops
from training.journal import Journal
from training.preview import Drawn
from training.settings import TrainConfig, learning_rate


class Book:
    """One writer of one run."""

    def __init__(self, store: Store, config: TrainConfig, step: int):
        self.store, self.config, self.stack = store, config, ExitStack()
        self.metrics, self.validation, self.events = (
            self.stack.enter_context(Journal(store, f"{name}.jsonl")) for name in ("metrics", "validation", "events")
        )
        self.metrics.cut(step)
        self.validation.cut(step)
        remote = "://" in store.uri
        kept = self.stack.enter_context(tempfile.TemporaryDirectory(prefix="stillsound-board-")) if remote else f"{store.uri}/tensorboard"
        self.folder, self.uploaded = Path(kept), 0 if remote else -1
        self.board = SummaryWriter(str(self.folder), purge_step=step + 1, flush_secs=10)
        self.wandb = _open_wandb(config) if config.wandb else None
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        self.peak_flops = peak_flops(device, config) * max(1, config.workers)

    def __enter__(self) -> "Book":
        return self

    def __exit__(self, *_: object) -> None:
        self.sync()
        self.board.close()
        self.stack.close()

    def note(self, step: int, loss: float, norm: float, seconds: float, wait_s: float, flops: float) -> None:
        """A line for an optimiser step; `seconds` of work after `wait_s` of waiting for data."""
        step_s, config = seconds + wait_s, self.config
        line = {"step": step, "loss": loss, "samples": step * config.global_batch, "lr": learning_rate(config, step), "grad_norm": norm}
        line |= {"step_s": round(step_s, 4), "data_wait_s": round(wait_s, 4), "tflops": round(flops / step_s / 1e12, 4)}
        if self.peak_flops:
            line["mfu"] = round(flops / step_s / self.peak_flops, 4)
        self.metrics.append(line)
        self._show("train", step, {name: value for name, value in line.items() if name not in ("step", "samples")})

    def note_validation(self, step: int, found: dict[str, float]) -> None:
        self.validation.append({"step": step, **found})
        self._show("validation", step, found)

    def show_drawn(self, step: int, drawn: list[Drawn]) -> None:
        """Spectrograms, low bands at the bottom, each from its own quietest to its loudest; and players."""
        for one in drawn:
            low, high = float(one.log_mel.min()), float(one.log_mel.max())
            self.board.add_image(f"preview/{one.name}", (one.log_mel.T[None, ::-1] - low) / max(high - low, 1e-6), step)
            self.board.add_audio(f"preview/{one.name}", one.wav, step, one.sample_rate_hz)

    def event(self, name: str, step: int, **more: Any) -> None:
        self.events.append({"event": name, "step": step, **more, "time": time.time()})

    def cut(self, step: int) -> None:
        """Forgets what was written of later steps: they will be done again, with other samples."""
        self.metrics.cut(step)
        self.validation.cut(step)
        self.board.close()
        self.board = SummaryWriter(str(self.folder), purge_step=step + 1, flush_secs=10)

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
            self.wandb.log({f"{group}/{name}": value for name, value in values.items()}, step=step)


def _open_wandb(config: TrainConfig) -> Any:
    """A run of Weights & Biases that goes on where it was; that its package is there was checked at the door."""
    import wandb  # type: ignore[import-not-found]

    name = config.output.rstrip("/").rsplit("/", 1)[-1]
    return wandb.init(project=config.wandb, id=name, name=name, resume="allow")
