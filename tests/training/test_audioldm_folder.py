"""A folder for stock `AudioLDMPipeline`: the same sound as ours, of the same noise and picture."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AudioLDMPipeline, DPMSolverMultistepScheduler, UNet2DConditionModel

from configs.load import StoppedError, UserError
from tests.fakes.chain import Chain, frames_of
from training.audioldm_folder import check_audioldm, write_audioldm
from training.export import open_pipeline
from training.networks.istft_vocoder import IstftVocoder
from training.networks.unet import build_unet
from training.pipeline.pipeline import StillsoundPipeline
from training.recipes import diffusion

AUDIOLDMS = {
    "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * 3),
    "up_block_types": (*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "class_embed_type": "simple_projection",
    "class_embeddings_concat": True,
}


@pytest.fixture
def pipeline(chain: Chain) -> StillsoundPipeline:
    """The chain's codec and vocoder with a UNet of AudioLDM's structure, its channels as narrow as they can be;
    a vocoder that is heard, moments that are far from 0 and 1, and a null embedding.
    """
    opened = open_pipeline(chain.diffusion, vocoder=chain.vocoder)
    torch.manual_seed(0)
    config = diffusion.Config(
        channels=[8, 16, 16, 24], head_counts=[1, 2, 2, 3], layers_per_block=2, norm_groups=4
    )
    unet: UNet2DConditionModel = build_unet(config, 8, 16)
    assert {name: unet.config[name] for name in AUDIOLDMS} == AUDIOLDMS
    conditioning = {
        **opened.config.conditioning,
        "latent_mean": np.linspace(-2, 2, 8).tolist(),
        "latent_std": np.linspace(0.2, 3, 8).tolist(),
        "null_embedding": np.linspace(-1, 1, 16).tolist(),
        "condition_dropout": 0.1,
    }
    parts = {**opened.components, "unet": unet.eval()}
    for parameter in opened.vocoder.parameters():
        # new ones are silent
        parameter.data *= 8
    return StillsoundPipeline(**parts, conditioning=conditioning)


def test_stock_diffusers_makes_the_same_sound(
    pipeline: StillsoundPipeline, chain: Chain, tmp_path: Path
) -> None:
    picture = frames_of(chain, tmp_path / "frames")[0]
    write_audioldm(pipeline, tmp_path / "stock")
    assert not list((tmp_path / "stock").rglob("*.bin"))
    stock: Any = AudioLDMPipeline.from_pretrained(tmp_path / "stock")
    embedding, null = pipeline.prompt_embeds(str(picture))
    theirs = stock(
        prompt_embeds=embedding,
        negative_prompt_embeds=null,
        latents=torch.randn(
            1, *pipeline.config.conditioning["latent_shape"], generator=torch.Generator().manual_seed(5)
        ),
        audio_length_in_s=pipeline.mel.duration_s,
        num_inference_steps=5,
        guidance_scale=3.0,
    ).audios
    parts = {**pipeline.components, "scheduler": stock.scheduler}
    same = StillsoundPipeline(**parts, conditioning=pipeline.config.conditioning)
    ours: Any = same(image=str(picture), seed=5, num_inference_steps=5, guidance_scale=3.0)
    assert isinstance(stock.scheduler, DPMSolverMultistepScheduler)
    loudest = np.abs(ours.audios).max()
    assert loudest > 1e-3
    assert np.abs(theirs[:, : ours.audios.shape[1]].clip(-1, 1) - ours.audios).max() < 1e-3 * loudest


def test_our_own_codec_stays_as_it_was(pipeline: StillsoundPipeline, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in pipeline.autoencoder.state_dict().items()}
    write_audioldm(pipeline, tmp_path)
    after = pipeline.autoencoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_text_cannot_pass(pipeline: StillsoundPipeline, tmp_path: Path) -> None:
    write_audioldm(pipeline, tmp_path)
    stock: Any = AudioLDMPipeline.from_pretrained(tmp_path)
    with pytest.raises(IndexError):  # of the first word
        stock("a dog barks", num_inference_steps=1)


def test_another_sound_is_not_passed_off_as_the_same(
    pipeline: StillsoundPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.audioldm_folder._fold_moments", lambda vae, pipeline: None)
    with pytest.raises(StoppedError, match="stock AudioLDMPipeline gives another sound"):
        write_audioldm(pipeline, tmp_path)


def test_a_model_of_other_parts_is_refused(pipeline: StillsoundPipeline) -> None:
    check_audioldm(pipeline)
    for vocoder, has in ((None, "none"), (IstftVocoder(num_mels=64, width=16, num_layers=1), "IstftVocoder")):
        parts = {**pipeline.components, "vocoder": vocoder}
        other = StillsoundPipeline(**parts, conditioning=pipeline.config.conditioning)
        with pytest.raises(
            UserError, match=f"needs a SpeechT5HifiGan as vocoder, this model has {has}; give one by"
        ):
            check_audioldm(other)
