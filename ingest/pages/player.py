"""Sounds and pictures as a page holds them: inside itself, as data URIs.

    player_of(Path("a.wav"))             # sound, mel spectrogram, labels of its axes
    data_uri("image/jpeg", jpeg)

Any sound file that soundfile reads; it goes into the page as FLAC of 16 bits.
"""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from ingest.pages.spectrogram import Axes, axes, mel_png


@dataclass(frozen=True)
class Player:
    """A sound and the picture of its mel spectrogram, both as data URIs."""

    sound: str
    spectrogram: str
    axes: Axes
    seconds: float


def player_of(file: Path | io.BytesIO) -> Player:
    """Of a sound file."""
    audio, rate_hz = soundfile.read(file, dtype="float32")
    return player_of_wave(audio, rate_hz)


def player_of_wave(audio: np.ndarray, rate_hz: int) -> Player:
    """Of a mono waveform [num_samples] in -1..1."""
    flac = io.BytesIO()
    soundfile.write(flac, audio, rate_hz, format="FLAC", subtype="PCM_16")
    return Player(
        sound=data_uri("audio/flac", flac.getvalue()),
        spectrogram=data_uri("image/png", mel_png(audio, rate_hz)),
        axes=axes(len(audio), rate_hz),
        seconds=len(audio) / rate_hz,
    )


def data_uri(mime: str, data: bytes) -> str:
    """RFC 2397."""
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"
