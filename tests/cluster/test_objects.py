"""The objects of a dataset: its own ones by their names, and lists that were changed."""

import logging
from pathlib import Path

import pytest

from cluster.objects import DamagedDatasetError, list_own, open_list
from cluster.storage import open_store
from tests.fakes.numbers import make


def test_files_of_others_are_ignored_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(str(tmp_path))
    store.put("commits/u0000000.0.json", b"{}")
    for foreign in ("commits/Thumbs.db", "commits/u0000000.00.json", "commits/u0000000.0.json.bak"):
        store.put(foreign, b"")
    with caplog.at_level(logging.WARNING):
        assert list_own(store, "commits") == list_own(store, "commits") == ["commits/u0000000.0.json"]
    (line,) = caplog.messages
    assert "3 files are not of this dataset and are ignored" in line and "Thumbs.db" in line


def test_a_list_with_other_bytes_is_named_with_the_fix(tmp_path: Path) -> None:
    dataset = make(str(tmp_path / "data"))
    (name,) = list_own(dataset.store, "worklist")
    assert open_list(dataset.store, name).metadata.num_rows == 20
    path = tmp_path / "data" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedDatasetError, match=f"{name}: damaged: .*; restore it from a copy"):
        open_list(dataset.store, name)
