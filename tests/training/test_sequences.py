"""What precompute stores beside latents: sequences as their encoders give them, of each clip its own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.dataset import Dataset
from configs.load import UserError
from tests.fakes.chain import Chain
from training.data.catalogue import Catalogue
from training.data.npy import read_npy
from training.networks.audiomae import embed_tokens
from training.pipeline.mel import SPECTROGRAMS, MelConfig
from training.precompute import PrecomputeConfig, precompute
from training.pretrained import load_audiomae
from training.recipes.clips import decode_log_mel


def test_audiomae_tokens_are_stored_beside_the_latents(chain: Chain, tmp_path: Path) -> None:
    models = {"autoencoder": chain.autoencoder, "image_encoder": chain.contrastive}
    config = PrecomputeConfig(
        data=chain.clips, output=str(tmp_path), workers=0, audiomae=chain.audiomae, batch_size=3, **models
    )
    precompute(config, progress=False)
    latents = Dataset.open(str(tmp_path))
    assert set(latents.meta["config"]["sha256"]) == {"autoencoder", "image_encoder", "audiomae"}
    (commit, *_) = [commit for commit in latents.snapshot().commits if commit.statistics["image_count"]]
    assert commit.statistics["audiomae_shape"] == [8, 16]
    catalogue = Catalogue.of(latents, latents.snapshot(), "train", ("audiomae.npy",))
    sample = catalogue.read([0])[0]
    clips = Dataset.open(chain.clips)
    sounds = Catalogue.of(clips, clips.snapshot(), "train", ("flac",))
    assert sample is not None and sounds.keys[0] == catalogue.keys[0]
    sound = sounds.read([0])[0]
    assert sound is not None
    mae = load_audiomae(Path(chain.audiomae) / "model")
    log_mel = decode_log_mel(sound["flac"], MelConfig(duration_s=1.6, **SPECTROGRAMS["audiomae"]))
    with torch.no_grad():
        expected = embed_tokens(mae, log_mel[None])[0]
    stored = torch.from_numpy(read_npy(sample["audiomae.npy"]).astype(np.float32))
    assert stored.shape == (8, 16) and torch.allclose(stored, expected, atol=5e-3)
    # the same output without them is another dataset
    with pytest.raises(UserError, match="sha256"):
        precompute(replace(config, audiomae=""), progress=False)
