"""Each object of a place is a dataset's own, a file, or named as not searched; none twice."""

import json
from pathlib import Path

import pytest

from cluster.dataset import Dataset
from cluster.shards import Row, write_shard
from cluster.storage import absolute
from configs.load import UserError
from ingest.places import look_into, unrecorded
from ingest.rows import CLIP_COLUMNS


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A dataset, a run with its model, latents' models, an export, and files."""
    dataset = Dataset.create_or_open(str(tmp_path / "data/clips"), "clips", {}, [])
    dataset.worklist.append([("urls:a", {})], 1)
    (tmp_path / "scratch").mkdir()
    shard = write_shard(
        tmp_path / "scratch", [Row("urls:a", "urls_a_0", members={"flac": b"x"})], CLIP_COLUMNS
    )
    dataset.commit("u0000000", 0, shard, {})
    for path in tmp_path.glob("scratch/*"):
        path.unlink()
    (tmp_path / "scratch").rmdir()
    for name in (
        "data/clips/report.html",
        "data/clips/shards/Thumbs.db",
        "run/run.json",
        "run/model/provenance.json",
        "run/.cache",
        "latents/models/provenance.json",
        "export/model_index.json",
        "export/provenance.json",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    return tmp_path


def test_every_object_has_its_place(root: Path) -> None:
    places = look_into([str(root)])
    assert list(places.datasets) == [f"{root}/data/clips"]
    own = places.own[f"{root}/data/clips"]
    assert sorted(name.split("/")[0] for name in own) == [
        "commits",
        "dataset.json",
        "index",
        "shards",
        "worklist",
    ]
    everything = {str(path) for path in root.rglob("*") if path.is_file()}
    assert {file.address for file in own.values()} | places.files.keys() == everything
    models = {
        address.removeprefix(f"{root}/"): is_export for address, (_, is_export) in places.models.items()
    }
    assert models == {"run": False, "export": True, "latents/models": True}
    assert places.unread == {}


def test_a_place_named_twice_is_searched_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    once, twice = look_into([str(root)]), look_into(["data/clips", str(root), "data"])
    assert twice.files.keys() == once.files.keys() and twice.datasets.keys() == once.datasets.keys()
    assert twice.own[absolute("data/clips")].keys() == once.own[f"{root}/data/clips"].keys()


def test_a_place_that_is_not_there_is_refused(root: Path) -> None:
    with pytest.raises(UserError, match="none: nothing is there"):
        look_into([str(root), str(root / "none")])


def test_what_a_model_does_not_record_is_told(root: Path) -> None:
    models = look_into([str(root)]).models
    assert [unrecorded(*models[f"{root}/{name}"]) for name in ("run", "export")] == ["", ""]
    (root / "run/run.json").write_text("{")
    (root / "export/provenance.json").unlink()
    assert "cannot be read" in unrecorded(*models[f"{root}/run"])
    assert unrecorded(*models[f"{root}/export"]) == ""
    (root / "export/pipeline.py").write_text("")
    assert "export it again" in unrecorded(*models[f"{root}/export"])


def test_a_file_is_mapped_whole_and_what_is_none_is_an_error(root: Path) -> None:
    (root / "empty").write_bytes(b"")
    (root / "text").write_text(json.dumps("text"))
    files = look_into([str(root)]).files
    with files[f"{root}/empty"].mapped() as empty, files[f"{root}/text"].mapped() as text:
        assert (bytes(empty), bytes(text)) == (b"", b'"text"')
    (root / "text").unlink()
    (root / "text").mkdir()
    with pytest.raises(OSError, match="not a plain file"), files[f"{root}/text"].mapped():
        pass
