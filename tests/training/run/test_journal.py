"""JSON lines that survive a crash."""

from pathlib import Path
from unittest.mock import Mock

import pytest

from cluster.jsonl import last_line, parse_lines, read_lines
from cluster.storage import open_store
from training.run.journal import Journal


def test_a_journal_survives_a_cut_off_line_and_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, store = tmp_path / "metrics.jsonl", open_store(str(tmp_path))
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    with Journal(store, path.name) as journal:
        journal.append({"step": 3})
    assert last_line(path) == {"step": 3} and read_lines(path) == [{"step": 1}, {"step": 2}, {"step": 3}]
    with monkeypatch.context() as crash, pytest.raises(OSError), Journal(store, path.name) as journal:
        crash.setattr(Path, "replace", Mock(side_effect=OSError))
        journal.truncate_after(1)
    assert read_lines(path) == [{"step": 1}, {"step": 2}, {"step": 3}]


def test_object_storage_has_the_lines_a_minute_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(f"memory://{tmp_path.name}")
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with Journal(store, "metrics.jsonl") as journal:
        for step in range(1, 6):
            journal.append({"step": step})
            now[0] += 29
            journal.sync_by_time()
        # at 87 s, and not again at 116 and 145
        assert parse_lines(store.read("metrics.jsonl")) == [{"step": 1}, {"step": 2}, {"step": 3}]
        with monkeypatch.context() as broken:
            broken.setattr(type(store), "replace", Mock(side_effect=OSError("503")))
            now[0] += 60
            journal.sync_by_time()
        assert "metrics.jsonl is not uploaded now: 503" in caplog.text
    assert len(parse_lines(store.read("metrics.jsonl"))) == 5


def test_a_long_upload_makes_the_next_one_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(f"memory://{tmp_path.name}")
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def slow(self: object, name: str, data: bytes) -> None:
        uploads.append(now[0])
        now[0] += 3.0

    uploads: list[float] = []
    with Journal(store, "metrics.jsonl") as journal, monkeypatch.context() as slowly:
        slowly.setattr(type(store), "replace", slow)
        for _ in range(80):
            now[0] += 10
            journal.append({"step": 1})
            journal.sync_by_time()
        assert uploads == [1060.0, 1363.0, 1666.0], "a hundredth of the time"
