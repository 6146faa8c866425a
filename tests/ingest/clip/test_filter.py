"""What is refused by content, and that nothing a scene can look or sound like is."""

import io

import numpy as np
import pytest
from PIL import Image

from configs.load import UserError
from ingest.clip.filter import FilterConfig, judge_clip
from ingest.sample import Clip, Reason
from ingest.scenes import render_audio, render_image, sample_scene

RATE_HZ = 16000
TIME_S = np.arange(2 * RATE_HZ) / RATE_HZ
NOISE = np.random.default_rng(0).standard_normal(len(TIME_S))
GOOD_SOUND = 0.1 * NOISE
GOOD_PICTURE = np.random.default_rng(1).integers(0, 255, (64, 64, 3)).astype(np.uint8)


def clip(sound: np.ndarray = GOOD_SOUND, picture: np.ndarray = GOOD_PICTURE) -> Clip:
    jpeg = io.BytesIO()
    Image.fromarray(picture).save(jpeg, "JPEG", quality=92)
    audio = np.clip(np.round(sound * 32768), -32768, 32767).astype(np.int16)
    return Clip(0.0, len(audio) / RATE_HZ, RATE_HZ, audio, jpeg.getvalue(), 64, 64, 1.0, 0.0)


def test_every_scene_passes() -> None:
    for seed in range(150):
        rng = np.random.default_rng(seed)
        scene = sample_scene(rng)
        reason, scores = judge_clip(
            clip(render_audio(scene, 1.6, RATE_HZ, rng), render_image(scene, 64)), FilterConfig()
        )
        assert reason is None, (seed, scores)


@pytest.mark.parametrize(
    ("sound", "reason"),
    [
        (0 * TIME_S, Reason.SILENT),
        (0 * TIME_S + 0.5, Reason.SILENT),  # a constant voltage is no sound
        (0.0003 * NOISE, Reason.SILENT),
        (4 * np.sin(2 * np.pi * 100 * TIME_S) * TIME_S, Reason.CLIPPED),
        (0.5 * np.sin(2 * np.pi * 1000 * TIME_S), Reason.CONSTANT),
        (
            sum(0.2 / k * np.sin(2 * np.pi * 50 * k * TIME_S) for k in range(1, 9)),
            Reason.CONSTANT,
        ),  # mains hum
        (GOOD_SOUND, None),  # rain
        (0.01 * np.cumsum(NOISE) / 10, None),  # a low roar
        (0.3 * np.sin(2 * np.pi * 440 * TIME_S) * (1 + 0.5 * np.sin(2 * np.pi * 5 * TIME_S)), None),
    ],
)
def test_sounds(sound: np.ndarray, reason: Reason | None) -> None:
    assert judge_clip(clip(sound=sound), FilterConfig())[0] == reason


def test_pictures() -> None:
    def reason(picture: np.ndarray, config: FilterConfig | None = None) -> Reason | None:
        return judge_clip(clip(picture=picture), config or FilterConfig())[0]

    smooth = np.repeat(np.linspace(0, 255, 64)[None, :, None], 64, axis=0).repeat(3, axis=2).astype(np.uint8)
    assert reason(np.zeros((64, 64, 3), np.uint8)) == Reason.DARK
    assert reason(np.full((64, 64, 3), 128, np.uint8)) == Reason.BLANK
    assert reason(smooth) is None  # blur is no fault unless asked
    assert reason(smooth, FilterConfig(min_sharpness=50)) == Reason.BLURRED


def test_scores_are_plain_numbers_and_thresholds_are_settings() -> None:
    reason, scores = judge_clip(clip(), FilterConfig(min_rms_dbfs=-10))
    assert reason == Reason.SILENT and all(type(score) is float for score in scores.values())
    assert scores["rms_dbfs"] == pytest.approx(-20, abs=0.2)
    with pytest.raises(UserError, match="filter.min_contrast"):
        FilterConfig(min_contrast=-1)


@pytest.mark.parametrize(
    ("setting", "score", "reason", "refused_above"),
    [
        ("min_rms_dbfs", "rms_dbfs", Reason.SILENT, False),
        ("max_clipped_share", "clipped_share", Reason.CLIPPED, True),
        ("min_spectral_change", "spectral_change", Reason.CONSTANT, False),
        ("min_brightness", "brightness", Reason.DARK, False),
        ("min_contrast", "contrast", Reason.BLANK, False),
        ("min_sharpness", "sharpness", Reason.BLURRED, False),
    ],
)
def test_each_threshold_is_at_its_recorded_score(
    setting: str, score: str, reason: Reason, refused_above: bool
) -> None:
    some_clipping = np.where(
        np.arange(len(NOISE)) % 200 == 0, 1.0, GOOD_SOUND
    )  # half a percent, which is allowed
    kept, scores = judge_clip(clip(sound=some_clipping), FilterConfig())
    assert kept is None and set(scores) >= {score}
    step = 0.001 if refused_above else -0.001
    at = {
        name: judge_clip(clip(sound=some_clipping), FilterConfig(**{setting: scores[score] + shift}))  # type: ignore[arg-type]
        for name, shift in (("kept", step), ("refused", -step))
    }
    assert at["kept"] == (None, scores)
    assert at["refused"] == (reason, scores)
