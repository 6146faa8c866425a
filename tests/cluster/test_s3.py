"""The storage promises on a real S3 protocol: moto (make test) or a real server (make test-s3), on loopback."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cluster.dataset import Dataset
from cluster.doctor import DoctorConfig, check_storage
from cluster.storage import RemoteStore, open_store
from cluster.units import run_units
from configs.load import UserError
from ingest.synth import SynthConfig, synth
from ingest.verify import verify
from tests.cluster.test_dataset import COLUMNS, committed, make, numbers_stage
from tests.fakes.servers import ROOT, has_s3_server

pytestmark = pytest.mark.skipif(not has_s3_server(), reason="no .venv-moto here: make test builds it")


def test_put_never_overwrites(bucket: str) -> None:
    store, other = open_store(f"{bucket}/put/", writable=True), open_store(f"{bucket}/put")
    assert store.list() == [] and not other.exists("a/b")
    store.put("a/b", b"one")
    other.put("a/b", b"one")  # a lost response, or a unit done twice
    for data in (b"two", b"longer"):
        with pytest.raises(FileExistsError, match="other bytes"):
            other.put("a/b", data)
    assert store.read("a/b") == b"one" and other.list() == ["a/b"] and other.size("a/b") == 3


def test_of_many_writers_of_a_name_one_wins(bucket: str) -> None:
    outcomes: list[str] = []

    def write(number: int) -> None:
        try:
            open_store(f"{bucket}/race").put("name", b"%d" % number)
            outcomes.append("won")
        except FileExistsError:
            outcomes.append("lost")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["lost"] * 5 + ["won"]


def test_a_range_is_what_a_file_would_give(bucket: str, tmp_path: Path) -> None:
    for store in (open_store(f"{bucket}/range"), open_store(str(tmp_path))):
        store.put("x", b"hello")
        ranges = [(0, 5), (1, 2), (2, 2), (0, 0), (5, 5), (3, 9), (5, 9), (7, 9)]
        assert [store.read_range("x", *ends) for ends in ranges] == [
            b"hello"[start:end] for start, end in ranges
        ]
        with pytest.raises(FileNotFoundError):
            store.read_range("gone", 0, 1)


def test_what_another_writer_did_is_seen_at_once(bucket: str) -> None:
    reader, writer = open_store(f"{bucket}/fresh"), open_store(f"{bucket}/fresh")
    assert not reader.exists("commits/u1") and reader.list("commits") == []
    writer.put("commits/u1", b"1")
    writer.put("commits2/u1", b"1")
    assert reader.exists("commits/u1") and reader.list("commits") == ["commits/u1"]
    writer.replace("commits/u1", b"22")
    assert reader.size("commits/u1") == 2 and reader.read("commits/u1") == b"22"
    writer.delete("commits/u1")
    writer.delete("commits/u1")
    assert not reader.exists("commits/u1") and reader.list("commits") == []


def test_a_put_whose_response_was_lost_counts_as_written(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(f"{bucket}/lost")
    assert isinstance(store, RemoteStore)
    pipe_file, asked = store.fs.pipe_file, []

    def lossy(*args: object, **options: object) -> None:
        asked.append(args)
        pipe_file(*args, **options)
        if len(asked) == 1:
            raise ConnectionResetError("the answer never came")

    monkeypatch.setattr(store.fs, "pipe_file", lossy)
    store.put("a", b"one")
    assert len(asked) == 2 and store.read("a") == b"one"


def test_a_missing_bucket_is_one_line(bucket: str) -> None:
    with pytest.raises(UserError, match="no such bucket"):
        open_store("s3://another-bucket/x")


def test_the_doctor_finds_create_only(bucket: str) -> None:
    assert (
        check_storage(DoctorConfig(output=f"{bucket}/doctor")).ok
        and open_store(f"{bucket}/doctor").list() == []
    )


def test_a_dataset_is_the_same_as_in_a_folder(bucket: str, tmp_path: Path) -> None:
    remote, local = make(f"{bucket}/numbers"), make(str(tmp_path))
    for dataset in (remote, local):
        assert run_units(dataset, numbers_stage, 0, columns=COLUMNS, progress=False).units_done == 5
        dataset.bury({"k001": "take-down"})
    again = Dataset.open(f"{bucket}/numbers")
    assert committed(again) == committed(local) and again.snapshot().id == local.snapshot().id
    assert again.tombstones() == {"k001"} and list(verify(again.uri)) == []
    assert (
        run_units(make(f"{bucket}/numbers"), numbers_stage, 0, columns=COLUMNS, progress=False).units_done
        == 0
    )
    with pytest.raises(UserError, match=r"rate.*1.*2"):
        Dataset.create_or_open(again.uri, "numbers", {"rate": 2}, [])


def test_verify_finds_a_cut_tar(bucket: str) -> None:
    dataset = make(f"{bucket}/cut", 4)
    run_units(dataset, numbers_stage, 0, columns=COLUMNS, progress=False)
    (commit,) = dataset.commits().values()
    assert commit.tar
    dataset.store.replace(commit.tar.name, dataset.store.read(commit.tar.name)[:2048])
    problems = list(verify(dataset.uri))
    assert f"2048 bytes, committed were {commit.tar.size}" in problems[0] and len(problems) > 1


def test_a_scrape_through_ray_lands_in_the_bucket(bucket: str, tmp_path: Path) -> None:
    synth(
        SynthConfig(
            str(tmp_path / "world"), videos=2, webm=0, hls=0, dash=0, stills=1, silent=0, scenes_per_video=2
        )
    )
    words = [
        f"source.path={tmp_path}/world/media",
        "source.license=own",
        f"output={bucket}/clips",
        "workers=1",
        "unit_size=2",
    ]
    words += ["clip.duration_s=1.6", "frame.short_side_px=64", "--json"]
    for units_done in (2, 0):
        command = [sys.executable, "-m", "ingest", "scrape", *words]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["units_done"] == units_done
    assert list(verify(f"{bucket}/clips")) == []
    assert (
        sum(row["status"] == "kept" for row in Dataset.open(f"{bucket}/clips", "clips").iter_rows(["status"]))
        == 5
    )
