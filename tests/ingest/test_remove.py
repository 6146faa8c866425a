"""Take-down and garbage collection: gone for readers at once, gone from the disk in the end, and nobody else
is touched.
"""

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cluster.dataset import Dataset
from cluster.shards import Row, write_shard
from cluster.storage import FolderStore, RemoteStore
from cluster.units import run_units
from configs.load import UserError
from ingest.fetch.settings import FetchConfig
from ingest.gc import GcConfig, gc
from ingest.remove import RemoveConfig, remove
from ingest.report import ReportConfig, write_report
from ingest.sample import Item, Reason, Refused
from ingest.scrape import ScrapeConfig, scrape, semantic
from ingest.shard import CLIP_COLUMNS, refused_row
from ingest.sources.registry import enumerate_items
from ingest.sources.settings import SourceConfig
from ingest.verify import verify
from tests.fakes.servers import has_s3_server
from tests.ingest.dedup.test_fingerprint import noise
from tests.ingest.test_curate import clip, picture, row, write
from training.data.catalogue import Catalogue
from training.data.loader import Loader
from training.data.mixture import Mixture
from training.data.order import Order

MEMBERS = ("flac", "jpg")
LATENT_COLUMNS = pa.schema(
    [("split", pa.string()), ("media_id", pa.string()), ("start_s", pa.float64()), ("license", pa.string())]
)
NAMES = [f"m{number}" for number in range(9)]
GONE = {"urls_m1_0", "urls_m5_0"}  # channel bad


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Nine clips, two of them of channel bad, and a refused item."""
    clips = [
        row(
            name,
            clip(picture(n, 96), noise(n, 0.5)),
            channel="bad" if n in (1, 5) else "good",
            split="test" if n == 8 else "train",
            title=f"SECRET{n}",
        )
        for n, name in enumerate(NAMES)
    ]
    refused = refused_row(
        Item("urls", "m9", "http://x/m9", title="SECRET9"), "urls:m9", Refused(Reason.TIMEOUT, "SECRET")
    )
    return [*clips, refused]


def make(root: Path, rows: list[Row]) -> tuple[Dataset, Dataset]:
    """Clips in three units, and latents derived from them, as precompute lays them out."""
    clips = write(root / "clips", [rows[:4], rows[4:6], rows[6:]])
    parents = [
        {"uri": "clips", "snapshot": clips.snapshot().id}
    ]  # the same words wherever the test puts them
    latents = Dataset.create_or_open(str(root / "latents"), "latents", {}, parents)
    latents.worklist.append(((f"{c.unit}.0", {}) for c in clips.snapshot().commits), 1)
    for task, commit in zip(latents.worklist.units(), clips.snapshot().commits, strict=True):
        derived = []
        for record in clips.read_index(commit).to_pylist():
            members = {"latent.npy": npy(record["key"])} if record["status"] == "kept" else {}
            columns = {name: record[name] for name in LATENT_COLUMNS.names}
            derived.append(
                Row(
                    record["item_id"],
                    record["key"],
                    record["status"],
                    record["reason"],
                    None,
                    columns,
                    members,
                )
            )
        folder = root / f"scratch-{task.unit}"
        folder.mkdir()
        latents.commit(task.unit, 0, write_shard(folder, derived, LATENT_COLUMNS), {"latent_count": 3})
    return clips, latents


def npy(key: str) -> bytes:
    data = io.BytesIO()
    np.save(data, np.random.default_rng(list(key.encode())).standard_normal(64))
    return data.getvalue()


def members_of(dataset: Dataset) -> dict[tuple[str, str], bytes]:
    """(key, extension) -> bytes, as the newest generations say."""
    found = {}
    for commit in dataset.commits().values():
        for record in dataset.read_index(commit).to_pylist():
            for member in record["members"]:
                end = member["offset"] + member["size"]
                assert commit.tar
                found[record["key"], member["ext"]] = dataset.store.read_range(
                    commit.tar.name, member["offset"], end
                )
    return found


def places(dataset: Dataset) -> dict[tuple[str, int], tuple[str, str]]:
    """(unit, ordinal) -> key and item."""
    return {
        (record["unit"], record["ordinal"]): (record["key"], record["item_id"])
        for record in dataset.iter_rows()
    }


def keys_buried(dataset: Dataset) -> set[str]:
    """The tombstones of samples, without the bans."""
    return {key for key in dataset.tombstones() if ":" not in key}


def objects(root: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too; tombstones by what they say."""
    files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    said = {
        name: repr(sorted(Dataset.open(str(root)).buried().items())).encode()
        for name in files
        if name.startswith("tombstones/")
    }
    return {**files, **said}


