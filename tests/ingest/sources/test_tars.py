"""Other people's tars: what they hold comes out by offset, and one that means harm is one refused row among
the others.
"""

import io
import json
import logging
import os
import pickle
import random
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.load import UserError
from ingest.fetch.fetcher import Fetcher
from ingest.fetch.settings import FetchConfig
from ingest.sample import Reason, Refused
from tests.ingest.sources.test_registry import listed, touch


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_members_of_tars_come_out_by_offset(tmp_path: Path) -> None:
    stated = json.dumps({"license": "CC0-1.0", "title": "Brook"}).encode()
    write_tar(
        tmp_path / "in/00000.tar",
        {
            "a.mp4": b"video",
            "a.json": stated,
            "b.jpg": b"\xff\xd8\xffpicture",
            "b.flac": b"sound",
            "c.txt": b"",
        },
    )
    write_tar(tmp_path / "in/more/00000.tar", {"a.mp4": b"other", "../../evil.mp4": b"evil"})
    items = listed(tmp_path / "in", "webdataset")
    assert [item.id for item in items] == ["00000/a", "00000/b", "more/00000/a", "more/00000/../../evil"]
    assert [item.id for item in listed(f"{tmp_path}/i*/more/*.tar", "webdataset")] == [
        "in/more/00000/a",
        "in/more/00000/../../evil",
    ]
    assert [item.id for item in listed(tmp_path / "in/more/00000.tar", "webdataset")] == [
        "00000/a",
        "00000/../../evil",
    ]
    assert [(item.license, item.title) for item in items[:2]] == [("CC0-1.0", "Brook"), ("own", "")]
    with Fetcher(FetchConfig(), tmp_path / "spool", allow=("own", "CC0-1.0")) as fetcher:
        media = [fetcher.fetch(item, 64) for item in items]
    assert [one.picture.read_bytes() for one in media] == [
        b"video",
        b"\xff\xd8\xffpicture",
        b"other",
        b"evil",
    ]
    assert media[1].still and media[1].sound.read_bytes() == b"sound"
    assert all(one.picture.parent == tmp_path / "spool" for one in media)
    assert len(listed(f"{tmp_path}/in/*.tar", "webdataset")) == 2


def test_the_tars_of_video2dataset_keep_what_they_state(tmp_path: Path) -> None:
    """00000.tar with key.mp4, key.txt and key.json, and 00000.parquet and 00000_stats.json beside it."""
    youtube = {
        "info": {
            "license": "Creative Commons Attribution license (reuse allowed)",
            "channel_id": "UCx",
            "title": "A brook",
        }
    }
    stated = {
        "key": "000000000",
        "url": "https://a.example/1",
        "caption": "water",
        "status": "success",
        "error_message": None,
        "tar": "x",
    }
    other = {
        "caption": "a walk",
        "yt_meta_dict": {"info": {"license": "something"}},
        "nan": float("nan"),
        "clips": [[0, 1]],
    }
    write_tar(
        tmp_path / "00000.tar",
        {
            **{
                "000000000.mp4": b"video",
                "000000000.txt": b"water",
                "000000000.json": json.dumps({**stated, "yt_meta_dict": youtube}).encode(),
            },
            **{"000000001.mp4": b"video", "000000001.json": json.dumps(other).encode()},
            **{
                "000000002.json": b'{"status": "failed_to_download"}',
                "000000003.wav": b"sound",
                "000000003.jpg": b"picture",
            },
        },
    )
    touch(tmp_path, "00000.parquet", "00000_stats.json")
    first, second, pair = listed(tmp_path, "webdataset")
    assert (first.id, first.license, first.channel, first.title) == (
        "00000/000000000",
        "CC-BY-3.0",
        "UCx",
        "A brook",
    )
    assert (
        first.meta["url"] == "https://a.example/1"
        and first.meta["caption"] == "water"
        and "picture" in first.meta["tar"]
    )
    assert (second.license, second.title, set(second.meta)) == ("unknown", "a walk", {"caption", "tar"})
    assert pair.license == "own" and set(pair.meta["tar"]) == {"picture", "sound"}


