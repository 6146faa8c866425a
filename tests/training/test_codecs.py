"""What a codec's folder says of the clips that it takes."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.load import UserError
from training.codecs import level_of, mel_of_codec
from training.pipeline.mel import SPECTROGRAMS, MelConfig
from training.recipes import autoencoder
from training.recipes.autoencoder import Config

MEL = MelConfig(duration_s=0.64, level="audioldm")
TINY = Config(channels=[8, 8, 8], layers_per_block=1, norm_groups=4, attention=False)


def folder_of(path: Path, **settings: Any) -> Path:
    (path / "config.json").write_text(json.dumps(settings))
    return path


def test_an_autoencoder_of_pictures_of_mels_has_audioldms_spectrogram(tmp_path: Path) -> None:
    assert mel_of_codec(folder_of(tmp_path, _class_name="AutoencoderKL"), MEL) == MEL


def test_mmaudios_says_its_own_and_keeps_the_clips_length_and_level(tmp_path: Path) -> None:
    settings = {"sample_rate": 16000, "n_fft": 1024, "hop_length": 256, "mel_bins": 80, "latent_channels": 20}
    mel = mel_of_codec(folder_of(tmp_path, _class_name="MMAudioVAE", **settings), MEL)
    assert mel == replace(MEL, **SPECTROGRAMS["mmaudio"])


def test_one_of_another_rate_is_refused(tmp_path: Path) -> None:
    # diffusers' default, which a published config may leave out
    with pytest.raises(UserError, match="takes 44100 Hz, the clips have 16000"):
        mel_of_codec(folder_of(tmp_path, _class_name="MMAudioVAE"), MEL)


@pytest.mark.parametrize("level", ["recorded", "audioldm"])
def test_a_codec_of_ours_says_at_which_level_it_was_trained(tmp_path: Path, level: str) -> None:
    facts = {"mel": MelConfig(duration_s=0.16, level=level).settings()}
    autoencoder.save(autoencoder.build_model(TINY, facts).state_dict(), TINY, facts, tmp_path)
    assert level_of(tmp_path) == level


def test_a_published_codec_gets_audioldms_level_and_that_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert level_of(tmp_path) == "audioldm"
    assert "level=recorded" in caplog.text


def test_a_run_from_before_codecs_said_so_has_its_clips_as_recorded(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "run.json").write_text(json.dumps({}))
    assert level_of(tmp_path / "model") == level_of(tmp_path) == "recorded"
