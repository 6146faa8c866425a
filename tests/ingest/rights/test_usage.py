"""Statements against machine use: which part of one opts out, and which part never does."""

import datetime
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.rights.usage import (
    GENERAL_KEYS,
    NO_VALUES,
    TRAINING_KEYS,
    YES_VALUES,
    TdmRule,
    header_opt_out,
    json_ld_opt_out,
    meta_opt_out,
    robots_opt_out,
    tdmrep_rules,
    usage_opt_out,
)

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@given(st.sampled_from(TRAINING_KEYS), st.sampled_from(sorted(NO_VALUES)), st.sampled_from(GENERAL_KEYS))
def test_a_no_to_training_outweighs_a_yes_to_everything(key: str, value: str, general: str) -> None:
    assert usage_opt_out(f"{general}=y, {key.upper()} = {value}") == f"{key}={value}"


@given(st.sampled_from(TRAINING_KEYS), st.sampled_from(sorted(YES_VALUES)), st.sampled_from(GENERAL_KEYS))
def test_a_yes_to_training_outweighs_a_general_no(key: str, value: str, general: str) -> None:
    assert usage_opt_out(f"{general}=n, {key}={value}") == ""
    assert usage_opt_out(f"{general}=n") == f"{general}=n"


@pytest.mark.parametrize(
    ("text", "directive"),
    [
        ("noai", "noai"),
        ("nofollow, NoIndex", "noindex"),
        ("googlebot: noindex", ""),
        ("googlebot: noindex, stillsound: noai", "noai"),
        ("googlebot: nofollow; robots: none", "none"),
        ("max-image-preview: none", ""),
        ("nosnippet", ""),
    ],
)
def test_a_directive_is_of_the_agent_before_it(text: str, directive: str) -> None:
    assert robots_opt_out(text) == directive


def test_directives_about_search_can_be_left_aside() -> None:
    assert robots_opt_out("noindex, noimageai", index=False) == "noimageai"


@pytest.mark.parametrize(
    ("date", "is_over"),
    [
        ("25 Jun 2010 15:00:00 GMT", True),
        ("Friday, 25-Jun-10 15:00:00 UTC", True),
        ("2025-12-31T23:59:59", True),
        ("2026-01-01T00:00:01", False),
        ("someday", False),
    ],
)
def test_unavailable_after_counts_once_it_is_over(date: str, is_over: bool) -> None:
    assert bool(robots_opt_out(f"unavailable_after: {date}", now=NOW)) == is_over


@pytest.mark.parametrize(
    ("tags", "reservation", "usage", "opt_out"),
    [
        (["all", "noai"], None, [], "X-Robots-Tag: noai"),
        ([], "1", [], "tdm-reservation: 1"),
        ([], "2", [], ""),
        ([], "0", [], ""),
        ([], None, ["search=y", "train-ai=n"], "Content-Usage: train-ai=n"),
        ([], None, [], ""),
    ],
)
def test_a_header_that_opts_out_is_named(
    tags: list[str], reservation: str | None, usage: list[str], opt_out: str
) -> None:
    assert header_opt_out(tags, reservation, usage) == opt_out


@pytest.mark.parametrize(
    ("name", "content", "opt_out"),
    [
        (" ROBOTS", "noai,  follow", "meta robots: noai, follow"),
        ("gptbot", "noai", ""),
        ("tdm-reservation", "1", "meta tdm-reservation: 1"),
        ("content-signal", "ai-train=no", "meta content-signal: ai-train=no"),
        ("description", "noai", ""),
    ],
)
def test_a_meta_tag_that_opts_out_is_named(name: str, content: str, opt_out: str) -> None:
    assert meta_opt_out(name, content) == opt_out


@pytest.mark.parametrize(
    ("node", "opt_out"),
    [
        ({"usageInfo": "http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED"}, "usageInfo: DMI-PROHIBITED"),
        ({"usageInfo": {"name": "noml, noai"}}, "usageInfo: noai"),
        ({"usageInfo": "train-ai=n"}, "usageInfo: train-ai=n"),
        ({"tdm:reservation": {"@value": 1}}, "tdm:reservation: 1"),
        ({"usageInfo": "https://a.example/terms"}, ""),
        ({"name": "noai"}, ""),
    ],
)
def test_json_ld_opts_out_at_any_depth(node: object, opt_out: str) -> None:
    script = json.dumps({"@graph": [{"hasPart": [node]}]})
    assert json_ld_opt_out(["{not json", script]) == (f"JSON-LD {opt_out}" if opt_out else "")


def test_rules_of_tdmrep_keep_their_order_and_what_is_no_rule_is_left_out() -> None:
    rules = [
        {"location": "/b", "tdm-reservation": 1, "tdm-policy": "https://a.example/p"},
        {"location": "/a", "tdm-reservation": "0"},
        {"location": "/c", "tdm-reservation": 7},
        {"location": 3, "tdm-reservation": 1},
        None,
    ]
    assert tdmrep_rules(json.dumps(rules).encode()) == [
        TdmRule("/b", True, "https://a.example/p"),
        TdmRule("/a", False, ""),
    ]


@given(st.binary(max_size=50))
def test_no_bytes_break_the_reader_of_tdmrep(data: bytes) -> None:
    assert isinstance(tdmrep_rules(data), list)
