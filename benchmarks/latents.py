"""Small datasets of latents made of another's, for benchmarks that train on altered or chosen samples.

samples = read_split(source, "train")                  # key -> latent.npy and image.npy
write_latents(source, target, rows)                    # one shard, beside the models of the source
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cluster.dataset import Dataset
from cluster.shards import Row, write_shard
from training.data.catalogue import Catalogue
from training.moments import moments_of
from training.precompute import LATENT_COLUMNS

MEMBERS = ("latent.npy", "image.npy")
SPLITS = ("train", "validation")
Samples = dict[str, dict[str, bytes]]
"""The members of each sample, by key."""


def read_split(source: Dataset, split: str) -> Samples:
    """The samples of a split that are there, in the order of their keys."""
    catalogue = Catalogue.of(source, source.snapshot(), split, MEMBERS)
    there = np.flatnonzero(~catalogue.holes).tolist()
    samples: Samples = {}
    for index, sample in catalogue.read(there).items():
        assert sample is not None
        samples[str(catalogue.keys[index])] = {name: bytes(sample[name]) for name in MEMBERS}
    return dict(sorted(samples.items()))


def row_of(row: Mapping[str, str], split: str, members: dict[str, bytes]) -> Row:
    """A row of the source in another split, with these members."""
    columns = {name: row[name] for name in ("media_id", "start_s", "license")}
    return Row(row["item_id"], row["key"], columns={**columns, "split": split}, members=members)


def write_latents(
    source: Dataset, target: Path, rows: Sequence[Row], statistics: Mapping[str, object] | None = None
) -> None:
    """A dataset of one shard, in place of whatever is at `target`; `statistics` override the true moments."""
    shutil.rmtree(target, ignore_errors=True)
    dataset = Dataset.create_or_open(str(target), "latents", source.meta["config"], [])
    dataset.worklist.append([("all", {})], 1)
    (task,) = dataset.worklist.units()
    scratch = target / "scratch"
    scratch.mkdir()
    stated = {**moments_of(rows), **(statistics or {})}
    dataset.commit(task.unit, 0, write_shard(scratch, rows, LATENT_COLUMNS), stated)
    shutil.rmtree(scratch)
    shutil.copytree(Path(source.uri) / "models", target / "models")
