"""A run goes on with the content that it pinned, wherever it lies; what is held out, and what is buried
meanwhile, is not learnt.
"""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster.dataset import Dataset
from configs.load import UserError
from ingest.gc import GcConfig, gc
from ingest.remove import rewrite_unit
from tests.fakes.latents import make_latents
from training.recipes import diffusion
from training.run.prepare import prepare
from training.settings import TrainConfig
from training.train import train

TINY = diffusion.Config(
    channels=[16, 16], head_counts=[2, 2], layers_per_block=1, attention=False, norm_groups=8
)
COLUMNS = pa.schema([("split", pa.string()), ("media_id", pa.string())])


def settings(data: str, output: Path, **other: Any) -> TrainConfig:
    basic = {
        "workers": 0,
        "steps": 2,
        "global_batch": 4,
        "lanes": 4,
        "checkpoint_every": 2,
        "lr": 1e-3,
        "zero_stage": 0,
    }
    return TrainConfig(data=data, output=str(output), **{**basic, "diffusion": TINY, **other})


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return make_latents(tmp_path / "data", units=2)


def take_down(dataset: Dataset, suffix: str) -> None:
    """A removed sample in every unit: all of them are of generation 1 then."""
    for commit in dataset.snapshot().commits:
        rewrite_unit(dataset, commit, lambda row: row["key"].endswith(suffix), "asked")


@pytest.mark.parametrize("rewritten,purged", [(False, False), (True, False), (True, True)])
def test_another_dataset_is_refused_at_a_resume_whatever_its_generations(
    data: Dataset, tmp_path: Path, rewritten: bool, purged: bool
) -> None:
    other = make_latents(tmp_path / "other", units=2, seed=1)
    prepare(settings(data.uri, tmp_path / "run"))
    if rewritten:
        take_down(other, "_0003")
    if purged:
        gc(GcConfig(other.uri, purge=True))
    with pytest.raises(
        UserError, match=f"data={other.uri}: is not the dataset pinned as {data.uri} .*has other content"
    ):
        prepare(settings(other.uri, tmp_path / "run"))


def test_other_samples_with_the_same_statistics_are_noticed_after_a_purge(
    data: Dataset, tmp_path: Path
) -> None:
    """What a rewritten unit of clips, which carry no statistics, is compared by."""
    prepare(settings(data.uri, tmp_path / "run"))
    path = tmp_path / "run/run.json"
    run = json.loads(path.read_text())
    run["probes"][0] = {key: [1, 2] for key in run["probes"][0]}
    path.write_text(json.dumps(run))
    take_down(data, "_0003")
    gc(GcConfig(data.uri, purge=True))
    with pytest.raises(UserError, match="has other content"):
        prepare(settings(data.uri, tmp_path / "run"))


def test_a_missing_unit_is_refused_at_a_resume(data: Dataset, tmp_path: Path) -> None:
    prepare(settings(data.uri, tmp_path / "run"))
    (tmp_path / "data/commits/u0000001.0.json").unlink()
    with pytest.raises(UserError, match="unit u0000001 is missing or older"):
        prepare(settings(data.uri, tmp_path / "run"))


def test_a_dataset_mixed_in_must_be_the_same_at_a_resume_too(data: Dataset, tmp_path: Path) -> None:
    more, other = (
        make_latents(tmp_path / name / "data", seed=seed, units=2)
        for name, seed in (("more", 1), ("other", 2))
    )
    for dataset in (more, other):
        dataset.bury({f"k_{unit:03d}_{number:04d}": "x" for unit in range(2) for number in (0,)})
    prepare(settings(data.uri, tmp_path / "run", more_data=[more.uri]))
    with pytest.raises(UserError, match=f"more_data={other.uri}: is not the dataset pinned"):
        prepare(settings(data.uri, tmp_path / "run", more_data=[other.uri]))


def test_the_same_dataset_goes_on_after_a_move_and_a_purged_take_down(data: Dataset, tmp_path: Path) -> None:
    train(settings(data.uri, tmp_path / "run"))
    take_down(data, "_0003")
    gc(GcConfig(data.uri, purge=True))
    moved = str(shutil.move(tmp_path / "data", tmp_path / "moved"))
    assert train(settings(moved, tmp_path / "run", steps=4))["resumed_from"] == 2
    assert json.loads((tmp_path / "run/model/conditioning.json").read_text())["latents"] == moved


def test_samples_that_were_added_are_named_and_not_learnt(
    data: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = prepare(settings(data.uri, tmp_path / "run"))
    make_latents(tmp_path / "grown/data", units=5)
    shutil.rmtree(data.uri)
    shutil.copytree(tmp_path / "grown/data", data.uri)
    caplog.set_level(logging.WARNING)
    after = prepare(settings(data.uri, tmp_path / "run"))
    assert "42 samples in 3 shards were added since this run pinned its snapshot" in caplog.text
    assert after.snapshots == before.snapshots
