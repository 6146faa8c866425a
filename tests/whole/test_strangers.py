"""Foreign files within a dataset are ignored and never deleted; damaged objects are one line in every verb."""

import itertools
import sys
from pathlib import Path

import pytest

import ingest.__main__
from cluster import objects
from cluster.dataset import Dataset
from cluster.runs import committed_steps
from cluster.shards import write_shard
from cluster.storage import open_store
from configs.load import run_app
from ingest.report import ReportConfig, commands_of, write_report
from ingest.rows import CLIP_COLUMNS
from ingest.scrape import ScrapeConfig, semantic
from ingest.sources.settings import SourceConfig
from ingest.verify import verify
from tests.ingest.test_report import clips_of
from training.checkpoints.store import retain

FOREIGN_FILES = [
    "commits/Thumbs.db",
    "commits/u0000000.0 (1).json",
    "commits/u0000000.0.json~",
    "commits/old/u0000000.1.json",
    "tombstones/desktop.ini",
    "tombstones/000000 copy.parquet",
    "worklist/#000000.parquet#",
    "worklist/notes.txt",
    "again/._u0000000",
    "again/u 0",
    "shards/notes.txt",
    "shards/u0000000-0123456789abcdef.tar.part",
    "index/u0000000 - Copy.parquet",
    "runs/mine/config.yaml",
    "runs/20260101T000000-scrape-1/notes.txt",
    ".mine.partial",
    "shards/.lecture.partial",
]
COMMANDS = [
    ["verify"],
    ["curate"],
    ["curate", "--dry-run"],
    ["gc", "--dry-run"],
    ["gc", "--purge"],
    ["report"],
    ["remove", "media=m1"],
    ["scrape", "output=out", "source.kind=urls", "source.path=list.txt", "source.license=own", "workers=0"],
]
FOLDERS = ("tombstones", "worklist", "commits", "index")
DAMAGES = ("cut", "flipped", "empty")


@pytest.fixture
def clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset of two committed units and a tombstone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("m0\nm1\n")
    config = ScrapeConfig("out", SourceConfig("list.txt", "urls", license="own"))
    dataset = Dataset.create_or_open("out", "clips", semantic(config), parents=[])
    dataset.worklist.append([("urls:m0", {"url": "m0"}), ("urls:m1", {"url": "m1"})], unit_size=1)
    for task in dataset.worklist.units():
        rows = clips_of(task.items[0].payload["url"], 2, "channel", "own")
        (tmp_path / task.unit).mkdir()
        dataset.commit(task.unit, 0, write_shard(tmp_path / task.unit, rows, CLIP_COLUMNS), {})
    dataset.bury({"urls_m0_0": "taken_down"})
    objects._warn_of_foreign.cache_clear()
    return tmp_path / "out"


def run(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """Exit code and stderr of `python -m ingest VERB out …`."""
    verb, *args = command
    dataset = [] if verb == "scrape" else ["out"]
    monkeypatch.setattr(sys, "argv", ["ingest", verb, *dataset, *args])
    with pytest.raises(SystemExit) as exited:
        run_app(ingest.__main__.app)
    return int(exited.value.code or 0), capfd.readouterr().err


def add_foreign_files(root: Path) -> None:
    for name in FOREIGN_FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"not: [yaml")


# --- Foreign files ------------------------------------------------------------------------------------------


def test_every_verb_works_beside_foreign_files(
    clips: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    add_foreign_files(clips)
    codes = {" ".join(command): run(command, monkeypatch, capfd)[0] for command in COMMANDS}
    assert set(codes.values()) == {0}, codes


def test_no_verb_deletes_foreign_files(
    clips: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    add_foreign_files(clips)
    for command in COMMANDS:
        run(command, monkeypatch, capfd)
    assert all((clips / name).exists() for name in FOREIGN_FILES)


def test_foreign_files_change_nothing_that_is_read(clips: Path) -> None:
    before = everything_read()
    add_foreign_files(clips)
    assert everything_read() == before


def everything_read() -> tuple[object, ...]:
    dataset = Dataset.open("out")
    return (
        dataset.snapshot().id,
        dataset.tombstones(),
        dataset.worklist.units(),
        dataset.worklist.count_units(),
        dataset.worklist.retryable_units(),
        commands_of(dataset),
        list(verify("out")),
    )


def test_foreign_files_are_named_once(clips: Path, caplog: pytest.LogCaptureFixture) -> None:
    (clips / "commits/Thumbs.db").write_bytes(b"")
    for _ in range(3):
        Dataset.open("out").commits()
    assert [record.message for record in caplog.records] == [
        "out: 1 files are not of this dataset and are ignored: 'commits/Thumbs.db'"
    ]


def test_a_new_tombstone_is_written_beside_foreign_files(clips: Path) -> None:
    add_foreign_files(clips)
    Dataset.open("out").bury({"urls_m1_0": "taken_down"})
    assert (clips / "tombstones/000001.parquet").exists()


def test_checkpoints_beside_foreign_files(tmp_path: Path) -> None:
    names = [
        "checkpoints/step-00000010 (copy)/COMMITTED.json",
        "checkpoints/Thumbs.db",
        "checkpoints/mine/step-1/COMMITTED.json",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")
    store = open_store(str(tmp_path))
    retain(store, keep=1)
    assert committed_steps(store) == []
    assert all((tmp_path / name).exists() for name in names)


# --- Damaged objects ----------------------------------------------------------------------------------------


def damage(path: Path, kind: str) -> None:
    data = bytearray(path.read_bytes())
    half = len(data) // 2
    match kind:
        case "cut":
            path.write_bytes(data[:half])
        case "flipped":
            data[half] ^= 1
            path.write_bytes(data)
        case "empty":
            path.write_bytes(b"")
        case "missing":
            path.unlink()


@pytest.mark.parametrize(("folder", "kind"), [*itertools.product(FOLDERS, DAMAGES), ("index", "missing")])
def test_a_damaged_object_is_one_line_in_every_verb(
    clips: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], folder: str, kind: str
) -> None:
    damaged = sorted((clips / folder).iterdir())[0]
    damage(damaged, kind)
    assert run(["verify"], monkeypatch, capfd)[0] == 1
    for command in COMMANDS[1:]:
        code, error = run(command, monkeypatch, capfd)
        # a verb that does not read the object may succeed
        if code:
            assert error.startswith("error: ") and error.count("\n") == 1, (command, error)
            assert str(damaged.relative_to(clips)) in error


def test_a_damaged_member_is_left_out_of_the_report(clips: Path, caplog: pytest.LogCaptureFixture) -> None:
    tar = sorted((clips / "shards").iterdir())[1]
    tar.write_bytes(bytes(tar.stat().st_size))
    write_report(ReportConfig("out"))
    assert "urls_m1_0 left out of the report" in caplog.text
