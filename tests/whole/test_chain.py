"""From media files to a wav, by the plain functions behind the verbs, on models too small to sound right."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from cluster import shards
from cluster.dataset import Dataset
from configs.load import UserError
from tests.fakes.chain import Chain, frames_of
from training.data.catalogue import Catalogue
from training.data.npy import read_npy
from training.data.randomness import SampleKey
from training.evaluate import evaluate
from training.evaluation import EvaluateConfig
from training.export import ExportConfig, export, open_pipeline
from training.pipeline.codec import (
    ImageConfig,
    decode_latent,
    embed_image,
    embed_image_and_patches,
    encode_wav,
)
from training.pipeline.sampling import NUM_TIMESTEPS
from training.precompute import PrecomputeConfig, precompute, read_clip
from training.pretrained import find_model, load_autoencoder, load_image_encoder, read_processor
from training.recipes import diffusion
from training.recipes.clips import mel_of_clips
from training.settings import TrainConfig
from training.train import train


def kept_rows(dataset: Dataset) -> list[dict[str, Any]]:
    return [row for row in dataset.iter_rows() if row["status"] == "kept"]


def kept_keys(uri: str) -> list[str]:
    return sorted(row["key"] for row in kept_rows(Dataset.open(uri)))


def tar_of(dataset: Dataset, row: dict[str, Any]) -> str:
    tar = dataset.commits()[row["unit"]].tar
    assert tar
    return tar.name


def arrays_of(dataset: Dataset, row: dict[str, Any]) -> dict[str, np.ndarray]:
    tar = dataset.store.read(tar_of(dataset, row))
    arrays = {}
    for member in row["members"]:
        if "npy" in member["ext"]:
            arrays[member["ext"]] = read_npy(tar[member["offset"] : member["offset"] + member["size"]])
    return arrays


def precompute_config(chain: Chain, **changes: Any) -> PrecomputeConfig:
    """That made the latents of the chain."""
    config = PrecomputeConfig(
        data=chain.clips,
        output=chain.latents,
        workers=0,
        autoencoder=chain.autoencoder,
        image_encoder=chain.contrastive,
    )
    return replace(config, **changes)


# --- Precompute ---------------------------------------------------------------------------------------------


def test_latents_have_the_keys_of_their_clips(chain: Chain) -> None:
    assert kept_keys(chain.latents) == kept_keys(chain.clips)
    assert len(kept_keys(chain.clips)) == 24


def test_precompute_of_finished_latents_does_nothing(chain: Chain) -> None:
    assert precompute(precompute_config(chain), progress=False).units_done == 0


def test_latents_of_other_weights_are_another_dataset(chain: Chain, tmp_path: Path) -> None:
    autoencoder = shutil.copytree(chain.autoencoder, tmp_path / "autoencoder")
    weights = autoencoder / "model/diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UserError, match=r"sha256\.autoencoder"):
        precompute(precompute_config(chain, autoencoder=str(autoencoder)), progress=False)


@dataclass
class HarmedLatents:
    """Latents of clips one of which is damaged and one buried."""

    dataset: Dataset
    clips: list[dict[str, Any]]

    @property
    def damaged(self) -> str:
        return str(self.clips[0]["key"])

    @property
    def buried(self) -> str:
        return str(self.clips[1]["key"])

    def row(self, key: str) -> dict[str, Any]:
        return next(row for row in self.dataset.iter_rows() if row["key"] == key)


@pytest.fixture(scope="module")
def harmed(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> HarmedLatents:
    root = tmp_path_factory.mktemp("harmed")
    clips = Dataset.open(shutil.copytree(chain.clips, root / "clips").as_posix())
    latents = HarmedLatents(clips, kept_rows(clips))
    row = latents.clips[0]
    flac = next(member for member in row["members"] if member["ext"] == "flac")
    path = root / "clips" / tar_of(clips, row)
    content = bytearray(path.read_bytes())
    content[flac["offset"] + flac["size"] // 2] ^= 1
    path.write_bytes(content)
    clips.bury({latents.buried: "asked"})
    config = precompute_config(chain, data=clips.uri, output=str(root / "latents"))
    precompute(config, progress=False)
    latents.dataset = Dataset.open(config.output)
    return latents


def test_a_damaged_clip_is_a_refused_row(harmed: HarmedLatents) -> None:
    row = harmed.row(harmed.damaged)
    assert row["reason"] == "damaged"
    assert "DamagedMemberError: flac" in row["detail"]  # by its checksum, before a decoder could see it


def test_a_buried_clip_is_a_refused_row(harmed: HarmedLatents) -> None:
    assert harmed.row(harmed.buried)["reason"] == "removed"


def test_the_neighbours_of_refused_clips_are_kept(harmed: HarmedLatents) -> None:
    assert len(kept_rows(harmed.dataset)) == len(harmed.clips) - 2


def test_held_out_clips_stay_out_of_the_moments(harmed: HarmedLatents) -> None:
    kept = kept_rows(harmed.dataset)
    counted = sum(commit.statistics["image_count"] for commit in harmed.dataset.commits().values())
    assert counted == sum(row["split"] == "train" for row in kept) < len(kept)


class OnlineEncoders:
    """Both models, for the clips of the chain in batches of any size."""

    def __init__(self, chain: Chain):
        clips = Dataset.open(chain.clips)
        tower = find_model(chain.contrastive, "image_encoder", "image_encoder")
        image_config = ImageConfig.from_processor(read_processor(tower))
        self.autoencoder = load_autoencoder(find_model(chain.autoencoder, "autoencoder"))
        self.image_encoder = load_image_encoder(tower)
        self.mel = mel_of_clips(clips.meta)
        self.keys = []
        self.wavs = []
        self.pixels = []
        for row in kept_rows(clips):
            tar = clips.store.read(tar_of(clips, row))
            wav, pixels = read_clip(tar, shards.members_of(row), image_config)
            self.keys.append(row["key"])
            self.wavs.append(wav)
            self.pixels.append(pixels)

    @torch.no_grad()
    def encode(self, batch_size: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Key -> moments of its latent, embedding of its picture."""
        latents: list[Tensor] = []
        images: list[Tensor] = []
        for start in range(0, len(self.keys), batch_size):
            batch = slice(start, start + batch_size)
            latents += torch.stack(encode_wav(self.autoencoder, torch.stack(self.wavs[batch]), self.mel), 1)
            images += embed_image(self.image_encoder, torch.stack(self.pixels[batch]))
        return dict(zip(self.keys, zip(latents, images, strict=True), strict=True))


