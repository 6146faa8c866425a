"""Lists as people have them: ids that meet, cells that are no text, files beside the list, pieces of longer
media.
"""

import datetime
import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.dataset import Dataset
from cluster.worklist import WorkItem
from configs.load import UserError
from ingest.clip.clipper import ClipConfig, FrameConfig
from ingest.clip.filter import FilterConfig
from ingest.fetch.fetcher import Fetcher
from ingest.fetch.settings import FetchConfig
from ingest.remove import RemoveConfig, remove
from ingest.sample import Clip, Item, Media, ban
from ingest.scrape import ScrapeConfig, SplitConfig, scrape
from ingest.shard import clip_row
from ingest.sources.settings import SourceConfig
from tests.fakes.media import film
from tests.ingest.sources.test_registry import listed, touch

A, B = "https://a.example/a.mp4", "https://a.example/b.mp4"
NAN = float("nan")


def urls(path: Path, text: str, license: str = "own") -> list[Item]:
    path.write_text(text)
    return listed(path, "urls", license)


def test_one_id_for_two_places_is_refused_with_both_rows(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rows 2 and 4 have the same id"):
        urls(tmp_path / "l.csv", f"id,url\n1,{A}\n2,{A}\n1,{B}\n")
    with pytest.raises(
        UserError, match="rows 2 and 3 have the same id and name different media, times or licenses"
    ):
        urls(tmp_path / "l.csv", f"url,license\n{A},own\n{A},CC0-1.0\n", "")


@pytest.mark.parametrize(("one", "two"), [("0", 0), (0, 0.0), ("a", " a "), (1.0, "1")])
def test_ids_that_are_written_alike_are_refused_for_two_places(tmp_path: Path, one: Any, two: Any) -> None:
    rows = [{"id": one, "url": A}, {"id": two, "url": B}]
    with pytest.raises(UserError, match="rows 1 and 2 have the same id"):
        urls(tmp_path / "l.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(("one", "two"), [("a", "A"), ("é", "e\u0301"), (False, 0), ("0", "00")])
def test_ids_that_differ_are_two_items(tmp_path: Path, one: Any, two: Any) -> None:
    rows = [{"id": one, "url": A}, {"id": two, "url": B}]
    assert (
        len({item.id for item in urls(tmp_path / "l.jsonl", "".join(json.dumps(row) + "\n" for row in rows))})
        == 2
    )


def test_a_repeated_row_is_one_item_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert [item.url for item in urls(tmp_path / "l.txt", f"{A}\n{B}\n{A}\n{A}\n")] == [A, B]
    assert "2 rows repeat an earlier row" in caplog.text


def test_zero_is_an_id_and_nan_is_none(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"url": [A, B], "id": pa.array([0.0, NAN]), "license": [NAN] * 2, "title": [NAN] * 2}),
        tmp_path / "l.parquet",
    )
    first, second = listed(tmp_path / "l.parquet", "urls")
    assert (first.id, second.id) == ("0", B)
    assert {(item.license, item.title, str(item.meta)) for item in (first, second)} == {("own", "", "{}")}


def test_text_without_its_mark_is_read_as_utf8(tmp_path: Path) -> None:
    columns = {
        "url": [A.encode()],
        "title": ["Bäche".encode()],
        "license": [b"CC0-1.0"],
        "note": [b"n"],
        "id": pa.array([b"7"], pa.large_binary()),
    }
    pq.write_table(pa.table(columns), tmp_path / "l.parquet")
    (item,) = listed(tmp_path / "l.parquet", "urls")
    assert (item.id, item.url, item.title, item.license, item.meta) == (
        "7",
        A,
        "Bäche",
        "CC0-1.0",
        {"note": "n"},
    )
    pq.write_table(pa.table({"url": [A], "title": [b"\xff"]}), tmp_path / "l.parquet")
    with pytest.raises(UserError, match="row 1: column title holds bytes that are not UTF-8"):
        listed(tmp_path / "l.parquet", "urls")


def test_numbers_without_bound_never_reach_an_item(tmp_path: Path) -> None:
    columns = {
        "url": [A],
        "snr": [float("inf")],
        "deep": [{"a": [NAN, 1.5]}],
        "when": [datetime.date(2026, 1, 2)],
        "n": [3],
    }
    pq.write_table(pa.table(columns), tmp_path / "l.parquet")
    (item,) = listed(tmp_path / "l.parquet", "urls")
    assert item.meta == {"deep": {"a": [None, 1.5]}, "when": "2026-01-02", "n": 3}


