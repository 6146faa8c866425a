"""The picture of a sound: time to the right, low tones at the bottom, loud is light."""

import io

import numpy as np
from PIL import Image

from ingest.pages.spectrogram import spectrogram_png

RATE_HZ = 16000


def test_a_tone_is_a_light_line_at_its_height() -> None:
    audio = 0.5 * np.sin(2 * np.pi * 2000 * np.arange(RATE_HZ) / RATE_HZ)
    picture = Image.open(io.BytesIO(spectrogram_png(audio, height_px=128))).convert("L")
    assert picture.size == (160, 128)
    rows = np.asarray(picture, float).mean(1)
    # 2 kHz of 8 kHz: a quarter of the way up
    assert abs(int(rows.argmax()) - 96) <= 1 and rows.max() > 4 * np.median(rows)


def test_silence_has_one_colour() -> None:
    assert len(Image.open(io.BytesIO(spectrogram_png(np.zeros(RATE_HZ)))).getcolors() or ()) == 1
