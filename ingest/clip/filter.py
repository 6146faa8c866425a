"""Is a clip worth keeping: silence, clipping and dead tones in its sound, black and empty pictures.

`judge_clip(clip, config)` returns a reason or None, and the scores behind it; pure numpy and PIL, no models.
It looks at one clip alone: near-duplicates and shares over the dataset are not its business.
"""

import io
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image

from configs.load import UserError
from ingest.sample import Clip, Reason

FULL_SCALE = 32768.0
HOP_S = 0.032
FLOOR_DB = -120.0


@dataclass
class FilterConfig:
    """A clip is refused below a `min_…` or above the `max_…`; 0 turns a test off (for the level: -120)."""

    min_rms_dbfs: float = -60.0  # level of the sound without its mean; below it is silence; -120 = off
    max_clipped_share: float = 0.01  # share of samples at full scale; 0 = off
    min_spectral_change: float = (
        0.06  # from one frame to the next; a tone has 0.00, mains hum 0.04, a waterfall 0.2, rain 0.6
    )
    min_brightness: float = 3.0  # mean luma, 0 to 255; 0 = off
    min_contrast: float = 4.0  # standard deviation of luma; 0 = off
    min_sharpness: float = 0.0  # variance of the Laplacian of luma; off: depth of field and fog are no faults

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "min_rms_dbfs" and value < 0:
                raise UserError(f"filter.{name}={value}: give 0 (off) or more")


def judge_clip(clip: Clip, config: FilterConfig) -> tuple[Reason | None, dict[str, float]]:
    """Why to refuse the clip, or None, and its scores."""
    scores = {**sound_scores(clip.own_audio, clip.sample_rate_hz), **picture_scores(clip.image)}
    refused = {
        Reason.SILENT: scores["rms_dbfs"] < config.min_rms_dbfs,
        Reason.CLIPPED: config.max_clipped_share > 0 and scores["clipped_share"] > config.max_clipped_share,
        Reason.CONSTANT: scores["spectral_change"] < config.min_spectral_change,
        Reason.DARK: scores["brightness"] < config.min_brightness,
        Reason.BLANK: scores["contrast"] < config.min_contrast,
        Reason.BLURRED: scores["sharpness"] < config.min_sharpness,
    }
    return next((reason for reason, is_so in refused.items() if is_so), None), scores


def sound_scores(audio: np.ndarray, sample_rate_hz: int) -> dict[str, float]:
    """Level, share of clipped samples and spectral change of mono int16 `audio` [num_samples]."""
    wave = audio.astype(np.float64) / FULL_SCALE
    clipped = float(np.mean(np.abs(wave) >= 0.999)) if len(wave) else 0.0
    wave = wave - wave.mean() if len(wave) else wave
    rms = float(np.sqrt(np.mean(wave**2))) if len(wave) else 0.0
    rms_dbfs = max(FLOOR_DB, 20 * np.log10(rms)) if rms > 0 else FLOOR_DB
    change = spectral_change(wave, sample_rate_hz)
    return {
        "rms_dbfs": round(float(rms_dbfs), 2),
        "clipped_share": round(clipped, 5),
        "spectral_change": round(change, 4),
    }


def spectral_change(wave: np.ndarray, sample_rate_hz: int) -> float:
    """Mean change of the magnitude spectrum from frame to frame, as a share of the magnitude: 0 for a steady
    tone.
    """
    hop = max(1, round(HOP_S * sample_rate_hz))
    if len(wave) < 3 * hop:
        return 0.0
    frames = np.lib.stride_tricks.sliding_window_view(wave, 2 * hop)[::hop] * np.hanning(2 * hop)
    magnitude = np.abs(np.fft.rfft(frames))
    total = float(magnitude[1:].sum() + magnitude[:-1].sum()) / 2
    return float(np.abs(np.diff(magnitude, axis=0)).sum()) / total if total > 0 else 0.0


def picture_scores(jpeg: bytes) -> dict[str, float]:
    """Brightness, contrast and sharpness of the luma of a JPEG."""
    with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as picture:
        luma = np.asarray(picture.convert("L"), dtype=np.float64)
    inner = luma[1:-1, 1:-1]
    laplacian = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * inner
    sharpness = float(laplacian.var()) if laplacian.size else 0.0
    return {
        "brightness": round(float(luma.mean()), 2),
        "contrast": round(float(luma.std()), 2),
        "sharpness": round(sharpness, 2),
    }
