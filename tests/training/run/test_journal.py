"""JSON lines that survive a crash."""

from pathlib import Path
from unittest.mock import Mock

import pytest

from cluster.jsonl import last_line, read_lines
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