def test_json_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    row = {"url": A, "title": "a\u2028b\x85c", "caption": "rain\u2029", "x": 1}
    (item,) = urls(tmp_path / "l.jsonl", json.dumps(row, ensure_ascii=False) + "\n\n")
    assert item.title == "a\u2028b\x85c" and item.meta == {"caption": "rain\u2029", "x": 1}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.jsonl", '{"url": "x"}\n{"url"', "row 2 is not JSON"),
        ("l.jsonl", "[1]\n", "row 1 is not a JSON object"),
        ("l.csv", "url,title\nhttps://a.example,one,two\n", "row 2 has more cells than the header"),
        ("l.csv", "youtube_id,start\nabc,1\n", "no column url.*for ids of YouTube give source.kind=youtube"),
        ("l.csv", f"url,url\n{A},{B}\n", "more than one column url"),
        ("l.csv", "url\nhere.mp4\n", "row 2: here.mp4 is a file, not a URL; .*source.kind=folder"),
        ("l.csv", f"url,start_s\n{A},soon\n", "row 2: start_s='soon' is not a time"),
        ("l.csv", f"url,start_s\n{A},-1\n", "row 2: start_s='-1' is not a time"),
        ("l.csv", f"url,end_s\n{A},inf\n", "row 2: end_s='inf' is not a time"),
        ("l.csv", f"url,start_s,end_s\n{A},5,5\n", "row 2: end_s=5 is not after start_s=5"),
    ],
)
def test_a_list_that_cannot_be_used_is_one_clear_line(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    touch(tmp_path, "here.mp4")
    with pytest.raises(UserError, match=message):
        urls(tmp_path / name, text)


def pairs(root: Path, text: str, license: str = "", name: str = "pairs.csv") -> list[Item]:
    root.mkdir(exist_ok=True)
    (root / name).write_text(text)
    return listed(root / name, "folder", license)


def test_a_list_in_a_folder_names_pairs_and_videos_below_it(tmp_path: Path) -> None:
    touch(tmp_path, "in/chicken.webp", "in/sub/chickens.ogg", "in/v.mp4")
    text = "picture,sound,video,license,title,caption\nchicken.webp,sub/chickens.ogg,,CC0-1.0,Hen,clucking\n,,v.mp4,CC-BY-4.0,,\n"
    pair, video = pairs(tmp_path / "in", text)
    assert (pair.source, pair.id, pair.license, pair.title) == (
        "folder",
        "chicken.webp+sub/chickens.ogg",
        "CC0-1.0",
        "Hen",
    )
    assert pair.meta == {"caption": "clucking"}
    assert (video.id, video.url, video.sound_url, video.title) == (
        "v.mp4",
        str(tmp_path / "in/v.mp4"),
        "",
        "v",
    )
    with Fetcher(FetchConfig(), tmp_path / "spool", allow=("CC0-1.0",)) as fetcher:
        media = fetcher.fetch(pair, 64)
    assert media.still and media.sound == tmp_path / "in/sub/chickens.ogg"


@pytest.mark.parametrize(
    "name",
    [
        "../secret.mp4",
        "/etc/passwd",
        "link/secret.mp4",
        "sub/../../secret.mp4",
        "file:///etc/passwd",
        "a\x00b",
    ],
)
def test_a_list_names_no_file_outside_its_folder(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "secret.mp4", "in/sub/x.mp4")
    (tmp_path / "in/link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="row 1: .* is not a path below the list's folder"):
        pairs(tmp_path / "in", json.dumps({"video": name}), "own", "pairs.jsonl")


@pytest.mark.parametrize(
    ("text", "license", "message"),
    [
        ("picture,sound\na.jpg,a.wav\n", "", "no column license"),
        ("picture,sound\na.jpg,\n", "own", "row 2 names a picture and no sound"),
        ("title\nx\n", "own", "row 2 names no file"),
    ],
)
def test_a_list_of_pairs_that_cannot_work_is_one_clear_line(
    tmp_path: Path, text: str, license: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        pairs(tmp_path, text, license)


def test_pieces_have_ids_of_their_own_and_share_their_medium(tmp_path: Path) -> None:
    text = f"id,url,start_s,end_s\none,{A},10,20.5\ntwo,{A},30,\n,{A},,\none,{B},10,20.5\n"
    with pytest.raises(UserError, match="rows 2 and 5"):
        urls(tmp_path / "l.csv", text)
    first, second, whole = urls(tmp_path / "l.csv", text.replace(f"one,{B},10,20.5\n", ""))
    assert [(item.id, item.start_s, item.end_s) for item in (first, second, whole)] == [
        ("one_10000-20500", 10, 20.5),
        ("two_30000-", 30, 0),
        (A, 0, 0),
    ]
    assert {item.media_id for item in (first, second, whole)} == {A}
    assert ban("media", A) in first.bans() and ban("media", "one_10000-20500") in first.bans()


def config(root: Path, output: Path, **more: Any) -> ScrapeConfig:
    quiet = FilterConfig(min_spectral_change=0, min_contrast=0, min_brightness=0)
    settings: dict[str, Any] = {
        "clip": ClipConfig(0.5, mode="grid"),
        "frame": FrameConfig(64),
        "filter": quiet,
        "workers": 0,
    }
    return ScrapeConfig(
        output=str(output), source=SourceConfig(str(root), "folder", "own"), **{**settings, **more}
    )


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of three pieces of one video of 6 s."""
    root = tmp_path_factory.mktemp("pieces")
    film(root / "v.mp4", duration_s=6.0)
    (root / "pairs.csv").write_text(
        "id,video,start_s,end_s,caption\na,v.mp4,1,2,rain\nb,v.mp4,3,4.2,wind\nc,v.mp4,4.5,,\n"
    )
    return root


def test_pieces_of_one_video_fall_into_one_split_and_go_together(pieces: Path, tmp_path: Path) -> None:
    ours = config(pieces / "pairs.csv", tmp_path / "clips", split=SplitConfig(validation=0.5))
    scrape(ours, progress=False)
    dataset = Dataset.open(str(tmp_path / "clips"))
    rows = [row for row in dataset.iter_rows() if row["status"] == "kept"]
    assert {row["media_id"] for row in rows} == {"v.mp4"} and len({row["split"] for row in rows}) == 1
    assert {row["item_id"] for row in rows} == {"folder:a_1000-2000", "folder:b_3000-4200", "folder:c_4500-"}
    spans = {"a": (1, 2), "b": (3, 4.2), "c": (4.5, 6.1)}
    for row in rows:
        first, last = spans[row["item_id"].split(":")[1][0]]
        assert first - 1e-6 <= row["start_s"] and row["start_s"] + row["duration_s"] <= last + 1e-6
    remove(RemoveConfig(str(tmp_path / "clips"), media="v.mp4", reason="asked"))
    assert not [row for row in dataset.iter_rows() if row["status"] == "kept"]
    again = scrape(ours, progress=False)
    assert again.units_done == 0


def test_a_list_that_grew_warns_of_every_id_that_moved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path / "in", *(f"{number}.mp4" for number in range(4)))
    rows = ["id,video", *(f"{number},{number}.mp4" for number in range(3))]
    (tmp_path / "in/pairs.csv").write_text("\n".join(rows))
    scrape(config(tmp_path / "in/pairs.csv", tmp_path / "clips", retry_after_s=0), progress=False)
    caplog.clear()
    (tmp_path / "in/pairs.csv").write_text("\n".join([*rows[:3], "2,3.mp4", "3,2.mp4"]))
    scrape(config(tmp_path / "in/pairs.csv", tmp_path / "clips", retry_after_s=0), progress=False)
    warnings = [line for line in caplog.messages if "already exist for another place" in line]
    assert len(warnings) == 1 and warnings[0].startswith("1 ids")
    assert "2.mp4, is" in warnings[0] and "3.mp4" in warnings[0]


def test_the_worklist_of_before_is_still_read() -> None:
    old = WorkItem("urls:a", 0, {"source": "urls", "id": "a", "url": A, "meta": {}})
    item = Item(**old.payload)
    assert (item.media_id, item.start_s, item.end_s) == ("a", 0, 0)


def test_a_samples_json_is_json_whatever_an_item_or_a_page_brought(tmp_path: Path) -> None:
    jpeg = io.BytesIO()
    Image.new("RGB", (64, 64)).save(jpeg, "JPEG")
    clip = Clip(0.0, 1.6, 16000, np.zeros(25600, np.int16), jpeg.getvalue(), 64, 64, 0.8, 0.0)
    media = Media(tmp_path, tmp_path, False, "own", meta={"gain": -float("inf"), "deep": {"x": [NAN]}})
    row = clip_row(Item("urls", "a", A, meta={"snr": NAN}), "urls:a", media, clip, "train", None, {})
    facts = json.loads(row.members["json"], parse_constant=pytest.fail)
    assert facts["meta"] == {"gain": None, "deep": {"x": [None]}, "snr": None}
