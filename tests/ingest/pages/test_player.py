"""A sound in a page: what it plays is the file's, to the sample."""

import base64
import io
from pathlib import Path

import numpy as np
import soundfile

from ingest.pages.player import player_of


def test_a_player_holds_the_samples_of_its_file(tmp_path: Path) -> None:
    wave = (np.random.default_rng(0).standard_normal(8000) * 3000).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", wave, 16000, subtype="PCM_16")
    player = player_of(tmp_path / "a.wav")
    mime, data = player.sound.split(";base64,")
    played, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(data)), dtype="int16")
    assert mime == "data:audio/flac" and rate_hz == 16000 and np.array_equal(played, wave)
    assert player.seconds == 0.5 and player.axes.seconds[-1].text == "0.5 s"
    assert player.spectrogram.startswith("data:image/png;base64,")
