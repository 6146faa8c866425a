"""Checkpoints of a run at any URI: every rank's files, hashed; a marker written last; readers trust the
marker only.

    <run>/checkpoints/step-00000200/<attempt>/rank-0000/…     what each rank wrote; part.json last: its files
                                                              and what is in them
    <run>/checkpoints/step-00000200/COMMITTED.json            step, metadata, files with size and sha256, and
                                                              its own sha256
    <run>/checkpoints/step-00000200/AVERAGES.json             the same of a checkpoint that went, of what is
                                                              left: the averages that a run keeps for good
    <run>/SAVED.json                                          the newest step that was committed

`Saver` uploads and commits in a thread while the training continues; ranks meet at the store alone. A
checkpoint whose bytes differ from its marker is quarantined (its marker is renamed, with the reason) and the
one before is used. docs/checkpoints.md draws it.

Knows nothing of DeepSpeed and of tensors: training.checkpoints.parts knows what the files mean.
"""

import hashlib
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from cluster.runs import FOLDER, MARKER, checkpoint_folder, checkpoint_marker, marked_steps
from cluster.scratch import scratch_folder
from cluster.storage import Store, file_sha256

log = logging.getLogger(__name__)
QUARANTINED = "QUARANTINED.json"
SAVED = "SAVED.json"
PART = "part.json"
AVERAGES = "AVERAGES.json"
PROFILE = "profile-"  # begins the names of the averages that stay when their checkpoint goes
# the slowest rank of a big model uploads for minutes; a rank that died never comes
PARTS_WAIT_S = 1800.0
FIRST_POLL_S = 0.02
LONGEST_POLL_S = 2.0
# the lowest priority: hashing and uploading take only the CPU that the training leaves
SAVER_NICENESS = 19
_STEP_FOLDER = re.compile(rf"{FOLDER}/step-(\d+)/.+")


class FileEntry(TypedDict):
    """A file of a checkpoint; `name` is relative to the run."""

    name: str
    size: int
    sha256: str


class GuardState(TypedDict, total=False):
    """Of training.run.guard: the best validation so far, and how many came since. Empty before the first."""

    best_step: int
    best_loss: float
    waited: int


class ScaleState(TypedDict):
    """Of training.run.scaling, for one optimiser in fp16. `skipped`: steps that changed no weight."""

    scale: float
    steps: int
    last_overflow: int
    hysteresis: int
    skipped: int


class Metadata(TypedDict, total=False):
    """What a marker states of its checkpoint beside the files, under the key "facts".

    `position`: of the next sample. `skipped`: steps' worth of samples left out by rollbacks.
    """

    workers: int
    zero_stage: int
    precision: str
    ema: float
    position: int
    skipped: int
    snapshots: list[str]
    guard: GuardState
    scales: list[ScaleState]


Write = Callable[[Path], Mapping[str, object]]
"""Writes a rank's files into a folder and returns, as plain data, what is in them."""


@dataclass(frozen=True)
class Draft:
    """A checkpoint to be saved. `step` and `attempt` are the same on all ranks.

    `before_commit`: what rank 0 does when all parts are there, right before it commits.
    """

    step: int
    attempt: str
    write: Write
    metadata: Metadata
    before_commit: Callable[[], None]


@dataclass(frozen=True)
class Checkpoint:
    """A committed one, as its marker describes it."""

    step: int
    metadata: Metadata
    files: list[FileEntry]

    def file_of(self, rank: int, name: str) -> FileEntry | None:
        """The entry of a file that a rank wrote."""
        suffix = f"/rank-{rank:04d}/{name}"
        return next((entry for entry in self.files if entry["name"].endswith(suffix)), None)


class DamagedError(Exception):
    """A file of a checkpoint is missing, or its bytes differ from its marker."""


def part_folder(step: int, attempt: str, rank: int) -> str:
    return f"{checkpoint_folder(step)}/{attempt}/rank-{rank:04d}"


# --- Saving -------------------------------------------------------------------------------------------------


class Saver:
    """One rank's uploads, one at a time."""

    def __init__(self, store: Store, rank: int, world: int, keep: int):
        self.store = store
        self.rank = rank
        self.world = world
        self.keep = keep
        self.thread = ThreadPoolExecutor(1, "saver", initializer=_lower_priority)
        self.pending: Future[None] | None = None

    def save(self, draft: Draft) -> None:
        """Starts a save; all ranks call it. Waits for the save before, and raises its error if it failed."""
        self.join()
        self.pending = self.thread.submit(self._save, draft)

    def join(self) -> None:
        """Waits until this rank's part is uploaded, and on rank 0 until the checkpoint is committed."""
        pending = self.pending
        # cleared first: an error is raised once, not again by the save after it
        self.pending = None
        if pending:
            pending.result()

    def close(self) -> None:
        self.thread.shutdown(cancel_futures=True)

    def _save(self, draft: Draft) -> None:
        step = draft.step
        with scratch_folder("checkpoint") as folder:
            upload_part(self.store, step, draft.attempt, self.rank, folder, draft.write(folder))
        if self.rank == 0:
            files = await_parts(self.store, step, draft.attempt, self.world)
            # the metrics of a step are stored before its checkpoint: a resume keeps all lines up to it
            draft.before_commit()
            commit(self.store, step, draft.metadata, files)
            self.store.replace(SAVED, json.dumps({"step": step}).encode())
            # last: an older checkpoint goes only when a newer one is there
            retain(self.store, self.keep)


