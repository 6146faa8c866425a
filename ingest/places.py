"""Folders that are searched: which datasets, runs, exports and other files lie at or below them.

    places = look_into(["out/clips", "out"])     # each object once, however often it was named
    for file in places.files: ...

Everything is accounted for: an object is a dataset's own, or a file, or in `unread` with the reason. Hidden
files count; links to folders are not followed, and are named.
"""

import contextlib
import json
import mmap
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from cluster.dataset import Dataset
from cluster.learnt import INDEX, PROVENANCE
from cluster.objects import OWN_NAMES
from cluster.scratch import scratch_folder
from cluster.storage import UNFINISHED, FolderStore, Store, absolute, open_store
from configs.load import UserError
from ingest.seen import RUN

# what marks a folder with weights, and whether provenance.json there says what they learnt from: that of an
# export, or beside latents that of the models that made them
MARKS = {RUN: False, INDEX: True, PROVENANCE: True}
WRITING = "an unfinished write: wait for its writer, or delete it (ingest gc --purge does in a dataset)"


@dataclass(frozen=True)
class File:
    """An object: `name` below the root of `store`."""

    store: Store
    name: str

    @property
    def address(self) -> str:
        return f"{absolute(self.store.uri.removeprefix('file://'))}/{self.name}"

    @contextlib.contextmanager
    def mapped(self) -> Iterator[bytes | mmap.mmap]:
        """Its bytes, mapped: of any size. `OSError` where they cannot be read."""
        with self._at_hand() as path, open(path, "rb") as file:
            # an empty file cannot be mapped
            if os.fstat(file.fileno()).st_size == 0:
                yield b""
                return
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield data

    @contextlib.contextmanager
    def _at_hand(self) -> Iterator[Path]:
        if isinstance(self.store, FolderStore):
            path = self.store.root / self.name
            if not stat.S_ISREG(path.stat().st_mode):
                raise OSError("not a plain file")
            yield path
            return
        with scratch_folder("search") as folder:
            self.store.get_file(self.name, folder / "object")
            yield folder / "object"


@dataclass
class Places:
    """All by their addresses. `own`: of a dataset, its objects by their names below it. `models`: a store,
    and whether it is an export. `unread`: why it was not searched.
    """

    datasets: dict[str, Dataset] = field(default_factory=dict)
    own: dict[str, dict[str, File]] = field(default_factory=dict)
    models: dict[str, tuple[Store, bool]] = field(default_factory=dict)
    files: dict[str, File] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)


def look_into(uris: list[str]) -> Places:
    """Lists every place. `UserError` where one of them is not there."""
    places = Places()
    for uri in uris:
        store = open_store(uri)
        names = list(_names_of(store, places))
        if not names:
            raise UserError(f"places={uri}: nothing is there; name folders of latents, runs or exports")
        roots = {root for name in names if (root := _root_of(name, "dataset.json")) is not None}
        datasets = {root: dataset for root in roots if (dataset := _open(store, root, places))}
        for name in names:
            _place(File(store, name), datasets, places)
    # the model of a run is the run's: its run.json says more
    runs = [address for address, (_, is_export) in places.models.items() if not is_export]
    for run in runs:
        places.models.pop(f"{run}/model", None)
    return places


def _place(file: File, datasets: dict[str, Dataset], places: Places) -> None:
    """Puts one object where it belongs; one that an earlier place had is known already."""
    root = next((root for root in _folders_of(file.name) if root in datasets), None)
    if root is not None:
        dataset = datasets[root]
        address = absolute(dataset.uri)
        places.datasets.setdefault(address, dataset)
        inside = file.name.removeprefix(f"{root}/") if root else file.name
        folder, _, rest = inside.partition("/")
        is_own = folder in OWN_NAMES and re.fullmatch(OWN_NAMES[folder], rest)
        if is_own or inside == "dataset.json":
            places.own.setdefault(address, {}).setdefault(inside, File(dataset.store, inside))
            return
    places.files.setdefault(file.address, file)
    for mark, is_export in MARKS.items():
        model = _root_of(file.name, mark)
        if model is not None:
            uri = f"{file.store.uri}/{model}".rstrip("/")
            places.models.setdefault(absolute(uri), (open_store(uri), is_export))


def _root_of(name: str, mark: str) -> str | None:
    """The folder that the object `name` marks; None where it is no such mark."""
    folder, _, last = name.rpartition("/")
    return folder if last == mark else None


def _folders_of(name: str) -> list[str]:
    """The folders that an object is in, the nearest first; "" is the place itself."""
    return ["" if str(parent) == "." else str(parent) for parent in PurePosixPath(name).parents]


def _open(store: Store, root: str, places: Places) -> Dataset | None:
    uri = f"{store.uri}/{root}".rstrip("/")
    try:
        return Dataset.open(uri)
    except (UserError, OSError, KeyError) as error:
        places.unread[f"{absolute(uri)}/dataset.json"] = f"no dataset that can be opened: {error}"
        return None


def _names_of(store: Store, places: Places) -> Iterator[str]:
    """Every object of a store, hidden ones too; what cannot be listed is `unread`."""
    if not isinstance(store, FolderStore):
        yield from store.list()
        for name in store.unfinished():
            places.unread[f"{store.uri}/{name}"] = WRITING
        return

    def note(error: OSError) -> None:
        # a place that is not there at all has nothing to search
        if Path(error.filename) != store.root:
            places.unread[str(error.filename)] = f"cannot be listed: {error.strerror}"

    for folder, folders, names in os.walk(store.root, onerror=note):
        for name in folders:
            if (Path(folder) / name).is_symlink():
                places.unread[f"{folder}/{name}"] = "a link to a folder: name the folder itself in places="
        for name in sorted(names):
            if re.fullmatch(UNFINISHED, name):
                places.unread[f"{folder}/{name}"] = WRITING
            else:
                yield str((Path(folder) / name).relative_to(store.root))


def unrecorded(store: Store, is_export: bool) -> str:
    """Why nobody can know what a model learnt from; "" where it is recorded."""
    if not is_export:
        try:
            json.loads(store.read(RUN))
        except (OSError, ValueError) as error:
            return f"its {RUN} cannot be read: {error}"
        return ""
    # stock folders inside an export have neither
    if store.exists("pipeline.py") and not store.exists(PROVENANCE):
        return "does not record what it learnt from; export it again"
    return ""
