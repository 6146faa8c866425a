"""Fingerprints of a clip's picture and sound: alike for the same clip encoded again, apart for others.

`image_hash(jpeg)` is ImageHash's pHash; `audio_fingerprint(audio, rate)` is made for this house (below). Both
are hex of a fixed number of bits; `image_distances` and `audio_distances` compare them, many at once. They do
not align: a sound that starts 20 ms later is another one. `audio_sequence(audio, rate, start)` does: it is a
row of small fingerprints by media time, in which the same sound is found again in a clip that was cut
elsewhere, and `image_palette(jpeg)` the colours by which the frame of that clip is known, seconds apart (both
for ingest.dedup.reuploads). Pure functions, no models. What counts as near is the business of ingest.curate.
"""

import io
import itertools
from functools import lru_cache

import imagehash
import numpy as np
from PIL import Image
from scipy.fft import next_fast_len, rfft

IMAGE_BYTES = 8
AUDIO_BYTES = 32
# encoders leave this range alone down to 24 kbit/s
LOW_HZ = 100.0
HIGH_HZ = 4000.0
SHAPE_BANDS = 32
SHAPE_LEVELS = (0.3, 0.1, 0.03, 0.01)  # of the loudest band's power
CHANGE_BANDS = 9
CHANGE_STEPS = 17
CHANGE_FLOOR = 0.01  # of the mean power: below it, what an encoder makes up decides
CHANGE_NATS = 0.05
SILENCE = 1e-9  # added to a power, so that the logarithm of digital silence is finite
FRAME_S = 0.025  # of a sequence
FRAME_BANDS = 9
FRAME_LOW_HZ = 200.0
FRAME_SUM = 16  # frames whose power is taken together, and how far apart two such sums are compared
FRAME_NATS = 0.2
SHADES = 5  # of each of three colours, in a palette
DRAFT_PX = 64  # a JPEG is decoded at about this size, since a palette needs no more
PALETTE_PX = 24


def image_hash(jpeg: bytes) -> str:
    """64 bits as 16 hex digits: the signs of the lowest 8 x 8 frequencies of the 32 x 32 grey picture
    (pHash).
    """
    with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as picture:
        return str(imagehash.phash(picture))


def image_palette(jpeg: bytes) -> bytes:
    """125 bytes: how much of the picture has each of 5 x 5 x 5 colours, in 255ths; a pixel between two shades
    counts for both.
    """
    with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as picture:
        picture.draft("RGB", (DRAFT_PX, DRAFT_PX))
        small = picture.convert("RGB").resize((PALETTE_PX, PALETTE_PX), Image.Resampling.BOX)
    shade = np.asarray(small, np.float64).reshape(-1, 3) * (SHADES - 1) / 255
    low = np.minimum(shade.astype(int), SHADES - 2)
    amount = np.zeros(SHADES**3)
    # trilinear: a pixel is shared by the 8 colours around it, so that a small change of colour moves little
    for corner in itertools.product((0, 1), repeat=3):
        weight = np.where(corner, shade - low, 1 - shade + low).prod(axis=1)
        amount += np.bincount((low + corner) @ (SHADES**2, SHADES, 1), weight, SHADES**3)
    return np.round(255 * amount / len(shade)).astype(np.uint8).tobytes()


