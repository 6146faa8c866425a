"""README's table is what benchmarks/results holds, written by docs/results.py."""

import json
from pathlib import Path

import pytest

from docs.results import END, README, RESULTS, ROWS, START, keep_demo, table, written


def test_readme_has_the_table_that_the_command_writes() -> None:
    text = README.read_text()
    assert written(text, table()) == text, "run: python docs/results.py"


def test_a_result_that_changes_changes_its_row(tmp_path: Path) -> None:
    for name in ROWS:
        (tmp_path / name).write_text((RESULTS / name).read_text())
    record = json.loads((tmp_path / "chaos.json").read_text())
    (tmp_path / "chaos.json").write_text(json.dumps({**record, "kills": 99, "date": "2030-01-01"}))
    rows, now = table(tmp_path).splitlines(), table().splitlines()
    changed = [row for row in rows if row not in now]
    assert len(changed) == 1 and "99 kills | 2030-01-01" in changed[0]


def test_only_what_is_between_the_markers_is_written() -> None:
    assert written(f"a\n{START}\nold\n{END}\nb", "new") == f"a\n{START}\nnew\n{END}\nb"
    with pytest.raises(ValueError, match="has not the lines"):
        written("no markers", "new")


def test_the_demos_scores_are_kept_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = json.loads((RESULTS / "demo.json").read_text())
    changed = {**kept, "num_clips": 12, "examples": ["a"]}
    (tmp_path / "scores.json").write_text(json.dumps(changed))
    monkeypatch.setattr("docs.results.RESULTS", tmp_path)
    keep_demo(tmp_path)
    written_now = json.loads((tmp_path / "demo.json").read_text())
    assert written_now["num_clips"] == 12 and written_now["scores"] == kept["scores"]
    assert "examples" not in written_now and written_now.keys() == kept.keys()
