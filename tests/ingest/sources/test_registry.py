"""What a source lists: stable ids, pairs, licenses, and one clear line for every source that cannot work."""

import json
import logging
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.load import UserError
from ingest.fetch.settings import FetchConfig
from ingest.sample import Item
from ingest.sources.registry import SOURCES, enumerate_items
from ingest.sources.settings import SourceConfig
from tests.conftest import ROOT


def listed(path: Path | str, kind: str, license: str = "own") -> list[Item]:
    return list(enumerate_items(SourceConfig(str(path), kind, license)))


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def test_a_folder_gives_videos_and_pairs_in_order(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "b/clip.MP4",
        "a/x.webm",
        "a/photo.jpg",
        "a/photo.wav",
        "a/alone.jpg",
        "song.mp3",
        ".hidden/y.mp4",
        "b/notes.txt",
    )
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


def test_a_text_list_skips_comments(tmp_path: Path) -> None:
    (tmp_path / "urls.txt").write_text("# mine\nhttps://a.example/1.mp4\n\n  https://a.example/2.mp4  \n")
    items = listed(tmp_path / "urls.txt", "urls")
    assert [item.url for item in items] == ["https://a.example/1.mp4", "https://a.example/2.mp4"]
    assert [item.id for item in items] == [item.url for item in items] and items[0].license == "own"


def test_a_csv_row_has_its_own_license_and_the_rest_travels(tmp_path: Path) -> None:
    (tmp_path / "urls.csv").write_text(
        "url,id,license,title,camera\nhttps://a.example/1,one,CC0-1.0,First,kite\nhttps://a.example/2,,,,\nhttps://a.example/3,three,mine,,\n"
    )
    first, second, third = listed(tmp_path / "urls.csv", "urls", "")
    assert (first.id, first.license, first.title, first.meta) == (
        "one",
        "CC0-1.0",
        "First",
        {"camera": "kite"},
    )
    assert (second.id, second.license, second.meta) == ("https://a.example/2", "", {})
    assert third.license == "unknown"  # refused later, as a row
    assert listed(tmp_path / "urls.csv", "urls", "own")[1].license == "own"


def test_a_parquet_list_holds_anything_json_can(tmp_path: Path) -> None:
    columns = {
        "url": ["https://a.example/1"],
        "n": [3],
        "x": [float("nan")],
        "raw": [b"\x00"],
        "sound_url": ["https://a.example/s"],
    }
    pq.write_table(pa.table(columns), tmp_path / "urls.parquet")
    (item,) = listed(tmp_path / "urls.parquet", "urls")
    assert item.sound_url == "https://a.example/s" and item.meta["n"] == 3
    json.dumps(item.meta, allow_nan=False)


def test_what_a_folder_has_no_use_for_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "x.mp4", "old.rm", "a.txt", "b.txt", "alone.jpg", "y.jpg", "y.wav", "README")
    with caplog.at_level(logging.INFO):
        assert [item.id for item in listed(tmp_path, "folder")] == ["x.mp4", "y.jpg"]
    assert (
        "5 files are neither videos nor pairs of a picture and a sound: 2 .txt" in caplog.text
        and "1 .rm" in caplog.text
    )


def test_the_source_that_contributing_shows_works(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = (ROOT / "CONTRIBUTING.md").read_text().split("```python")[1].split("```")[0]
    names = {"SourceConfig": SourceConfig, "FetchConfig": FetchConfig, "Iterator": Iterator, "Item": Item}
    module = ModuleType("counter")
    vars(module).update(names)
    exec(textwrap.dedent(shown), vars(module))
    monkeypatch.setitem(sys.modules, "counter", module)
    monkeypatch.setitem(SOURCES, "counter", "counter")
    assert [(item.id, item.license) for item in listed("3", "counter")] == [
        ("0", "own"),
        ("1", "own"),
        ("2", "own"),
    ]
    with pytest.raises(UserError, match="inaturalist, counter"):
        listed("3", "magic")


def test_the_source_that_docs_show_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs/adding-a-source.md").read_text()
    (tmp_path / "shown_source.py").write_text(page.split("```python")[1].split("```")[0])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(SOURCES, "counter", "shown_source")
    assert [item.url for item in listed("2", "counter")] == [
        "https://a.example/0.mp4",
        "https://a.example/1.mp4",
    ]
    with pytest.raises(UserError, match="how many"):
        enumerate_items(SourceConfig("many", "counter", "own"))  # at once


def test_a_folder_loads_no_site(tmp_path: Path) -> None:
    touch(tmp_path, "x.mp4")
    code = (
        "import sys; from ingest.sources.registry import *\n"
        f"print(len(list(enumerate_items(SourceConfig({str(tmp_path)!r}, 'folder', 'own')))))\n"
        "assert not {'ingest.sources.inaturalist', 'ingest.sources.videos'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("1\n", "")


@pytest.mark.parametrize("kind", ["txt", "csv", "parquet"])
def test_a_long_list_is_read_as_it_goes(tmp_path: Path, kind: str) -> None:
    urls = [f"https://a.example/{number}" for number in range(10_000)]
    path = tmp_path / f"urls.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"url": urls}), path)
    else:
        path.write_text("\n".join(["url", *urls] if kind == "csv" else urls))
    tracemalloc.start()
    assert sum(1 for _ in enumerate_items(SourceConfig(str(path), "urls", "own"))) == len(urls)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6  # a list of its items takes 5 MB


@pytest.mark.parametrize(
    ("kind", "name", "license", "message"),
    [
        (
            "magic",
            ".",
            "own",
            "source.kind=magic: give one of folder, urls, webdataset, youtube, inaturalist",
        ),
        ("folder", "missing", "own", "missing: no such folder"),
        ("folder", ".", "", "source.license"),
        ("folder", ".", "cc by 4.0", "source.license=cc by 4.0: no license code; did you mean CC-BY-4.0?"),
        ("urls", "missing.txt", "own", "no such file"),
        ("urls", "list.doc", "own", r"\.txt, \.csv or \.parquet"),
        ("urls", "bad.csv", "own", "no column url; it has link"),
        ("urls", "empty.csv", "own", "row 3 has no url"),
        ("urls", "bad.parquet", "own", "cannot be read as parquet"),
        ("urls", "list.doc", "unknown", "source.license=unknown"),
        ("webdataset", "missing*.tar", "own", "no .tar files"),
    ],
)
def test_a_source_that_cannot_work_is_one_clear_line(
    tmp_path: Path, kind: str, name: str, license: str, message: str
) -> None:
    touch(tmp_path, "list.doc", "bad.parquet")
    (tmp_path / "bad.csv").write_text("link\nhttps://a.example\n")
    (tmp_path / "empty.csv").write_text("url,id\nhttps://a.example,1\n,2\n")
    with pytest.raises(UserError, match=message):
        listed(tmp_path / name, kind, license)
