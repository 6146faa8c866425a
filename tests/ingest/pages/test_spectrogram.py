"""The picture of a sound: time to the right, low tones at the bottom, loud is light."""

import io

import numpy as np
from PIL import Image

from ingest.pages.spectrogram import NUM_MELS, axes, mel_png, spectrogram_png

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


def test_a_tone_is_where_the_axis_says() -> None:
    for hertz in (500, 1000, 4000):
        audio = 0.5 * np.sin(2 * np.pi * hertz * np.arange(RATE_HZ) / RATE_HZ)
        picture = Image.open(io.BytesIO(mel_png(audio, RATE_HZ))).convert("L")
        assert picture.size == (101, NUM_MELS)
        brightest = int(np.asarray(picture, float).mean(1).argmax())
        label = f"{hertz / 1000:g}k"
        (percent,) = [tick.percent for tick in axes(RATE_HZ, RATE_HZ).hertz if tick.text == label]
        assert abs(100 * (1 - (brightest + 0.5) / NUM_MELS) - percent) < 100 / NUM_MELS


def test_ticks_are_round_and_the_end_is_told() -> None:
    short = axes(round(1.6 * RATE_HZ), RATE_HZ)
    assert [(tick.percent, tick.text) for tick in short.seconds] == [
        (0.0, "0"),
        (31.2, "0.5"),
        (62.5, "1"),
        (100.0, "1.6 s"),
    ]
    assert [tick.text for tick in short.hertz] == ["0.5k", "1k", "2k", "4k", "8k"]
    assert short.hertz[-1].percent == 100
    assert [tick.text for tick in axes(10 * 44100, 44100).seconds] == ["0", "5", "10 s"]
    assert axes(800, RATE_HZ).seconds[-1].text == "0.05 s"


def test_a_long_sound_has_no_wider_picture() -> None:
    assert Image.open(io.BytesIO(mel_png(np.zeros(60 * RATE_HZ), RATE_HZ))).width == 640