@pytest.fixture(scope="module")
def encoders(chain: Chain) -> OnlineEncoders:
    return OnlineEncoders(chain)


def test_the_batch_size_changes_no_latent(encoders: OnlineEncoders) -> None:
    in_sevens = encoders.encode(7)
    for key, tensors in encoders.encode(1).items():
        for alone, together in zip(tensors, in_sevens[key], strict=True):
            assert (alone - together).abs().max() <= 1e-5 * alone.abs().max()


def test_a_precomputed_latent_is_the_online_one(chain: Chain, encoders: OnlineEncoders) -> None:
    """Within one step of float16, or within 1e-5 of the largest value where its steps are finer."""
    latents = Dataset.open(chain.latents)
    stored = {row["key"]: arrays_of(latents, row) for row in kept_rows(latents)}
    for key, tensors in encoders.encode(1).items():
        for name, online in zip(("latent.npy", "image.npy"), tensors, strict=True):
            half = online.half()
            spacing = np.spacing(half.abs().numpy()).astype(np.float32)
            tolerance = np.maximum(spacing, 1e-5 * float(online.abs().max()))
            error = np.abs(stored[key][name].astype(np.float32) - half.float().numpy())
            assert (error <= tolerance).all()


@pytest.fixture(scope="module")
def rough(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> PrecomputeConfig:
    """Of latents in bf16 with patch tokens, which are made."""
    output = str(tmp_path_factory.mktemp("rough") / "latents")
    config = precompute_config(chain, output=output, patch_tokens=True, precision="bf16")
    precompute(config, progress=False)
    return config


def test_patch_tokens_are_an_option(rough: PrecomputeConfig) -> None:
    latents = Dataset.open(rough.output)
    for row in kept_rows(latents):
        # a picture of 32 px, halved thrice
        assert arrays_of(latents, row)["tokens.npy"].shape == (4 * 4, 16)


def test_bf16_costs_little_exactness(chain: Chain, rough: PrecomputeConfig) -> None:
    exact = Dataset.open(chain.latents)
    expected = {row["key"]: arrays_of(exact, row)["latent.npy"][0] for row in kept_rows(exact)}
    latents = Dataset.open(rough.output)
    for row in kept_rows(latents):
        mean = expected[row["key"]].astype(np.float32)
        error = np.abs(arrays_of(latents, row)["latent.npy"][0].astype(np.float32) - mean).max()
        assert 0 < error < 0.05 * np.abs(mean).max()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_tokens": False}, "patch_tokens"),
        ({"precision": "fp64"}, "precision=fp64: give one of fp32, bf16"),
    ],
)
def test_other_options_are_refused(rough: PrecomputeConfig, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        precompute(replace(rough, **changes), progress=False)


def test_patch_tokens_leave_out_the_class_token() -> None:
    config = CLIPVisionConfig(
        image_size=32,
        patch_size=8,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=8,
    )
    tower = CLIPVisionModelWithProjection(config).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        embedding, tokens = embed_image_and_patches(tower, pixels)
        hidden = tower(pixels).last_hidden_state
    assert embedding.shape == (2, 8)
    assert tokens.shape == (2, 16, 16)
    assert torch.equal(tokens, hidden[:, 1:])


@pytest.mark.parametrize("kind", ["clips", "latents"])
def test_stock_webdataset_reads_our_shards(chain: Chain, kind: str) -> None:
    import webdataset

    uri = str(chain.root / kind)
    tars = sorted(str(path) for path in Path(uri, "shards").glob("*.tar"))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert sorted(sample["__key__"] for sample in samples) == kept_keys(uri)


# --- From latents to a wav ----------------------------------------------------------------------------------


def test_an_oracle_of_the_flow_gives_the_sound_of_the_clips_own_latent(chain: Chain, tmp_path: Path) -> None:
    """The sampler's times, the whitening and its inverse are those of training: else the oracle would lead
    to another sound.
    """
    latents = Dataset.open(chain.latents)
    pipe = open_pipeline(chain.diffusion)
    geometry = dict(pipe.config.conditioning)
    catalogue = Catalogue.of(latents, latents.snapshot(), "train", diffusion.MEMBERS)
    frames = {path.stem: path for path in frames_of(chain, tmp_path / "frames", 24)}
    picture = Image.open(frames[catalogue.keys[0]])
    sample = catalogue.read([0])[0]
    assert sample
    batch = diffusion.make_batch([sample], [SampleKey(0, 0, 0)], diffusion.Config(), geometry)
    assert torch.allclose(pipe.embed(picture), batch["image"], atol=1e-2)

    def oracle(mixed: Tensor, timestep: Tensor, **conditions: object) -> SimpleNamespace:
        return SimpleNamespace(sample=(mixed - batch["latent"]) / (timestep / NUM_TIMESTEPS))

    mean = torch.tensor(geometry["latent_mean"])[:, None, None]
    std = torch.tensor(geometry["latent_std"])[:, None, None]
    expected = decode_latent(pipe.autoencoder, batch["latent"] * std + mean, pipe.mel).clamp(-1, 1)
    with mock.patch.object(pipe.unet, "forward", oracle):
        assert np.abs(pipe(picture, steps=4) - expected.numpy()).max() < 1e-2


@pytest.fixture(scope="module")
def published(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with latents of a codec as published ones are, without our mel.json, a run and its export."""
    root = tmp_path_factory.mktemp("published")
    shutil.copytree(f"{chain.autoencoder}/model", root / "codec")
    (root / "codec/mel.json").unlink()
    latents = str(root / "latents")
    precompute(precompute_config(chain, output=latents, autoencoder=str(root / "codec")), progress=False)
    unet = diffusion.Config(
        channels=[8, 16], head_counts=[2, 2], layers_per_block=1, attention=False, norm_groups=4
    )
    config = TrainConfig(
        data=latents,
        output=str(root / "run"),
        workers=0,
        steps=1,
        global_batch=4,
        lanes=4,
        zero_stage=0,
        diffusion=unet,
    )
    train(config)
    export(ExportConfig(model=config.output, output=str(root / "export")))
    return root


def test_latents_of_a_published_codec_are_at_audioldms_level(published: Path) -> None:
    assert Dataset.open(str(published / "latents")).meta["config"]["mel"]["level"] == "audioldm"


def test_latents_of_our_codec_are_as_loud_as_recorded(chain: Chain) -> None:
    assert "level" not in Dataset.open(chain.latents).meta["config"]["mel"]


@pytest.mark.parametrize("folder", ["run", "export"])
def test_a_pipeline_with_a_published_codec_levels_its_input(published: Path, folder: str) -> None:
    assert is_levelled(str(published / folder))


def test_a_pipeline_with_our_codec_keeps_the_loudness(chain: Chain) -> None:
    assert not is_levelled(chain.diffusion)


def is_levelled(model: str) -> bool:
    """Whether a sound and the same at a tenth of its loudness give the same."""
    pipe = open_pipeline(model)
    loud = np.random.default_rng(0).uniform(-1, 1, (1, 25600)).astype(np.float32)
    return bool(np.allclose(pipe.reconstruct(loud), pipe.reconstruct(0.1 * loud), atol=1e-3))


# --- Evaluate -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluation(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The output folder and the scores that were returned."""
    output = tmp_path_factory.mktemp("evaluation")
    config = EvaluateConfig(
        model=chain.diffusion,
        data=chain.clips,
        truth=f"{chain.world}/truth",
        output=str(output),
        steps=2,
        split="train",
    )
    return output, evaluate(config)


def test_every_score_has_its_ceiling_and_chance(evaluation: tuple[Path, dict[str, Any]]) -> None:
    _, result = evaluation
    assert set(result["scores"]) == {"timbre", "f0", "rate"}
    assert {"generated", "real", "chance", "shuffled"} <= set(result["scores"]["timbre"])


def test_evaluate_writes_what_the_report_needs(evaluation: tuple[Path, dict[str, Any]]) -> None:
    output, result = evaluation
    scores = json.loads((output / "scores.json").read_text())
    assert scores["num_clips"] == result["num_clips"] > 3
    assert list((output / "wavs").glob("*.generated.wav"))
    assert list((output / "images").glob("*.jpg"))


def test_training_on_clips_where_latents_are_needed_is_refused(chain: Chain, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="need latents; run python -m training precompute first"):
        train(TrainConfig(data=chain.clips, output=str(tmp_path / "run"), workers=0))
