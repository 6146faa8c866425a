"""Shards: tars that others read, at the offsets that the index has."""

from pathlib import Path

import webdataset

from cluster.units import run_units
from tests.fakes.numbers import COLUMNS, make, numbers_stage


def test_stock_webdataset_reads_the_shards_and_offsets_are_true(tmp_path: Path) -> None:
    dataset = make(str(tmp_path))
    run_units(dataset, numbers_stage, 0, columns=COLUMNS, progress=False)
    tars = [str(tmp_path / commit.tar.name) for commit in dataset.snapshot().commits if commit.tar]
    read = {sample["__key__"]: sample["txt"] for sample in webdataset.WebDataset(tars, shardshuffle=False)}
    assert read == {f"k{n:03d}": bytes(n) for n in range(20) if n % 10 != 7}
    for commit in dataset.snapshot().commits:
        for row in dataset.read_index(commit).to_pylist():
            for member in row["members"]:
                end = member["offset"] + member["size"]
                assert dataset.store.read_range(commit.tar.name, member["offset"], end) in (
                    bytes(row["n"]),
                    b"{}",
                )
