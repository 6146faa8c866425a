"""What `data` holds out is not learnt from a dataset that is mixed in."""

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cluster.dataset import Dataset
from cluster.shards import Row, write_shard
from configs.load import UserError
from tests.fakes.latents import IMAGE_DIM, LATENT_SHAPE, make_latents
from tests.fakes.runs import settings
from training.data.npy import to_npy
from training.run.prepare import prepare
from training.run.setup import mixture_of

COLUMNS = pa.schema([("split", pa.string()), ("media_id", pa.string())])


def mixed_in(folder: Path, like: Dataset, rows: list[tuple[str, str]]) -> Dataset:
    """A dataset of training samples (key, media id), made as `like`."""
    dataset = Dataset.create_or_open(str(folder), "latents", like.meta["config"], [])
    dataset.worklist.append([("item", {})], 1)
    latent = np.zeros((2, *LATENT_SHAPE), np.float16)
    members = {"latent.npy": to_npy(latent), "image.npy": to_npy(np.zeros(IMAGE_DIM, np.float16))}
    filled = [
        Row("item", key, columns={"split": "train", "media_id": media}, members=members)
        for key, media in rows
    ]
    scratch = folder.parent / f"scratch-{folder.name}"
    scratch.mkdir()
    dataset.commit(
        "u0000000", 0, write_shard(scratch, filled, COLUMNS), next(iter(like.commits().values())).statistics
    )
    return dataset


def holding_out(tmp_path: Path) -> Dataset:
    """A dataset that holds out one medium for validation and one for test."""
    dataset = make_latents(tmp_path / "data", units=1)
    dataset.worklist.append([("item", {})], 1)
    members = {
        "latent.npy": to_npy(np.zeros((2, *LATENT_SHAPE), np.float16)),
        "image.npy": to_npy(np.zeros(IMAGE_DIM, np.float16)),
    }
    rows = [
        Row("item", f"s_{media}_0", columns={"split": split, "media_id": media}, members=members)
        for media, split in (("a", "validation"), ("b", "test"), ("c", "train"))
    ]
    (tmp_path / "scratch").mkdir()
    dataset.commit(
        "u0000001",
        0,
        write_shard(tmp_path / "scratch", rows, COLUMNS),
        next(iter(dataset.commits().values())).statistics,
    )
    return dataset


def test_what_data_holds_out_is_left_out_of_what_is_mixed_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = holding_out(tmp_path)
    rows = [
        ("s_a_0", "a"),
        ("s_a_9000", "a"),
        ("s_b_0", "b"),
        ("s_c_0", "c"),
        ("t_a_0", "a"),
        ("k_000_0000", "d"),
    ]
    other = mixed_in(tmp_path / "other", first, rows)
    caplog.set_level(logging.WARNING)
    config = settings(first.uri, tmp_path / "run", more_data=[other.uri])
    (_, catalogue) = mixture_of(config, [first.snapshot(), other.snapshot()]).catalogues
    holes = {str(key) for key, hole in zip(catalogue.keys, catalogue.holes, strict=True) if hole}
    assert holes == {"s_a_0", "s_a_9000", "s_b_0", "k_000_0000"} and len(catalogue) == len(rows)
    assert "4 samples are left out" in caplog.text


def test_a_dataset_of_nothing_but_held_out_samples_is_refused(tmp_path: Path) -> None:
    first = holding_out(tmp_path)
    other = mixed_in(tmp_path / "other", first, [("s_a_0", "a"), ("s_b_0", "b")])
    with pytest.raises(UserError, match="holds out all of its samples"):
        prepare(settings(first.uri, tmp_path / "run", more_data=[other.uri]))
    assert not (tmp_path / "run").exists()
