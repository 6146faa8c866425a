"""Take-down: gone for readers at once, and nobody else is touched."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from cluster.dataset import Dataset
from cluster.shards import Row
from cluster.storage import FolderStore
from cluster.units import run_units
from configs.load import UserError
from ingest.fetch.settings import FetchConfig
from ingest.gc import GcConfig, gc
from ingest.remove import RemoveConfig, remove
from ingest.report import ReportConfig, write_report
from ingest.scrape import ScrapeConfig, scrape, semantic
from ingest.sources.registry import enumerate_items
from ingest.sources.settings import SourceConfig
from ingest.verify import verify
from tests.fakes.takedown import (
    GONE,
    MEMBERS,
    NAMES,
    config_of,
    keys_buried,
    make,
    members_of,
    nine_clips,
    objects,
)
from training.data.catalogue import Catalogue
from training.data.loader import Loader
from training.data.mixture import Mixture
from training.data.order import Order


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return nine_clips()


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


def test_the_same_command_again_has_nothing_to_do(tmp_path: Path, rows: list[Row]) -> None:
    make(tmp_path, rows)
    remove(config_of(tmp_path))
    before = objects(tmp_path / "clips"), objects(tmp_path / "latents")
    summary = remove(config_of(tmp_path))
    assert (summary["samples"], summary["before"], summary["units"]) == (0, 2, 0)
    assert (objects(tmp_path / "clips"), objects(tmp_path / "latents")) == before


def test_what_the_report_wrote_before_is_named_until_it_is_made_again(
    tmp_path: Path, rows: list[Row]
) -> None:
    make(tmp_path, rows)
    clips = str(tmp_path / "clips")
    assert remove(config_of(tmp_path), dry_run=True)["stale"] == []
    write_report(ReportConfig(clips))
    told = [f"{clips}/{name}" for name in ("report.html", "README.md", "ATTRIBUTION.csv", "croissant.json")]
    assert remove(config_of(tmp_path), dry_run=True)["stale"] == told
    assert remove(config_of(tmp_path))["stale"] == told
    # said again as long as it is so
    assert remove(config_of(tmp_path))["stale"] == told
    write_report(ReportConfig(clips))
    assert remove(config_of(tmp_path))["stale"] == []


def test_only_what_is_not_down_yet_is_counted(tmp_path: Path, rows: list[Row]) -> None:
    make(tmp_path, rows)
    place, latents = str(tmp_path / "clips"), [str(tmp_path / "latents")]

    def counts(**settings: object) -> tuple[int, int]:
        summary = remove(RemoveConfig(place, channel="bad", **settings))  # type: ignore[arg-type]
        return summary["samples"], summary["before"]

    # the tombstones; the bytes; the latents: each is something, once
    steps: tuple[dict, ...] = ({"rewrite": False}, {}, {"derived": latents})
    for settings in steps:
        assert counts(**settings) == (2, 0), settings
        assert counts(**settings) == (0, 2), settings
    assert remove(RemoveConfig(place, media="m5"))["samples"] == 0, "it went with its channel"


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
    assert [remove(RemoveConfig("clips", **selection))["pending"] for _ in range(2)] == [1, 0]
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