def test_statements_of_a_sample_are_cut_to_size_when_read(tmp_path: Path) -> None:
    """Megabytes of JSON come in every tar of video2dataset: none of it stays in memory but what is used."""
    stated = json.dumps(
        {"title": "t" * 100_000, "channel": "c" * 100_000, "license": "CC0-1.0", "rest": [[]] * 20_000}
    ).encode()
    write_tar(
        tmp_path / "a.tar", {f"{number}.{end}": stated for number in range(12) for end in ("mp4", "json")}
    )
    tracemalloc.start()
    items = listed(tmp_path, "webdataset")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert {(len(item.title), len(item.channel), item.license) for item in items} == {(1000, 1000, "CC0-1.0")}
    assert peak < 6e6  # one of them takes 2 MB


def test_names_that_are_no_text_are_listed_storably(tmp_path: Path) -> None:
    with tarfile.open(
        tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT, encoding="utf-8", errors="surrogateescape"
    ) as tar:
        for name, data in (("\udcff.mp4", b"x"), ("\udcff.json", b'{"title": "\\ud800"}')):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (item,) = listed(tmp_path / "a.tar", "webdataset")
    assert (item.id, item.title) == ("a/\\udcff", "\\ud800")


def header(type: bytes, size: int, name: str = "x") -> bytes:
    """A member's header, its checksum right."""
    info = tarfile.TarInfo(name)
    info.type, info.size = type, size
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def pax(**facts: str) -> bytes:
    text = b""
    for name, value in facts.items():
        body = f" {name}={value}\n".encode()
        length = len(body) + len(str(len(body) + len(str(len(body)))))
        text += f"{length}".encode() + body
    return header(tarfile.XHDTYPE, len(text)) + padded(text)


VIDEO = header(tarfile.REGTYPE, 5, "a.mp4") + padded(b"video")
SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "noise": random.Random(0).randbytes(20_000),
    "a header of 6 GB": header(tarfile.XHDTYPE, 6 << 30),
    "a global header of 6 GB": header(tarfile.XGLTYPE, 6 << 30),
    "a name of 6 GB": header(tarfile.GNUTYPE_LONGNAME, 6 << 30),
    "a link's name of 6 GB": header(tarfile.GNUTYPE_LONGLINK, 6 << 30),
    "a sparse map that is none": pax(**SPARSE) + header(tarfile.REGTYPE, 512) + b"\xff" * 512,
    "a sparse map without end": pax(**SPARSE) + header(tarfile.REGTYPE, 1 << 20) + b"1" * (1 << 20),
    "an old sparse member": header(tarfile.GNUTYPE_SPARSE, 5) + padded(b"video"),
    "a size that is none": pax(size="ten") + header(tarfile.REGTYPE, 5, "b.mp4") + padded(b"video"),
    "a size below zero": pax(size="-1024") + header(tarfile.REGTYPE, 5, "b.mp4") + padded(b"video"),
    "a member larger than the file": VIDEO + header(tarfile.REGTYPE, 1 << 40, "b.mp4"),
    "headers upon headers": header(tarfile.GNUTYPE_LONGNAME, 0) * 5000,
    "keys upon keys": header(tarfile.XHDTYPE, 60_000) + padded(b"2 " * 29_999 + b"a=") + VIDEO,
    "a value without end": pax(a="1" * 60_000) + VIDEO,
    "a name of a thousand folders": header(tarfile.GNUTYPE_LONGNAME, 6000) + padded(b"folder" * 1000) + VIDEO,
    "a number without end": header(tarfile.XHDTYPE, 60_000) + padded(b"1" * 60_000),
    "a flipped byte in a later header": VIDEO
    + b"\x01"
    + header(tarfile.REGTYPE, 5, "b.mp4")[1:]
    + padded(b"video")
    + bytes(1024),
    "cut in a later header": VIDEO + header(tarfile.REGTYPE, 5, "b.mp4")[:300],
    "cut between members": VIDEO,
    "two tars in one file": (VIDEO + bytes(1024)) * 2,
    "cut in a later member": VIDEO + header(tarfile.REGTYPE, 5000, "b.mp4") + bytes(700),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_tar_that_cannot_be_read_is_one_refused_row(tmp_path: Path, name: str) -> None:
    write_tar(tmp_path / "in/a.tar", {"1.mp4": b"video"})
    ended = not name.startswith(("nothing", "cut"))
    (tmp_path / "in/b.tar").write_bytes(HOSTILE[name] + bytes(1024 if ended else 0))
    write_tar(tmp_path / "in/c.tar", {"1.mp4": b"video"})
    items = listed(tmp_path / "in", "webdataset")
    assert [item.id for item in items] == ["a/1", "b", "c/1"]
    with Fetcher(FetchConfig(), tmp_path / "spool", allow=("own",)) as fetcher:
        assert fetcher.fetch(items[0], 64).picture.read_bytes() == b"video"
        with pytest.raises(Refused, match="b.tar cannot be read as a tar") as refusal:
            fetcher.fetch(items[1], 64)
    assert refusal.value.reason == Reason.CORRUPT


