"""Checkpoints of a run at any URI: every rank's files, hashed; a marker written last; readers trust the marker only.

    <run>/checkpoints/step-00000200/<attempt>/rank-0000/…      what each rank wrote
    <run>/checkpoints/step-00000200/COMMITTED.json             step, position, world size, files with size and sha256

A checkpoint whose bytes are not those of its marker is put into quarantine (its marker is renamed, with the reason) and the
one before is taken. Knows nothing of DeepSpeed: what the files mean is training.engine's and training.ema's.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.storage import Store, file_sha256

log = logging.getLogger(__name__)
MARKER = "COMMITTED.json"


@dataclass(frozen=True)
class Checkpoint:
    """A committed one. `facts`: position, world size, ZeRO stage, precision …; `files`: name, size and sha256 of each."""

    step: int
    facts: dict[str, Any]
    files: list[dict[str, Any]]


def folder_of(step: int) -> str:
    return f"checkpoints/step-{step:08d}"


def upload_part(store: Store, step: int, attempt: str, rank: int, folder: Path) -> list[dict[str, Any]]:
    """Uploads all files below `folder` as this rank's part; returns their entries for the marker."""
    entries = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = f"{folder_of(step)}/{attempt}/rank-{rank:04d}/{path.relative_to(folder)}"
        store.put_file(name, path)
        entries.append({"name": name, "size": path.stat().st_size, "sha256": file_sha256(path)})
    return entries


def commit(store: Store, step: int, facts: dict[str, Any], files: list[dict[str, Any]]) -> None:
    """Makes the uploaded parts a checkpoint."""
    marker = {"step": step, "facts": facts, "files": files}
    store.put(f"{folder_of(step)}/{MARKER}", json.dumps(marker, indent=1, sort_keys=True).encode())


def committed_steps(store: Store) -> list[int]:
    """Steps that have a marker, oldest first."""
    names = [name for name in store.list("checkpoints") if name.endswith(f"/{MARKER}")]
    return sorted(int(name.split("/")[1].removeprefix("step-")) for name in names)


def read_marker(store: Store, step: int) -> Checkpoint:
    """What a step's marker says. `FileNotFoundError` where there is none, `ValueError` where it is not readable."""
    data = json.loads(store.read(f"{folder_of(step)}/{MARKER}"))
    if data["step"] != step:
        raise ValueError(f"the marker of step {step} says step {data['step']}")
    return Checkpoint(step, data["facts"], data["files"])


def find_newest(store: Store, target: Path) -> Checkpoint | None:
    """Downloads the newest valid checkpoint into `target`; quarantines every newer one that is damaged, and says so."""
    for step in reversed(committed_steps(store)):
        try:
            checkpoint = read_marker(store, step)
            download(store, checkpoint, target)
            return checkpoint
        except (FileNotFoundError, ValueError, KeyError, DamagedError) as error:
            quarantine(store, step, str(error))
    return None


class DamagedError(Exception):
    """A file of a checkpoint is missing or has other bytes than its marker says."""


def download(store: Store, checkpoint: Checkpoint, target: Path) -> None:
    """All files into `target/<rank folder>/…`. `DamagedError` naming the first file that is not as committed."""
    for entry in checkpoint.files:
        path = target / "/".join(entry["name"].split("/")[3:])
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            store.get_file(entry["name"], path)
        except FileNotFoundError:
            raise DamagedError(f"{entry['name']} is missing") from None
        if path.stat().st_size != entry["size"] or file_sha256(path) != entry["sha256"]:
            raise DamagedError(f"{entry['name']} has other bytes than its marker says")


def quarantine(store: Store, step: int, reason: str) -> None:
    """Takes the marker away from a damaged checkpoint; its files stay, with the reason beside them."""
    log.warning("checkpoint of step %d is damaged and put into quarantine: %s", step, reason)
    marker = f"{folder_of(step)}/{MARKER}"
    try:
        data = store.read(marker).decode(errors="replace")
    except FileNotFoundError:
        return
    store.replace(f"{folder_of(step)}/QUARANTINED.json", json.dumps({"reason": reason, "marker": data}).encode())
    store.delete(marker)


def retain(store: Store, keep: int) -> None:
    """Deletes all but the newest `keep` checkpoints: the marker first, so that no reader takes half of one."""
    for step in committed_steps(store)[:-keep]:
        names = store.list(folder_of(step))
        marker = f"{folder_of(step)}/{MARKER}"
        for name in [marker, *(name for name in names if name != marker)]:
            store.delete(name)
