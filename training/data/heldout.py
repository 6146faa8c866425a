"""Keeps what `data` holds out for validation and test from being learnt from a dataset that is mixed in.

    count = leave_out(catalogue, dataset, snapshot, held_out(data, pinned, split="train"), split="train")

Compared are keys, and media by source and id: other clips of a held-out video would give it away just as
well. What is left out becomes a hole at its index, so that the order of all other samples stays.
"""

from dataclasses import dataclass, field

import numpy as np

from cluster.dataset import Dataset, Snapshot
from training.data.catalogue import Catalogue, current_commits

HELD_OUT = frozenset({"validation", "test"})
COLUMNS = ("key", "split", "media_id")


@dataclass
class HeldOut:
    """Keys of samples, and (source, media id) of the media they are of."""

    keys: set[str] = field(default_factory=set)
    media: set[tuple[str, str]] = field(default_factory=set)

    def has(self, row: dict[str, str | None]) -> bool:
        return row["key"] in self.keys or medium_of(row) in self.media


def medium_of(row: dict[str, str | None]) -> tuple[str, str] | None:
    """(source, media id) of a row; a key begins with the source. None where the dataset has no media ids."""
    media_id = row.get("media_id")
    return (str(row["key"]).partition("_")[0], media_id) if media_id else None


def held_out(dataset: Dataset, snapshot: Snapshot, split: str) -> HeldOut:
    """What a dataset holds out from training on `split`."""
    result = HeldOut()
    for row in _rows(dataset, snapshot, HELD_OUT - {split}):
        result.keys.add(str(row["key"]))
        medium = medium_of(row)
        if medium:
            result.media.add(medium)
    return result


def leave_out(
    catalogue: Catalogue, dataset: Dataset, snapshot: Snapshot, excluded: HeldOut, split: str
) -> int:
    """Makes holes of a catalogue's samples that are held out elsewhere; returns how many are new holes."""
    keys = {str(row["key"]) for row in _rows(dataset, snapshot, {split}) if excluded.has(row)}
    before = int(np.count_nonzero(catalogue.holes))
    catalogue.hide(keys)
    return int(np.count_nonzero(catalogue.holes)) - before


def _rows(
    dataset: Dataset, snapshot: Snapshot, splits: set[str] | frozenset[str]
) -> list[dict[str, str | None]]:
    rows: list[dict[str, str | None]] = []
    for commit in current_commits(dataset, snapshot):
        table = dataset.read_index(commit)
        names = [name for name in COLUMNS if name in table.column_names]
        rows += [row for row in table.select(names).to_pylist() if row["key"] and row["split"] in splits]
    return rows
