"""Whether a dataset is still the one that a run pinned, by its content and not by its URI.

    check_pinned("data", dataset, snapshot, members, probe)     # `UserError` for another dataset
    added_since(dataset, snapshot)                              # (units, samples) that were added

Every pinned unit must be there: in the pinned generation, whose index is named by its hash, or, where a
take-down wrote a newer one and the old one was deleted, with the statistics of the pinned commit and with the
same bytes of the samples in `probe`. Reads the names of objects, and the few units that need a closer look.
"""

from typing import Any

import numpy as np

from cluster.dataset import Commit, Dataset, Snapshot
from cluster.objects import list_own
from cluster.shards import Status, members_of
from configs.load import UserError, describe_difference
from training.data.catalogue import Catalogue

# enough that another dataset with the same units cannot agree by chance, few enough to store in run.json
PROBED = 64
Probe = dict[str, list[int]]
IndexRow = dict[str, Any]
"""A row of an index, as pyarrow gives it."""


def probe_of(catalogue: Catalogue) -> Probe:
    """Key -> checksums of the members, of at most `PROBED` samples spread over a dataset."""
    samples = np.flatnonzero(~catalogue.holes)
    evenly = np.linspace(0, len(samples) - 1, min(PROBED, len(samples))).astype(int)
    chosen = samples[np.unique(evenly)]
    return {str(catalogue.keys[sample]): catalogue.checksums[sample].tolist() for sample in chosen}


def check_pinned(
    setting: str, dataset: Dataset, pinned: Snapshot, members: tuple[str, ...], probe: Probe
) -> None:
    """`UserError`, naming `setting`, where the dataset has not the content that was pinned."""
    generations = _generations(dataset)
    indexes = set(list_own(dataset.store, "index"))
    for commit in pinned.commits:
        generation = generations.get(commit.unit, -1)
        if generation < commit.generation:
            _refuse(setting, dataset, pinned, f"unit {commit.unit} is missing or older")
        if commit.index.name in indexes:
            continue
        if generation == commit.generation or not _was_rewritten(dataset, commit, generation, members, probe):
            _refuse(setting, dataset, pinned, f"unit {commit.unit} has other content")


def added_since(dataset: Dataset, pinned: Snapshot) -> tuple[int, int]:
    """How many units, and kept samples in them, a dataset has besides the pinned ones."""
    pinned_units = {commit.unit for commit in pinned.commits}
    added = [unit for unit in _generations(dataset) if unit not in pinned_units]
    return len(added), sum(commit.counts.get("kept", 0) for commit in dataset.commits_of(added).values())


def codec_of(dataset: Dataset) -> dict[str, str]:
    """The sha256 of the models that latents were made with, by name; empty for other datasets."""
    return dict(dataset.meta["config"].get("sha256", {}))


def check_codec(setting: str, dataset: Dataset, recorded: dict[str, str]) -> None:
    """`UserError`, naming both, where latents were made with other models than the `recorded` ones."""
    difference = describe_difference(recorded, codec_of(dataset)) if recorded else ""
    if difference:
        problem = "was made with another codec or image encoder than this model's"
        raise UserError(f"{setting}={dataset.uri}: {problem}: sha256 {difference}")


def _generations(dataset: Dataset) -> dict[str, int]:
    """Unit -> its highest generation."""
    names = (name.removeprefix("commits/").split(".") for name in dataset.commit_names())
    return {unit: int(generation) for unit, generation, _ in names}


def _was_rewritten(
    dataset: Dataset, commit: Commit, generation: int, members: tuple[str, ...], probe: Probe
) -> bool:
    """Whether a unit of a higher generation is the pinned one without samples that were taken down."""
    now = dataset.read_commit(f"commits/{commit.unit}.{generation}.json")
    if now.statistics != commit.statistics or now.semantic_hash != commit.semantic_hash:
        return False
    rows = dataset.read_index(now).select(["key", "status", "members"]).to_pylist()
    probed = [row for row in rows if row["status"] == Status.KEPT and row["key"] in probe]
    return all(_checksums(row, members) == probe[row["key"]] for row in probed)


def _checksums(row: IndexRow, members: tuple[str, ...]) -> list[int | None]:
    by_ext = {member.ext: member.crc32 for member in members_of(row)}
    return [by_ext.get(name) for name in members]


def _refuse(setting: str, dataset: Dataset, pinned: Snapshot, problem: str) -> None:
    identity = f"is not the dataset pinned as {pinned.uri} ({pinned.id[:12]})"
    fix = "give the dataset that this run was started with, wherever it is now, or another output"
    raise UserError(f"{setting}={dataset.uri}: {identity}: {problem}; {fix}")
