"""Storage: writes that never overwrite and are never seen half, and what does not answer."""

import os
import socket
from pathlib import Path

import pytest
from tenacity import wait_none

from cluster.storage import RemoteStore, StorageDownError, open_store
from tests.fakes.numbers import Died


def test_put_never_overwrites(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("a/b", b"one")
    store.put("a/b", b"one")
    with pytest.raises(FileExistsError):
        store.put("a/b", b"two")
    assert store.read("a/b") == b"one" and store.list() == ["a/b"]


def test_nothing_half_written_is_ever_seen(tmp_path: Path, monkeypatch) -> None:
    store, seen = open_store(str(tmp_path)), []

    def link(source: Path, target: Path) -> None:
        seen.append((source.read_bytes(), store.list(), store.exists("a")))
        raise Died

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(Died):
        store.put("a", b"one")
    assert seen == [(b"one", [], False)] and not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_storage_that_does_not_answer_is_told_after_eight_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]  # nobody answers there once it is closed
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("cluster.storage.wait_random_exponential", lambda **_: wait_none())
    with pytest.raises(StorageDownError, match="does not answer"):
        RemoteStore("s3://bucket/data").read("dataset.json")
