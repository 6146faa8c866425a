"""The Croissant metadata beside the card: valid, true to the files, and readable by mlcroissant without a
network.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from cluster.dataset import Dataset
from ingest.clip.clipper import ClipConfig, FrameConfig
from ingest.pages import croissant
from ingest.report import ReportConfig, write_report
from ingest.scrape import ScrapeConfig, scrape
from ingest.sources.settings import SourceConfig
from ingest.synth import SynthConfig, synth


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dataset with its report."""
    root = tmp_path_factory.mktemp("croissant")
    synth(
        SynthConfig(
            str(root / "world"), videos=2, webm=0, hls=0, dash=0, stills=1, silent=1, scenes_per_video=2
        )
    )
    source = SourceConfig(str(root / "world/media"), "folder", "CC-BY-4.0")
    shape: dict[str, Any] = {"clip": ClipConfig(1.6), "frame": FrameConfig(64), "workers": 0, "unit_size": 2}
    scrape(ScrapeConfig(str(root / "clips"), source, **shape), progress=False)
    write_report(ReportConfig(str(root / "clips")))
    return root / "clips"


def document_of(output: Path) -> dict[str, Any]:
    return dict(json.loads((output / "croissant.json").read_text()))


def test_it_is_valid(output: Path, caplog: pytest.LogCaptureFixture) -> None:
    mlcroissant = pytest.importorskip("mlcroissant")
    with caplog.at_level(logging.WARNING):
        metadata = mlcroissant.Dataset(jsonld=str(output / "croissant.json")).metadata
    assert not metadata.issues.errors and not metadata.issues.warnings
    assert "context` is not standard" not in caplog.text


def test_mlcroissant_reads_the_index_and_the_members(output: Path) -> None:
    mlcroissant = pytest.importorskip("mlcroissant")
    dataset = mlcroissant.Dataset(jsonld=str(output / "croissant.json"))
    kept = {row["key"] for row in Dataset.open(str(output)).iter_rows() if row["status"] == "kept"}
    rows = list(dataset.records("rows"))
    assert {row["rows/key"].decode() for row in rows if row["rows/status"] == b"kept"} == kept
    members = list(dataset.records("facts"))
    assert {member["facts/key"].decode() for member in members} == kept
    assert all(json.loads(member["facts/content"])["license"] == "CC-BY-4.0" for member in members)


def test_every_committed_file_is_named_with_its_hash(output: Path) -> None:
    document = document_of(output)
    files = [entry for entry in document["distribution"] if entry["@type"] == "cr:FileObject"]
    hashes = {file["contentUrl"]: file["sha256"] for file in files}
    committed: set[str] = set()
    for commit in Dataset.open(str(output)).iter_commits():
        committed |= {commit.index.name, *([commit.tar.name] if commit.tar else [])}
    assert set(hashes) == committed
    for name, sha256 in hashes.items():
        assert hashlib.sha256((output / name).read_bytes()).hexdigest() == sha256
    assert document["license"] == ["https://creativecommons.org/licenses/by/4.0/"]


def test_responsible_use_and_provenance_are_stated(output: Path) -> None:
    document = document_of(output)
    assert document["conformsTo"] == [
        "http://mlcommons.org/croissant/1.1",
        "http://mlcommons.org/croissant/RAI/1.0",
    ]
    assert (
        "silent 2" in document["rai:dataCollectionMissingData"]
        and document["rai:personalSensitiveInformation"]
    )
    assert document["prov:wasDerivedFrom"][0]["name"] == "folder"
    assert document["prov:wasGeneratedBy"]["prov:wasAssociatedWith"]


def test_a_large_dataset_is_named_by_patterns(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(croissant, "MAX_FILES", 1)
    write_report(ReportConfig(str(output), output=str(tmp_path / "page.html")))
    document = json.loads((tmp_path / "page.croissant.json").read_text())
    assert not [entry for entry in document["distribution"] if entry["@type"] == "cr:FileObject"]
    assert f"{output}/shards/*.tar" in document["distribution"][0]["includes"]
    mlcroissant = pytest.importorskip("mlcroissant")
    assert not mlcroissant.Dataset(jsonld=str(tmp_path / "page.croissant.json")).metadata.issues.errors
