"""Checkpoints of a run at any URI: every rank's files, hashed; a marker written last; readers trust the
marker only.

    <run>/checkpoints/step-00000200/<attempt>/rank-0000/…      what each rank wrote, part.json last: its files and what is in them
    <run>/checkpoints/step-00000200/COMMITTED.json             step, position, world size, files with size and sha256, and its own
    <run>/SAVED.json                                           the newest step that was committed

`Saver` uploads and commits in a thread, while the training goes on; ranks meet at the store alone. A
checkpoint whose bytes are not those of its marker is put into quarantine (its marker is renamed, with the
reason) and the one before is taken. Knows nothing of DeepSpeed and of tensors: what the files mean is
training.checkpoints.parts's.
"""

import hashlib
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.runs import MARKER, checkpoint_folder, checkpoint_marker, committed_steps
from cluster.scratch import scratch_folder
from cluster.storage import Store, file_sha256

log = logging.getLogger(__name__)
QUARANTINED = "QUARANTINED.json"
SAVED = "SAVED.json"
PART = "part.json"
PARTS_WAIT_S = 1800.0
SAVER_NICENESS = 19
Write = Callable[[Path], dict[str, Any]]


@dataclass(frozen=True)
class Checkpoint:
    """A committed one.

    `facts`: position, world size, ZeRO stage, precision …; `files`: name, size and sha256 of each.
    """

    step: int
    facts: dict[str, Any]
    files: list[dict[str, Any]]

    def of_rank(self, rank: int, name: str) -> dict[str, Any] | None:
        """The entry of a file that a rank wrote."""
        return next(
            (entry for entry in self.files if entry["name"].endswith(f"/rank-{rank:04d}/{name}")), None
        )


def give_way() -> None:
    """This thread takes the processor only where the training leaves it; Linux has priorities for threads."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), SAVER_NICENESS)


class Saver:
    """One rank's uploads, one at a time.

    `write(folder)` makes the rank's files and says, as plain data, what is in them.
    """

    def __init__(self, store: Store, rank: int, world: int, keep: int):
        self.store, self.rank, self.world, self.keep = store, rank, world, keep
        self.thread = ThreadPoolExecutor(1, "saver", initializer=give_way)
        self.flying: Future[None] | None = None

    def save(
        self, step: int, attempt: str, write: Write, facts: dict[str, Any], before_commit: Callable[[], None]
    ) -> None:
        """Begins; all ranks call it with the same step and attempt.

        Waits for the save before, and raises what went wrong there.
        """
        self.join()
        self.flying = self.thread.submit(self._save, step, attempt, write, facts, before_commit)

    def join(self) -> None:
        """Waits until this rank's part lies there, and on rank 0 until the checkpoint is committed."""
        flying, self.flying = self.flying, None
        if flying:
            flying.result()

    def close(self) -> None:
        self.thread.shutdown(cancel_futures=True)

    def _save(
        self, step: int, attempt: str, write: Write, facts: dict[str, Any], before_commit: Callable[[], None]
    ) -> None:
        with scratch_folder("checkpoint") as folder:
            upload_part(self.store, step, attempt, self.rank, folder, write(folder))
        if self.rank == 0:
            files = await_parts(self.store, step, attempt, self.world)
            before_commit()
            commit(self.store, step, facts, files)
            self.store.replace(SAVED, json.dumps({"step": step}).encode())
            retain(self.store, self.keep)


def upload_part(
    store: Store, step: int, attempt: str, rank: int, folder: Path, content: dict[str, Any]
) -> None:
    """Uploads all files below `folder` as this rank's part, then `part.json` with their entries and their
    `content`.
    """
    entries, prefix = [], f"{checkpoint_folder(step)}/{attempt}/rank-{rank:04d}"
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = f"{prefix}/{path.relative_to(folder)}"
        store.put_file(name, path)
        entries.append({"name": name, "size": path.stat().st_size, "sha256": file_sha256(path)})
    part = folder / PART
    part.write_text(json.dumps({"files": entries, **content}))
    store.put(f"{prefix}/{PART}", part.read_bytes())


