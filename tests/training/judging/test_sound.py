"""Sounds of files: mono, at the rate that a judge wants, and what cannot be read is one line."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from configs.load import UserError
from training.judging.sound import Sound, at_rate, batches, read_sound


def test_channels_are_averaged_and_rates_changed(tmp_path: Path) -> None:
    time_s = np.arange(48000) / 48000
    left = 0.5 * np.sin(2 * np.pi * 440 * time_s)
    soundfile.write(tmp_path / "a.flac", np.stack([left, np.zeros_like(left)], 1), 48000)
    sound = read_sound(tmp_path / "a.flac")
    assert sound.rate_hz == 48000 and sound.wav.dtype == np.float32
    assert np.abs(sound.wav - left / 2).max() < 1e-4
    slow = at_rate(sound, 16000)
    assert slow.shape == (16000,) and slow.dtype == np.float32
    assert (
        np.abs(slow[100:-100] - 0.25 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)[100:-100]).max()
        < 1e-3
    )
    assert at_rate(Sound(slow, 16000), 16000) is slow


def test_what_is_no_sound_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"none")
    soundfile.write(tmp_path / "b.wav", np.zeros(0), 16000)
    with pytest.raises(UserError, match=r"a\.wav: cannot be read"):
        read_sound(tmp_path / "a.wav")
    with pytest.raises(UserError, match=r"b\.wav: holds no sound"):
        read_sound(tmp_path / "b.wav")


def test_batches_are_in_order() -> None:
    assert [list(batch) for batch in batches(range(5), 2)] == [[0, 1], [2, 3], [4]]
