"""Lists of YouTube ids as datasets publish them become videos and pieces; the license stays YouTube's to
state.
"""

import json
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.load import UserError
from ingest.fetch.access import YoutubeConfig
from ingest.fetch.fetcher import Fetcher
from ingest.sample import Item
from ingest.sources.registry import enumerate_items
from ingest.sources.settings import SourceConfig
from tests.ingest.sources.test_registry import listed
from tests.ingest.sources.test_youtube import Tube, Video, network, streams, tube, youtube

assert streams and tube and youtube  # fixtures

ONE, TWO = "--PJHxphWEs", "0a1B2c3D4_-"


def videos(path: Path, text: str) -> list[Item]:
    path.write_text(text)
    return listed(path, "youtube", "")


def spans(items: list[Item]) -> list[tuple[str, float, float]]:
    return [(item.media_id, item.start_s, item.end_s) for item in items]


@pytest.mark.parametrize("header", ["", "id,start,label,split\n", "YTID, start_time, label, split\n"])
def test_vggsound_gives_pieces_of_ten_seconds(
    tmp_path: Path, header: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        items = videos(tmp_path / "v.csv", f'{header}{ONE},30,"rain, heavy",test\n{TWO},0,wind,train\n')
    assert spans(items) == [(ONE, 30, 40), (TWO, 0, 10)]
    assert [item.id for item in items] == [f"{ONE}_30000-40000", f"{TWO}_0-10000"]
    assert items[0].url == f"https://www.youtube.com/watch?v={ONE}" and (
        items[0].source,
        items[0].license,
    ) == ("youtube", "")
    assert items[0].meta == {"label": "rain, heavy", "split": "test", "found_by": "v.csv"}
    assert sum("source.kind=folder source.path=LIST.csv" in line for line in caplog.messages) == 1
    assert "gives starts only" in caplog.text


def test_audioset_names_its_columns_in_a_comment(tmp_path: Path) -> None:
    text = (
        "# Segments csv created Sun Mar  5 10:54:31 2017\n# num_ytids=2, num_segs=2\n"
        "# YTID, start_seconds, end_seconds, positive_labels\n"
        f'{ONE}, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n{ONE}, 50.000, 60.000, "/m/09x0r"\n'
    )
    items = videos(tmp_path / "a.csv", text)
    assert spans(items) == [(ONE, 30, 40), (ONE, 50, 60)] and len({item.id for item in items}) == 2
    assert items[0].meta["positive_labels"] == "/m/09x0r,/t/dd00088"


def test_parquet_and_json_lines_and_captions(tmp_path: Path) -> None:
    rows = [
        {"youtube_id": ONE, "start_s": 1.5, "end_s": 3, "caption": "rain\u2028"},
        {"youtube_id": TWO, "title": "Wind", "license": "own"},
    ]
    items = videos(tmp_path / "l.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    assert spans(items) == [(ONE, 1.5, 3), (TWO, 0, 0)] and items[0].meta["caption"] == "rain\u2028"
    assert (items[1].id, items[1].title, items[1].license) == (TWO, "Wind", "")
    pq.write_table(pa.table({"id": [ONE.encode()], "start_s": [float("nan")]}), tmp_path / "l.parquet")
    assert spans(listed(tmp_path / "l.parquet", "youtube", "")) == [(ONE, 0, 0)]


def test_bare_ids_may_stand_among_urls(tmp_path: Path) -> None:
    items = videos(tmp_path / "l.txt", f"# mine\n{ONE}\nhttps://youtu.be/{TWO}\n{ONE}\n")
    assert [item.id for item in items] == [ONE, TWO]
    assert [item.id for item in videos(tmp_path / "l.csv", f"{ONE}\n{TWO}\n")] == [ONE, TWO]
    assert [item.id for item in videos(tmp_path / "u.csv", f"https://youtu.be/{TWO}\n")] == [TWO]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{ONE},30,rain,test\n#NAME?,0,wind,train\n", "row 2: '#NAME\\?' is neither an id"),
        (f"{ONE},30,rain,test\n{TWO},soon,wind,train\n", "row 2: start='soon' is not a time"),
        (f"{ONE},30,rain,test\n{TWO},3,wind, mild,train\n", "row 2 has 5 cells, not 4"),
        ("id,start_s\nshort,1\n", "row 2: 'short' is neither an id"),
        (f"id,start_s,end_s\n{ONE},5,4\n", "row 2: end_s=4 is not after start_s=5"),
    ],
)
def test_a_row_that_cannot_be_a_piece_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        videos(tmp_path / "l.csv", text)


def test_a_piece_is_fetched_as_its_video_and_keeps_its_span(
    tube: Tube, youtube: YoutubeConfig, tmp_path: Path
) -> None:
    tube.add(Video("marked00000"))
    (tmp_path / "l.csv").write_text("id,start_s,end_s\nmarked00000,1,2.5\n")
    (item,) = enumerate_items(
        SourceConfig(str(tmp_path / "l.csv"), "youtube", youtube=youtube), network(tube)
    )
    with Fetcher(network(tube), tmp_path / "spool", ("CC-BY-3.0",), {"youtube": youtube}) as fetcher:
        media = fetcher.fetch(item, 64)
    assert (media.start_s, media.end_s, media.license) == (1, 2.5, "CC-BY-3.0")
