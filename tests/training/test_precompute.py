"""What precompute refuses at its door, pictures as published processors make them, and pipelines in half
precision.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BitImageProcessor, CLIPVisionModel

from cluster.dataset import Dataset
from cluster.shards import Row, write_shard
from configs.load import UserError
from tests.fakes.chain import Chain
from tests.fakes.towers import OURS, save_codec, save_tower
from training.pipeline.codec import ImageConfig, image_to_tensor
from training.pipeline.mel import MelConfig
from training.pipeline.pipeline import StillsoundPipeline
from training.precompute import PrecomputeConfig, prepare
from training.pretrained import (
    load_audiomae,
    load_autoencoder,
    load_image_encoder,
    pictures_version,
    plain_processor,
    read_processor,
)
from training.recipes import diffusion

NORMALISED = {"do_normalize": True, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
RESCALED = {"do_rescale": True, "rescale_factor": 1 / 255}
DINO = {
    "do_resize": True,
    "size": {"shortest_edge": 64},
    "do_center_crop": True,
    "crop_size": {"height": 56, "width": 56},
    "resample": 3,
}


def picture(size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(160, 120), (120, 161), (90, 90), (40, 500)])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"resample": 2},
        {"size": {"shortest_edge": 56}},
        {"size": 56, "crop_size": 56},
        {"size": {"height": 48, "width": 48}, "do_center_crop": False},
        {"size": {"height": 60, "width": 60}},
        {"do_normalize": False},
    ],
)
def test_pictures_are_made_as_a_published_processor_makes_them(
    change: dict[str, Any], size: tuple[int, int]
) -> None:
    settings = {**DINO, **NORMALISED, **RESCALED, **change}
    theirs = np.asarray(BitImageProcessor(**settings)(picture(size), return_tensors="np")["pixel_values"][0])
    ours = image_to_tensor(picture(size), ImageConfig.from_processor(settings)).numpy()
    assert np.abs(ours - theirs).mean() < 0.05 * theirs.std()


@pytest.mark.parametrize(
    "change,says",
    [
        ({"do_pad": True}, "do_pad=True is not supported"),
        ({"crop_pct": 0.875}, "crop_pct=0.875 is not supported"),
        ({"do_rescale": False}, "do_rescale=False is not supported"),
        ({"do_resize": False}, "do_resize=False is not supported"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor"),
        ({"size": {"longest_edge": 64}}, "size=.*longest_edge.* is not supported"),
        ({"size": {"height": 32, "width": 64}, "do_center_crop": False}, "is not supported: give a square"),
        ({"size": {"shortest_edge": 48}}, "gives no square picture without a border"),
        ({"do_center_crop": False}, "gives no square picture without a border"),
        ({"image_mean": None}, "preprocessor_config.json"),
    ],
)
def test_a_processor_that_cannot_be_honoured_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    settings = {**DINO, **NORMALISED, **RESCALED, **change}
    settings = {name: value for name, value in settings.items() if value is not None}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=says):
        read_processor(tmp_path)


def test_models_of_before_see_pictures_as_then_and_our_own_towers_as_ever() -> None:
    published, older = (
        ImageConfig.from_processor({**DINO, **NORMALISED}),
        ImageConfig.from_processor(plain_processor({**DINO, **NORMALISED})),
    )
    assert (published.resize_px, published.resample, older.resize_px, older.resample) == (64, 3, 0, 2)
    assert pictures_version({**DINO, **NORMALISED}) == 2 and pictures_version(OURS) == 1
    assert ImageConfig.from_processor(OURS) == ImageConfig(32)


def weights_of(folder: Path) -> Path:
    (found,) = folder.glob("*.safetensors")
    return found


def test_a_tower_without_the_weights_of_its_embedding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no weights|have no weights for visual_projection.weight"):
        load_image_encoder(save_tower(tmp_path, CLIPVisionModel))


def test_a_codec_that_lacks_a_weight_is_refused(tmp_path: Path) -> None:
    path = weights_of(save_codec(tmp_path))
    tensors = load_file(path)
    tensors.pop("decoder.conv_out.weight")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="decoder.conv_out.weight"):
        load_autoencoder(tmp_path)


@pytest.mark.parametrize("model", ["tower", "codec"])
def test_weights_that_are_cut_off_are_refused(tmp_path: Path, model: str) -> None:
    save, load = (save_tower, load_image_encoder) if model == "tower" else (save_codec, load_autoencoder)
    path = weights_of(save(tmp_path))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be loaded"):
        load(tmp_path)


@pytest.mark.parametrize("model", ["tower", "codec"])
def test_weights_that_are_not_finite_are_refused(clips: Dataset, tmp_path: Path, model: str) -> None:
    save_codec(tmp_path / "codec")
    save_tower(tmp_path / "tower")
    path = weights_of(tmp_path / model)
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="NaN or infinite"):
        prepare(settings(tmp_path))


@pytest.fixture
def clips(tmp_path: Path) -> Dataset:
    """A dataset of clips of which only the geometry and the commits are looked at."""
    config = {"audio": {"sample_rate_hz": 16000}, "clip": {"duration_s": 0.16}}
    dataset = Dataset.create_or_open(str(tmp_path / "clips"), "clips", config, [])
    dataset.worklist.append([("item", {})], 1)
    (tmp_path / "scratch").mkdir()
    columns = pa.schema([("split", pa.string())])
    rows = [Row("item", "k_0", columns={"split": "train"}, members={"flac": b"1", "jpg": b"2"})]
    dataset.commit("u0000000", 0, write_shard(tmp_path / "scratch", rows, columns), {})
    return dataset


def settings(folder: Path, **other: Any) -> PrecomputeConfig:
    basic = {
        "data": f"{folder}/clips",
        "output": f"{folder}/latents",
        "autoencoder": f"{folder}/codec",
        "image_encoder": f"{folder}/tower",
    }
    return PrecomputeConfig(**{**basic, "level": "recorded", "workers": 0, **other})


@pytest.mark.parametrize(
    "codec,pixels,says",
    [
        ({"channels": 3}, 32, "takes 3 channels and gives 3, a mel has one"),
        ({"levels": 4}, 32, "downsamples mels by 8, need 4"),
        ({}, 48, "gives no embedding of a picture of 48 px"),
    ],
)
def test_models_that_do_not_fit_are_refused_before_an_output_is_made(
    clips: Dataset, tmp_path: Path, codec: dict[str, int], pixels: int, says: str
) -> None:
    save_codec(tmp_path / "codec", **codec)
    processor = {**OURS, "size": {"height": pixels, "width": pixels}}
    (save_tower(tmp_path / "tower") / "preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.raises(UserError, match=says):
        prepare(settings(tmp_path))
    assert not (tmp_path / "latents").exists()


def test_latents_are_the_same_dataset_by_any_path_of_their_clips(
    clips: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_codec(tmp_path / "codec")
    save_tower(tmp_path / "tower")
    monkeypatch.chdir(tmp_path)
    first, _ = prepare(settings(tmp_path, data="clips", output="latents"))
    for data in ("./clips", f"{tmp_path}/clips", "tower/../clips/"):
        assert prepare(settings(tmp_path, data=data))[0].meta == first.meta
    shutil.move("clips", "moved")
    assert prepare(settings(tmp_path, data="moved"))[0].meta == first.meta


def test_latents_of_before_with_a_path_in_their_hash_are_the_same_dataset_too(tmp_path: Path) -> None:
    parents = [{"uri": "clips", "snapshot": "abc"}]
    made = Dataset.create_or_open(str(tmp_path / "latents"), "latents", {"a": 1}, parents)
    assert (
        Dataset.create_or_open(
            made.uri, "latents", {"a": 1}, [{"uri": "/else/where", "snapshot": "abc"}]
        ).meta
        == made.meta
    )
    with pytest.raises(UserError, match="parents"):
        Dataset.create_or_open(made.uri, "latents", {"a": 1}, [{"uri": "clips", "snapshot": "abd"}])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_pipeline_in_half_precision_gives_the_sound_of_the_whole_one(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    config = diffusion.Config(
        channels=[8, 16], head_counts=[2, 2], layers_per_block=1, attention=False, norm_groups=4
    )
    codec, tower = (
        load_autoencoder(save_codec(tmp_path / "codec")),
        load_image_encoder(save_tower(tmp_path / "tower")),
    )
    moments = {
        "latent_mean": [0.0] * 8,
        "latent_std": [1.0] * 8,
        "image_mean": [0.0] * 8,
        "image_std": [1.0] * 8,
    }
    mel = MelConfig(duration_s=0.64)
    conditioning = {
        **moments,
        "null_embedding": [0.1] * 8,
        "latent_shape": list(mel.latent_shape),
        "mel": mel.settings(),
        "processor": OURS,
    }
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    pipe = StillsoundPipeline(
        diffusion.build_unet(config, 8, 8).eval(), codec, tower, scheduler, conditioning
    )
    pipe.set_progress_bar_config(disable=True)
    whole, rebuilt = (
        pipe(picture((40, 30)), steps=3),
        pipe.reconstruct(np.zeros((1, mel.num_samples), np.float32)),
    )
    pipe.to(dtype)
    half = pipe(picture((40, 30)), steps=3)
    assert half.dtype == np.float32 and half.shape == whole.shape
    assert np.abs(half).std() == pytest.approx(np.abs(whole).std(), rel=0.1)
    assert pipe.reconstruct(np.zeros((1, mel.num_samples), np.float32)).shape == rebuilt.shape


def test_an_audiomae_of_other_clips_is_refused(chain: Chain, clips: Dataset, tmp_path: Path) -> None:
    save_codec(tmp_path / "codec")
    save_tower(tmp_path / "tower")
    with pytest.raises(UserError, match=r"takes spectrograms of \[160, 128\], the clips have \[16, 128\]"):
        prepare(settings(tmp_path, audiomae=chain.audiomae))
    with pytest.raises(UserError, match="need a vit_mae: recipe=audiomae trains one"):
        load_audiomae(Path(chain.autoencoder) / "model")
