"""A run's JSON lines, such as metrics.jsonl (a line per step) and events.jsonl, at any URI.

    with Journal(store, "metrics.jsonl") as metrics:
        metrics.truncate_after(200)                 # on resume: the steps after it will be made again
        metrics.append({"step": 201, "loss": 0.5})

In a folder lines are appended as they come; for object storage they are kept locally and uploaded by `sync`,
or by `sync_by_time` a minute after the last time.
A line that a crash cut off is dropped when the journal is opened again: it would spoil the next one
(cluster.jsonl reads the lines).
"""

import json
import logging
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from cluster.jsonl import read_lines
from cluster.storage import Store

log = logging.getLogger(__name__)
SYNC_EVERY_S = 60.0
# of a run's time at most, however long the file has become
SYNC_SHARE = 0.01


class Journal:
    """One JSON-lines object of a run, with one writer."""

    def __init__(self, store: Store, name: str):
        self.store = store
        self.name = name
        # object storage cannot append
        self.remote = "://" in store.uri
        self.folder = tempfile.TemporaryDirectory(prefix="stillsound-journal-") if self.remote else None
        self.path = Path(self.folder.name if self.folder else store.uri) / name
        self.next_sync_at = time.monotonic() + SYNC_EVERY_S
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
        if not self.remote:
            return
        begun = time.monotonic()
        self.store.replace(self.name, self.path.read_bytes())
        took_s = time.monotonic() - begun
        self.next_sync_at = begun + max(SYNC_EVERY_S, took_s / SYNC_SHARE)

    def sync_by_time(self) -> None:
        """Uploads where it is time to. A store that fails now is left for the next time: people watch this,
        and nothing depends on it."""
        if not self.remote or time.monotonic() < self.next_sync_at:
            return
        self.next_sync_at = time.monotonic() + SYNC_EVERY_S
        try:
            self.sync()
        except OSError as error:
            log.warning("%s is not uploaded now: %s", self.name, error)
