"""An output that stores nothing takes other settings, and all of its items are decided again.

    dataset = create_or_rebind("out/clips", "clips", config)

What was refused was refused by the old settings: with others, the list is made anew and every item looked at
again. First of all dataset.json goes. Without it nobody resumes and nobody reads; whoever makes a new one
sweeps away the rest of the old before, so that a crash in between leaves nothing half. Tombstones stay: what
was taken down stays out. A dataset that ever kept a sample is never touched, nor one with units to be done,
as somebody may be at them. docs/commit-protocol.md.
"""

import logging

from cluster.dataset import Commit, Dataset
from cluster.objects import list_own
from cluster.storage import Store, open_store
from configs.load import SettingsTree, describe_difference

log = logging.getLogger(__name__)
DATASET = "dataset.json"
# what a new list would be mixed up with
OLD = ("commits", "again", "worklist")


def create_or_rebind(uri: str, kind: str, config: SettingsTree) -> Dataset:
    """The dataset of these semantic settings at `uri`, as `Dataset.create_or_open` gives it; also where one
    of other settings is there that has never kept a sample.
    """
    store = open_store(uri, writable=True)
    if store.exists(DATASET):
        dataset = Dataset.open(uri, kind)
        difference = describe_difference(dataset.meta["config"], config)
        if difference and has_ended(dataset) and keeps_nothing(dataset):
            log.info("%s stores nothing: it takes the new settings, %s", uri, difference)
            store.delete(DATASET)
    if not store.exists(DATASET):
        _sweep(store, kind)
    return Dataset.create_or_open(uri, kind, config, parents=[])


def has_ended(dataset: Dataset) -> bool:
    """Whether every unit of the list is committed."""
    committed = dataset.committed_units()
    return all(unit in committed for unit, _ in dataset.worklist.unit_attempts())


def keeps_nothing(dataset: Dataset) -> bool:
    """Whether the dataset refused all that it looked at: nothing was ever kept and removed since."""
    return all(_is_refusal(commit) for commit in dataset.iter_commits())


def _is_refusal(commit: Commit) -> bool:
    """Whether nothing of a unit was kept, also not at first."""
    is_first = commit.generation == 0 and commit.tar is None
    return is_first and all(name.startswith("refused:") for name in commit.counts)


def _sweep(store: Store, kind: str) -> None:
    """Deletes list, marks and commits that no dataset.json is of any more, if they keep nothing."""
    left = [name for folder in OLD for name in list_own(store, folder)]
    # another command may have begun anew meanwhile: what was listed may be its own
    if not left or store.exists(DATASET):
        return
    unbound = Dataset(
        store, {"kind": kind, "schema_version": 0, "config": {}, "parents": [], "semantic_hash": ""}
    )
    # somebody lost their dataset.json: what was kept is still to be had
    if keeps_nothing(unbound):
        for name in left:
            store.delete(name)
