"""Whether a generated sound begins its events when the real one does: onset alignment, for models of videos.

    heard = find_onsets(sound)                     # Onsets(times_s=[0.5, 1.2], strengths=[…], curve=[…])
    alignment = align(real, generated)             # number, accuracy, ap, offset_s

Number, accuracy and average precision as Du et al. 2023 (CondFoleyGen) define them, with their tolerance of
TOLERANCE_S; onsets by spectral flux over mel bands, with peaks as Böck, Krebs and Schedl 2012 pick them.
Signal analysis alone: nothing is learned. One thing differs: a real onset that nothing is near is never
found, so silence has an average precision of 0; theirs counts it as found at no strength, so that it has 1.
"""

from typing import NamedTuple

import numpy as np
from scipy.ndimage import maximum_filter1d, uniform_filter1d
from transformers.audio_utils import mel_filter_bank

from training.judging.sound import JudgeFacts, Sound, at_rate

NAME = "onsets"
TOLERANCE_S = 0.1
RATE_HZ = 16000
WINDOW = 512
HOP = 160
HOP_S = HOP / RATE_HZ
NUM_MELS = 64
NEAR = 5  # frames within which an onset is the greatest: 50 ms on both sides
AROUND = 10  # frames of the mean that it is above
ABOVE = 0.15  # by how much, where the greatest is 1
FLUX_FLOOR = 0.1  # the greatest flux of a sound that begins nothing: steady noise has 0.06
MAX_OFFSET_S = 0.5
FACTS: JudgeFacts = {
    "name": NAME,
    "kind": f"spectral flux, onsets within {TOLERANCE_S} s",
    "sha256": "",
    "parts": {},
    "learnt_by_model": "no: it has no weights",
}
_FILTERS = mel_filter_bank(WINDOW // 2 + 1, NUM_MELS, 30, RATE_HZ / 2, RATE_HZ, mel_scale="slaney")


class Onsets(NamedTuple):
    """Of a sound: times [k] in s, rising; how strong each is [k], at most 1; the flux of each whole frame
    [frames], HOP_S apart.
    """

    times_s: np.ndarray
    strengths: np.ndarray
    curve: np.ndarray


class Alignment(NamedTuple):
    """Of a generated sound with its real one, which has onsets. `number`: 1 where it has as many; `accuracy`:
    the share of real onsets with one of its within TOLERANCE_S; `ap`: average precision; `offset_s`: by how
    much it lies early or late, at most MAX_OFFSET_S.
    """

    number: float
    accuracy: float
    ap: float
    offset_s: float


def find_onsets(sound: Sound) -> Onsets:
    """Of a sound of any rate and length; none in silence."""
    curve = _flux(at_rate(sound, RATE_HZ).astype(np.float64))
    peak = float(curve.max(initial=0))
    if peak < FLUX_FLOOR:
        return Onsets(np.zeros(0), np.zeros(0), curve)
    strength = curve / peak
    is_greatest = strength == maximum_filter1d(strength, 2 * NEAR + 1)
    is_above = strength >= uniform_filter1d(strength, 2 * AROUND + 1) + ABOVE
    frames = np.flatnonzero(is_greatest & is_above)
    # of a plateau the first frame
    frames = frames[np.diff(frames, prepend=-NEAR - 1) > NEAR]
    # a frame's time is that of its middle
    return Onsets(frames * HOP_S + WINDOW / 2 / RATE_HZ, strength[frames], curve)


def align(real: Onsets, generated: Onsets) -> Alignment:
    """Of two sounds, of which the real one has onsets."""
    hit = _matched(real, generated)
    order = np.argsort(-generated.strengths, kind="stable")
    found = hit[order]
    # each onset that is right adds the precision down to its strength
    precisions = np.cumsum(found) / np.arange(1, len(found) + 1)
    return Alignment(
        number=float(len(real.times_s) == len(generated.times_s)),
        accuracy=float(hit.sum() / len(real.times_s)),
        ap=float(precisions[found].sum() / len(real.times_s)),
        offset_s=_offset_s(real.curve, generated.curve),
    )


def _matched(real: Onsets, generated: Onsets) -> np.ndarray:
    """bool [generated]: which is a real onset's. Each is of one only: of those near it the strongest."""
    taken = np.zeros(len(generated.times_s), bool)
    for time_s in real.times_s:
        near = np.abs(generated.times_s - time_s) <= TOLERANCE_S + 1e-9
        free = np.flatnonzero(near & ~taken)
        if len(free):
            taken[free[np.argmax(generated.strengths[free])]] = True
    return taken


def _offset_s(real: np.ndarray, generated: np.ndarray) -> float:
    """The shift at which two curves are most alike; MAX_OFFSET_S where one of them begins nothing."""
    length = max(len(real), len(generated))
    first, second = (np.pad(curve, (0, length - len(curve))) for curve in (real, generated))
    if min(first.max(initial=0), second.max(initial=0)) < FLUX_FLOOR:
        return MAX_OFFSET_S
    most = min(round(MAX_OFFSET_S / HOP_S), length - 1)
    products = np.correlate(second, first, "full")[length - 1 - most : length + most]
    lags = np.abs(np.arange(-most, most + 1))
    # rounding decides nothing: of lags that fit as well, the least
    fits = products >= products.max() * (1 - 1e-9)
    return float(lags[fits].min() * HOP_S)


def _flux(wav: np.ndarray) -> np.ndarray:
    """How much louder the bands become from frame to frame, their mean over bands, [frames]."""
    if len(wav) < WINDOW:
        return np.zeros(0)
    # only whole frames: where a cut sound begins and ends, nothing happens
    frames = np.lib.stride_tricks.sliding_window_view(wav, WINDOW)[::HOP]
    spectrum = np.abs(np.fft.rfft(frames * np.hanning(WINDOW + 1)[:-1]))
    level = np.log10(1 + spectrum @ _FILTERS * (WINDOW / 2))
    flux = np.maximum(np.diff(level, axis=0, prepend=level[:1]), 0).mean(1)
    # what rises in every frame is noise
    above: np.ndarray = np.maximum(flux - np.median(flux), 0)
    return above
