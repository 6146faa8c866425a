"""heard.jsonl: what was heard of each clip, and which of that is right."""

from pathlib import Path

from cluster.jsonl import read_lines
from training.heard import heard_of, write_heard
from training.judge import Attributes


def test_a_row_says_what_is_right_of_both_sounds(tmp_path: Path) -> None:
    truth: Attributes = {"timbre": 3, "f0_hz": 200.0, "rate_hz": 4.0}
    # 100 cents and 5 % off
    made: Attributes = {"timbre": 3, "f0_hz": 200.0 * 2 ** (100 / 1200), "rate_hz": 4.2}
    real: Attributes = {"timbre": 1, "f0_hz": 201.0, "rate_hz": 4.0}
    write_heard(tmp_path / "heard.jsonl", heard_of(["a"], [truth], [made], [real]))
    (row,) = read_lines(tmp_path / "heard.jsonl")
    assert row["right"] == {"timbre": True, "f0": False, "rate": True}
    assert row["right_real"] == {"timbre": False, "f0": True, "rate": True}
    assert (row["key"], row["truth"], row["generated"], row["real"]) == ("a", truth, made, real)
