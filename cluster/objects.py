"""The objects of a dataset: which names in its folders are its own, and its sealed tables.

    list_own(store, "commits")                  # names; files of others are ignored, and logged once
    open_list(store, "worklist/000000.parquet") # a sealed parquet file, checked

What they mean is cluster.dataset's and cluster.worklist's.
"""

import functools
import logging
import re

import pyarrow.parquet as pq

from cluster.seals import open_table
from cluster.storage import Store
from configs.load import StoppedError

log = logging.getLogger(__name__)
NUMBER = "(?:0|[1-9][0-9]*)"
# what a dataset writes into each of its folders; other files there are ignored (Thumbs.db, backups)
OWN_NAMES = {
    "worklist": r"[0-9]{6,}\.parquet",
    "commits": rf"[\w-]+\.{NUMBER}\.json",
    "tombstones": r"[0-9]{6,}\.parquet",
    "again": r"[\w-]+",
    "shards": r"[\w-]+-[0-9a-f]{16}\.tar",
    "index": r"[\w-]+-[0-9a-f]{16}\.parquet",
}
RESTORE = "restore it from a copy of the dataset"


class DamagedDatasetError(OSError, StoppedError):
    """An object of a dataset is missing or has other bytes than were written. One line, which names it."""


def list_own(store: Store, folder: str) -> list[str]:
    """The names of the dataset's own objects in `folder`; foreign files are ignored, and logged once."""
    pattern = re.compile(OWN_NAMES[folder])
    names = store.list(folder)
    objects = [name for name in names if pattern.fullmatch(name.removeprefix(f"{folder}/"))]
    if len(objects) < len(names):
        _warn_of_foreign(store.uri, tuple(sorted(set(names) - set(objects))))
    return objects


def open_list(store: Store, name: str) -> pq.ParquetFile:
    """A file of the work list or of tombstones. `DamagedDatasetError` where its bytes were changed."""
    try:
        return open_table(store.read(name))
    except ValueError as error:
        raise DamagedDatasetError(f"{store.uri}/{name}: damaged: {error}; {RESTORE}") from None


@functools.cache
def _warn_of_foreign(uri: str, names: tuple[str, ...]) -> None:
    """One warning per process for the same names."""
    examples = ", ".join(map(repr, names[:5]))
    ellipsis = ", …" if len(names) > 5 else ""
    log.warning(
        "%s: %d files are not of this dataset and are ignored: %s%s", uri, len(names), examples, ellipsis
    )
