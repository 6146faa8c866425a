"""Curves: a run that crashed has its curve, and one that was killed and resumed its chapter."""

import json
from pathlib import Path

import pytest

from cluster.jsonl import JsonObject
from configs.load import UserError
from ingest.pages.curves import EventMark, ValidationPoint, loss_curve, resumption_of


def run_folder(root: Path, steps: int, end: str = "") -> Path:
    lines = [json.dumps({"step": step, "loss": 1 / step}) for step in range(1, steps + 1)]
    (root / "metrics.jsonl").write_text("\n".join(lines) + "\n" + end)
    return root


def tell(folder: Path, *events: JsonObject) -> None:
    (folder / "events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))


@pytest.mark.parametrize(
    "end", ['{"step": 41, "lo', '{"step": 41}\n', "\0\0\0", '{"step": 41, "loss": null}\n']
)
def test_a_half_written_line_is_left_out(tmp_path: Path, end: str) -> None:
    assert loss_curve(run_folder(tmp_path, 40, end)) == loss_curve(run_folder(tmp_path, 40))


def test_events_are_marked_at_their_step(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, 40)
    events = [{"event": "killed", "step": 20}, {"event": "saved", "step": 30}]
    (folder / "events.jsonl").write_text("\n".join(map(json.dumps, events)) + '\n{"event": "resu')
    assert loss_curve(folder).marks == [EventMark(200.0, "killed", 20)]


def test_a_folder_without_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is this a run folder"):
        loss_curve(tmp_path)


def test_validation_and_what_it_is_of_are_told(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, 40)
    lines = [{"step": 20, "loss": 0.5}, {"step": 40, "loss": float("nan")}, {"step": 40, "loss": 0.25}]
    (folder / "validation.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "run.json").write_text('{"config": {"recipe": "flow"}}')
    curve = loss_curve(folder)
    # the top is nearly the first loss, 1; it is drawn 10 below the edge of 160
    half, quarter = curve.validation
    assert half == ValidationPoint(200.0, half.y, 20, 0.5) and 70 < half.y < 100 < quarter.y < 130
    assert (curve.recipe, curve.name) == ("flow", folder.name)


def test_losses_below_zero_are_on_the_curve(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1}\n{"step": 2, "loss": -1}\n')
    curve = loss_curve(tmp_path)
    assert curve.bottom == -1 and curve.raw.endswith("400.0,160.0")


def test_a_run_that_was_killed_and_went_on_has_its_chapter(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, 100)
    killed = {"event": "killed", "step": 52, "pid": 7, "time": 100.0}
    resumed = {"event": "resumed", "step": 50, "pids": [8, 9], "time": 113.5}
    tell(folder, {"event": "started", "step": 0}, killed, resumed)
    told = resumption_of(folder)
    assert told and (told.killed, told.resumed, told.final, told.num_workers) == (52, 50, 100, 2)
    assert told.seconds == 13.5 and told.steps_shown == (20, 102)
    assert told.lost == "" and told.largest_difference is None
    # as the demo records it since: what the killed workers had computed
    lost = {"51": 1 / 51, "52": 1 / 52}
    tell(folder, {**killed, "lost": lost}, resumed)
    told = resumption_of(folder)
    assert told and told.largest_difference == 0 and len(told.lost.split()) == 2
    tell(folder, {**killed, "lost": {**lost, "52": 1 / 52 + 0.5}}, resumed)
    told = resumption_of(folder)
    assert told and told.largest_difference == pytest.approx(0.5)


def test_only_a_kill_that_was_survived_is_a_chapter(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, 20)
    assert resumption_of(folder) is None
    tell(folder, {"event": "resumed", "step": 5}, {"event": "killed", "step": 9})
    assert resumption_of(folder) is None
