"""What a source lists: stable ids, pairs, licenses, and one clear line for every source that cannot work."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.load import UserError
from ingest.fetch import FetchConfig, Fetcher
from ingest.sample import Item
from ingest.sources import SourceConfig, enumerate_items


def listed(path: Path | str, kind: str, license: str = "own") -> list[Item]:
    return list(enumerate_items(SourceConfig(str(path), kind, license)))


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def test_a_folder_gives_videos_and_pairs_in_order(tmp_path: Path) -> None:
    touch(tmp_path, "b/clip.MP4", "a/x.webm", "a/photo.jpg", "a/photo.wav", "a/alone.jpg", "song.mp3", ".hidden/y.mp4", "b/notes.txt")
    items = listed(tmp_path, "folder", "CC-BY-4.0")
    assert [item.id for item in items] == ["a/photo.jpg", "a/x.webm", "b/clip.MP4"]
    photo = items[0]
    assert (photo.url, photo.sound_url) == (str(tmp_path / "a/photo.jpg"), str(tmp_path / "a/photo.wav"))
    assert {item.license for item in items} == {"CC-BY-4.0"} and {item.source for item in items} == {"folder"}
    assert items[1].title == "x" and not items[1].sound_url


def test_a_files_id_does_not_depend_on_which_others_are_there(tmp_path: Path) -> None:
    touch(tmp_path, "x.mp4", "y.mkv", "y.jpg")
    assert [item.id for item in listed(tmp_path, "folder")] == ["x.mp4", "y.mkv"]
    touch(tmp_path, "x.webm", "x.jpg", "x.flac")
    assert [item.id for item in listed(tmp_path, "folder")] == ["x.mp4", "x.webm", "x.jpg", "y.mkv"]


def test_a_tar_with_names_that_are_no_text_is_listed_in_letters_that_can_be_stored(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT, encoding="utf-8", errors="surrogateescape") as tar:
        for name, data in (("\udcff.mp4", b"x"), ("\udcff.json", b'{"title": "\\ud800"}')):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (item,) = listed(tmp_path / "a.tar", "webdataset")
    assert (item.id, item.title) == ("a/\\udcff", "\\ud800")


def test_a_text_list_skips_comments(tmp_path: Path) -> None:
    (tmp_path / "urls.txt").write_text("# mine\nhttps://a.example/1.mp4\n\n  https://a.example/2.mp4  \n")
    items = listed(tmp_path / "urls.txt", "urls")
    assert [item.url for item in items] == ["https://a.example/1.mp4", "https://a.example/2.mp4"]
    assert [item.id for item in items] == [item.url for item in items] and items[0].license == "own"


def test_a_csv_row_has_its_own_license_and_the_rest_travels(tmp_path: Path) -> None:
    (tmp_path / "urls.csv").write_text(
        "url,id,license,title,camera\nhttps://a.example/1,one,CC0-1.0,First,kite\nhttps://a.example/2,,,,\nhttps://a.example/3,three,MIT,,\n"
    )
    first, second, third = listed(tmp_path / "urls.csv", "urls", "")
    assert (first.id, first.license, first.title, first.meta) == ("one", "CC0-1.0", "First", {"camera": "kite"})
    assert (second.id, second.license, second.meta) == ("https://a.example/2", "", {})
    assert third.license == "unknown"  # refused later, as a row
    assert listed(tmp_path / "urls.csv", "urls", "own")[1].license == "own"


def test_a_parquet_list_holds_anything_json_can(tmp_path: Path) -> None:
    columns = {"url": ["https://a.example/1"], "n": [3], "x": [float("nan")], "raw": [b"\x00"], "sound_url": ["https://a.example/s"]}
    pq.write_table(pa.table(columns), tmp_path / "urls.parquet")
    (item,) = listed(tmp_path / "urls.parquet", "urls")
    assert item.sound_url == "https://a.example/s" and item.meta["n"] == 3
    json.dumps(item.meta, allow_nan=False)


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_members_of_tars_come_out_by_offset(tmp_path: Path) -> None:
    told = json.dumps({"license": "CC0-1.0", "title": "Brook"}).encode()
    write_tar(
        tmp_path / "in/00000.tar", {"a.mp4": b"video", "a.json": told, "b.jpg": b"\xff\xd8\xffpicture", "b.flac": b"sound", "c.txt": b""}
    )
    write_tar(tmp_path / "in/more/00000.tar", {"a.mp4": b"other", "../../evil.mp4": b"evil"})
    items = listed(tmp_path / "in", "webdataset")
    assert [item.id for item in items] == ["00000/a", "00000/b", "more/00000/a", "more/00000/../../evil"]
    assert [(item.license, item.title) for item in items[:2]] == [("CC0-1.0", "Brook"), ("own", "")]
    with Fetcher(FetchConfig(), tmp_path / "spool", allow=("own", "CC0-1.0")) as fetcher:
        media = [fetcher.fetch(item, 64) for item in items]
    assert [one.picture.read_bytes() for one in media] == [b"video", b"\xff\xd8\xffpicture", b"other", b"evil"]
    assert media[1].still and media[1].sound.read_bytes() == b"sound"
    assert all(one.picture.parent == tmp_path / "spool" for one in media)
    assert len(listed(f"{tmp_path}/in/*.tar", "webdataset")) == 2


def test_the_tars_of_video2dataset_keep_what_they_tell(tmp_path: Path) -> None:
    """00000.tar with key.mp4, key.txt and key.json, and 00000.parquet and 00000_stats.json beside it."""
    youtube = {"info": {"license": "Creative Commons Attribution license (reuse allowed)", "channel_id": "UCx", "title": "A brook"}}
    told = {"key": "000000000", "url": "https://a.example/1", "caption": "water", "status": "success", "error_message": None, "tar": "x"}
    other = {"caption": "a walk", "yt_meta_dict": {"info": {"license": "something"}}, "nan": float("nan"), "clips": [[0, 1]]}
    write_tar(
        tmp_path / "00000.tar",
        {
            **{
                "000000000.mp4": b"video",
                "000000000.txt": b"water",
                "000000000.json": json.dumps({**told, "yt_meta_dict": youtube}).encode(),
            },
            **{"000000001.mp4": b"video", "000000001.json": json.dumps(other).encode()},
            **{"000000002.json": b'{"status": "failed_to_download"}', "000000003.wav": b"sound", "000000003.jpg": b"picture"},
        },
    )
    touch(tmp_path, "00000.parquet", "00000_stats.json")
    first, second, pair = listed(tmp_path, "webdataset")
    assert (first.id, first.license, first.channel, first.title) == ("00000/000000000", "CC-BY-3.0", "UCx", "A brook")
    assert first.meta["url"] == "https://a.example/1" and first.meta["caption"] == "water" and "picture" in first.meta["tar"]
    assert (second.license, second.title, set(second.meta)) == ("unknown", "a walk", {"caption", "tar"})
    assert pair.license == "own" and set(pair.meta["tar"]) == {"picture", "sound"}


@pytest.mark.parametrize(
    ("kind", "name", "license", "told"),
    [
        ("magic", ".", "own", "source.kind=magic: give one of folder, urls, webdataset, youtube, inaturalist"),
        ("folder", "missing", "own", "missing: no such folder"),
        ("folder", ".", "", "source.license"),
        ("folder", ".", "MIT", "source.license=MIT: give one of CC0-1.0"),
        ("urls", "missing.txt", "own", "no such file"),
        ("urls", "list.doc", "own", r"\.txt, \.csv or \.parquet"),
        ("urls", "bad.csv", "own", "no column url; it has link"),
        ("urls", "empty.csv", "own", "row 3 has no url"),
        ("urls", "bad.parquet", "own", "cannot be read as parquet"),
        ("urls", "list.doc", "unknown", "source.license=unknown"),
        ("webdataset", "missing*.tar", "own", "no .tar files"),
        ("webdataset", "bad.tar", "own", "cannot be read as a tar"),
    ],
)
def test_a_source_that_cannot_work_is_one_clear_line(tmp_path: Path, kind: str, name: str, license: str, told: str) -> None:
    touch(tmp_path, "list.doc", "bad.parquet", "bad.tar")
    (tmp_path / "bad.csv").write_text("link\nhttps://a.example\n")
    (tmp_path / "empty.csv").write_text("url,id\nhttps://a.example,1\n,2\n")
    with pytest.raises(UserError, match=told):
        listed(tmp_path / name, kind, license)
