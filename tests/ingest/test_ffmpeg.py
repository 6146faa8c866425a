"""Which ffmpeg is run."""

import os
import sys
from pathlib import Path

import pytest

from configs.load import UserError
from ingest.ffmpeg import ffmpeg_exe


def test_the_pinned_build_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STILLSOUND_FFMPEG", raising=False)
    path = Path(ffmpeg_exe())
    assert path.is_absolute() and os.access(path, os.X_OK)


def test_another_program_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLSOUND_FFMPEG", sys.executable)
    assert ffmpeg_exe() == sys.executable


def test_a_name_without_a_program_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLSOUND_FFMPEG", "no-such-ffmpeg")
    with pytest.raises(UserError, match="STILLSOUND_FFMPEG=no-such-ffmpeg: no such program"):
        ffmpeg_exe()
