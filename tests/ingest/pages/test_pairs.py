"""Pairs: what the picture calls for, what was heard, and what of it is right."""

import json
from pathlib import Path

import pytest

from configs.load import UserError
from ingest.pages.pairs import evaluation_of
from ingest.scenes import SHAPES
from tests.fakes.evaluated import make_evaluation


def test_a_pair_tells_truth_and_result_of_each_attribute(tmp_path: Path) -> None:
    folder = make_evaluation(tmp_path / "scores")
    rows = [json.loads(line) for line in (folder / "heard.jsonl").read_text().splitlines()]
    pairs = evaluation_of(folder).pairs
    assert [pair.key for pair in pairs] == ["a", "b"]
    for pair, row in zip(pairs, rows, strict=True):
        timbre, pitch, rhythm = pair.marks
        assert timbre.truth == timbre.heard == SHAPES[row["truth"]["timbre"]] and timbre.right
        assert pitch.truth == f"{row['truth']['f0_hz']:.0f} Hz"
        assert pitch.heard == f"{row['generated']['f0_hz']:.0f} Hz"
        assert rhythm.truth == f"{row['truth']['rate_hz']:.1f}/s" and rhythm.off == "0 %"
    assert [(pair.marks[1].right, pair.marks[1].off) for pair in pairs] == [
        (True, "0 cents"),
        (False, "+200 cents"),
    ]


def test_bars_stand_between_chance_and_ceiling(tmp_path: Path) -> None:
    bar = evaluation_of(make_evaluation(tmp_path / "scores")).bars[1]
    assert (bar.visible, bar.audible) == ("size", "pitch")
    assert (bar.generated, bar.chance, bar.ceiling, bar.shuffled) == (95, 20, 100, 21)
    assert bar.closed == pytest.approx(100 * 0.75 / 0.8) and (bar.low, bar.high) == (90, 100)


def test_older_evaluations_have_no_marks_and_no_intervals(tmp_path: Path) -> None:
    folder = make_evaluation(tmp_path / "scores", heard=False)
    table = json.loads((folder / "scores.json").read_text())
    del table["intervals"]
    (folder / "scores.json").write_text(json.dumps(table))
    shown = evaluation_of(folder)
    assert [pair.marks for pair in shown.pairs] == [[], []]
    assert shown.bars[0].low is None and shown.bars[0].closed_interval is None


def test_a_folder_without_scores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no scores.json there"):
        evaluation_of(tmp_path)
