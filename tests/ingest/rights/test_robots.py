"""robots.txt as RFC 9309 has it: which pattern matches, which rule decides, and that rules survive JSON."""

import json
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.rights.robots import Rules, matches, normalise, parse_ai_txt, parse_robots, path_of

AGENTS = ("stillsound",)
ENDS = st.sampled_from(["", "$"])
PATTERNS = st.builds(str.__add__, st.text(alphabet="a*/", max_size=4), ENDS)
PATHS = st.text(alphabet="ab/", max_size=5)


def by_regex(pattern: str, path: str) -> bool:
    """`matches` by another engine."""
    anchored = pattern.endswith("$")
    pieces = map(re.escape, pattern.removesuffix("$").split("*"))
    return bool(re.match(".*".join(pieces) + (r"\Z" if anchored else ""), path, re.DOTALL))


@given(PATTERNS, PATHS)
def test_a_pattern_matches_as_its_regular_expression_does(pattern: str, path: str) -> None:
    assert matches(pattern, path) == by_regex(pattern, path)


@given(st.text(max_size=30))
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(st.lists(PATTERNS, max_size=5), st.lists(PATTERNS, max_size=5), PATHS)
def test_the_longest_pattern_decides_and_allow_wins_a_tie(
    allow: list[str], disallow: list[str], path: str
) -> None:
    lengths = [
        max((len(pattern) for pattern in patterns if matches(pattern, path)), default=-1)
        for patterns in (allow, disallow)
    ]
    assert Rules(tuple(allow), tuple(disallow)).decide(path)[0] == (lengths[0] >= lengths[1])


LINES = (
    "User-agent: *",
    "User-agent: stillsound",
    "Disallow: /a",
    "Allow: /a*b$",
    "Content-Usage: /c train-ai=n",
    "Content-Signal: ai-train=no",
    "License: /rsl.xml",
    "",
)


@given(st.lists(st.sampled_from(LINES), max_size=20))
def test_rules_survive_json(lines: list[str]) -> None:
    rules = parse_robots("\n".join(lines).encode(), AGENTS)
    assert Rules.from_json(json.loads(json.dumps(rules.to_json()))) == rules


@given(st.binary(max_size=100))
def test_no_bytes_break_the_parser(data: bytes) -> None:
    assert parse_robots(data, AGENTS).decide("/")[0] in (True, False)


@pytest.mark.parametrize(
    ("pattern", "is_about_media"), [("*.mp4", True), ("/*.JPG$", True), ("*.html", False), ("/", True)]
)
def test_ai_txt_about_texts_bars_no_media(pattern: str, is_about_media: bool) -> None:
    rules = parse_ai_txt(f"User-Agent: *\nDisallow: {pattern}".encode(), AGENTS)
    assert bool(rules.disallow) == is_about_media


def test_a_path_keeps_its_query() -> None:
    assert path_of("https://a.example?b=1") == "/?b=1"


@pytest.mark.parametrize("line", ["/*a*a*a*a*a*a*a*b$", "/%d*a*b*c*d"])
def test_hostile_patterns_are_matched_in_bounded_time(line: str) -> None:
    lines = [f"Disallow: {line % index if '%' in line else line}" for index in range(16_000)]
    started_s = time.process_time()
    rules = parse_robots("\n".join(["User-agent: *", *lines]).encode(), AGENTS)
    assert rules.decide("/" + "a" * 2000)[0]
    assert time.process_time() - started_s < 3
