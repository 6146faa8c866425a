"""How far a loop is that people wait for: a live line in a terminal, else a line of the log a minute.

    for start in track(range(0, 317, 8), "sounds made", total=317): ...

On stderr, so that a summary on stdout stays alone. Runs of units have their own (cluster.progress), trainings
too (training.watch).
"""

import logging
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

log = logging.getLogger(__name__)
LOG_EVERY_S = 60.0
T = TypeVar("T")


def columns() -> list[ProgressColumn]:
    """What a live line shows: of what, how much, and for how long."""
    counts = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    return [*counts, TimeElapsedColumn(), TimeRemainingColumn()]


def track(items: Sequence[T], what: str, total: int = 0, console: Console | None = None) -> Iterator[T]:
    """The items, one after another. `what`: is counted, `total` of them, as many in each; 0: the items."""
    shown = Progress(*columns(), console=console or Console(stderr=True))
    total = total or len(items)
    begun = logged = time.monotonic()
    # without a terminal, rich prints the line once, at its end
    shown.disable = not shown.console.is_terminal
    with shown:
        task = shown.add_task(what, total=total)
        for number, item in enumerate(items, 1):
            yield item
            done = total * number // len(items)
            shown.update(task, completed=done)
            now = time.monotonic()
            if shown.disable and now - logged >= LOG_EVERY_S and number < len(items):
                logged = now
                left_s = (now - begun) / number * (len(items) - number)
                log.info("%s: %d of %d · %.0f s left", what, done, total, left_s)
