"""`source.kind=youtube`: which of the two kinds of `source.path` it is, and what is refused before any work."""

from pathlib import Path

import pytest

from configs.load import UserError
from ingest.fetch.access import YoutubeConfig
from ingest.fetch.settings import FetchConfig
from ingest.sources import videos
from ingest.sources.settings import SourceConfig


def no_list(*args: object) -> None:
    raise AssertionError("no list of YouTube is requested")


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(videos, "enumerate_youtube", no_list)
    (tmp_path / "a.csv").write_text("youtube_id,start_s,end_s\n--aaaaaaaaa,3,13\n")
    return tmp_path / "a.csv"


def test_a_table_of_ids_is_read_without_the_network(table: Path) -> None:
    (item,) = videos.items(SourceConfig(str(table), "youtube"), FetchConfig(), "")
    assert (item.source, item.id, item.start_s, item.end_s) == (
        "youtube",
        "--aaaaaaaaa_3000-13000",
        3.0,
        13.0,
    )


def test_a_broken_cookie_file_is_reported_before_any_work(table: Path, tmp_path: Path) -> None:
    (tmp_path / "cookies.txt").write_text("no cookie\n")
    config = SourceConfig(
        str(table), "youtube", youtube=YoutubeConfig(cookies_file=str(tmp_path / "cookies.txt"))
    )
    with pytest.raises(UserError, match="not in Netscape's cookie format"):
        videos.items(config, FetchConfig(), "")


def test_the_operators_license_is_refused(table: Path) -> None:
    with pytest.raises(UserError, match="YouTube states a license per video"):
        videos.items(SourceConfig(str(table), "youtube", license="own"), FetchConfig(), "")
