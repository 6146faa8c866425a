"""Members of a clip as arrays, and the geometry of a dataset of clips."""

import io

import numpy as np
import pytest
import soundfile
import torch

from configs.load import UserError
from training.pipeline.mel import MelConfig
from training.recipes.clips import decode_log_mel, decode_wav, mel_geometry, weights

META = {"kind": "clips", "config": {"audio": {"sample_rate_hz": 16000}, "clip": {"duration_s": 1.6}}}


def flac(wav: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wav, 16000, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def test_a_geometry_is_the_inverse_of_its_mel() -> None:
    assert MelConfig(**mel_geometry(META, "audioldm")["mel"]) == MelConfig(duration_s=1.6, level="audioldm")


def test_latents_are_no_clips() -> None:
    with pytest.raises(UserError, match="is a dataset of latents, need one of clips"):
        mel_geometry({**META, "kind": "latents"})


def test_another_sample_rate_is_refused() -> None:
    config = {"audio": {"sample_rate_hz": 32000}, "clip": {"duration_s": 1.6}}
    with pytest.raises(UserError, match="sample_rate_hz=32000"):
        mel_geometry({"kind": "clips", "config": config})


def test_flac_comes_back_to_a_step_of_16_bits() -> None:
    wav = np.sin(np.arange(1600) / 10).astype(np.float32) / 2
    assert np.abs(decode_wav(flac(wav)) - wav).max() <= 2**-15


def test_a_short_clip_has_the_frames_of_a_whole_one() -> None:
    mel = MelConfig(duration_s=1.6)
    assert decode_log_mel(flac(np.zeros(800)), mel).shape == (mel.num_frames, mel.num_mels)


def test_holes_weigh_nothing() -> None:
    assert torch.equal(weights([{}, None, {}]), torch.tensor([1.0, 0.0, 1.0]))