@pytest.mark.parametrize(
    "type", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK]
)
def test_a_giant_header_is_not_read(tmp_path: Path, type: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(header(type, 200 << 20))
    os.truncate(tmp_path / "a.tar", 201 << 20)
    tracemalloc.start()
    (item,) = listed(tmp_path, "webdataset")
    assert "a header of 209715200 bytes" in item.meta["damage"] and tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def test_a_tar_of_millions_of_members_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.sources.tars.MAX_MEMBERS", 3)
    write_tar(tmp_path / "a.tar", {f"{number}.mp4": b"" for number in range(4)})
    (item,) = listed(tmp_path, "webdataset")
    assert "more than 3 members" in item.meta["damage"]


def test_links_devices_pickles_and_names_are_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None is followed, opened, run or unpickled; of two members of one name the first counts."""
    witness, secret = tmp_path / "witness", tmp_path / "secret.mp4"
    secret.write_bytes(b"secret")

    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
            return os.mkdir, (str(witness),)

    members: list[tuple[str, bytes, bytes | str]] = [
        ("link.mp4", tarfile.SYMTYPE, str(secret)),
        ("hard.mp4", tarfile.LNKTYPE, str(secret)),
        ("device.mp4", tarfile.CHRTYPE, ""),
        ("pipe.mp4", tarfile.FIFOTYPE, ""),
        ("twice.mp4", tarfile.REGTYPE, b"first"),
        ("twice.mp4", tarfile.REGTYPE, b"second"),
        ("bomb.mp4", tarfile.REGTYPE, b"video"),
        ("bomb.pickle", tarfile.REGTYPE, pickle.dumps(Bomb())),
        ("bomb.pyd", tarfile.REGTYPE, pickle.dumps(Bomb())),
        (f"pipe:mkdir {witness}.mp4", tarfile.REGTYPE, b"piped"),
        ("/etc/passwd.mp4", tarfile.REGTYPE, b"absolute"),
        ("../" * 20 + "up.mp4", tarfile.REGTYPE, b"up"),
    ]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, type, data in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = type, data if isinstance(data, str) else ""
            info.size = len(data) if isinstance(data, bytes) else 0
            tar.addfile(info, io.BytesIO(data) if isinstance(data, bytes) else None)
    before = sorted(path for path in tmp_path.rglob("*"))
    items = listed(f"{tmp_path}/*.tar", "webdataset")
    with Fetcher(FetchConfig(), tmp_path / "spool", allow=("own",)) as fetcher:
        fetched = [fetcher.fetch(item, 64).picture for item in items]
        assert [path.read_bytes() for path in fetched] == [b"first", b"video", b"piped", b"absolute", b"up"]
    assert all(path.parent == tmp_path / "spool" for path in fetched)
    assert sorted(path for path in tmp_path.rglob("*") if "spool" not in path.parts) == before
    with pytest.raises(UserError, match="no .tar files there"):
        listed(f"pipe:mkdir {witness}.tar", "webdataset")


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(st.tuples(st.integers(0, 8191), st.binary(min_size=1, max_size=40)), max_size=6),
    st.integers(0, 8192),
)
def test_whatever_is_written_over_a_tar(
    tmp_path: Path, changes: list[tuple[int, bytes]], length: int
) -> None:
    """Its samples as they were named, or a damage; never an error, and never less without a word."""
    write_tar(
        tmp_path / "a.tar", {f"{number}.{end}": b"x" * 300 for number in range(3) for end in ("mp4", "json")}
    )
    data = bytearray((tmp_path / "a.tar").read_bytes())
    for at, text in changes:
        data[at : at + len(text)] = text
    (tmp_path / "a.tar").write_bytes(data[:length] if length < 7000 else data)
    items = listed(tmp_path, "webdataset")
    assert [item.id for item in items] == ["a/0", "a/1", "a/2"] or (
        len(items) == 1 and items[0].meta["damage"]
    )


def test_keys_with_dots_are_samples_of_their_own(tmp_path: Path) -> None:
    names = (
        "0001.mp4",
        "abc_30.000_40.000.mp4",
        "abc_30.500_40.500.mp4",
        "clip.v2.mp4",
        "clip.mp4",
        "dir.d/x.1.jpg",
        "dir.d/x.1.wav",
    )
    stated = {
        "abc_30.000_40.000.json": b'{"title": "first"}',
        "clip.json": b'{"title": "clip"}',
        "clip.v2.txt": b"a second take",
    }
    write_tar(tmp_path / "a.tar", {**{name: name.encode() for name in names}, **stated})
    items = {item.id: item for item in listed(tmp_path, "webdataset")}
    assert set(items) == {
        *("a/0001", "a/abc_30.000_40.000", "a/abc_30.500_40.500", "a/clip.v2", "a/clip", "a/dir.d/x.1"),
    }
    titles = {id: item.title for id, item in items.items() if item.title}
    assert (
        titles == {"a/abc_30.000_40.000": "first", "a/clip": "clip"}
        and items["a/clip.v2"].meta["caption"] == "a second take"
    )
    with Fetcher(FetchConfig(), tmp_path / "spool", allow=("own",)) as fetcher:
        assert fetcher.fetch(items["a/clip.v2"], 64).picture.read_bytes() == b"clip.v2.mp4"


def test_members_with_dots_that_make_no_pair_are_one_sample(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar",
        {name: b"x" for name in ("0.image.jpg", "0.audio.wav", "0.json", "1.5.image.png", "1.5.audio.flac")},
    )
    assert [(item.id, set(item.meta["tar"])) for item in listed(tmp_path, "webdataset")] == [
        ("a/0", {"picture", "sound"}),
        ("a/1.5", {"picture", "sound"}),
    ]


def test_skipped_samples_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """img2dataset writes jpg, txt and json."""
    images = {f"{number:09d}.{end}": b"{}" for number in range(3) for end in ("jpg", "txt", "json")}
    write_tar(tmp_path / "a.tar", {**images, "v.mp4": b"x", "/v.mp4": b"y", "w.mp4": b"x", "w.webm": b"y"})
    with caplog.at_level(logging.INFO):
        assert [item.id for item in listed(tmp_path, "webdataset")] == ["a/v", "a/w"]
    assert "3 without a video or a picture and a sound (.jpg .json .txt)" in caplog.text
    assert (
        "1 members whose name came before" in caplog.text
        and "1 more media of samples that have theirs (.webm)" in caplog.text
    )


def test_compressed_tars_are_counted_or_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "b.tar.gz", "c.tgz", "d/e.tar.zst")
    with pytest.raises(
        UserError, match=r"no .tar files there, but 1 .tar.gz, 1 .tgz, 1 .tar.zst; .*decompress"
    ):
        listed(tmp_path, "webdataset")
    write_tar(tmp_path / "a.tar", {"v.mp4": b"x"})
    assert len(listed(tmp_path, "webdataset")) == 1 and "1 .tar.gz" in caplog.text


def test_linked_folders_of_tars_are_listed(tmp_path: Path) -> None:
    write_tar(tmp_path / "disk2/b.tar", {"v.mp4": b"x"})
    write_tar(tmp_path / "in/a.tar", {"v.mp4": b"x"})
    (tmp_path / "in/more").symlink_to(tmp_path / "disk2")
    assert [item.id for item in listed(tmp_path / "in", "webdataset")] == ["a/v", "more/b/v"]


def test_a_folder_in_a_tar_and_a_tar_in_a_folder_are_two_samples(tmp_path: Path) -> None:
    write_tar(tmp_path / "in/x.tar", {"y/z.mp4": b"outer", "z.mp4": b"plain"})
    write_tar(tmp_path / "in/x/y.tar", {"z.mp4": b"inner"})
    items = listed(tmp_path / "in", "webdataset")
    assert sorted(item.id for item in items) == ["x.tar/y/z", "x/y/z", "x/z"]
