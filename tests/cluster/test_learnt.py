"""The record of what a model learnt from: it finds its units again, and publishes nothing of this machine."""

import json
from pathlib import Path

import pytest

from cluster.learnt import PartRecord, commits_of, learnt_from, published, read_provenance
from tests.fakes.takedown import make, nine_clips


def test_a_record_names_the_pinned_units_and_their_indexes(tmp_path: Path) -> None:
    clips, _ = make(tmp_path, nine_clips())
    snapshot = clips.snapshot()
    stored = json.loads(json.dumps(learnt_from(snapshot, "train", clips.uri, "clips")))
    assert (stored["snapshot"], stored["name"], stored["kind"]) == (snapshot.id, "clips", "clips")
    assert stored["semantic_hash"] == clips.meta["semantic_hash"]
    for commit, pinned in zip(commits_of(stored), snapshot.commits, strict=True):
        assert (commit.unit, commit.generation, commit.index) == (
            pinned.unit,
            pinned.generation,
            pinned.index,
        )
        # read by its hash, as if it were the commit itself
        assert clips.read_index(commit).num_rows == clips.read_index(pinned).num_rows


def test_what_is_published_names_no_place(tmp_path: Path) -> None:
    clips, _ = make(tmp_path / "secret", nine_clips())
    record: PartRecord = {
        "sources": ["/home/me/secret/codec", "hub:owner/name@main", "s3://secret/runs/tower/"],
        "license": "own",
        "learnt_from": [learnt_from(clips.snapshot(), "train", clips.uri, "clips")],
    }
    public = published(record)
    assert "secret" not in json.dumps(public) and "secret" in json.dumps(record)
    assert public["sources"] == ["codec", "hub:owner/name@main", "tower"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"parts": []}', "{"])
def test_something_else_is_no_provenance(text: str) -> None:
    with pytest.raises(ValueError):
        read_provenance(text.encode())
