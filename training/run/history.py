"""What a run's output says of its past: how far the run came, and whether a start at step 0 would throw work
away.

    finished_step(store)         # 0 where it is not finished
    work_behind(store)           # "it was finished at step 8", "" for a new run

A run with a finished model or steps behind it never starts at step 0 by itself. Reads and writes no tensors.
"""

import json
import logging
from typing import Any

from cluster.jsonl import parse_lines
from cluster.runs import MARKER, committed_steps, marked_steps
from cluster.storage import Store
from training.checkpoints.store import QUARANTINED, quarantine, saved_step

log = logging.getLogger(__name__)
RUN, FINISHED, EVENTS = "run.json", "FINISHED.json", "events.jsonl"
RESTART = "restore them from a copy, or give restart=true to start at step 0, or another output"


class NothingUsableError(RuntimeError):
    """A run with steps behind it has no checkpoint that can be read.

    Its text says what is damaged or missing, and the fix.
    """


def finished_step(store: Store) -> int:
    """The step at which the run was finished; 0 where it was not, or where its model is no longer whole."""
    finished = _read_json(store, FINISHED)
    if not finished:
        return 0
    files = finished.get("files") or dict.fromkeys(store.list("model")[:1])
    missing = [name for name, size in files.items() if not _is_there(store, name, size)]
    if missing or not files:
        log.warning(
            "%s: finished, but %s is missing or cut off; the model is written again",
            store.uri,
            (missing or ["model"])[0],
        )
        return 0
    return int(finished["step"])


def _is_there(store: Store, name: str, size: int | None) -> bool:
    return store.exists(name) and size in (None, store.size(name))


def _read_json(store: Store, name: str) -> dict[str, Any]:
    """The object; empty, with a warning, where it is damaged."""
    if not store.exists(name):
        return {}
    try:
        found = json.loads(store.read(name))
        return found if isinstance(found, dict) else {}
    except ValueError as error:
        log.warning("%s/%s is damaged (%s) and ignored", store.uri, name, error)
        return {}


def events(store: Store) -> list[dict[str, Any]]:
    """The whole lines of events.jsonl, oldest first."""
    return parse_lines(store.read(EVENTS), f"{store.uri}/{EVENTS}") if store.exists(EVENTS) else []


def work_behind(store: Store) -> str:
    """Why this output is not that of a new run, in words; "" for a new one, and for one that came to no
    checkpoint.
    """
    finished = _read_json(store, FINISHED)
    if finished:
        return f"it was finished at step {finished.get('step')}"
    if store.exists(FINISHED) or store.list("model"):
        return "it has a finished model"
    steps = marked_steps(store, MARKER, QUARANTINED)
    steps += [
        event.get("step", 0)
        for event in events(store)
        if event.get("event") in ("resumed", "rolled_back", "stopped")
    ]
    newest = max([saved_step(store), *steps])
    return f"it was saved at step {newest}" if newest else ""


def check_past(store: Store, restart: bool) -> str:
    """What is missing of a run with work behind it, or ""; a warning where only its newest checkpoint is
    gone.
    """
    steps, behind = committed_steps(store), work_behind(store)
    if steps and steps[-1] < saved_step(store):
        log.warning(
            "%s: the checkpoint of step %d is gone; going on from step %d",
            store.uri,
            saved_step(store),
            steps[-1],
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
