"""Charts: a long tail has one bar, and a run that crashed has its curve."""

import json
from pathlib import Path

import pytest

from configs.load import UserError
from ingest.pages.charts import EventMark, charts_of, loss_curve
from ingest.pages.survey import Survey


def run_folder(root: Path, steps: int, end: str = "") -> Path:
    lines = [json.dumps({"step": step, "loss": 1 / step}) for step in range(1, steps + 1)]
    (root / "metrics.jsonl").write_text("\n".join(lines) + "\n" + end)
    return root


def test_a_long_tail_falls_into_the_last_bar() -> None:
    survey = Survey(kept=10, seconds=16.0)
    survey.clips_per_item.update({1: 500, 2: 300, 64: 195, 5000: 5})
    chart = charts_of(survey)[0]
    assert [bar.name for bar in chart.bars] == ["1 to 2 clips: 800 items", "63 to 5000 clips: 200 items"]
    assert chart.label == "clips kept of an item, 1.6 s each"
    assert chart.top == "800 items"
    assert chart.bars[0].height == 90


def test_nothing_known_is_no_chart() -> None:
    assert charts_of(Survey()) == []


@pytest.mark.parametrize(
    "end", ['{"step": 41, "lo', '{"step": 41}\n', "\0\0\0", '{"step": 41, "loss": null}\n']
)
def test_a_half_written_line_is_left_out(tmp_path: Path, end: str) -> None:
    assert loss_curve(run_folder(tmp_path, 40, end)) == loss_curve(run_folder(tmp_path, 40))


def test_events_are_marked_at_their_step(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, 40)
    events = [{"event": "killed", "step": 20}, {"event": "saved", "step": 30}]
    (folder / "events.jsonl").write_text("\n".join(map(json.dumps, events)) + '\n{"event": "resu')
    assert loss_curve(folder).marks == [EventMark(400.0, "killed", 20)]


def test_a_folder_without_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is this a run folder"):
        loss_curve(tmp_path)
