"""A run's numbers, pictures and sounds for `tensorboard --logdir`, in a folder or at any URI.

    board = Board(store, step)                     # after a resume, TensorBoard hides what came after `step`
    board.add_scalars("train", step, {"loss": 0.5})
    board.add_preview(step, drawn)

A full disk costs values here, never the run.
"""

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from cluster.storage import Store
from training.run.preview import Drawn

log = logging.getLogger(__name__)
FOLDER = "tensorboard"
FLUSH_S = 10


class Board:
    """TensorBoard's files of one run, with one writer."""

    def __init__(self, store: Store, step: int):
        self.store = store
        self.temporary: tempfile.TemporaryDirectory[str] | None = None
        self.folder = Path(store.uri) / FOLDER
        if "://" in store.uri:
            self.temporary = tempfile.TemporaryDirectory(prefix="stillsound-board-")
            self.folder = Path(self.temporary.name)
        self.writer = _open_writer(self.folder, step)

    def add_scalars(self, group: str, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"{group}/{name}", value, step)

    def add_preview(self, step: int, drawn: Drawn) -> None:
        """A spectrogram, low bands at the bottom, from its own quietest to its loudest; and a player."""
        low = float(drawn.log_mel.min())
        high = float(drawn.log_mel.max())
        # [t, m] -> [1, m, t] upside down; the bound keeps a constant one from a division by 0
        picture = (drawn.log_mel.T[None, ::-1] - low) / max(high - low, 1e-6)
        self.writer.add_image(f"preview/{drawn.name}", picture, step)
        self.writer.add_audio(f"preview/{drawn.name}", drawn.wav, step, drawn.sample_rate_hz)

    def truncate_after(self, step: int) -> None:
        self.writer.close()
        self.writer = _open_writer(self.folder, step)

    def sync(self) -> None:
        """Uploads the files to object storage."""
        if self.temporary:
            self.writer.flush()
            for path in self.folder.iterdir():
                self.store.replace(f"{FOLDER}/{path.name}", path.read_bytes())

    def close(self) -> None:
        self.writer.close()

    def remove_copies(self) -> None:
        """Of files that are in object storage."""
        if self.temporary:
            self.temporary.cleanup()


def _open_writer(folder: Path, step: int) -> SummaryWriter:
    """A writer whose reader hides all after `step` that was written before."""
    board = SummaryWriter(str(folder), purge_step=step + 1, flush_secs=FLUSH_S)
    # tensorboardX keeps its file in two places: the queue's thread and the writer that fills it
    writer = board.file_writer.event_writer
    forgiving = ForgivingWriter(writer._ev_writer)
    writer._ev_writer = forgiving
    writer._worker._record_writer = forgiving
    return board


class ForgivingWriter:
    """tensorboardX's file writer, which must not raise.

    On a full disk its thread would end, and its full queue block the run.
    """

    def __init__(self, writer: Any):
        self.writer = writer
        self.failed = False

    def write_event(self, event: Any) -> None:
        self._try("write_event", event)

    def flush(self) -> None:
        self._try("flush")

    def close(self) -> None:
        self._try("close")

    def _try(self, name: str, *args: Any) -> None:
        try:
            getattr(self.writer, name)(*args)
        except OSError as error:
            if not self.failed:
                log.warning("TensorBoard's file lacks some values from here on: %s", error)
            self.failed = True
