"""TensorBoard files never stop a run."""

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboardX.event_file_writer import EventsWriter

from cluster.storage import open_store
from tests.fakes.runs import losses, settings
from training.run.preview import Drawn
from training.run.tensorboard import Board
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


def test_tensorboard_itself_reads_what_is_written(tmp_path: Path) -> None:
    board = Board(open_store(str(tmp_path), writable=True), 0)
    board.add_scalars("train", 1, {"loss": 0.5})
    board.add_preview(2, Drawn("clip/drawn", np.zeros((10, 64)), np.zeros(1600, np.float32), 16000))
    board.close()
    reader = EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    (scalar,) = reader.Scalars("train/loss")
    assert (scalar.step, scalar.value) == (1, 0.5)
    (picture,) = reader.Images("preview/clip/drawn")
    assert (picture.step, picture.width, picture.height) == (2, 10, 64)
    (sound,) = reader.Audio("preview/clip/drawn")
    assert (sound.step, sound.sample_rate) == (2, 16000)
