"""Garbage collection: what was removed is gone from the disk in the end, and nothing that is named is."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.dataset import Dataset
from cluster.shards import Row, write_shard
from cluster.storage import FolderStore, RemoteStore
from configs.load import UserError
from ingest.gc import GcConfig, gc
from ingest.remove import RemoveConfig, remove
from ingest.rows import CLIP_COLUMNS
from ingest.verify import verify
from tests.fakes.servers import has_s3_server
from tests.fakes.takedown import (
    GONE,
    MEMBERS,
    config_of,
    make,
    members_of,
    nine_clips,
    objects,
    places,
)
from training.data.catalogue import Catalogue


class Died(BaseException):
    """kill -9 in a test."""


class DyingStore(FolderStore):
    """Dies at the n-th change, of all stores together, before or after it took effect."""

    left, after = 0, False

    def put(self, name: str, data: bytes) -> None:
        self.die_or(lambda: FolderStore.put(self, name, data))

    def put_file(self, name: str, path: Path) -> None:
        self.die_or(lambda: FolderStore.put_file(self, name, path))

    def delete(self, name: str) -> None:
        self.die_or(lambda: FolderStore.delete(self, name))

    def die_or(self, change: Callable[[], None]) -> None:
        DyingStore.left -= 1
        if DyingStore.left == 0 and self.after:
            change()
        if DyingStore.left <= 0:
            raise Died
        change()


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return nine_clips()


def test_garbage_waits_for_its_time_and_what_is_named_is_never_garbage(
    tmp_path: Path, rows: list[Row]
) -> None:
    clips, _ = make(tmp_path, rows)
    named = set(objects(tmp_path / "clips"))
    clips.store.put("shards/u0000000-deaddeaddeaddead.tar", b"of a killed worker")
    clips.store.put("index/u0000009-deaddeaddeaddead.parquet", b"of a unit about to be committed")
    (tmp_path / "clips/shards/.0123456789abcdef0123456789abcdef.partial").write_bytes(b"half")
    assert gc(GcConfig(clips.uri))["deleted"] == [] and len(gc(GcConfig(clips.uri))["waiting"]) == 3
    would = gc(GcConfig(clips.uri, purge=True), dry_run=True)
    assert (
        sorted(would["deleted"])
        == ["shards/.0123456789abcdef0123456789abcdef.partial", "shards/u0000000-deaddeaddeaddead.tar"]
        and would["num_bytes"] == 18
    )
    assert len(objects(tmp_path / "clips")) == len(named) + 3
    gc(GcConfig(clips.uri, purge=True))
    assert set(objects(tmp_path / "clips")) == named | {"index/u0000009-deaddeaddeaddead.parquet"}
    old = time.time() - 100
    for name in objects(tmp_path / "clips"):
        os.utime(tmp_path / "clips" / name, (old, old))
    assert gc(GcConfig(clips.uri, grace_s=50))["deleted"] == ["index/u0000009-deaddeaddeaddead.parquet"]
    assert set(objects(tmp_path / "clips")) == named


def test_an_old_generation_waits_from_when_it_was_superseded(tmp_path: Path, rows: list[Row]) -> None:
    clips, _ = make(tmp_path, rows)
    old = time.time() - 10_000
    for name in objects(tmp_path / "clips"):
        os.utime(tmp_path / "clips" / name, (old, old))
    pinned = clips.snapshot()
    remove(config_of(tmp_path))
    assert gc(GcConfig(clips.uri, grace_s=5000))["deleted"] == []
    assert len(Catalogue.of(clips, pinned, "train", MEMBERS)) == 8, "a run that pins it still reads it"
    assert len(gc(GcConfig(clips.uri, grace_s=0))["deleted"]) == 6


def test_gc_deletes_nothing_where_a_commit_is_damaged(tmp_path: Path, rows: list[Row]) -> None:
    clips, _ = make(tmp_path, rows)
    before = len(objects(tmp_path / "clips"))
    (tmp_path / "clips/commits/u0000001.0.json").write_bytes(b"{}")
    with pytest.raises(UserError, match="nothing was deleted"):
        gc(GcConfig(clips.uri, purge=True))
    assert len(objects(tmp_path / "clips")) == before


def test_after_gc_the_bytes_are_nowhere_and_every_other_member_is_as_it_was(
    tmp_path: Path, rows: list[Row]
) -> None:
    for dataset in make(tmp_path, rows):
        assert members_of(dataset)
    clips, latents = (Dataset.open(str(tmp_path / name)) for name in ("clips", "latents"))
    before, stood = (
        {d.uri: members_of(d) for d in (clips, latents)},
        {d.uri: places(d) for d in (clips, latents)},
    )
    summary = remove(config_of(tmp_path))
    assert (summary["samples"], summary["units"], summary["failed"]) == (2, 4, {})
    for dataset in (clips, latents):
        lost = {name: data for name, data in before[dataset.uri].items() if name[0] in GONE}
        assert lost and members_of(dataset) == {
            name: data for name, data in before[dataset.uri].items() if name not in lost
        }
        assert places(dataset) == stood[dataset.uri]
        assert any(
            data in content for data in lost.values() for content in objects(Path(dataset.uri)).values()
        )
        gc(GcConfig(dataset.uri, purge=True))
        assert not any(
            data in content for data in lost.values() for content in objects(Path(dataset.uri)).values()
        )
        assert list(verify(dataset.uri)) == []
        assert gc(GcConfig(dataset.uri, purge=True))["deleted"] == []
    for record in clips.iter_rows():
        secret = "SECRET" in json.dumps(record, default=str)
        assert secret == (record["key"] not in GONE), (
            "no title is left of what was removed, every other one is there"
        )
    assert {c.unit: c.generation for c in clips.snapshot().commits} == {
        "u0000000": 1,
        "u0000001": 1,
        "u0000002": 0,
    }
    assert {c.statistics["latent_count"] for c in latents.snapshot().commits} == {3}


@pytest.mark.skipif(not has_s3_server(), reason="no .venv-moto here: make test builds it")
def test_take_down_and_gc_on_s3(bucket: str, tmp_path: Path, rows: list[Row]) -> None:
    clips = Dataset.create_or_open(f"{bucket}/taken", "clips", {}, [])
    clips.worklist.append(((row.item_id, {}) for row in rows[:4]), 4)
    clips.commit("u0000000", 0, write_shard(tmp_path, rows[:4], CLIP_COLUMNS), {})
    remote = clips.store
    assert isinstance(remote, RemoteStore) and abs(remote.modified("dataset.json") - time.time()) < 60
    remote.fs.call_s3(
        "create_multipart_upload", Bucket=bucket.removeprefix("s3://"), Key="taken/shards/u0000000-killed.tar"
    )
    before = members_of(clips)
    remove(RemoveConfig(clips.uri, channel="bad"))
    assert len(gc(GcConfig(clips.uri, purge=True))["deleted"]) == 4 and remote.unfinished() == {}
    assert members_of(clips) == {name: data for name, data in before.items() if name[0] not in GONE}
    assert list(verify(clips.uri)) == []


@pytest.mark.parametrize("after", [False, True])
def test_dying_at_every_change_and_running_again_ends_the_same(
    tmp_path: Path, rows: list[Row], monkeypatch, after: bool
) -> None:
    def work(root: Path) -> None:
        remove(config_of(root))
        for name in ("latents", "clips"):
            gc(GcConfig(str(root / name), purge=True))

    home = tmp_path / "whole"
    make(home, rows)
    work(home)
    whole = {name: objects(home / name) for name in ("clips", "latents")}
    for n in range(1, 100):
        root = tmp_path / f"cut{n}"
        make(root, rows)
        DyingStore.left, DyingStore.after = n, after
        with monkeypatch.context() as patch:
            patch.setattr("cluster.dataset.open_store", lambda uri, writable=False: DyingStore(uri))
            try:
                work(root)
                break
            except Died:
                pass
        for name in ("clips", "latents"):
            assert list(verify(str(root / name))) == [], "at no moment does a commit name what is not there"
            dataset = Dataset.open(str(root / name))
            commits = [dataset.read_commit(found) for found in dataset.store.list("commits")]
            assert all(
                dataset.store.exists(part.name)
                for commit in commits
                for part in (commit.index, commit.tar)
                if part
            )
        work(root)
        for name in ("clips", "latents"):
            assert objects(root / name) == whole[name]
    assert n == 27, (
        "two tombstones; tar, index and commit of four units; commit, tar and index of four old generations; none after"
    )