def config_of(root: Path, **settings) -> RemoveConfig:
    selection = settings or {"channel": "bad"}
    return RemoveConfig(str(root / "clips"), derived=[str(root / "latents")], workers=1, **selection)


def test_removed_samples_are_holes_at_once_and_for_a_run_that_goes_on(
    tmp_path: Path, rows: list[Row]
) -> None:
    clips, latents = make(tmp_path, rows)
    pinned = clips.snapshot()
    before = Catalogue.of(clips, pinned, "train", MEMBERS)
    remove(
        RemoveConfig(
            str(tmp_path / "clips"), channel="bad", derived=[str(tmp_path / "latents")], rewrite=False
        )
    )
    assert keys_buried(clips) == GONE == latents.tombstones() and clips.snapshot().id == pinned.id
    assert all(before.read([place])[place] is not None for place in range(len(before))), (
        "a catalogue from before knows nothing"
    )
    page = Path(write_report(ReportConfig(str(tmp_path / "clips"), gallery=99))).read_text()
    assert "SECRET1" not in page and "SECRET5" not in page and "SECRET2" in page
    remove(config_of(tmp_path))
    after, order = Catalogue.of(clips, pinned, "train", MEMBERS), Order(len(before), 4, 0)
    loaders = [Loader(Mixture.of([catalogue], order), 4, 0, 1) for catalogue in (before, after)]
    pairs = [
        pair
        for step in range(2)
        for pair in zip(*(loader.batch(step).samples for loader in loaders), strict=True)
    ]
    changed = [pair for pair in pairs if pair[0] != pair[1]]
    assert len(changed) == len(GONE) and all(now is None for _, now in changed)
    new = Catalogue.of(clips, clips.snapshot(), "train", MEMBERS)
    assert all(new.holes[place] == (key in GONE) for place, key in enumerate(new.keys))


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


def test_the_same_command_again_has_nothing_to_do(tmp_path: Path, rows: list[Row]) -> None:
    make(tmp_path, rows)
    remove(config_of(tmp_path))
    before = objects(tmp_path / "clips"), objects(tmp_path / "latents")
    summary = remove(config_of(tmp_path))
    assert (summary["samples"], summary["units"]) == (2, 0)
    assert (objects(tmp_path / "clips"), objects(tmp_path / "latents")) == before


@pytest.mark.parametrize(
    ("selection", "gone"),
    [
        ({"key": "urls_m3_0"}, {"m3"}),
        ({"media": "m3"}, {"m3"}),
        ({"media": "urls:m3"}, {"m3"}),
        ({"channel": "bad"}, {"m1", "m5"}),
        ({"license": "CC-BY-4.0"}, set(NAMES)),
    ],
)
def test_what_is_selected_goes_and_nothing_else(
    tmp_path: Path, rows: list[Row], selection: dict[str, str], gone: set[str]
) -> None:
    clips, latents = make(tmp_path, rows)
    remove(config_of(tmp_path, **selection))
    for dataset, extensions in ((clips, 3), (latents, 1)):
        left = {key for key, _ in members_of(dataset)}
        assert left == {f"urls_{name}_0" for name in NAMES if name not in gone}
        assert len(members_of(dataset)) == extensions * len(left)
        assert all(
            (commit.tar is None) == ("kept" not in commit.counts) for commit in dataset.snapshot().commits
        )
        assert list(verify(dataset.uri)) == []


def test_a_list_of_ids_and_what_was_not_found(tmp_path: Path, rows: list[Row]) -> None:
    clips, _ = make(tmp_path, rows)
    words = tmp_path / "ids.txt"
    words.write_text("urls_m0_0\nm2\n\nurls:m4\nnobody\n")
    assert remove(config_of(tmp_path, ids=str(words)))["unmatched"] == ["nobody"]
    assert keys_buried(clips) == {"urls_m0_0", "urls_m2_0", "urls_m4_0"}


