"""Onset alignment, on click tracks whose onsets are known, with every number by hand."""

import numpy as np
import pytest

from training.judging.onsets import MAX_OFFSET_S, Onsets, align, find_onsets
from training.judging.sound import Sound

TIMES_S = (0.5, 0.9, 1.7, 2.2)


def clicks(
    times_s: tuple[float, ...], peaks: tuple[float, ...] = (0.5,), rate_hz: int = 16000, noise: float = 0.001
) -> Sound:
    """3 s of decaying tones that begin at these times, on a floor of noise."""
    time_s = np.arange(3 * rate_hz) / rate_hz
    wav = noise * np.random.default_rng(0).standard_normal(len(time_s))
    for index, start_s in enumerate(times_s):
        since_s = np.maximum(time_s - start_s, 0)
        tone = np.exp(-since_s / 0.05) * np.sin(2 * np.pi * 900 * since_s)
        wav += peaks[index % len(peaks)] * tone * (time_s >= start_s)
    return Sound(wav.astype(np.float32), rate_hz)


@pytest.mark.parametrize("rate_hz", [8000, 16000, 44100])
def test_clicks_are_heard_where_they_are(rate_hz: int) -> None:
    heard = find_onsets(clicks(TIMES_S, rate_hz=rate_hz))
    assert len(heard.times_s) == len(TIMES_S)
    assert np.abs(heard.times_s - TIMES_S).max() < 0.015


def test_what_begins_nothing_has_no_onsets() -> None:
    time_s = np.arange(48000) / 16000
    # cut out of the middle of something: its ends are no events
    for wav in (np.zeros(48000), 0.3 * np.sin(2 * np.pi * 440 * time_s + 1), np.zeros(100), np.zeros(0)):
        assert len(find_onsets(Sound(wav.astype(np.float32), 16000)).times_s) == 0
    assert len(find_onsets(clicks((), noise=0.2)).times_s) == 0


def test_alignment_of_clicks_by_hand() -> None:
    real = find_onsets(clicks(TIMES_S))
    assert align(real, real) == (1, 1, 1, 0)
    # all 60 ms late: within the tolerance, and the shift is measured
    late = align(real, find_onsets(clicks(tuple(time_s + 0.06 for time_s in TIMES_S))))
    assert late[:3] == (1, 1, 1) and late.offset_s == pytest.approx(0.06, abs=0.011)
    # 200 ms late, none is near its own
    assert align(real, find_onsets(clicks(tuple(time_s + 0.2 for time_s in TIMES_S))))[:3] == (1, 0, 0)
    silent = align(real, find_onsets(clicks((), noise=0)))
    assert silent == (0, 0, 0, MAX_OFFSET_S)
    # two of the four, and one where none is
    assert align(real, find_onsets(clicks((0.5, 1.3, 2.2))))[:2] == (0, 0.5)


def heard(*onsets: tuple[float, float]) -> Onsets:
    times_s, strengths = zip(*onsets, strict=True)
    return Onsets(np.array(times_s), np.array(strengths), np.zeros(0))


def test_average_precision_by_hand() -> None:
    real = heard((0.5, 1), (1.0, 1), (2.0, 1))
    # by strength: right, wrong, right; the third real one is never found
    made = heard((0.5, 0.9), (1.08, 0.3), (1.5, 0.6))
    assert align(real, made).ap == pytest.approx((1 / 1 + 2 / 3) / 3)
    assert align(real, made).accuracy == pytest.approx(2 / 3)
    # of two near one real onset, the stronger is its own, and the other one too many
    twice = heard((0.45, 0.2), (0.55, 0.8))
    assert align(heard((0.5, 1)), twice).ap == 1
    assert align(heard((0.5, 1)), heard((0.45, 0.8), (0.55, 0.2), (0.7, 0.9))).ap == pytest.approx(1 / 2)
    # exactly the tolerance is within it
    assert align(heard((0.5, 1)), heard((0.6, 1))).accuracy == 1
    assert align(heard((0.5, 1)), heard((0.61, 1))).accuracy == 0
