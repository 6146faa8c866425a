"""The run's journal: metrics.jsonl (a line per step) and events.jsonl (started, resumed, finished), at any
URI.

    with Journal(store, "metrics.jsonl") as metrics:
        metrics.cut(after_step=200)                 # on resume: what will be done again is forgotten
        metrics.append({"step": 201, "loss": 0.5})

In a folder lines are appended as they come; for object storage they are kept locally and uploaded by `sync`.
A line that a crash cut off is dropped when the journal is opened again: it would spoil the next one
(cluster.jsonl reads the lines).
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from cluster.jsonl import read_lines
from cluster.storage import Store


class Journal:
    """One JSON-lines object of a run, with one writer."""

    def __init__(self, store: Store, name: str):
        self.store, self.name = store, name
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

    def append(self, line: dict[str, Any]) -> None:
        self.file.write(json.dumps(line) + "\n")

    def cut(self, after_step: int) -> None:
        """Keeps the whole lines of steps up to `after_step`."""
        before = self.file
        self._rewrite([line for line in read_lines(self.path) if line.get("step", 0) <= after_step])
        before.close()

    def _rewrite(self, lines: list[dict[str, Any]]) -> None:
        """Beside, then renamed: a crash here loses no line."""
        beside = self.path.with_name(f".{self.name}.partial")
        beside.write_text("".join(json.dumps(line) + "\n" for line in lines))
        beside.replace(self.path)
        self.file = open(self.path, "a", buffering=1)

    def sync(self) -> None:
        """Uploads what object storage does not have yet."""
        self.file.flush()
        if self.remote:
            self.store.replace(self.name, self.path.read_bytes())
