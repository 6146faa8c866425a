"""The small presets fit whatever was scraped: lengths and sizes are those of the clips."""

from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from cluster.dataset import Snapshot
from configs.load import UserError, load_config
from ingest.scrape import ScrapeConfig
from tests.conftest import ROOT
from training.networks.towers import build_image_tower
from training.pipeline.mel import MelConfig
from training.precompute import PrecomputeConfig
from training.recipes.recipe import Geometry
from training.recipes.sound_statistics import frame_rate_of, statistics_of
from training.run.prepare import check_model
from training.settings import TrainConfig

NOTHING = Snapshot("", "out/clips", ())


def preset(name: str, *args: str) -> TrainConfig:
    return load_config(TrainConfig, [str(ROOT / f"configs/training/small_{name}.yaml"), *args])


def clips(duration_s: float, short_side_px: int) -> Any:
    """dataset.json of clips, as far as a recipe reads it."""
    settings = {
        "clip": {"duration_s": duration_s},
        "audio": {"sample_rate_hz": 16000},
        "frame": {"short_side_px": short_side_px},
    }
    return {"kind": "clips", "config": settings}


@pytest.mark.parametrize(
    "duration_s,frame_px,seen_px",
    [(0.5, 16, 16), (1.6, 64, 64), (2.56, 100, 96), (3.0, 128, 128), (10.24, 256, 128)],
)
def test_every_preset_makes_a_model_for_clips_of_any_length_and_size(
    duration_s: float, frame_px: int, seen_px: int
) -> None:
    meta = clips(duration_s, frame_px)
    mel = MelConfig(duration_s=duration_s)
    pictures = preset("contrastive")
    geometry: Geometry = pictures.module.geometry(NOTHING, meta, pictures.section)
    assert geometry["picture_px"] == seen_px
    told = statistics_of(torch.zeros(1, mel.num_frames, mel.num_mels), frame_rate_of(mel)).shape[1]
    check_model(pictures, {**geometry, "sounds": {"mean": [0.0] * told, "spread": [1.0] * told}})
    codec = preset("autoencoder")
    check_model(codec, codec.module.geometry(NOTHING, meta, codec.section))
    width = pictures.contrastive.image.dim
    latents: Geometry = {
        "latent_shape": list(mel.latent_shape),
        "latent_mean": [0.0] * mel.latent_channels,
        "latent_std": [1.0] * mel.latent_channels,
        "image_mean": [0.0] * width,
        "image_std": [1.0] * width,
        "mel": mel.settings(),
    }
    check_model(preset("diffusion"), latents)


def test_a_size_that_is_stated_is_kept_and_a_rate_that_no_model_takes_says_the_fix() -> None:
    stated = preset("contrastive", "contrastive.image.size_px=64")
    meta = clips(2.56, 128)
    assert "picture_px" not in stated.module.geometry(NOTHING, meta, stated.section)
    meta["config"]["audio"]["sample_rate_hz"] = 44100
    with pytest.raises(UserError, match="scrape with audio.sample_rate_hz=16000 into another output"):
        stated.module.geometry(NOTHING, meta, stated.section)


def test_the_presets_name_what_the_one_before_made() -> None:
    scraped = load_config(ScrapeConfig, [str(ROOT / "configs/ingest/laptop.yaml")])
    pictures = preset("contrastive")
    codec = preset("autoencoder")
    latents = load_config(PrecomputeConfig, [str(ROOT / "configs/training/small_latents.yaml")])
    assert scraped.output == pictures.data == codec.data == latents.data
    assert (latents.image_encoder, latents.autoencoder) == (pictures.output, codec.output)
    assert preset("diffusion").data == latents.output


def test_the_preset_that_begins_as_clip_builds_clips_own_tower() -> None:
    config = load_config(TrainConfig, [str(ROOT / "configs/training/contrastive_from_clip.yaml")])
    with torch.device("meta"):
        ours = build_image_tower(config.contrastive.image, config.contrastive.embedding_dim).state_dict()
        # CLIP's published ViT-B/32 has transformers' default settings
        theirs = CLIPVisionModelWithProjection(CLIPVisionConfig()).state_dict()
    assert {name: one.shape for name, one in ours.items()} == {
        name: one.shape for name, one in theirs.items()
    }


@pytest.mark.parametrize("name", ["latents_clip", "latents_audioldm"])
def test_presets_of_published_models_load_and_say_what_is_downloaded(name: str) -> None:
    path = ROOT / f"configs/training/{name}.yaml"
    config = load_config(PrecomputeConfig, [str(path)])
    header = path.read_text().partition("\ndata:")[0]
    published = [each for each in (config.autoencoder, config.image_encoder) if each.startswith("hub:")]
    assert published and all(each in header for each in published) and "not measured" in header
