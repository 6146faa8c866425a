"""Runs and exports that may have learnt from removed samples are named, wherever they and the dataset are."""

import json
import shutil
from pathlib import Path

import pytest

from cluster.dataset import Dataset, Snapshot
from cluster.learnt import learnt_from, published
from configs.load import UserError
from ingest.gc import GcConfig, gc
from ingest.remove import remove
from ingest.seen import SeenBy
from tests.fakes.takedown import config_of, make, nine_clips


def export(folder: Path, dataset: Dataset, snapshot: Snapshot | None = None) -> None:
    """What is found of an exported model whose codec learnt from a dataset."""
    record = learnt_from(snapshot or dataset.snapshot(), "train", dataset.uri, dataset.meta["kind"])
    part = published({"sources": [], "license": "own", "learnt_from": [record]})
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "pipeline.py").write_text("")
    (folder / "provenance.json").write_text(json.dumps({"parts": {"autoencoder": part}, "step": 7}))


def found(root: Path, *places: Path, **selection: str) -> list[SeenBy]:
    config = config_of(root, **selection)
    config.runs = [str(place) for place in places]
    return remove(config)["checkpoints"]


def test_an_export_is_found_by_itself_and_below_a_folder(tmp_path: Path) -> None:
    clips, latents = make(tmp_path, nine_clips())
    export(tmp_path / "models/a/export", clips)
    export(tmp_path / "models/b", latents)
    one = found(tmp_path, tmp_path / "models/b")
    assert one == [{"run": str(tmp_path / "models/b"), "step": 7, "checkpoint": "export", "samples": 2}]
    both = found(tmp_path, tmp_path / "models")
    assert [entry["run"] for entry in both] == [str(tmp_path / "models" / name) for name in ("a/export", "b")]


def test_an_export_that_learnt_from_others_is_not_named(tmp_path: Path) -> None:
    clips, _ = make(tmp_path, nine_clips())
    first = [commit for commit in clips.snapshot().commits if commit.unit == "u0000002"]
    # the unit without a removed sample
    export(tmp_path / "export", clips, Snapshot.of(clips.uri, first))
    assert found(tmp_path, tmp_path / "export") == []
    # its split is train: a test sample was never learnt from
    assert found(tmp_path, tmp_path / "export", media="m8") == []
    assert len(found(tmp_path, tmp_path / "export", media="m7")) == 1


def test_a_removal_before_the_snapshot_is_not_named_again(tmp_path: Path) -> None:
    clips, _ = make(tmp_path, nine_clips())
    remove(config_of(tmp_path))
    export(tmp_path / "export", clips)
    assert found(tmp_path, tmp_path / "export") == []


def test_an_export_is_found_after_a_purge_and_in_a_moved_dataset(tmp_path: Path) -> None:
    clips, _ = make(tmp_path / "old", nine_clips())
    export(tmp_path / "export", clips)
    shutil.move(tmp_path / "old", tmp_path / "new")
    assert [entry["samples"] for entry in found(tmp_path / "new", tmp_path / "export")] == [2]
    # every unit gets a newer generation, and none of the pinned indexes is left
    for media in ("m0", "m4", "m6"):
        found(tmp_path / "new", media=media)
    gc(GcConfig(str(tmp_path / "new/clips"), purge=True))
    assert len(found(tmp_path / "new", tmp_path / "export", media="m2")) == 1


def test_a_run_names_what_its_first_weights_learnt_from(tmp_path: Path) -> None:
    clips, latents = make(tmp_path, nine_clips())
    before = learnt_from(clips.snapshot(), "train", clips.uri, "clips")
    others = Snapshot.of("nowhere", [])
    run = {
        "config": {"split": "train"},
        "snapshots": [others.to_json()],
        "origin": {"init_from": "x", "sha256": "", "license": "own", "learnt_from": [before]},
    }
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "runs/a/run.json").write_text(json.dumps(run))
    (tmp_path / "runs/a/FINISHED.json").write_text('{"step": 3}')
    entries = found(tmp_path, tmp_path / "runs")
    assert entries == [{"run": str(tmp_path / "runs/a"), "step": 3, "checkpoint": "model", "samples": 2}]


def test_a_folder_without_models_is_refused_and_an_older_export_is_pointed_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clips, _ = make(tmp_path, nine_clips())
    export(tmp_path / "export", clips)
    (tmp_path / "export/provenance.json").unlink()
    assert found(tmp_path, tmp_path / "export") == []
    assert "does not record what it learnt from; export it again" in caplog.text
    (tmp_path / "export/provenance.json").write_text("{")
    with pytest.raises(UserError, match="provenance.json is damaged"):
        found(tmp_path, tmp_path / "export")
    with pytest.raises(UserError, match="no run.json there and no exported model"):
        found(tmp_path, tmp_path / "clips")
