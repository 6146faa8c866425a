"""`training inspect RUN`: the checkpoints of a run, each checked against its marker; nothing is changed.

for line in inspect("out/demo/runs/diffusion"): ...
"""

from typing import TypedDict

from cluster.runs import checkpoint_folder, committed_steps
from cluster.scratch import scratch_folder
from cluster.storage import Store, open_store
from configs.load import UserError
from training.checkpoints.store import (
    Checkpoint,
    DamagedError,
    Metadata,
    download,
    read_marker,
)


class Line(TypedDict):
    """One checkpoint. `facts`: the metadata of its marker. `problem`: "" for a sound one."""

    step: int
    folder: str
    files: int
    bytes: int
    facts: Metadata
    problem: str


def inspect(run: str) -> list[Line]:
    """A line per checkpoint, oldest first. `UserError` if there is no run."""
    store = open_store(run)
    if not store.exists("run.json"):
        raise UserError(
            f"{run}: no run here (run.json is missing); give the output of python -m training train"
        )
    return [_line(store, step) for step in committed_steps(store)]


def _line(store: Store, step: int) -> Line:
    line: Line = {
        "step": step,
        "folder": checkpoint_folder(step),
        "files": 0,
        "bytes": 0,
        "facts": {},
        "problem": "",
    }
    try:
        checkpoint = read_marker(store, step)
        line["files"] = len(checkpoint.files)
        line["bytes"] = sum(file["size"] for file in checkpoint.files)
        line["facts"] = checkpoint.metadata
        _check(store, checkpoint)
    except (DamagedError, FileNotFoundError) as error:
        line["problem"] = str(error)
    return line


def _check(store: Store, checkpoint: Checkpoint) -> None:
    """Downloads every file and compares its hash; one at a time, so that the disk holds the largest only."""
    with scratch_folder("inspect") as folder:
        for entry in checkpoint.files:
            download(store, entry, folder).unlink()
