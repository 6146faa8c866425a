"""The codec's numbers: KL in AudioLDM's units, and the level that a codec was trained at."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.load import UserError, load_config
from tests.conftest import ROOT
from training.pipeline.mel import MelConfig, to_audioldm_level, wav_to_log_mel
from training.precompute import level_of
from training.recipes import autoencoder
from training.recipes.autoencoder import Autoencoder, Config
from training.settings import TrainConfig

TINY = Config(channels=[8, 8, 8], layers_per_block=1, norm_groups=4, attention=False)


def losses(config: Config, frames: int) -> dict[str, torch.Tensor]:
    """Of two clips of noise."""
    torch.manual_seed(0)
    mel = MelConfig()
    model: Any = Autoencoder(config, mel)
    log_mel, noise = torch.randn(2, 1, frames, 64), torch.randn(2, mel.latent_channels, frames // 4, 16)
    with torch.no_grad():
        return model({"log_mel": log_mel, "noise": noise, "weight": torch.ones(2)})


def test_a_whole_clips_loss_is_audioldms_over_its_number_of_values() -> None:
    found = losses(replace(TINY, kl_weight=1000), frames=1024)
    theirs = 1024 * 64 * found["error"] + 1000 * found["kl"]
    assert torch.allclose(found["loss"], theirs / (1024 * 64), rtol=1e-5)


def test_the_balance_of_error_and_kl_does_not_depend_on_the_crop() -> None:
    found = losses(replace(TINY, kl_weight=1000), frames=64)
    assert torch.allclose(found["loss"] - found["error"], 0.0152588 * found["kl"], rtol=1e-3)


def test_the_preset_of_audioldms_size_has_its_weight() -> None:
    config = load_config(TrainConfig, [str(ROOT / "configs/training/autoencoder.yaml"), "data=x", "output=y"])
    assert config.autoencoder.kl_weight == Config().kl_weight == 1000


@pytest.mark.parametrize("change", [{"kl_weight": -1.0}, {"kl_weight": float("nan")}, {"level": "loud"}])
def test_settings_that_no_codec_can_be_trained_with_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"autoencoder.{next(iter(change))}="):
        autoencoder.check_config(replace(TINY, **change))


def test_audioldms_level_has_no_mean_and_a_peak_of_a_half() -> None:
    wav = 0.01 * torch.randn(3, 4000) + torch.tensor([[0.3], [0.0], [-0.1]])
    found = to_audioldm_level(wav)
    assert found.mean(1).abs().max() < 1e-5
    assert found.abs().amax(1) == pytest.approx([0.5] * 3, abs=1e-4)
    assert not to_audioldm_level(torch.full((1, 100), 0.25)).any()


def test_at_audioldms_level_neither_loudness_nor_offset_is_in_the_mel() -> None:
    mel, wav = MelConfig(duration_s=0.4, level="audioldm"), torch.randn(1, 6400) * 0.1
    assert torch.allclose(wav_to_log_mel(wav, mel), wav_to_log_mel(0.01 * wav + 0.2, mel), atol=1e-2)
    recorded = MelConfig(duration_s=0.4)
    assert (wav_to_log_mel(wav, recorded) - wav_to_log_mel(0.01 * wav, recorded)).mean() > 4


def test_padding_is_silence_at_either_level() -> None:
    mel = MelConfig(duration_s=0.4, level="audioldm")
    tail = wav_to_log_mel(torch.rand(1, 3200), mel)[0, -10:]
    assert torch.allclose(tail, torch.full_like(tail, torch.tensor(mel.floor).log()))


def test_the_level_as_recorded_leaves_settings_as_they_were() -> None:
    assert "level" not in MelConfig().settings()
    for mel in (MelConfig(duration_s=0.4), MelConfig(level="audioldm")):
        assert MelConfig(**mel.settings()) == mel


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
