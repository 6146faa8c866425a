"""Pages of iNaturalist's API: short ones, queries with parameters of their own, and what is passed over."""

import json
import logging
import time
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


def test_an_empty_page_is_logged_where_more_are_counted(api: Api, caplog: pytest.LogCaptureFixture) -> None:
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


def test_the_api_is_paged_by_id_and_each_pair_comes_once(api: Api) -> None:
    api.observations[4]["photos"] = api.observations[3]["photos"]
    api.observations[4]["sounds"] = api.observations[3]["sounds"]  # the same media under two observations
    items = listed(api.url, address=api.address)
    assert [item.id for item in items] == [f"{10 * id}_{100 * id}" for id in (1, 2, 3, 4, 6, 7)]
    assert [query["id_above"] for _, query in api.asked] == [["0"], ["3"], ["6"]]
    assert all(
        query["taxon_id"] == ["3"] and query["sounds"] == ["true"] and query["order"] == ["asc"]
        for _, query in api.asked
    )


def test_max_observations_bounds_the_listing(api: Api) -> None:
    assert len(listed(api.url, address=api.address, max_observations=4)) == 4
    assert len(listed(api.url, address=api.address, max_observations=0)) == 7


def test_requests_keep_the_distance_that_the_rate_demands(api: Api) -> None:
    listed(api.url, address=api.address, requests_per_min=200)
    times = [when for when, _ in api.asked]
    assert len(times) == 3 and all(after - before >= 0.29 for before, after in zip(times, times[1:]))


def test_a_busy_api_is_waited_for_as_it_asks(api: Api) -> None:
    api.answers = [(429, {"Retry-After": "1"})]
    started = time.monotonic()
    assert len(listed(api.url, address=api.address)) == 7
    assert time.monotonic() - started >= 1.0 and len(api.asked) == 4


def test_a_retry_keeps_the_distance_and_counts(api: Api, tmp_path: Path) -> None:
    api.answers = [(503, {}), (200, {}), (429, {"Retry-After": "1"})]
    assert len(listed(api.url, str(tmp_path), api.address, requests_per_min=120)) == 7
    times = [when for when, _ in api.asked]
    assert len(times) == 5 and all(after - before >= 0.49 for before, after in zip(times, times[1:]))
    (spent,) = json.loads((tmp_path / "listing/inaturalist-requests.json").read_text()).values()
    assert spent == 5
    api.asked.clear()
    api.answers = [(503, {}), (503, {}), (503, {})]
    with pytest.raises(UserError, match="cannot be listed: server_error"):
        listed(api.url, address=api.address, requests_per_day=2)
    assert len(api.asked) == 2  # not a third: the day's budget is spent


def test_a_429_without_a_retry_after_is_not_retried(api: Api) -> None:
    api.answers = [(200, {}), (429, {})]
    assert len(listed(api.url, address=api.address)) == 3 and len(api.asked) == 2


def test_a_long_busy_api_ends_the_list_and_the_next_run_resumes(api: Api, tmp_path: Path) -> None:
    api.answers = [(200, {}), (429, {"Retry-After": "3600"})]
    assert len(listed(api.url, str(tmp_path), api.address)) == 3
    api.asked.clear()
    assert len(listed(api.url, str(tmp_path), api.address)) == 7
    assert [query["id_above"] for _, query in api.asked] == [["3"], ["6"]], (
        "a full page is never asked for again"
    )
    api.answers = [(429, {"Retry-After": "3600"})]
    with pytest.raises(UserError, match="cannot be listed: rate_limited"):
        listed(api.url, address=api.address)


def test_the_days_budget_holds_over_runs(api: Api, tmp_path: Path) -> None:
    assert len(listed(api.url, str(tmp_path), api.address, requests_per_day=2)) == 6
    assert len(listed(api.url, str(tmp_path), api.address, requests_per_day=2)) == 6
    assert len(api.asked) == 2
    assert len(listed(api.url, str(tmp_path), api.address, requests_per_day=3)) == 7
    assert len(api.asked) == 3


def test_an_answer_of_another_form_is_one_clear_line(api: Api) -> None:
    for raw in (b"<html>", b'{"error": "x"}', b'{"results": [{"id": "x"}]}'):
        api.raw = raw
        with pytest.raises(UserError, match="the answer has an unknown form"):
            listed(api.url, address=api.address)


def test_the_api_is_behind_the_guard(api: Api) -> None:
    with pytest.raises(UserError, match="cannot be listed: address"):
        listed(api.url, requests_per_min=60)
    assert not api.asked
