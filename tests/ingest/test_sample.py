"""What travels between the steps: ids that never meet, what is split together, texts without secrets."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.sample import ban, bans_of, safe_id, sample_key, split_group, without_tokens


def test_the_split_goes_by_media_observer_or_channel() -> None:
    assert split_group("urls", "1", "ann", "media") != split_group("urls", "2", "ann", "media")
    assert split_group("inaturalist", "1_2", "ann", "media") == split_group(
        "inaturalist", "3_4", "ann", "media"
    )
    assert split_group("youtube", "1", "UCa", "channel") == split_group("youtube", "2", "UCa", "channel")
    assert split_group("urls", "1", "", "channel") != split_group("urls", "2", "", "channel")


@given(st.lists(st.text(min_size=1, max_size=100), min_size=2, max_size=2, unique=True))
def test_two_ids_never_meet(ids: list[str]) -> None:
    first, second = map(safe_id, ids)
    assert first != second
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,80}", first)


def test_a_key_has_all_ids_and_the_start() -> None:
    assert sample_key("inaturalist", ("12", "34"), 1.6) == "inaturalist_12_34_1600"


def test_a_token_is_masked_and_the_rest_of_a_url_stays() -> None:
    url = "https://host/a.mp4?id=3&token=abc&key=def"
    assert without_tokens(url) == "https://host/a.mp4?id=3&token=***&key=***"
    assert without_tokens(url, apart=True) != without_tokens(url.replace("abc", "abd"), apart=True)


@pytest.mark.parametrize(
    "medium", [("web", "1", "ann", "CC-BY-4.0"), ("web", "web:1", "", ""), ("iNat", "1_2", "ann", "")]
)
def test_a_ban_of_any_kind_keeps_its_medium_out(medium: tuple[str, str, str, str]) -> None:
    source, media_id, channel, license = medium
    bans = bans_of(*medium)
    assert ban("media", media_id) in bans and ban("media", f"{source}:{media_id}") in bans
    assert not channel or ban("channel", channel) in bans
    assert not license or ban("license", license) in bans
    assert ban("media", "another") not in bans
