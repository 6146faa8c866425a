"""What people see of a run while it trains."""

import io
import json
import logging
import time
from pathlib import Path

import pytest
from rich.console import Console

from cluster.storage import open_store
from training.watch import LOG_EVERY_S, Line, status_of, watch


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_the_newest_step_is_read_wherever_the_run_is(kind: str, tmp_path: Path) -> None:
    store = open_store(str(tmp_path) if kind == "folder" else f"memory://{tmp_path.name}")
    assert status_of(store) == (0, "starting")
    lines = [{"step": step, "loss": step / 100, "more": "x" * 300} for step in range(1, 40)]
    # the last one is being written
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 40, "lo'
    store.replace("metrics.jsonl", text.encode())
    assert status_of(store) == (39, "loss 0.3900")
    store.replace("events.jsonl", b'{"event": "resumed", "step": 30}\n')
    assert status_of(store) == (39, "loss 0.3900 \u00b7 resumed at step 30")
    store.replace("metrics.jsonl", b'{"step": 1, "loss": null}\n')
    assert status_of(store)[1].startswith("no sample in this step")


def test_without_a_terminal_the_log_has_a_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "training.watch")
    line = Line(100)
    now = [1000.0]
    line.get_time = lambda: now[0]  # type: ignore[method-assign]
    line.last_logged_at = now[0]
    for step in range(0, 90, 10):
        line.show(step, f"loss {step}")
        now[0] += LOG_EVERY_S / 2.5
    assert [message.split(" \u00b7 ")[:2] for message in caplog.messages] == [
        ["step 30 of 100", "loss 30"],
        ["step 60 of 100", "loss 60"],
    ]
    assert caplog.messages[1].endswith("s left")
    # a live line says it all
    line.live.console = Console(file=io.StringIO(), force_terminal=True)
    now[0] += 2 * LOG_EVERY_S
    line.show(90, "loss 90")
    assert len(caplog.messages) == 2


def test_a_store_that_fails_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []

    def fails(store: object) -> tuple[int, str]:
        looks.append("look")
        raise OSError("gone")

    monkeypatch.setattr("training.watch.LOOK_EVERY_S", 0.01)
    monkeypatch.setattr("training.watch.status_of", fails)
    with watch(open_store(str(tmp_path)), 10):
        deadline = time.monotonic() + 20
        while len(looks) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(looks) >= 3