def palette_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Share of the pictures that has another colour, float [n] of uint8 [n, 125]."""
    return np.asarray(1 - np.minimum(a, b).sum(-1, dtype=np.int64) / 255)


def audio_fingerprint(audio: np.ndarray, rate: int) -> str:
    """256 bits as 64 hex digits, of mono int16 `audio` [num_samples] at `rate` Hz, whatever its level and
    length.

    128 bits of shape: the mean power in 32 bands (100 to 4000 Hz, in equal ratios) against four levels below
    the loudest band. 128 bits of change: whether, from one of 17 overlapping windows to the next, the power
    of a band grew against that of its neighbour, in 8 pairs of bands (Haitsma and Kalker, A Highly Robust
    Audio Fingerprinting System, ISMIR 2002). The first tells steady sounds apart, the second two noises of
    one spectrum.
    """
    wave = audio.astype(np.float32)
    wave = np.pad(wave, (0, max(0, 4 * CHANGE_STEPS - len(wave))))
    bits = np.concatenate([_shape_bits(wave, rate), _change_bits(wave, rate)])
    return np.packbits(bits).tobytes().hex()


def audio_sequence(audio: np.ndarray, rate: int, start: int) -> bytes:
    """What the sound does over time: uint32 index of the first frame, then a byte per frame of 25 ms; of mono
    int16 `audio`.

    Frame f lies at f x 25 ms of media time, of which `start` is the first sample: a medium that was encoded
    again has the same frames wherever it is cut. The 8 bits are those of `audio_fingerprint`'s change, of the
    power in 0.4 s against that of the 0.4 s before, in 9 bands from 200 to 4000 Hz. A clip shorter than a
    second has none.
    """
    hop = round(FRAME_S * rate)
    # from the first whole frame of media time on
    wave = audio[-start % hop :].astype(np.float32)
    first_frame = np.uint32(-(-start // hop)).tobytes()
    if len(wave) < (2 * FRAME_SUM + 2) * hop:
        return first_frame
    windows = np.lib.stride_tricks.sliding_window_view(wave, 2 * hop)[::hop]
    sums = np.cumsum(_band_powers(windows, rate, FRAME_BANDS, FRAME_LOW_HZ), axis=0)
    power = np.concatenate([sums[FRAME_SUM - 1 : FRAME_SUM], sums[FRAME_SUM:] - sums[:-FRAME_SUM]])
    level = -np.diff(np.log(power + CHANGE_FLOOR * power.mean() + SILENCE), axis=1)
    bits = level[FRAME_SUM:] - level[:-FRAME_SUM] > FRAME_NATS
    return first_frame + np.packbits(bits, axis=1).tobytes()


def image_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Bits in which image hashes differ: int [n] of uint64 [n] and [n] (or one of them alone)."""
    return np.asarray(np.bitwise_count(a ^ b))


def audio_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """0 (the same) to 1, float [n], of fingerprints uint64 [n, 4]: the larger of the distances in shape and
    in change.

    Shape: the share of lit lamps that are lit in one only (Jaccard), so that a tone weighs as much as a
    noise. Change: the share of the 128 bits that differ. Encoded again: up to 0.28 (Opus at 24 kbit/s; below
    0.19 for 19 of 20); two noises of one spectrum: from 0.33; two tones in different bands: 1.
    """
    differ = np.bitwise_count(a ^ b)
    lit = np.bitwise_count((a | b)[..., :2]).sum(-1)
    shape = differ[..., :2].sum(-1, dtype=np.int64) / np.maximum(lit, 1)
    change = differ[..., 2:].sum(-1, dtype=np.int64) / 128
    return np.asarray(np.maximum(shape, change))


def _shape_bits(wave: np.ndarray, rate: int) -> np.ndarray:
    """bool [128]: a band's level as a row of lamps, so that a small difference of level moves one bit at
    most.
    """
    power = _band_powers(wave[None], rate, SHAPE_BANDS)[0]
    levels = np.array(SHAPE_LEVELS) * power.max()
    return np.asarray(power[:, None] > levels).ravel()


def _change_bits(wave: np.ndarray, rate: int) -> np.ndarray:
    """bool [128]: equation 1 of the paper, with a dead zone, so that what does not change gives no bit by
    chance.
    """
    hop = len(wave) // (CHANGE_STEPS + 1)
    windows = np.stack([wave[step * hop : (step + 2) * hop] for step in range(CHANGE_STEPS)])
    power = _band_powers(windows, rate, CHANGE_BANDS)
    level = np.log(power + CHANGE_FLOOR * power.mean() + SILENCE)
    return np.asarray(np.diff(-np.diff(level, axis=1), axis=0) > CHANGE_NATS).ravel()


def _band_powers(windows: np.ndarray, rate: int, num_bands: int, low_hz: float = LOW_HZ) -> np.ndarray:
    """Mean power [num_windows, num_bands] of Hann windows [num_windows, n], in bands of equal ratio; 0 above
    rate / 2.
    """
    # a length with large prime factors makes the FFT several times slower
    length = next_fast_len(windows.shape[1], real=True)
    edges_hz = np.geomspace(low_hz, HIGH_HZ, num_bands + 1)
    edges = np.minimum(np.round(edges_hz * length / rate).astype(int), length // 2 + 1)
    spectrum = rfft(windows * _hann(windows.shape[1]), length)[:, : edges[-1]]
    # sums up to each frequency, so that the power of a band is one difference
    total = np.zeros((len(windows), edges[-1] + 1))
    np.cumsum(spectrum.real**2 + spectrum.imag**2, axis=1, out=total[:, 1:])
    return np.asarray(np.maximum(total[:, edges[1:]] - total[:, edges[:-1]], 0) / windows.shape[1])


@lru_cache(maxsize=16)
def _hann(length: int) -> np.ndarray:
    return np.hanning(length).astype(np.float32)