def _lower_priority() -> None:
    """Linux alone has priorities for threads."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), SAVER_NICENESS)


def upload_part(
    store: Store, step: int, attempt: str, rank: int, folder: Path, content: Mapping[str, object]
) -> None:
    """Uploads all files below `folder` as this rank's part, then `part.json`: their entries and `content`."""
    prefix = part_folder(step, attempt, rank)
    entries: list[FileEntry] = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = f"{prefix}/{path.relative_to(folder)}"
        store.put_file(name, path)
        entries.append(_entry(name, path))
    part = folder / PART
    part.write_text(json.dumps({"files": entries, **content}))
    # last: whoever sees it sees a complete part
    store.put(f"{prefix}/{PART}", part.read_bytes())


def _entry(name: str, path: Path) -> FileEntry:
    return {"name": name, "size": path.stat().st_size, "sha256": file_sha256(path)}


def await_parts(store: Store, step: int, attempt: str, world: int) -> list[FileEntry]:
    """Waits for every rank's part.json. The entries of all files, these among them. `OSError` on timeout."""
    deadline = time.monotonic() + PARTS_WAIT_S
    files: list[FileEntry] = []
    with scratch_folder("parts") as folder:
        path = Path(folder) / PART
        for rank in range(world):
            name = f"{part_folder(step, attempt, rank)}/{PART}"
            _await_object(store, name, deadline)
            store.get_file(name, path)
            files += json.loads(path.read_text())["files"]
            files.append(_entry(name, path))
    return files


def _await_object(store: Store, name: str, deadline: float) -> None:
    pause_s = FIRST_POLL_S
    while not store.exists(name):
        if time.monotonic() > deadline:
            raise OSError(
                f"{store.uri}/{name} did not appear within {PARTS_WAIT_S:.0f} s: "
                "the checkpoint is not committed"
            )
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_POLL_S)


def commit(store: Store, step: int, metadata: Metadata, files: list[FileEntry]) -> None:
    """Makes the uploaded parts a checkpoint.

    If another start of this run has committed the step meanwhile, its checkpoint stays: it is as good.
    """
    try:
        store.put(checkpoint_marker(step), _marker(step, metadata, files))
    except FileExistsError:
        log.warning("step %d already has a checkpoint, of another start of this run; that one stays", step)


def _marker(step: int, metadata: Metadata, files: list[FileEntry]) -> bytes:
    body = {"step": step, "facts": metadata, "files": files}
    return json.dumps({**body, "sha256": _hash(body)}, sort_keys=True).encode()


# --- Listing and reading ------------------------------------------------------------------------------------


@dataclass
class StepFolder:
    """The objects of one step's folder, committed or not."""

    step: int
    names: list[str]

    @property
    def committed(self) -> bool:
        return checkpoint_marker(self.step) in self.names

    @property
    def quarantined(self) -> bool:
        return f"{checkpoint_folder(self.step)}/{QUARANTINED}" in self.names

    @property
    def retired(self) -> bool:
        return f"{checkpoint_folder(self.step)}/{AVERAGES}" in self.names


def step_folders(store: Store) -> list[StepFolder]:
    """Folders of steps, oldest first. Whatever else is below checkpoints/ is not ours and left out."""
    folders: dict[int, StepFolder] = {}
    for name in store.list(FOLDER):
        match = _STEP_FOLDER.fullmatch(name)
        step = int(match[1]) if match else -1
        if match and name.startswith(f"{checkpoint_folder(step)}/"):
            folders.setdefault(step, StepFolder(step, [])).names.append(name)
    return [folders[step] for step in sorted(folders)]


