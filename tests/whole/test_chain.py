"""From media files to a wav, by the plain functions behind the verbs, on models too small to sound right."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from cluster import shards
from cluster.dataset import Dataset
from configs.load import UserError
from tests.fakes.chain import Chain, frames_of
from training.data.catalogue import Catalogue
from training.data.npy import read_npy
from training.data.randomness import SampleKey
from training.evaluate import EvaluateConfig, evaluate
from training.export import ExportConfig, export, open_pipeline
from training.pipeline.codec import (
    ImageConfig,
    decode_latent,
    embed_image,
    embed_image_and_patches,
    encode_wav,
)
from training.precompute import PrecomputeConfig, precompute, read_clip
from training.pretrained import find_model, load_autoencoder, load_image_encoder, read_processor
from training.recipes import diffusion
from training.recipes.clips import mel_of_clips
from training.settings import TrainConfig
from training.train import train


def kept_keys(uri: str) -> list[str]:
    return sorted(row["key"] for row in Dataset.open(uri).iter_rows() if row["status"] == "kept")


def test_latents_have_the_keys_of_their_clips(chain: Chain) -> None:
    assert kept_keys(chain.latents) == kept_keys(chain.clips) and len(kept_keys(chain.clips)) == 24


def test_precompute_again_finds_nothing_to_do_and_other_models_are_refused(chain: Chain) -> None:
    settings = PrecomputeConfig(
        data=chain.clips,
        output=chain.latents,
        workers=0,
        autoencoder=chain.autoencoder,
        image_encoder=chain.contrastive,
    )
    assert precompute(settings, progress=False).units_done == 0
    weights = Path(chain.autoencoder) / "model/diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    try:
        with pytest.raises(UserError, match="sha256.autoencoder"):
            precompute(settings, progress=False)
    finally:
        weights.write_bytes(before)


def test_a_damaged_or_buried_clip_becomes_a_refused_row_and_held_out_ones_stay_out_of_the_moments(
    chain: Chain, tmp_path: Path
) -> None:
    clips = Dataset.open(shutil.copytree(chain.clips, tmp_path / "clips").as_posix())
    rows = [row for row in clips.iter_rows() if row["status"] == "kept"]
    damaged, buried = rows[0], rows[1]
    tar = clips.commits()[damaged["unit"]].tar
    flac = next(member for member in damaged["members"] if member["ext"] == "flac")
    assert tar
    content = bytearray((tmp_path / "clips" / tar.name).read_bytes())
    content[flac["offset"] + flac["size"] // 2] ^= 1
    (tmp_path / "clips" / tar.name).write_bytes(content)
    clips.bury({buried["key"]: "asked"})
    models = {"autoencoder": chain.autoencoder, "image_encoder": chain.contrastive}
    precompute(
        PrecomputeConfig(data=clips.uri, output=str(tmp_path / "latents"), workers=0, **models),
        progress=False,
    )
    latents = Dataset.open(str(tmp_path / "latents"))
    reasons = {
        row["key"]: row["reason"]
        for row in latents.iter_rows()
        if row["key"] in (damaged["key"], buried["key"])
    }
    assert reasons == {damaged["key"]: "damaged", buried["key"]: "removed"}
    (detail,) = (row["detail"] for row in latents.iter_rows() if row["key"] == damaged["key"])
    assert "DamagedMemberError: flac" in detail  # found by its checksum, before any decoder saw it
    kept = [row for row in latents.iter_rows() if row["status"] == "kept"]
    assert len(kept) == len(rows) - 2
    counted = sum(commit.statistics["image_count"] for commit in latents.commits().values())
    assert counted == sum(row["split"] == "train" for row in kept) < len(kept)


def test_a_precomputed_latent_is_the_online_one_at_any_batch_size(chain: Chain, tmp_path: Path) -> None:
    """To 1e-5 before the cast, and within one float16 step after it."""
    autoencoder = load_autoencoder(find_model(chain.autoencoder, "autoencoder"))
    tower_folder = find_model(chain.contrastive, "image_encoder", "image_encoder")
    tower, image = load_image_encoder(tower_folder), ImageConfig.from_processor(read_processor(tower_folder))
    clips, latents = Dataset.open(chain.clips), Dataset.open(chain.latents)
    mel = mel_of_clips(clips.meta)
    stored = {row["key"]: members_of(latents, row) for row in latents.iter_rows() if row["status"] == "kept"}
    rows = [row for row in clips.iter_rows() if row["status"] == "kept"]
    decoded = {
        row["key"]: read_clip(clips.store.read(tar_of(clips, row)), shards.members_of(row), image)
        for row in rows
    }
    wavs, pixels = (torch.stack([pair[part] for pair in decoded.values()]) for part in (0, 1))
    one_by_one, several = [], []
    with torch.no_grad():
        for size, found in ((1, one_by_one), (7, several)):
            for start in range(0, len(wavs), size):
                moments = torch.stack(encode_wav(autoencoder, wavs[start : start + size], mel), 1)
                found += zip(moments, embed_image(tower, pixels[start : start + size]), strict=True)
    for key, alone, together in zip(decoded, one_by_one, several, strict=True):
        for name, one, other in zip(("latent.npy", "image.npy"), alone, together, strict=True):
            assert (one - other).abs().max() <= 1e-5 * one.abs().max()
            step = np.maximum(
                np.spacing(one.half().abs().numpy()).astype(np.float32), 1e-5 * float(one.abs().max())
            )
            assert (np.abs(stored[key][name].astype(np.float32) - one.half().float().numpy()) <= step).all()


def tar_of(dataset: Dataset, row: dict[str, Any]) -> str:
    tar = dataset.commits()[row["unit"]].tar
    assert tar
    return tar.name


def members_of(dataset: Dataset, row: dict[str, Any]) -> dict[str, np.ndarray]:
    tar = dataset.store.read(tar_of(dataset, row))
    return {
        part["ext"]: read_npy(tar[part["offset"] : part["offset"] + part["size"]])
        for part in row["members"]
        if "npy" in part["ext"]
    }


def test_patch_tokens_and_bf16_by_option(chain: Chain, tmp_path: Path) -> None:
    models = {"autoencoder": chain.autoencoder, "image_encoder": chain.contrastive}
    config = PrecomputeConfig(
        data=chain.clips,
        output=f"{tmp_path}/latents",
        workers=0,
        patch_tokens=True,
        precision="bf16",
        **models,
    )
    precompute(config, progress=False)
    exact, rough = Dataset.open(chain.latents), Dataset.open(config.output)
    rows = {row["key"]: row for row in exact.iter_rows() if row["status"] == "kept"}
    for row in rough.iter_rows():
        if row["status"] == "kept":
            found, expected = members_of(rough, row), members_of(exact, rows[row["key"]])
            assert found["tokens.npy"].shape == (4 * 4, 16)  # a picture of 32 px, halved thrice
            error = np.abs(found["latent.npy"][0].astype(np.float32) - expected["latent.npy"][0]).max()
            assert 0 < error < 0.05 * np.abs(expected["latent.npy"][0].astype(np.float32)).max()
    with pytest.raises(UserError, match="patch_tokens"):
        precompute(replace(config, patch_tokens=False), progress=False)
    with pytest.raises(UserError, match="precision=fp64: give one of fp32, bf16"):
        precompute(replace(config, precision="fp64"), progress=False)


def test_patch_tokens_of_a_clip_tower_leave_out_the_class_token() -> None:
    shape = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 8,
    }
    tower = CLIPVisionModelWithProjection(CLIPVisionConfig(image_size=32, patch_size=8, **shape)).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        embedding, tokens = embed_image_and_patches(tower, pixels)
        whole = tower(pixels).last_hidden_state
    assert embedding.shape == (2, 8) and torch.equal(tokens, whole[:, 1:]) and tokens.shape == (2, 16, 16)


def test_stock_webdataset_reads_clips_and_latents(chain: Chain) -> None:
    import webdataset

    for uri in (chain.clips, chain.latents):
        tars = sorted(str(path) for path in Path(uri, "shards").glob("*.tar"))
        samples = list(webdataset.WebDataset(tars, shardshuffle=False))
        assert sorted(sample["__key__"] for sample in samples) == kept_keys(uri)


def test_a_network_that_knows_the_flow_leads_the_pipeline_to_the_clips_own_latent(
    chain: Chain, tmp_path: Path
) -> None:
    """The sampler's times, the whitening and its inverse are those of training: else the oracle leads
    somewhere else.
    """
    latents, pipe = Dataset.open(chain.latents), open_pipeline(chain.diffusion)
    catalogue = Catalogue.of(latents, latents.snapshot(), "train", diffusion.MEMBERS)
    picture = Image.open(
        next(path for path in frames_of(chain, tmp_path / "frames", 24) if path.stem == catalogue.keys[0])
    )
    sample = catalogue.read([0])[0]
    assert sample
    batch = diffusion.make_batch(
        [sample], [SampleKey(0, 0, 0)], diffusion.Config(), dict(pipe.config.conditioning)
    )
    assert torch.allclose(pipe.embed(picture), batch["image"], atol=1e-2)

    def oracle(mixed: torch.Tensor, timestep: torch.Tensor, **other: object) -> SimpleNamespace:
        return SimpleNamespace(sample=(mixed - batch["latent"]) / (timestep / diffusion.NUM_TIMESTEPS))

    mean, std = (
        torch.tensor(pipe.config.conditioning[f"latent_{name}"])[:, None, None] for name in ("mean", "std")
    )
    expected = decode_latent(pipe.autoencoder, batch["latent"] * std + mean, pipe.mel).clamp(-1, 1)
    with mock.patch.object(pipe.unet, "forward", oracle):
        assert np.abs(pipe(picture, steps=4) - expected.numpy()).max() < 1e-2


def test_a_published_codec_has_clips_at_audioldms_level_in_latents_and_pipeline(
    chain: Chain, tmp_path: Path
) -> None:
    codec, latents = tmp_path / "codec", str(tmp_path / "latents")
    shutil.copytree(f"{chain.autoencoder}/model", codec)
    (codec / "mel.json").unlink()
    models = {"autoencoder": str(codec), "image_encoder": chain.contrastive}
    precompute(PrecomputeConfig(data=chain.clips, output=latents, workers=0, **models), progress=False)
    assert Dataset.open(latents).meta["config"]["mel"]["level"] == "audioldm"
    assert "level" not in Dataset.open(chain.latents).meta["config"]["mel"]
    kept = {"steps": 1, "global_batch": 4, "lanes": 4, "zero_stage": 0}
    unet = diffusion.Config(
        channels=[8, 16], head_counts=[2, 2], layers_per_block=1, attention=False, norm_groups=4
    )
    train(TrainConfig(data=latents, output=str(tmp_path / "run"), workers=0, diffusion=unet, **kept))
    export(ExportConfig(model=str(tmp_path / "run"), output=str(tmp_path / "export")))
    loud = np.random.default_rng(0).uniform(-1, 1, (1, 25600)).astype(np.float32)
    for name in ("run", "export"):
        pipe = open_pipeline(str(tmp_path / name))
        assert np.allclose(pipe.reconstruct(loud), pipe.reconstruct(0.1 * loud), atol=1e-3)
    assert not np.allclose(
        open_pipeline(chain.diffusion).reconstruct(loud),
        open_pipeline(chain.diffusion).reconstruct(0.1 * loud),
        atol=1e-3,
    )


def test_evaluate_scores_the_ceiling_above_chance_and_writes_what_the_report_needs(
    chain: Chain, tmp_path: Path
) -> None:
    truth = f"{chain.world}/truth"
    found = evaluate(
        EvaluateConfig(
            model=chain.diffusion, data=chain.clips, truth=truth, output=str(tmp_path), steps=2, split="train"
        )
    )
    assert set(found["scores"]) == {"timbre", "f0", "rate"}
    assert {"generated", "real", "chance", "shuffled"} <= set(found["scores"]["timbre"])
    assert json.loads((tmp_path / "scores.json").read_text())["num_clips"] == found["num_clips"] > 3
    assert list((tmp_path / "wavs").glob("*.generated.wav")) and list((tmp_path / "images").glob("*.jpg"))


def test_training_on_clips_where_latents_are_needed_is_refused(chain: Chain, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="need latents; run python -m training precompute first"):
        train(TrainConfig(data=chain.clips, output=str(tmp_path / "run"), workers=0))
