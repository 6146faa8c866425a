"""Previews in the loop: what cannot be drawn is refused, what is drawn becomes sound."""

from pathlib import Path

import pytest
import torch

from cluster.dataset import Dataset
from configs.load import UserError
from tests.fakes.runs import settings
from training.pipeline.mel import MelConfig
from training.recipes import autoencoder
from training.run.preview import Preview


def test_a_recipe_that_draws_nothing_has_no_preview(data: str, tmp_path: Path) -> None:
    dataset = Dataset.open(data)
    config = settings(data, tmp_path, recipe="contrastive", preview_every=2)
    with pytest.raises(UserError, match="recipe contrastive makes nothing to look at; give 0"):
        Preview.of(dataset, dataset.snapshot(), config, {})


def test_log_mels_become_sounds_of_their_length() -> None:
    mel = MelConfig(duration_s=0.16)
    preview = Preview(autoencoder, {}, ["a", "b"], {}, None, mel)
    log_mels = torch.full((2, mel.num_frames, mel.num_mels), -6.0)
    drawn = preview.sounds({"drawn": log_mels, "truth": log_mels})
    assert [one.name for one in drawn] == ["a/drawn", "b/drawn", "a/truth", "b/truth"]
    assert all(one.log_mel.shape == (mel.num_frames, mel.num_mels) for one in drawn)
    assert all(abs(len(one.wav) / one.sample_rate_hz - 0.16) < 0.02 for one in drawn)
