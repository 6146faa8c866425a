"""Sounds of files as judges take them, and what a report says of a judge.

    sound = read_sound(Path("a.wav"))          # mono, at its own rate
    wav = at_rate(sound, 16000)                # float32 [n]

Nothing is levelled, trimmed or padded here: each judge does what its own front end does.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NotRequired, TypedDict, TypeVar

import numpy as np
import soundfile

from configs.load import UserError
from training.progress import track
from training.recipes.clap_mel import resample

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".aiff")
T = TypeVar("T")


class Sound(NamedTuple):
    """A mono waveform float32 [n] in -1..1."""

    wav: np.ndarray
    rate_hz: int


class JudgeFacts(TypedDict):
    """What a report says of a judge. `name`: as it was named; `sha256`: over its folders of weights, which
    `parts` has one by one. `learnt_by_model`: whether the judged model learnt from this judge, and how that
    is known.
    """

    name: str
    kind: str
    sha256: str
    parts: dict[str, str]
    learnt_by_model: NotRequired[str]


def read_sound(path: Path) -> Sound:
    """`UserError` where the file cannot be read, or holds nothing."""
    try:
        samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, soundfile.LibsndfileError) as error:
        raise UserError(f"{path}: cannot be read ({error}); mend or remove it") from error
    if not len(samples):
        raise UserError(f"{path}: holds no sound; mend or remove it")
    return Sound(samples.mean(1, dtype=np.float64).astype(np.float32), rate_hz)


def at_rate(sound: Sound, rate_hz: int) -> np.ndarray:
    """float32 [n] at another rate, by a polyphase filter."""
    if sound.rate_hz == rate_hz:
        return sound.wav
    return resample(sound.wav, sound.rate_hz, rate_hz).astype(np.float32)


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items in order, `size` at a time, while whoever waits sees how many are judged."""
    for start in track(range(0, len(items), size), "judged", len(items)):
        yield items[start : start + size]
