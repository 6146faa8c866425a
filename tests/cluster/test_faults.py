"""Object storage that misbehaves: whatever happens to any request, a run goes on, or stops with one line and
is finished by the next.

Each fault meets each request of a small run, through a proxy before a real S3 server: all of them with `make
test-s3`, one fault for every third request with `make test`.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster import storage
from cluster.dataset import Dataset
from cluster.storage import RemoteStore, StorageDownError, open_store
from cluster.units import run_units
from configs.load import StoppedError, UserError
from ingest.verify import verify
from tests.cluster.test_dataset import COLUMNS, committed, make, numbers_stage
from tests.fakes.servers import FAULTS, SLOW_S, FaultyProxy, environment, has_s3_server, new_bucket

needs_server = pytest.mark.skipif(not has_s3_server(), reason="no .venv-moto here: make test builds it")
ITEMS = 8  # two units
REPEATED = (*FAULTS, "burst")
MOST_REQUESTS = 60  # of the run
THOROUGH = bool(os.environ.get("STILLSOUND_TEST_S3"))


@pytest.fixture(scope="module")
def proxy(s3_url: str) -> Iterator[FaultyProxy]:
    with FaultyProxy(s3_url) as proxy, pytest.MonkeyPatch.context() as patch:
        for name, value in environment(proxy.url).items():
            patch.setenv(name, value)
        patch.setattr(storage, "READ_TIMEOUT_S", 2)
        patch.setattr(storage, "MAX_WAIT_S", 0.3)
        yield proxy


@pytest.fixture(scope="module")
def bucket(proxy: FaultyProxy) -> str:
    return new_bucket()


def run(uri: str) -> Dataset:
    dataset = make(uri, ITEMS)
    assert not run_units(dataset, numbers_stage, 0, columns=COLUMNS, progress=False).failed
    return dataset


@pytest.fixture(scope="module")
def undisturbed(proxy: FaultyProxy, bucket: str) -> tuple[dict[str, str], int]:
    """What a run without faults commits, and how many requests it makes."""
    proxy.start()
    found = committed(run(f"{bucket}/undisturbed"))
    return found, len(proxy.requests)


def cases() -> list[tuple[int, str]]:
    """(the first request with a fault, the fault)."""
    if THOROUGH:
        return [(number, fault) for number in range(1, MOST_REQUESTS + 1) for fault in REPEATED]
    return [(number, REPEATED[number % len(REPEATED)]) for number in range(1, MOST_REQUESTS + 1, 3)]


def at(first: int, fault: str) -> Callable[[int, str], str]:
    """The fault at one request; a burst is five long; what only a put can meet strikes the next one."""
    left = [5 if fault == "burst" else 1]

    def strike(number: int, request: str) -> str:
        if number < first or not left[0] or (fault in ("409", "lost") and not request.startswith("PUT")):
            return ""
        left[0] -= 1
        return "503" if fault == "burst" else fault

    return strike


@needs_server
@pytest.mark.parametrize(("first", "fault"), cases())
def test_a_fault_at_any_request_changes_nothing(
    proxy: FaultyProxy, bucket: str, undisturbed: tuple[dict[str, str], int], first: int, fault: str
) -> None:
    expected, requests = undisturbed
    if first > requests:
        pytest.skip(f"the run makes {requests} requests")
    proxy.start(at(first, fault))
    uri = f"{bucket}/{first}-{fault}"
    run(uri)
    proxy.start()
    again = Dataset.open(uri)
    assert committed(again) == expected and list(verify(uri)) == []
    shards = [name for name in again.store.list("shards") if name.endswith(".tar")]
    assert len(shards) == len(expected), "a put that was told twice left nothing besides"


@needs_server
def test_the_cases_reach_every_request(undisturbed: tuple[dict[str, str], int]) -> None:
    assert 20 < undisturbed[1] <= MOST_REQUESTS


@needs_server
@pytest.mark.parametrize("first", [3, 12, 20] if THOROUGH else [20])
def test_storage_that_stays_away_stops_the_run_and_the_next_one_ends_it(
    proxy: FaultyProxy, bucket: str, undisturbed: tuple[dict[str, str], int], first: int
) -> None:
    proxy.start(lambda number, _: "503" if number >= first else "")
    with pytest.raises((StorageDownError, UserError), match="object storage does not answer"):
        run(f"{bucket}/away-{first}")
    proxy.start()
    assert committed(run(f"{bucket}/away-{first}")) == undisturbed[0]


@needs_server
def test_a_busy_store_is_asked_again_at_the_door_and_one_that_is_not_there_is_told_at_once(
    proxy: FaultyProxy, bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.start(at(1, "burst"))
    assert open_store(f"{bucket}/busy").list() == []
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
    assert "Retrying" in caplog.text
    caplog.clear()
    with pytest.raises(UserError, match="does not answer.*AWS_ENDPOINT_URL"):
        open_store(f"{bucket}/gone")
    assert "Retrying" not in caplog.text


@needs_server
def test_a_stalled_answer_is_asked_for_again(proxy: FaultyProxy, bucket: str) -> None:
    store = open_store(f"{bucket}/stalled")
    store.put("a", b"one")
    proxy.start(lambda number, _: "stall" if number == 1 else "")
    started = time.monotonic()
    assert store.read("a") == b"one" and 2 <= time.monotonic() - started < 60


@needs_server
@pytest.mark.parametrize("fault", ["reset", "lost", "503", "slow"] if THOROUGH else ["lost"])
def test_a_large_file_goes_up_in_parts_and_whole(
    proxy: FaultyProxy, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """At any request of it; what is left of uploads that failed is told and discarded."""
    for name, value in (("LARGE_BYTES", 6 << 20), ("PART_BYTES", 5 << 20), ("PARTS_AT_ONCE", 2)):
        monkeypatch.setattr(storage, name, value)
    path, other = tmp_path / "large", tmp_path / "other"
    path.write_bytes(os.urandom(11 << 20))
    other.write_bytes(os.urandom(11 << 20))
    for first in range(1, 7):
        store = open_store(f"{bucket}/large-{fault}-{first}")
        assert isinstance(store, RemoteStore)
        proxy.start(at(first, fault))
        store.put_file("a", path)
        assert any("uploadId" in request for request in proxy.requests)
        store.put_file("a", path)
        with pytest.raises(FileExistsError, match="other bytes"):
            store.put_file("a", other)
        store.get_file("a", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == path.read_bytes()
        for left in store.unfinished():
            store.discard(left)
        assert store.list() == ["a"] and not store.unfinished()


@needs_server
def test_slow_is_slow(proxy: FaultyProxy, bucket: str) -> None:
    """The proxy does what the other tests believe of it."""
    store = open_store(f"{bucket}/slow")
    store.put("a", b"one")
    proxy.start(lambda number, _: "slow")
    started = time.monotonic()
    assert store.read("a") == b"one" and time.monotonic() - started >= SLOW_S


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 kB."""
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(tmp_path)], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting needs root")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_full_disk_stops_the_run_and_the_next_one_ends_it(
    small_disk: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Full at the first write, at the next one, and so on until it never is."""
    expected = committed(run(str(tmp_path_factory.mktemp("undisturbed"))))
    filler, data, pages = small_disk / "filler", small_disk / "data", 0
    done = False
    while not done:
        with pytest.raises(OSError, match="No space left"), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        os.truncate(filler, max(0, filler.stat().st_size - 4096 * pages))
        try:
            summary = run_units(make(str(data), ITEMS), numbers_stage, 0, columns=COLUMNS, progress=False)
            done = not summary.failed
            assert all("No space left" in said for said in summary.failed.values())
        except (OSError, StoppedError, UserError) as error:
            assert "No space left" in str(error)
        filler.unlink()
        assert committed(run(str(data))) == expected and list(verify(str(data))) == []
        shutil.rmtree(data)
        pages += 1
    assert 8 < pages < 40


def test_a_folder_without_hard_links_is_refused_at_the_door(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(UserError, match="has no hard links.*choose a disk"):
        open_store(str(tmp_path), writable=True)
    assert not list(tmp_path.iterdir())
