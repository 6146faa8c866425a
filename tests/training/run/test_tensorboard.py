"""TensorBoard files never stop a run."""

import errno
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.event_file_writer import EventsWriter

from tests.fakes.runs import losses, settings
from training.train import train


def test_a_full_disk_blocks_no_run(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_event = EventsWriter.write_event

    def write_no_values(self: EventsWriter, event: Any) -> None:
        if event.summary.value:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_event(self, event)

    monkeypatch.setattr(EventsWriter, "write_event", write_no_values)
    train(settings(data, tmp_path / "run", steps=8))
    assert len(losses(tmp_path / "run")) == 8
