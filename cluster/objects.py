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
OWN_NAMES = {
    "worklist": r"[0-9]{6,}\.parquet",
    "commits": rf"[\w-]+\.{NUMBER}\.json",
    "tombstones": r"[0-9]{6,}\.parquet",
    "again": r"[\w-]+",
    "shards": r"[\w-]+-[0-9a-f]{16}\.tar",
    "index": r"[\w-]+-[0-9a-f]{16}\.parquet",
}
"""What a dataset writes into each of its folders; any other file there is somebody else's (Thumbs.db, an editor's backup)."""
RESTORE = "restore it from a copy of the dataset"


class DamagedDatasetError(OSError, StoppedError):
    """An object of a dataset is missing or has other bytes than were written.

    One line, which names the object.
    """


def list_own(store: Store, folder: str) -> list[str]:
    """The names of the dataset's own objects in `folder`.

    Files of others are ignored, and logged once per process.
    """
    own, strangers = list[str](), list[str]()
    for name in store.list(folder):
        is_own = re.fullmatch(OWN_NAMES[folder], name.removeprefix(f"{folder}/"))
        (own if is_own else strangers).append(name)
    _warn_of_strangers(store.uri, tuple(strangers))
    return own


def open_list(store: Store, name: str) -> pq.ParquetFile:
    """A file of the work list or of tombstones.

    `DamagedDatasetError` where it has other bytes than were written.
    """
    try:
        return open_table(store.read(name))
    except ValueError as error:
        raise DamagedDatasetError(f"{store.uri}/{name}: damaged: {error}; {RESTORE}") from None


@functools.cache
def _warn_of_strangers(uri: str, names: tuple[str, ...]) -> None:
    """One warning per process for the same names."""
    if names:
        shown = ", ".join(map(repr, names[:5])) + (", …" if len(names) > 5 else "")
        log.warning("%s: %d files are not of this dataset and are ignored: %s", uri, len(names), shown)