def test_a_refused_item_loses_its_title_and_is_not_tried_again(tmp_path: Path, rows: list[Row]) -> None:
    clips, _ = make(tmp_path, rows)
    remove(config_of(tmp_path, media="m9"))
    (record,) = (record for record in clips.iter_rows() if record["item_id"] == "urls:m9")
    assert (record["status"], record["reason"], record["title"], record["url"], record["detail"]) == (
        "refused",
        "take-down",
        *[None] * 3,
    )
    run_units(clips, lambda: None, 0, retryable_reasons=frozenset({"timeout"}), progress=False)
    assert len(clips.worklist.units()) == 3 and keys_buried(clips) == frozenset()


def test_a_removal_for_another_reason_takes_what_curation_had_buried(tmp_path: Path, rows: list[Row]) -> None:
    clips, _ = make(tmp_path, rows)
    clips.bury({"urls_m1_0": "near_duplicate"})
    remove(config_of(tmp_path))
    assert {key: reason for key, reason in clips.buried().items() if ":" not in key} == dict.fromkeys(
        GONE, "take-down"
    ) and (
        "urls_m1_0",
        "flac",
    ) not in members_of(clips)


def test_a_member_damaged_before_becomes_a_hole_and_does_not_stop_a_removal(
    tmp_path: Path, rows: list[Row]
) -> None:
    clips, _ = make(tmp_path, rows)
    commit = clips.snapshot().commits[0]
    victim = next(record for record in clips.read_index(commit).to_pylist() if record["key"] == "urls_m2_0")
    assert commit.tar
    path = tmp_path / "clips" / commit.tar.name
    data = bytearray(path.read_bytes())
    data[victim["members"][0]["offset"]] ^= 1
    path.write_bytes(data)
    assert remove(config_of(tmp_path))["failed"] == {}
    holes = {record["key"]: record["reason"] for record in clips.iter_rows() if record["status"] == "removed"}
    assert (
        holes == {"urls_m1_0": "take-down", "urls_m5_0": "take-down", "urls_m2_0": "damaged"}
        and list(verify(clips.uri)) == []
    )


def test_a_unit_that_cannot_be_written_again_is_told_and_stays_buried(
    tmp_path: Path, rows: list[Row]
) -> None:
    clips, _ = make(tmp_path, rows)
    tar = clips.snapshot().commits[0].tar
    assert tar
    (tmp_path / "clips" / tar.name).unlink()
    summary = remove(config_of(tmp_path))
    assert (
        list(summary["failed"]) == [f"{clips.uri}#u0000000"]
        and summary["units"] == 3
        and keys_buried(clips) == GONE
    )


@pytest.mark.parametrize(
    "selection",
    [{"channel": "bad"}, {"media": "b"}, {"media": "urls:b"}, {"license": "CC0-1.0"}, {"ids": "ids.txt"}],
)
def test_what_is_listed_but_not_scraped_is_kept_out_and_so_is_what_comes_later(
    tmp_path: Path, selection: dict[str, str], monkeypatch, caplog
) -> None:
    """Nothing answers at these addresses: items that are asked for end as `network`."""
    monkeypatch.chdir(tmp_path)
    Path("ids.txt").write_text("b\n")
    head, good = "url,id,channel,license,title\n", "http://127.0.0.1:9/a,a,good,own,fine\n"
    bad = "http://127.0.0.1:9/b,b,bad,CC0-1.0,SECRET\n"
    source = SourceConfig("urls.csv", "urls")
    config = ScrapeConfig(
        output="clips", source=source, workers=0, unit_size=1, network=FetchConfig(["127.0.0.1:9"], retries=0)
    )
    Path("urls.csv").write_text(head + good + bad)
    dataset = Dataset.create_or_open("clips", "clips", semantic(config), [])
    dataset.worklist.append(
        ((f"{item.source}:{item.id}", asdict(item)) for item in enumerate_items(source)), 1
    )
    assert remove(RemoveConfig("clips", **selection))["pending"] == 1
    Path("urls.csv").write_text(head + bad.replace("/b,", "/c,").replace(",b,", ",b2,"))
    scrape(config, progress=False)
    rows = {row["item_id"]: row for row in dataset.iter_rows()}
    assert rows["urls:b"]["reason"] == "taken_down" and "SECRET" not in json.dumps(
        list(rows.values()), default=str
    )
    assert ("1 items were removed from this dataset" in caplog.text) == (
        "channel" in selection or "license" in selection
    )
    listed = {item.item_id for task in dataset.worklist.units() for item in task.items}
    assert ("urls:b2" in listed) == ("media" in selection or "ids" in selection), (
        "another item of the channel is not even listed"
    )
    assert not any("bad" in key or "CC0" in key for key in dataset.tombstones())


