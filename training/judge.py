"""What a procedural sound is made of, by signal analysis alone: timbre, fundamental and onset rate.

    heard = judge(wav, 16000)             # {"timbre": 3, "f0_hz": 311.1, "rate_hz": 4.2}
    correct(heard, truth)                 # {"timbre": True, "f0": True, "rate": False}

A bank of templates rendered by the generator of the scenes itself (`ingest.scenes`), compared with the
sound's mean mel spectrum and loudness curve. Nothing is learned, so a model cannot please it by being like
another model.
"""

from functools import cache
from typing import TypedDict

import numpy as np
import torch

from ingest.scenes import (
    F0_RANGE_HZ,
    RATE_RANGE_HZ,
    SHAPES,
    TILT_RANGE_DB,
    TIMBRES,
    TONE_PEAK,
    onset_envelope,
    partials,
)
from training.pipeline.mel import MelConfig, wav_to_log_mel

F0_TOLERANCE_CENTS = 50  # half a semitone: the next note of a piano is wrong
F0_STEP_CENTS = 10  # of the bank: a fifth of the tolerance
RATE_TOLERANCE = 0.10
RATE_STEP = 1.02  # of the bank: a fifth of the tolerance
NUM_TILTS = 5
NUM_PHASES = 16  # of the first onset within a period: at most 28 ms apart
MARGIN_CENTS = 200  # beyond the scenes' range, so that its ends are not favoured
TONE_S = 0.4
MOST_PARTIALS = max(max(amplitudes) for amplitudes in TIMBRES.values())
HOP_S = 0.01  # of MelConfig: 160 samples at 16 kHz


class Attributes(TypedDict):
    """Of a sound, as a scene states them and as the judge hears them.

    `timbre`: index of ingest.scenes.SHAPES; `f0_hz`: fundamental; `rate_hz`: onsets per second.
    """

    timbre: int
    f0_hz: float
    rate_hz: float


def judge(wav: np.ndarray, sample_rate_hz: int) -> Attributes:
    """Of a mono waveform [n] in -1..1."""
    samples = torch.from_numpy(np.ascontiguousarray(wav, np.float32))
    mel = wav_to_log_mel(samples[None], _mel(len(wav), sample_rate_hz))[0].exp().numpy()
    timbre, f0_hz = _hear_tone(mel, sample_rate_hz)
    return {"timbre": timbre, "f0_hz": f0_hz, "rate_hz": _hear_rate(mel.sum(1))}


def correct(heard: Attributes, truth: Attributes) -> dict[str, bool]:
    """Per attribute, whether it is right: the same timbre, f0 within 50 cents, onset rate within 10 %."""
    cents = abs(1200 * np.log2(heard["f0_hz"] / truth["f0_hz"]))
    ratio = abs(heard["rate_hz"] / truth["rate_hz"] - 1)
    return {
        "timbre": heard["timbre"] == truth["timbre"],
        "f0": bool(cents <= F0_TOLERANCE_CENTS),
        "rate": bool(ratio <= RATE_TOLERANCE),
    }


def _mel(num_samples: int, sample_rate_hz: int) -> MelConfig:
    return MelConfig(duration_s=num_samples / sample_rate_hz, sample_rate_hz=sample_rate_hz)


def _hear_tone(mel: np.ndarray, sample_rate_hz: int) -> tuple[int, float]:
    """Mel magnitudes [frames, mels] -> timbre and f0, from the loud frames."""
    loudness = mel.sum(1)
    # between two onsets there is little but noise
    loud = mel[loudness >= np.quantile(loudness, 0.5)]
    templates, shapes, f0s_hz = _tones(sample_rate_hz)
    best = int(np.argmax(templates @ _compress(loud.mean(0))))
    return int(shapes[best]), float(f0s_hz[best])


