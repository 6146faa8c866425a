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


@given(
    st.text(alphabet="User-agent: *stillsound\nDisallow: /a#License: Content-Usage: train-ai=n", max_size=300)
)
def test_rules_survive_json(text: str) -> None:
    rules = parse_robots(text.encode(), AGENTS)
    assert Rules.from_json(json.loads(json.dumps(rules.to_json()))) == rules


def test_rules_of_all_kinds_survive_json() -> None:
    lines = "Disallow: /a\nAllow: /b\nContent-Usage: /c train-ai=n\nLicense: /rsl.xml"
    rules = parse_robots(f"User-agent: *\n{lines}".encode(), AGENTS)
    assert all((rules.allow, rules.disallow, rules.usage, rules.licenses))
    assert Rules.from_json(json.loads(json.dumps(rules.to_json()))) == rules


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
