"""What a run's output says of its past: how far the run came, and whether a start at step 0 would throw work
away.

    finished_step(store)         # 0 if it is not finished
    work_behind(store)           # "it was finished at step 8", "" for a new run

A run with a finished model or steps behind it never starts at step 0 by itself. Reads and writes no tensors.
"""

import json
import logging
from collections.abc import Mapping
from typing import TypedDict, cast

from cluster.jsonl import parse_lines
from cluster.runs import MARKER, committed_steps, marked_steps
from cluster.storage import Store
from training.checkpoints.store import QUARANTINED, quarantine, saved_step

log = logging.getLogger(__name__)
RUN = "run.json"
FINISHED = "FINISHED.json"
EVENTS = "events.jsonl"
METRICS = "metrics.jsonl"
RESTART = "restore them from a copy, or give restart=true to start at step 0, or another output"
# events of a run that had a checkpoint: "started" is written before the first one
EVENTS_OF_SAVED_RUNS = ("resumed", "rolled_back", "stopped")


class Event(TypedDict, total=False):
    """A line of events.jsonl; what is beside `event`, `step` and `time` depends on the event."""

    event: str
    step: int
    time: float
    pids: list[int]
    reason: str
    keys: list[str]
    skipped_samples: int


class Finished(TypedDict, total=False):
    """FINISHED.json. `files`: sizes by name; older versions list none.

    Of a run with a guard (training.run.guard): the step whose weights are the model, how many validations
    brought no gain, and why it ended.
    """

    step: int
    shipped_step: int
    waited: int
    reason: str
    cpu_s: float
    time: float
    files: dict[str, int]


class NothingUsableError(RuntimeError):
    """A run with steps behind it has no checkpoint that can be read.

    Its text names what is damaged or missing, and the fix.
    """


def finished_step(store: Store) -> int:
    """The step at which the run was finished; 0 if it was not, or if its model is no longer whole."""
    finished = read_finished(store)
    if not finished:
        return 0
    # runs of older versions list no files: any file of the model will do
    files: Mapping[str, int | None] = finished.get("files") or dict.fromkeys(store.list("model")[:1])
    missing = [name for name, size in files.items() if not _exists(store, name, size)]
    if missing or not files:
        name = (missing or ["model"])[0]
        log.warning("%s: finished, but %s is missing or cut off; the model is written again", store.uri, name)
        return 0
    return int(finished["step"])


def is_finished(store: Store, steps: int, patience: int) -> bool:
    """Whether the run came to `steps`, or ended before because validation got no better.

    More steps, or more patience, let it go on.
    """
    step = finished_step(store)
    waited = read_finished(store).get("waited", 0)
    return step >= steps or (step > 0 and 0 < patience <= waited)


def _exists(store: Store, name: str, size: int | None) -> bool:
    return store.exists(name) and size in (None, store.size(name))


def read_finished(store: Store) -> Finished:
    """FINISHED.json; empty if there is none, and with a warning if it is damaged."""
    if not store.exists(FINISHED):
        return {}
    try:
        content = json.loads(store.read(FINISHED))
    except ValueError as error:
        log.warning("%s/%s is damaged (%s) and ignored", store.uri, FINISHED, error)
        return {}
    return cast(Finished, content) if isinstance(content, dict) else {}


def events(store: Store) -> list[Event]:
    """The whole lines of events.jsonl, oldest first."""
    if not store.exists(EVENTS):
        return []
    return [cast(Event, line) for line in parse_lines(store.read(EVENTS), f"{store.uri}/{EVENTS}")]


def work_behind(store: Store) -> str:
    """Why this output is not that of a new run; "" for a new one, and for one that came to no checkpoint."""
    finished = read_finished(store)
    if finished:
        return f"it was finished at step {finished.get('step')}"
    if store.exists(FINISHED) or store.list("model"):
        return "it has a finished model"
    # each trace alone may be lost: the record, the checkpoints, the events
    steps = [saved_step(store)]
    steps += marked_steps(store, MARKER, QUARANTINED)
    steps += [line.get("step", 0) for line in events(store) if line.get("event") in EVENTS_OF_SAVED_RUNS]
    return f"it was saved at step {max(steps)}" if max(steps) else ""


def check_past(store: Store, restart: bool) -> str:
    """What a run with work behind it lacks, or ""; a warning if only its newest checkpoint is gone."""
    steps = committed_steps(store)
    behind = work_behind(store)
    newest_saved = saved_step(store)
    if steps and steps[-1] < newest_saved:
        log.warning(
            "%s: the checkpoint of step %d is gone; resuming from step %d", store.uri, newest_saved, steps[-1]
        )
    if restart or not behind:
        return ""
    if not store.exists(RUN):
        return f"{behind}, but {RUN}, which holds its settings and snapshots, is missing"
    return "" if steps else f"{behind}, but its checkpoints are missing or damaged"


def forget(store: Store) -> None:
    """Before a start at step 0: no checkpoint counts any more.

    Their files stay, and the model until the new one is finished.
    """
    for step in committed_steps(store):
        quarantine(store, step, "the run was started anew with restart=true")
    store.delete(FINISHED)
