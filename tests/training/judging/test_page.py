"""What people read of judged sounds: the table, the warning, and the page from best to worst."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from training.judging.figures import Pair
from training.judging.page import MARK, markdown, shown, shown_pairs, write_pages
from training.listening import PICTURES_PER_PAGE

CELL = {"value": 0.5, "interval": [0.4, 0.61234]}


def judged(**changes: Any) -> dict[str, Any]:
    figure = {
        "name": "kl",
        "judge": "a|b",
        "better": "lower",
        "n": 2,
        "real": None,
        "chance": CELL,
        "codec": None,
    }
    judge = {"name": "a|b", "kind": "AST", "sha256": "f00", "parts": {}, "learnt_by_model": "no"}
    basic = {
        "generated": "runs/<m>",
        "reference": "clips",
        "figures": [{**figure, "generated": CELL}],
        "judges": [judge],
        "num_pairs": 2,
        "num_media": 2,
        "seed": 0,
        "resampled": 1000,
        "resampled_frechet": 100,
        "order": "kl",
        "versions": {"torch": "2"},
    }
    return {**basic, **changes}


def test_the_table_has_every_column_and_who_judged() -> None:
    text = markdown(judged())
    assert "| kl | a\\|b | lower | 0.500 [0.400, 0.612] |  | 0.500 [0.400, 0.612] |  | 2 |" in text
    assert "`f00` | no |" in text and "torch 2" in text and "prove nothing" not in text
    assert shown(None) == "" and shown({"value": 1.0, "interval": None}) == "1.000"


def test_a_judge_that_taught_the_model_is_marked(tmp_path: Path) -> None:
    marked = judged(judges=[{**judged()["judges"][0], "learnt_by_model": "yes: its scores prove nothing"}])
    assert "**a\\|b taught this model: its figures prove nothing.**" in markdown(marked)
    write_pages(tmp_path, marked, [])
    assert '<p class="warning">' in (tmp_path / "index.html").read_text()


def test_pages_go_from_best_to_worst_and_escape_names(tmp_path: Path) -> None:
    count = PICTURES_PER_PAGE + 1
    pairs = [Pair(f"<i>{number}", tmp_path / f"g {number}.wav", Path("/real.wav")) for number in range(count)]
    values = {"kl": np.arange(count)[::-1] / 10}
    ranked = np.argsort(values["kl"]).tolist()
    entries = shown_pairs(pairs, values, "kl", ranked, tmp_path)
    assert [entry["order"] for entry in entries[:2]] == ["kl 0.000", "kl 0.100"]
    assert write_pages(tmp_path, judged(), entries) == "index.html"
    first, second = ((tmp_path / name).read_text() for name in ("index.html", "page-2.html"))
    assert MARK in first and "<i>" not in first and "runs/&lt;m&gt;" in first
    assert re.findall(r'src="\./(g%20\d+\.wav)"', first)[0] == f"g%20{count - 1}.wav"
    assert re.findall(r'src="\./(g%20\d+\.wav)"', second) == ["g%200.wav"]
    # where no judge sees pairs, they come by name
    assert [entry["name"] for entry in shown_pairs(pairs, {}, "", [], tmp_path)][:2] == ["<i>0", "<i>1"]
