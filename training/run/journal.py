"""A run's JSON lines, such as metrics.jsonl (a line per step) and events.jsonl, at any URI.

    with Journal(store, "metrics.jsonl") as metrics:
        metrics.truncate_after(200)                 # on resume: the steps after it will be made again
        metrics.append({"step": 201, "loss": 0.5})

In a folder lines are appended as they come; for object storage they are kept locally and uploaded by `sync`.
A line that a crash cut off is dropped when the journal is opened again: it would spoil the next one
(cluster.jsonl reads the lines).
"""

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from cluster.jsonl import read_lines
from cluster.storage import Store


class Journal:
    """One JSON-lines object of a run, with one writer."""

    def __init__(self, store: Store, name: str):
        self.store = store
        self.name = name
        # object storage cannot append
        self.remote = "://" in store.uri
        self.folder = tempfile.TemporaryDirectory(prefix="stillsound-journal-") if self.remote else None
        self.path = Path(self.folder.name if self.folder else store.uri) / name
        if self.remote and store.exists(name):
            store.get_file(name, self.path)

    def __enter__(self) -> "Journal":
        self._rewrite(read_lines(self.path))
        return self

    def __exit__(self, *_: object) -> None:
        self.sync()
        self.file.close()
        if self.folder:
            self.folder.cleanup()

    def append(self, line: Mapping[str, object]) -> None:
        self.file.write(json.dumps(line) + "\n")

    def truncate_after(self, step: int) -> None:
        """Keeps the whole lines of steps up to `step`."""
        previous = self.file
        self._rewrite([line for line in read_lines(self.path) if line.get("step", 0) <= step])
        previous.close()

    def _rewrite(self, lines: Iterable[Mapping[str, object]]) -> None:
        """Beside, then renamed: a crash here loses no line."""
        partial = self.path.with_name(f".{self.name}.partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines))
        partial.replace(self.path)
        # buffering=1: by line, so that a killed process has lost none
        self.file = open(self.path, "a", buffering=1)

    def sync(self) -> None:
        """Uploads what object storage does not have yet."""
        self.file.flush()
        if self.remote:
            self.store.replace(self.name, self.path.read_bytes())