def make_run(root: Path, dataset: Dataset, split: str = "train") -> str:
    run = FolderStore(str(root))
    told = {"config": {"split": split}, "snapshots": [dataset.snapshot().to_json()], "facts": {}}
    run.put("run.json", json.dumps(told).encode())
    for step in (0, 10, 20):
        run.put(
            f"checkpoints/step-{step:08d}/COMMITTED.json",
            json.dumps({"step": step, "facts": {}, "files": []}).encode(),
        )
    run.put("FINISHED.json", b'{"step": 20}')
    return run.uri


def test_the_list_names_the_checkpoints_that_may_have_seen_the_samples(
    tmp_path: Path, rows: list[Row]
) -> None:
    clips, latents = make(tmp_path, rows)
    of_clips, of_latents = make_run(tmp_path / "a", clips), make_run(tmp_path / "b", latents)
    of_test, elsewhere = (
        make_run(tmp_path / "c", clips, "test"),
        make_run(tmp_path / "d", make(tmp_path / "other", rows[:1] + rows[6:9])[0]),
    )
    config = config_of(tmp_path)
    config.runs = [of_clips, of_latents, of_test, elsewhere]
    listed = remove(config)["checkpoints"]
    steps = {"checkpoints/step-00000010": 10, "checkpoints/step-00000020": 20, "model": 20}
    expected = [
        {"run": run, "step": step, "checkpoint": c, "samples": 2}
        for run in (of_clips, of_latents)
        for c, step in steps.items()
    ]
    assert listed == expected
    for dataset in (clips, latents):
        gc(GcConfig(dataset.uri, purge=True))
    assert remove(config)["checkpoints"] == expected, "also where what the runs pinned is gone"
    late = config_of(tmp_path)
    late.runs = [make_run(tmp_path / "late", clips)]
    assert remove(late)["checkpoints"] == []


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


def test_mistakes_are_refused_before_anything_is_done(tmp_path: Path, rows: list[Row]) -> None:
    clips, _ = make(tmp_path, rows)
    (tmp_path / "empty.txt").write_text("\n")
    place = str(tmp_path / "clips")
    for settings, said in [
        ({}, "name what to remove"),
        ({"key": "a", "media": "b"}, "name what to remove"),
        ({"license": "mine"}, "license=mine"),
        ({"key": "urls_nobody_0"}, "nothing there has key=urls_nobody_0"),
        ({"ids": str(tmp_path / "none.txt")}, "cannot be read"),
        ({"ids": str(tmp_path / "empty.txt")}, "is empty"),
        ({"channel": "bad", "derived": [place]}, "not derived"),
        ({"channel": "bad", "runs": [place]}, "no run.json"),
    ]:
        with pytest.raises(UserError, match=said):
            remove(RemoveConfig(place, **settings))
    assert keys_buried(clips) == frozenset() and not any(
        name.endswith(".1.json") for name in clips.store.list("commits")
    )


def test_the_commands_tell_and_a_dry_run_does_nothing(tmp_path: Path, rows: list[Row]) -> None:
    make(tmp_path, rows)
    place, before = str(tmp_path / "clips"), objects(tmp_path / "clips")

    def run(*words: str) -> dict:
        done = subprocess.run(
            [sys.executable, "-m", "ingest", *words, "--json"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    removal = ("remove", place, "channel=bad", f"derived=[{tmp_path}/latents]")
    assert run(*removal, "--dry-run")["samples"] == 2
    assert run("curate", place, "--dry-run")["samples"] == 9
    assert run("gc", place, "--purge", "--dry-run")["deleted"] == []
    assert objects(tmp_path / "clips") == before
    assert run(*removal)["units"] == 4
    assert run("curate", place, "max_per_channel=3")["buried"]["channel_cap"] == 4
    assert len(run("gc", place)["waiting"]) == 6 and len(run("gc", place, "--purge")["deleted"]) == 6
    assert list(verify(place)) == []


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
