"""A one-dimensional codec through the whole chain: latents [c, t, 1] from precompute to an export."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import DiffusionPipeline

from cluster.dataset import Dataset
from configs.load import UserError
from tests.fakes.chain import Chain, frames_of
from training.data.npy import read_npy
from training.evaluate import evaluate
from training.evaluation import EvaluateConfig
from training.export import ExportConfig, export, open_pipeline
from training.generate import GenerateConfig, generate
from training.networks.discriminators import DiscriminatorConfig
from training.networks.vocoders import VocoderConfig
from training.precompute import PrecomputeConfig, precompute
from training.recipes import autoencoder, diffusion, vocoder
from training.settings import TrainConfig
from training.train import train

SHARED: dict[str, Any] = {
    "workers": 0,
    "steps": 2,
    "global_batch": 4,
    "lanes": 4,
    "checkpoint_every": 2,
    "zero_stage": 0,
}
UNET = diffusion.Config(
    channels=[8, 16], head_counts=[2, 2], layers_per_block=1, attention=False, norm_groups=4
)
JUDGES = DiscriminatorConfig(
    periods=[2], period_channels=[4, 8], num_scales=1, scale_channels=[4, 4, 8, 8, 8, 8, 8]
)


@pytest.fixture(scope="module")
def flat(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """autoencoder, latents, vocoder, diffusion of MMAudio's geometry."""
    made = Chain(tmp_path_factory.mktemp("flat"))
    codec = autoencoder.Config(kind="mmaudio", channels=[8, 16], layers_per_block=1, crop_frames=32)
    shared = {**SHARED, "data": chain.clips}
    train(TrainConfig(output=made.autoencoder, recipe="autoencoder", autoencoder=codec, **shared))
    generator = VocoderConfig("bigvgan", 64, [4, 4, 4, 4], [8, 8, 8, 8], [3], [1])
    maker = vocoder.Config(generator, JUDGES, crop_frames=16, spectrogram="mmaudio")
    train(TrainConfig(output=made.vocoder, recipe="vocoder", vocoder=maker, **shared))
    models = {"autoencoder": made.autoencoder, "image_encoder": chain.contrastive}
    precompute(PrecomputeConfig(data=chain.clips, output=made.latents, workers=0, **models), progress=False)
    unet = {**SHARED, "data": made.latents, "diffusion": UNET, "preview_every": 2}
    train(TrainConfig(output=made.diffusion, **unet))
    return made


def test_latents_are_sequences(flat: Chain) -> None:
    latents = Dataset.open(flat.latents)
    mel = latents.meta["config"]["mel"]
    assert (mel["num_mels"], mel["hop_size"], mel["latent_bands"]) == (80, 256, 1)
    (commit, *_) = latents.snapshot().commits
    # 1.6 s: 100 frames, 50 latents at 31.25 Hz
    assert commit.statistics["latent_shape"] == [20, 50, 1]
    row = next(row for row in latents.iter_rows() if row["status"] == "kept")
    (member,) = [member for member in row["members"] if member["ext"] == "latent.npy"]
    tar = latents.commits()[row["unit"]].tar
    assert tar is not None
    moments = read_npy(
        latents.store.read_range(tar.name, member["offset"], member["offset"] + member["size"])
    )
    assert moments.shape == (2, 20, 50, 1) and (moments[1] > 0).all()


def test_sounds_are_made_scored_and_exported(chain: Chain, flat: Chain, tmp_path: Path) -> None:
    pictures = frames_of(chain, tmp_path / "frames")
    generate(
        GenerateConfig(
            model=flat.diffusion,
            images=str(pictures[0]),
            output=str(tmp_path / "wavs"),
            steps=2,
            vocoder=flat.vocoder,
        )
    )
    assert list((tmp_path / "wavs").glob("*.wav"))
    truth = f"{chain.world}/truth"
    scored = evaluate(
        EvaluateConfig(
            model=flat.diffusion,
            data=chain.clips,
            truth=truth,
            output=str(tmp_path / "scores"),
            steps=2,
            num_clips=4,
        )
    )
    assert scored["num_clips"] == 4
    export(ExportConfig(model=flat.diffusion, output=str(tmp_path / "export"), vocoder=flat.vocoder))
    stock = DiffusionPipeline.from_pretrained(tmp_path / "export", trust_remote_code=True)
    assert type(stock.autoencoder).__name__ == "MMAudioVAE"
    ours = open_pipeline(flat.diffusion, vocoder=flat.vocoder)
    named = {"image": str(pictures[0]), "num_inference_steps": 2}
    assert np.allclose(stock(**named).audios, ours(**named).audios, atol=1e-4)
    assert ours(**named).audios.shape == (1, 25600)


def test_a_vocoder_of_other_spectrograms_is_refused(chain: Chain, flat: Chain) -> None:
    with pytest.raises(UserError, match="hop_size=160, the model makes hop_size=256"):
        open_pipeline(flat.diffusion, vocoder=chain.vocoder)


def test_a_codec_of_another_rate_is_refused(chain: Chain, flat: Chain, tmp_path: Path) -> None:
    shutil.copytree(f"{flat.autoencoder}/model", tmp_path / "codec")
    path = tmp_path / "codec/config.json"
    path.write_text(path.read_text().replace('"sample_rate": 16000', '"sample_rate": 44100'))
    models = {"autoencoder": str(tmp_path / "codec"), "image_encoder": chain.contrastive}
    with pytest.raises(UserError, match="takes 44100 Hz, the clips have 16000"):
        precompute(PrecomputeConfig(data=chain.clips, output=str(tmp_path / "latents"), **models))
