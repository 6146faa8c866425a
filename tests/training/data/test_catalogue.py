"""A split's samples at the indexes that a run pinned, whatever was removed since."""

from pathlib import Path

import pytest

from cluster.dataset import Dataset
from configs.load import UserError
from ingest.remove import rewrite_unit
from tests.fakes.latents import make_latents
from training.data.catalogue import Catalogue

MEMBERS = ("latent.npy", "image.npy")


def catalogue_of(dataset: Dataset) -> Catalogue:
    return Catalogue.of(dataset, dataset.snapshot(), "train", MEMBERS)


def test_a_split_without_samples_is_refused(tmp_path: Path) -> None:
    dataset = make_latents(tmp_path / "data", units=1)
    with pytest.raises(UserError, match="no sample of split=test"):
        Catalogue.of(dataset, dataset.snapshot(), "test", MEMBERS)


def test_a_purged_take_down_moves_no_sample(tmp_path: Path) -> None:
    dataset = make_latents(tmp_path / "data")
    snapshot = dataset.snapshot()
    before = Catalogue.of(dataset, snapshot, "train", MEMBERS)
    removed = {"k_001_0003", "k_002_0013", "k_002_0001"}
    for commit in snapshot.commits:
        rewrite_unit(dataset, commit, lambda row: row["key"] in removed, "asked")
        if commit.unit in ("u0000001", "u0000002") and commit.tar:
            dataset.store.delete(commit.tar.name)
            dataset.store.delete(commit.index.name)
    after = Catalogue.of(dataset, snapshot, "train", MEMBERS)
    assert list(after.keys) == list(before.keys)
    old, new = (catalogue.read(list(range(len(before)))) for catalogue in (before_again(tmp_path), after))
    assert {str(before.keys[sample]) for sample in old if old[sample] != new[sample]} == removed
    assert all(new[sample] is None for sample in new if str(before.keys[sample]) in removed)


def before_again(tmp_path: Path) -> Catalogue:
    return catalogue_of(make_latents(tmp_path / "again"))