def await_parts(store: Store, step: int, attempt: str, world: int) -> list[dict[str, Any]]:
    """The entries of all ranks' files, `part.json` among them, as soon as they lie there.

    `OSError` where one does not come.
    """
    files, end = [], time.monotonic() + PARTS_WAIT_S
    with scratch_folder("parts") as folder:
        for rank in range(world):
            name, path, pause_s = (
                f"{checkpoint_folder(step)}/{attempt}/rank-{rank:04d}/{PART}",
                Path(folder) / PART,
                0.02,
            )
            while not store.exists(name):
                if time.monotonic() > end:
                    raise OSError(
                        f"{store.uri}/{name} did not come within {PARTS_WAIT_S:.0f} s: the checkpoint is not committed"
                    )
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, 2.0)
            store.get_file(name, path)
            files += [
                *json.loads(path.read_text())["files"],
                {"name": name, "size": path.stat().st_size, "sha256": file_sha256(path)},
            ]
    return files


def commit(store: Store, step: int, facts: dict[str, Any], files: list[dict[str, Any]]) -> None:
    """Makes the uploaded parts a checkpoint.

    One that another start of this run committed meanwhile is as good.
    """
    body = {"step": step, "facts": facts, "files": files}
    try:
        store.put(
            checkpoint_marker(step),
            json.dumps({**body, "sha256": _hash(body)}, sort_keys=True).encode(),
        )
    except FileExistsError:
        log.warning("step %d has a checkpoint already, of another start of this run; that one stays", step)


def saved_step(store: Store) -> int:
    """The newest step that was ever committed, by a record beside the checkpoints, so that their loss is
    noticed; 0 for none.
    """
    try:
        return int(json.loads(store.read(SAVED))["step"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return 0


def read_marker(store: Store, step: int) -> Checkpoint:
    """What a step's marker says.

    `FileNotFoundError` where there is none, `DamagedError` where it is not readable.
    """
    data = store.read(checkpoint_marker(step))
    try:
        found = json.loads(data)
        stated = found.pop("sha256")
        checkpoint = Checkpoint(**found)
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"the marker of step {step} is not readable ({error})") from error
    if checkpoint.step != step or _hash(found) != stated:
        raise DamagedError(f"the marker of step {step} has other bytes than were written")
    return checkpoint


def _hash(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


class DamagedError(Exception):
    """A file of a checkpoint is missing or has other bytes than its marker says."""


def download(store: Store, entry: dict[str, Any], target: Path) -> Path:
    """A file of a checkpoint into `target/<rank folder>/…`. `DamagedError` where it is not as committed."""
    path = target / "/".join(entry["name"].split("/")[3:])
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        store.get_file(entry["name"], path)
    except FileNotFoundError:
        raise DamagedError(f"{entry['name']} is missing") from None
    if path.stat().st_size != entry["size"] or file_sha256(path) != entry["sha256"]:
        raise DamagedError(f"{entry['name']} has other bytes than its marker says")
    return path


def quarantine(store: Store, step: int, reason: str) -> None:
    """Takes the marker away from a damaged checkpoint; its files stay, with the reason beside them."""
    log.warning("checkpoint of step %d is damaged and put into quarantine: %s", step, reason)
    marker = checkpoint_marker(step)
    try:
        data = store.read(marker).decode(errors="replace")
    except FileNotFoundError:
        return
    store.replace(
        f"{checkpoint_folder(step)}/{QUARANTINED}", json.dumps({"reason": reason, "marker": data}).encode()
    )
    store.delete(marker)


def retain(store: Store, keep: int) -> None:
    """Deletes all but the newest `keep` checkpoints, and older parts that were never committed; not what is
    in quarantine.

    The marker goes first, so that no reader takes half of one. Nothing is deleted while the newest checkpoint
    is not whole.
    """
    steps = committed_steps(store)
    lying: dict[str, list[str]] = {}
    for name in store.list("checkpoints"):
        if re.match(r"checkpoints/step-\d+/", name):  # what else is there is not ours to delete
            lying.setdefault("/".join(name.split("/")[:2]), []).append(name)
    if not steps or not is_whole(store, steps[-1]):
        log.warning("the newest checkpoint is not whole: older ones stay")
        return
    kept = {checkpoint_folder(step) for step in steps[-keep:]}
    for folder, names in lying.items():
        if folder in kept or folder > checkpoint_folder(steps[-1]) or f"{folder}/{QUARANTINED}" in names:
            continue
        for name in sorted(names, key=lambda name: not name.endswith(f"/{MARKER}")):
            store.delete(name)


def is_whole(store: Store, step: int) -> bool:
    """Whether all files of a step's marker lie there with their sizes."""
    try:
        return all(store.size(entry["name"]) == entry["size"] for entry in read_marker(store, step).files)
    except (FileNotFoundError, DamagedError):
        return False
