"""Settings may change while nothing is stored, and only then; a crash or a late driver mixes nothing."""

import itertools
from pathlib import Path

import pytest

import cluster.rebind
from cluster.dataset import Dataset
from cluster.objects import DamagedDatasetError
from cluster.rebind import create_or_rebind
from cluster.shards import Shard
from cluster.storage import FolderStore, Store
from configs.load import UserError
from ingest.verify import verify

OLD = {"clip": {"duration_s": 10.24}}
NEW = {"clip": {"duration_s": 2.56}}
ITEMS = [(f"folder:{name}", {"url": name}) for name in "abc"]


def shard(folder: Path, kept: int = 0) -> Shard:
    path = folder / "rows.parquet"
    path.write_bytes(b"rows")
    return Shard(None, path, {"refused:too_short": 2} | ({"kept": kept} if kept else {}))


def refused(root: Path, units: int = 2) -> Dataset:
    """A dataset whose three items were all refused, two to a unit."""
    dataset = Dataset.create_or_open(str(root / "out"), "clips", OLD, [])
    dataset.worklist.append(ITEMS, unit_size=2)
    for unit in range(units):
        dataset.commit(f"u{unit:07d}", 0, shard(root), {})
    return dataset


def bytes_below(folder: Path) -> dict[str, bytes]:
    """Of what a dataset goes by; what nobody names any more is for gc."""
    parts = ("dataset.json", "worklist/*", "commits/*", "again/*", "tombstones/*")
    found = itertools.chain.from_iterable(folder.glob(part) for part in parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_an_output_without_a_sample_takes_other_settings_and_its_list_begins_anew(tmp_path: Path) -> None:
    refused(tmp_path).bury({"media:abc": "take-down"})
    buried = bytes_below(tmp_path / "out")["tombstones/000000.parquet"]
    dataset = create_or_rebind(str(tmp_path / "out"), "clips", NEW)
    assert dataset.meta["config"] == NEW and dataset.committed_units() == set()
    assert dataset.worklist.append(ITEMS, unit_size=2) == 3
    # what was taken down stays out
    assert bytes_below(tmp_path / "out")["tombstones/000000.parquet"] == buried
    # the same settings again change nothing
    before = bytes_below(tmp_path / "out")
    create_or_rebind(str(tmp_path / "out"), "clips", NEW)
    assert bytes_below(tmp_path / "out") == before


@pytest.mark.parametrize("state", ["kept", "removed since", "rewritten", "not ended", "nothing done"])
def test_what_has_samples_or_work_before_it_keeps_its_settings(state: str, tmp_path: Path) -> None:
    dataset = refused(tmp_path, units={"not ended": 1, "nothing done": 0}.get(state, 2))
    if state == "kept":
        dataset.worklist.append([("folder:d", {})], 1)
        dataset.commit("u0000002", 0, shard(tmp_path, kept=1), {})
    elif state == "removed since":
        dataset.worklist.append([("folder:d", {})], 1)
        gone = Shard(None, shard(tmp_path).index, {"removed:take-down": 1})
        dataset.commit("u0000002", 0, gone, {})
    elif state == "rewritten":
        dataset.commit("u0000001", 1, shard(tmp_path), {})
    before = bytes_below(tmp_path / "out")
    with pytest.raises(
        UserError, match=r"made with other settings: config.clip.duration_s: 10.24 \(existing\) -> 2.56"
    ):
        create_or_rebind(str(tmp_path / "out"), "clips", NEW)
    assert bytes_below(tmp_path / "out") == before


@pytest.mark.parametrize("settings", [OLD, NEW], ids=["the old settings", "the new ones"])
@pytest.mark.parametrize("cut", range(4))
def test_after_a_crash_in_between_any_settings_begin_anew(
    cut: int, settings: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(tmp_path)
    deletions = itertools.count()
    delete = FolderStore.delete

    def dying(store: FolderStore, name: str) -> None:
        if next(deletions) == cut:
            raise KeyboardInterrupt
        delete(store, name)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FolderStore, "delete", dying)
        create_or_rebind(str(tmp_path / "out"), "clips", NEW)
    if cut == 0 and settings == OLD:
        # nothing has happened yet: all is as it was
        assert create_or_rebind(str(tmp_path / "out"), "clips", OLD).committed_units() == {
            "u0000000",
            "u0000001",
        }
        return
    dataset = create_or_rebind(str(tmp_path / "out"), "clips", settings)
    fresh = create_or_rebind(str(tmp_path / "fresh"), "clips", settings)
    for each in (dataset, fresh):
        each.worklist.append(ITEMS, unit_size=2)
    assert bytes_below(tmp_path / "out") == bytes_below(tmp_path / "fresh")


def test_a_lost_dataset_json_costs_no_sample(tmp_path: Path) -> None:
    dataset = refused(tmp_path)
    dataset.worklist.append([("folder:d", {})], 1)
    dataset.commit("u0000002", 0, shard(tmp_path, kept=1), {})
    (tmp_path / "out/dataset.json").unlink()
    assert len(create_or_rebind(str(tmp_path / "out"), "clips", OLD).committed_units()) == 3


def test_a_driver_of_the_old_settings_that_is_still_at_work_is_not_mixed_in(tmp_path: Path) -> None:
    late = refused(tmp_path)
    dataset = create_or_rebind(str(tmp_path / "out"), "clips", NEW)
    dataset.worklist.append(ITEMS, unit_size=2)
    late.commit("u0000000", 0, shard(tmp_path, kept=1), {})
    with pytest.raises(DamagedDatasetError, match="u0000000.0.json: made with other settings"):
        dataset.commit("u0000000", 0, shard(tmp_path), {})
    with pytest.raises(DamagedDatasetError, match="another command was at work here"):
        dataset.snapshot()
    assert any("made with other settings" in problem for problem in verify(dataset.uri))


def test_the_list_of_another_command_that_was_faster_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(tmp_path)
    list_own = cluster.rebind.list_own
    others = iter([lambda: create_or_rebind(str(tmp_path / "out"), "clips", NEW)])

    def slow(store: Store, folder: str) -> list[str]:
        for other in others:
            other().worklist.append(ITEMS, unit_size=2)
        return list_own(store, folder)

    monkeypatch.setattr(cluster.rebind, "list_own", slow)
    dataset = create_or_rebind(str(tmp_path / "out"), "clips", NEW)
    assert [unit for unit, _ in dataset.worklist.unit_attempts()] == ["u0000000", "u0000001"]