def saved_step(store: Store) -> int:
    """The newest step that was ever committed; 0 for none.

    It is recorded beside the checkpoints, so that their loss is noticed.
    """
    try:
        return int(json.loads(store.read(SAVED))["step"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return 0


def average_steps(store: Store) -> list[int]:
    """Steps whose averages are stored, with their checkpoint or without; oldest first."""
    return marked_steps(store, MARKER, AVERAGES)


def read_averages(store: Store, step: int) -> Checkpoint:
    """What `read_marker` gives, or where the checkpoint went, what is left of it."""
    try:
        return read_marker(store, step)
    except FileNotFoundError:
        return read_marker(store, step, AVERAGES)


def read_marker(store: Store, step: int, marker: str = MARKER) -> Checkpoint:
    """A step's checkpoint. `FileNotFoundError` if it has no marker, `DamagedError` if it is not readable."""
    data = store.read(f"{checkpoint_folder(step)}/{marker}")
    try:
        body = json.loads(data)
        stated_sha256 = body.pop("sha256")
        checkpoint = Checkpoint(body["step"], body["facts"], body["files"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"the marker of step {step} is not readable ({error})") from error
    if checkpoint.step != step or _hash(body) != stated_sha256:
        raise DamagedError(f"the marker of step {step} has other bytes than were written")
    return checkpoint


def _hash(body: Mapping[str, object]) -> str:
    # sorted, as the marker is: its reader gets the keys in another order than its writer had them
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def download(store: Store, entry: FileEntry, target: Path) -> Path:
    """A file of a checkpoint into `target/<rank folder>/…`. `DamagedError` if it is not as committed."""
    # without checkpoints/step-…/<attempt>: parts of all ranks fit beside each other
    path = target / "/".join(entry["name"].split("/")[3:])
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        store.get_file(entry["name"], path)
    except FileNotFoundError:
        raise DamagedError(f"{entry['name']} is missing") from None
    if path.stat().st_size != entry["size"] or file_sha256(path) != entry["sha256"]:
        raise DamagedError(f"{entry['name']} has other bytes than its marker states")
    return path


# --- Quarantine and retention -------------------------------------------------------------------------------


def quarantine(store: Store, step: int, reason: str) -> None:
    """Takes the marker away from a damaged checkpoint; its files stay, with the reason beside them."""
    log.warning("the checkpoint of step %d is damaged and quarantined: %s", step, reason)
    marker = checkpoint_marker(step)
    try:
        content = store.read(marker).decode(errors="replace")
    except FileNotFoundError:
        return
    record = json.dumps({"reason": reason, "marker": content})
    # the record first: a crash between the two loses no marker
    store.replace(f"{checkpoint_folder(step)}/{QUARANTINED}", record.encode())
    store.delete(marker)


def retain(store: Store, keep: int) -> None:
    """Deletes all but the newest `keep` checkpoints, and older parts that were never committed.

    What is quarantined stays, and of each its profiles (training.run.profiles). Nothing is deleted while the
    newest checkpoint is not whole.
    """
    folders = step_folders(store)
    steps = [folder.step for folder in folders if folder.committed]
    if not steps or not is_whole(store, steps[-1]):
        log.warning("the newest checkpoint is not whole: older ones stay")
        return
    for folder in folders:
        # newer than the newest checkpoint: parts that are being uploaded now
        is_newer = folder.step > steps[-1]
        if folder.step in steps[-keep:] or is_newer or folder.quarantined:
            continue
        _retire(store, folder)


def _retire(store: Store, folder: StepFolder) -> None:
    """Deletes a step's folder but for its profiles, which keep a marker of their own."""
    step = folder.step
    kept: set[str] = set()
    if folder.committed:
        kept = _mark_profiles(store, step)
    elif folder.retired:
        # what is left where the deleting was interrupted
        kept = {name for name in folder.names if _stays(name)}
    # the marker goes first, so that no reader takes half a checkpoint
    for name in sorted(folder.names, key=lambda name: not name.endswith(f"/{MARKER}")):
        if name not in kept and not name.endswith(f"/{AVERAGES}"):
            store.delete(name)


def _mark_profiles(store: Store, step: int) -> set[str]:
    """Writes the marker of a checkpoint's profiles. The names that it lists; none where there is none."""
    try:
        checkpoint = read_marker(store, step)
    except DamagedError:
        # nothing tells any more which files it had
        return set()
    files = [entry for entry in checkpoint.files if _stays(entry["name"])]
    if not any(_is_profile(entry["name"]) for entry in files):
        return set()
    # before anything goes: a crash between the two leaves the profiles with one marker or both
    store.replace(f"{checkpoint_folder(step)}/{AVERAGES}", _marker(step, checkpoint.metadata, files))
    return {entry["name"] for entry in files}


def _is_profile(name: str) -> bool:
    return name.rsplit("/", 1)[-1].startswith(PROFILE)


def _stays(name: str) -> bool:
    """A profile, or what says which parameters are in it."""
    return _is_profile(name) or name.endswith(f"/{PART}")


def is_whole(store: Store, step: int) -> bool:
    """Whether all files of a step's marker exist with their sizes; their bytes are not read."""
    try:
        return all(store.size(entry["name"]) == entry["size"] for entry in read_marker(store, step).files)
    except (FileNotFoundError, DamagedError):
        return False
