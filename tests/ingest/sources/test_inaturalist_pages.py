"""Pages of iNaturalist's API: short ones, queries with parameters of their own, and what is passed over."""

import json
import logging
from pathlib import Path

import pytest

from configs.load import UserError
from tests.ingest.sources.test_inaturalist import Api, api, listed, observation

assert api  # the fixture


def ids(count: int, hidden: tuple[int, ...] = ()) -> list[str]:
    return [f"{10 * id}_{100 * id}" for id in range(1, count + 1) if id not in hidden]


@pytest.mark.parametrize("hidden", [(2,), (3, 4), (1, 7)])
def test_a_short_page_is_not_the_last_where_more_are_counted(
    api: Api, tmp_path: Path, hidden: tuple[int, ...]
) -> None:
    api.hidden = set(hidden)
    assert [item.id for item in listed(api.url, str(tmp_path), api.address)] == ids(7, hidden)
    asked = len(api.asked)
    assert [item.id for item in listed(api.url, str(tmp_path), api.address)] == ids(7, hidden)
    assert len(api.asked) - asked <= 2, "pages that are not the last are kept"


def test_a_page_of_nothing_is_told_where_more_are_counted(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    api.hidden = {4, 5, 6}
    assert [item.id for item in listed(api.url, address=api.address)] == ids(3)
    assert "the API counts 4 more observations above id 3 and lists none of them" in caplog.text


def test_an_api_that_always_counts_all_is_read_to_its_end(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    api.counts_all = True
    assert [item.id for item in listed(api.url, address=api.address)] == ids(7)
    assert len(api.asked) == 3 and "lists none" not in caplog.text


@pytest.mark.parametrize(
    "more",
    ["per%5Fpage=1&per_page=2&page=2", "order=desc&order_by=created_at&PAGE[]=3", "sounds=false&photos=#map"],
)
def test_a_querys_own_paging_does_not_count(api: Api, more: str) -> None:
    url = f"{api.url}&place_id=1%2C2&{more}"
    assert [item.id for item in listed(url, address=api.address)] == ids(7)
    for _, query in api.asked:
        assert (
            query["per_page"] == ["3"]
            and query["order"] == ["asc"]
            and query["sounds"] == ["true"]
            and "page" not in query
        )
        assert query["taxon_id"] == ["3"] and query["place_id"] == ["1,2"]


def test_a_query_may_begin_above_an_id(api: Api) -> None:
    assert [item.id for item in listed(f"{api.url}&id_above=2&id_above=4", address=api.address)] == ids(7)[4:]
    with pytest.raises(UserError, match="id_above=x is not an id"):
        listed(f"{api.url}&id_above=x", address=api.address)


def test_lines_of_an_export_end_at_line_feeds_only(tmp_path: Path) -> None:
    lines = [{**observation(id), "description": "a\u2028b\x85c\x0bd"} for id in (1, 2)]
    (tmp_path / "o.jsonl").write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\r\n" for line in lines), encoding="utf-8"
    )
    assert [item.id for item in listed(tmp_path / "o.jsonl")] == ids(2)


def test_observations_without_a_pair_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "o.json").write_text(
        json.dumps([observation(1), {**observation(2), "sounds": []}, {"id": 3}])
    )
    (tmp_path / "o.csv").write_text("id,image_url,sound_url\n5,https://a/photos/50/medium.jpeg,\n")
    with caplog.at_level(logging.INFO):
        assert [item.id for item in listed(tmp_path / "o.json")] == ids(1)
        assert listed(tmp_path / "o.csv") == []
    assert (
        "2 observations have no pair" in caplog.text and "1 of 1 rows lack a photo or a sound" in caplog.text
    )