def _hear_rate(loudness: np.ndarray) -> float:
    """Loudness [frames] -> onsets per second."""
    curve = np.sqrt(loudness)  # so that one loud onset does not decide alone
    templates, rates_hz = _pulses(len(curve))
    return float(rates_hz[int(np.argmax(templates @ _unit(curve - curve.mean())))])


@cache
def _tones(sample_rate_hz: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of steady tones: compressed mean mel spectra [bank, mels], shapes [bank] and fundamentals [bank]."""
    time_s = np.arange(round(TONE_S * sample_rate_hz)) / sample_rate_hz
    low_hz, high_hz = F0_RANGE_HZ
    num_cents = 1200 * np.log2(high_hz / low_hz)
    f0s_hz = low_hz * 2 ** (np.arange(-MARGIN_CENTS, num_cents + MARGIN_CENTS, F0_STEP_CENTS) / 1200)
    tilts = np.linspace(*TILT_RANGE_DB, NUM_TILTS)
    phases = np.random.default_rng(0).uniform(0, 2 * np.pi, 32)
    kinds = [(shape, tilt) for shape in SHAPES for tilt in tilts]
    spectra = []
    for f0_hz in f0s_hz:
        waves = _waves(kinds, f0_hz, time_s, sample_rate_hz, phases)
        log_mels = wav_to_log_mel(waves, _mel(len(time_s), sample_rate_hz))
        spectra.append([_compress(spectrum) for spectrum in log_mels.exp().mean(1).numpy()])
    # by shape, tilt, then fundamental
    bank = np.array(spectra).swapaxes(0, 1).reshape(len(kinds) * len(f0s_hz), -1)
    shapes = np.repeat(np.arange(len(SHAPES)), NUM_TILTS * len(f0s_hz))
    return bank, shapes, np.tile(f0s_hz, len(kinds))


def _waves(
    kinds: list[tuple[str, float]], f0_hz: float, time_s: np.ndarray, sample_rate_hz: int, phases: np.ndarray
) -> torch.Tensor:
    """`ingest.scenes.harmonics` of all shapes and tilts at one fundamental, float32 [kinds, samples].

    They share their sines, which for each tone anew would cost more than all else of the bank.
    """
    amplitudes = np.zeros((len(kinds), 1 + MOST_PARTIALS))
    for row, (shape, tilt) in enumerate(kinds):
        for k, amplitude in partials(shape, f0_hz, tilt, sample_rate_hz).items():
            amplitudes[row, k] = amplitude
    amplitudes *= TONE_PEAK / np.linalg.norm(amplitudes, axis=1, keepdims=True)
    used = np.flatnonzero(amplitudes.any(0))
    angles = 2 * np.pi * used[:, None] * f0_hz * time_s + phases[used % 32][:, None]
    return torch.from_numpy((amplitudes[:, used] @ np.sin(angles)).astype(np.float32))


@cache
def _pulses(num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Loudness curves of pulses [bank, frames] and their rates [bank]."""
    low_hz = RATE_RANGE_HZ[0] / 1.1
    high_hz = RATE_RANGE_HZ[1] * 1.1
    rates_hz = low_hz * RATE_STEP ** np.arange(np.log(high_hz / low_hz) / np.log(RATE_STEP))
    fine = 10  # an onset is shorter than a frame
    time_s = np.arange(num_frames * fine) * HOP_S / fine
    phases = np.arange(NUM_PHASES) / NUM_PHASES
    curves = []
    for rate_hz in rates_hz:
        curves += [onset_envelope(rate_hz, phase, time_s) for phase in phases]
    smooth = np.sqrt(np.stack(curves).reshape(len(curves), num_frames, fine).mean(2))
    return np.stack([_unit(curve - curve.mean()) for curve in smooth]), np.repeat(rates_hz, NUM_PHASES)


def _compress(spectrum: np.ndarray) -> np.ndarray:
    """Cube root, so that weak harmonics count; unit length."""
    return _unit(np.cbrt(spectrum))


def _unit(vector: np.ndarray) -> np.ndarray:
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-9))
