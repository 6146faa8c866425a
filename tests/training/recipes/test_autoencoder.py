"""The autoencoder recipe: AudioLDM's size and its loss, in AudioLDM's units."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.load import UserError, load_config
from tests.conftest import ROOT
from training.pipeline.mel import MelConfig
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


def millions(model: torch.nn.Module) -> float:
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def test_the_autoencoder_has_audioldms_size_and_ratio() -> None:
    mel = MelConfig()
    with torch.device("meta"):
        model = autoencoder.Autoencoder(autoencoder.Config(), mel)
        assert (
            model.codec.encode(torch.empty(1, 1, 1024, 64)).latent_dist.mean.shape
            == (1, *mel.latent_shape)
            == (1, 8, 256, 16)
        )
    assert millions(model.codec) == pytest.approx(55.4, abs=0.05)


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
