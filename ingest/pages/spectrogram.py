"""A sound as a picture: for the report of a dataset, and for what a model made.

    Path("a.png").write_bytes(spectrogram_png(audio))      # audio: float [num_samples]
    mel_png(audio, 16000); axes(len(audio), 16000)         # the report's: what a model sees, and its labels

The axes are numbers for a page, which writes them as text: nothing here knows HTML.
"""

import io
import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

RANGE_DB = 80
HOP_S = 0.01
# the front end of AudioLDM and of our recipes: 64 ms windows, 64 bands
WINDOW_S = 0.064
NUM_MELS = 64
MAX_WIDTH_PX = 640
TICKS_HZ = (500, 1000, 2000, 4000, 8000, 16000)
TICKS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)
MAX_TICKS = 4


@dataclass(frozen=True)
class AxisTick:
    """`percent`: where it is, from the left or from the bottom."""

    percent: float
    text: str


@dataclass(frozen=True)
class Axes:
    """The labels of a mel spectrogram: `seconds` to the right, `hertz` upwards."""

    seconds: list[AxisTick]
    hertz: list[AxisTick]


def spectrogram_png(audio: np.ndarray, height_px: int = 96) -> bytes:
    """PNG of the log-magnitude STFT of mono float `audio` [num_samples]: low tones at the bottom, 80 dB."""
    magnitude = _stft(audio, n_fft=512, hop=160)
    return _png(magnitude.T, width_px=max(len(magnitude), 160), height_px=height_px)


def mel_png(audio: np.ndarray, rate_hz: int) -> bytes:
    """PNG of the log-mel spectrogram of mono `audio` [num_samples]: 64 slaney bands up to half the rate.

    A column per 10 ms, or for several of these where a sound is long; 80 dB.
    """
    n_fft = round(WINDOW_S * rate_hz)
    magnitude = _stft(audio, n_fft, hop=round(HOP_S * rate_hz))
    mels = magnitude @ _filters(n_fft, rate_hz)
    return _png(mels.T, width_px=min(len(mels), MAX_WIDTH_PX), height_px=NUM_MELS)


def axes(num_samples: int, rate_hz: int) -> Axes:
    """Ticks at round numbers, and the length of the sound at the right end."""
    duration_s = num_samples / rate_hz
    step_s = next((step for step in TICKS_S if duration_s / step <= MAX_TICKS), TICKS_S[-1])
    # the label of the end needs room
    count = max(1, math.ceil(0.75 * duration_s / step_s))
    top = float(_mel(rate_hz / 2))
    return Axes(
        [
            *(AxisTick(round(100 * n * step_s / duration_s, 1), f"{n * step_s:g}") for n in range(count)),
            AxisTick(100.0, f"{duration_s:.3g} s"),
        ],
        [
            AxisTick(round(100 * float(_mel(hertz)) / top, 1), f"{hertz / 1000:g}k")
            for hertz in TICKS_HZ
            if hertz <= rate_hz / 2
        ],
    )


def _stft(audio: np.ndarray, n_fft: int, hop: int) -> np.ndarray:
    """Magnitudes [frames, n_fft // 2 + 1]."""
    padded = np.pad(audio, n_fft // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop] * np.hanning(n_fft)
    return np.abs(np.fft.rfft(frames))


def _mel(hertz: float | np.ndarray) -> np.ndarray:
    """Slaney's scale: linear up to 1 kHz, then logarithmic."""
    linear = np.asarray(hertz) / (200 / 3)
    return np.where(linear < 15, linear, 15 + np.log(np.maximum(linear, 1e-9) / 15) * 27 / np.log(6.4))


@cache
def _filters(n_fft: int, rate_hz: int) -> np.ndarray:
    """Triangles of equal width in mel, of unit sum: [n_fft // 2 + 1, NUM_MELS]."""
    mels = _mel(np.fft.rfftfreq(n_fft, 1 / rate_hz))
    centres = np.linspace(0, mels[-1], NUM_MELS + 2)[1:-1]
    width = centres[1] - centres[0]
    weights = np.maximum(0, 1 - np.abs(mels[:, None] - centres) / width)
    return np.asarray(weights / weights.sum(0))


def _png(magnitude: np.ndarray, width_px: int, height_px: int) -> bytes:
    """Of magnitudes [bands, frames], the lowest band first."""
    level_db = 20 * np.log10(magnitude + 1e-6)
    scaled = np.clip((level_db - level_db.max()) / RANGE_DB + 1, 0, 1)[::-1]
    # dark blue to pale yellow, evenly lighter: a scale that survives grey printing
    stops = np.array(
        [[8, 10, 30], [60, 20, 110], [170, 45, 110], [245, 125, 60], [252, 250, 190]], dtype=float
    )
    position = scaled * (len(stops) - 1)
    low = np.minimum(position.astype(int), len(stops) - 2)
    colours = stops[low] + (stops[low + 1] - stops[low]) * (position - low)[..., None]
    image = Image.fromarray(colours.astype(np.uint8)).resize((width_px, height_px))
    png = io.BytesIO()
    image.save(png, "PNG")
    return png.getvalue()
