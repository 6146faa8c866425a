"""A run's newest step while it trains: a live line in a terminal, else a line of the log a minute.

    with watch(store, config.steps):
        trainer.fit()

Read from the run's metrics, so that it works wherever the workers are. To object storage these go by time
(training.run.journal). It never ends a run: what cannot be read is tried again.
"""

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TextColumn

from cluster.jsonl import TAIL_BYTES, JsonObject, last_line, newest_line, parse_lines, read_lines
from cluster.storage import Store
from training.progress import LOG_EVERY_S, columns
from training.run.history import EVENTS, METRICS

log = logging.getLogger(__name__)
LOOK_EVERY_S = 1.0
# each look is requests
LOOK_REMOTE_EVERY_S = 30.0


class Line(Progress):
    """The live line; without a terminal it is silent, and `log_step` writes to the log."""

    def __init__(self, steps: int):
        super().__init__(*columns(), TextColumn("{task.fields[status]}"), console=Console(stderr=True))
        self.task = self.add_task("steps", total=steps, status="starting")
        self.last_logged_at = self.get_time()

    def show(self, step: int, status: str) -> None:
        """Of the newest step."""
        self.update(self.task, completed=step, status=status)
        is_due = self.get_time() - self.last_logged_at >= LOG_EVERY_S
        if self.console.is_terminal or not is_due:
            return
        self.last_logged_at = self.get_time()
        (task,) = self.tasks
        remaining = f" · {task.time_remaining:,.0f} s left" if task.time_remaining else ""
        log.info("step %d of %d · %s%s", step, task.total or 0, status, remaining)


@contextlib.contextmanager
def watch(store: Store, steps: int) -> Iterator[None]:
    """For the block, what `status_of` says of the run in `store`, on stderr."""
    stop = threading.Event()
    pause_s = LOOK_REMOTE_EVERY_S if "://" in store.uri else LOOK_EVERY_S
    line = Line(steps)

    def follow() -> None:
        while not stop.wait(pause_s):
            # a store that fails now is read again later; the run itself says if it is gone
            with contextlib.suppress(OSError):
                line.show(*status_of(store))

    thread = threading.Thread(target=follow, name="watch", daemon=True)
    with line:
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def status_of(store: Store) -> tuple[int, str]:
    """The newest step, and a phrase about the run."""
    newest, history = _read(store)
    resumed = [line["step"] for line in history if line.get("event") == "resumed"]
    status = "starting"
    # the loss of a step of holes only is null
    if newest:
        status = f"loss {newest['loss']:.4f}" if newest["loss"] is not None else "no sample in this step"
    if resumed:
        status += f" · resumed at step {resumed[-1]}"
    return (newest["step"] if newest else 0), status


def _read(store: Store) -> tuple[JsonObject | None, list[JsonObject]]:
    """The last whole line of the metrics, of however long a file, and all events."""
    if "://" not in store.uri:
        folder = Path(store.uri)
        return last_line(folder / METRICS), read_lines(folder / EVENTS)
    size = store.size(METRICS) if store.exists(METRICS) else 0
    tail = store.read_range(METRICS, max(0, size - TAIL_BYTES), size) if size else b""
    history = parse_lines(store.read(EVENTS)) if store.exists(EVENTS) else []
    return newest_line(tail), history
