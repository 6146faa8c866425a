"""From media files to a wav, by the plain functions behind the verbs, on models too small to sound right."""

import io
import json
import os
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from tensorboardX.proto import event_pb2
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from cluster.dataset import Dataset
from configs.load import UserError
from ingest.clip.clipper import ClipConfig, FrameConfig
from ingest.scrape import ScrapeConfig, SplitConfig, scrape
from ingest.sources.settings import SourceConfig
from ingest.synth import SynthConfig, synth
from training.data.catalogue import Catalogue
from training.data.npy import read_npy
from training.data.randomness import SampleKey
from training.evaluate import EvaluateConfig, evaluate
from training.export import ExportConfig, export, open_pipeline
from training.generate import GenerateConfig, generate
from training.pipeline.codec import (
    ImageConfig,
    decode_latent,
    embed_image,
    embed_image_and_patches,
    encode_wav,
)
from training.precompute import PrecomputeConfig, precompute, read_clip
from training.pretrained import fetch_models, find_model, load_autoencoder, load_image_encoder, read_processor
from training.recipes import autoencoder, contrastive, diffusion
from training.recipes.clips import mel_of_clips
from training.run.preview import Preview
from training.settings import TrainConfig
from training.train import train

TOWER = contrastive.ImageTowerConfig(
    kind="resnet", widths=[8, 16], depths=[1, 1], stem=8, norm_groups=4, size_px=32
)


@dataclass
class Chain:
    root: Path

    def __getattr__(self, name: str) -> str:
        return str(self.root / name)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """world, clips, contrastive, autoencoder, latents, diffusion: each made from the one before, in this
    process.
    """
    chain = Chain(tmp_path_factory.mktemp("chain"))
    synth(
        SynthConfig(
            path=chain.world,
            videos=6,
            webm=0,
            hls=0,
            dash=0,
            stills=0,
            silent=1,
            scenes_per_video=4,
            size_px=64,
        )
    )
    source = SourceConfig(path=f"{chain.world}/media", license="own")
    clip, frame, split = (
        ClipConfig(duration_s=1.6),
        FrameConfig(short_side_px=32),
        SplitConfig(validation=0.4),
    )
    scrape(
        ScrapeConfig(
            output=chain.clips, source=source, workers=0, unit_size=2, clip=clip, frame=frame, split=split
        ),
        progress=False,
    )
    shared = {"workers": 0, "steps": 2, "global_batch": 4, "lanes": 4, "checkpoint_every": 2, "zero_stage": 0}
    towers = contrastive.Config(
        image=TOWER, audio=contrastive.AudioTowerConfig(width=16, depths=[1]), embedding_dim=8
    )
    train(
        TrainConfig(
            data=chain.clips, output=chain.contrastive, recipe="contrastive", contrastive=towers, **shared
        )
    )
    codec = autoencoder.Config(
        channels=[8, 8, 16], layers_per_block=1, norm_groups=4, attention=False, crop_frames=32
    )
    train(
        TrainConfig(
            data=chain.clips, output=chain.autoencoder, recipe="autoencoder", autoencoder=codec, **shared
        )
    )
    models = {"autoencoder": chain.autoencoder, "image_encoder": chain.contrastive}
    precompute(PrecomputeConfig(data=chain.clips, output=chain.latents, workers=0, **models), progress=False)
    unet = diffusion.Config(
        channels=[8, 16], head_counts=[2, 2], layers_per_block=1, attention=False, norm_groups=4
    )
    train(TrainConfig(data=chain.latents, output=chain.diffusion, diffusion=unet, **shared))
    return chain


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
    assert "other bytes than the index recorded" in detail  # found by its checksum, before any decoder saw it
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
        row["key"]: read_clip(clips.store.read(tar_of(clips, row)), row["members"], image) for row in rows
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


def test_models_of_the_hub_are_taken_from_its_cache(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    revision = "0123456789" * 4
    kept = tmp_path / "models--somebody--sounds"
    shutil.copytree(f"{chain.autoencoder}/model", kept / "snapshots" / revision / "vae")
    (kept / "refs").mkdir()
    (kept / "refs/main").write_text(revision)
    for name in ("hub:somebody/sounds/vae", f"hub:somebody/sounds/vae@{revision}"):
        load_autoencoder(find_model(name, "autoencoder"))
    for name, said in {
        "hub:somebody/sounds": "holds no weights",
        "hub:somebody/else": "cannot be had from the hub.*HF_HUB_OFFLINE",
        "hub:nobody": "cannot be had from the hub",
        "somebody/sounds": "is hub:somebody/sounds",
    }.items():
        with pytest.raises(UserError, match=said):
            find_model(name, "autoencoder")


def board_of(output: Path) -> list[tuple[int, Any]]:
    """What TensorBoard would show: (step, value)."""
    found = []
    for path in output.glob("tensorboard/events*"):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
            found += [(event.step, value) for value in event.summary.value]
            at += size + 16
    return found


@pytest.mark.parametrize("recipe", ["diffusion", "autoencoder"])
def test_held_out_samples_are_seen_and_heard_while_training_which_changes_no_number(
    chain: Chain, tmp_path: Path, recipe: str
) -> None:
    finished = json.loads((Path(chain.root) / recipe / "run.json").read_text())["config"]
    section = (
        diffusion.Config(**finished["diffusion"])
        if recipe == "diffusion"
        else autoencoder.Config(**finished["autoencoder"])
    )
    shared: dict[str, Any] = {
        "steps": 3,
        "global_batch": 4,
        "lanes": 4,
        "workers": 0,
        "zero_stage": 0,
        "recipe": recipe,
        recipe: section,
    }
    shared |= {"data": chain.latents if recipe == "diffusion" else chain.clips, "checkpoint_every": 2}
    train(TrainConfig(output=f"{tmp_path}/seen", preview_every=2, preview_items=3, **shared))
    train(TrainConfig(output=f"{tmp_path}/unseen", **shared))
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").open()]
        for name in ("seen", "unseen")
    ]
    assert losses[0] == losses[1]
    shown = [(step, value) for step, value in board_of(tmp_path / "seen") if "preview/" in value.tag]
    pictures, sounds = (
        [(step, value) for step, value in shown if value.HasField(kind)] for kind in ("image", "audio")
    )
    assert len(pictures) == len(sounds) == 2 * 3 * 2 and {step for step, _ in shown} == {
        2,
        3,
    }  # steps, items, drawn and truth
    held_out = {row["key"] for row in Dataset.open(chain.clips).iter_rows() if row["split"] == "validation"}
    assert {value.tag.split("/")[1] for _, value in shown} <= held_out
    frames = section.crop_frames if recipe == "autoencoder" else 160
    assert {(value.image.width, value.image.height) for _, value in pictures} == {(frames, 64)}
    for _, value in sounds:
        wav, rate_hz = soundfile.read(io.BytesIO(value.audio.encoded_audio_string))
        assert rate_hz == 16000 and len(wav) == 160 * frames and np.abs(wav).max() > 0
    assert not any("preview/" in value.tag for _, value in board_of(tmp_path / "unseen"))
    with pytest.raises(UserError, match="contrastive makes nothing to look at"):
        train(
            TrainConfig(
                output=f"{tmp_path}/none",
                preview_every=2,
                **{**shared, "recipe": "contrastive", "data": chain.clips},
            )
        )


def test_a_take_down_changes_nothing_about_the_other_previews(chain: Chain, tmp_path: Path) -> None:
    finished = json.loads((Path(chain.root) / "autoencoder/run.json").read_text())
    clips = Dataset.open(shutil.copytree(chain.clips, tmp_path / "clips").as_posix())
    codec = autoencoder.Config(**finished["config"]["autoencoder"])
    shared: dict[str, Any] = {
        "recipe": "autoencoder",
        "autoencoder": codec,
        "preview_every": 1,
        "preview_items": 3,
    }
    config = TrainConfig(data=clips.uri, output=f"{tmp_path}/run", **shared)
    before = Preview.of(clips, clips.snapshot(), config, finished["facts"])
    assert before and len(before.names) == 3
    clips.bury({before.names[1]: "asked"})
    after = Preview.of(clips, clips.snapshot(), config, finished["facts"])
    assert after and after.names == [before.names[0], before.names[2]]
    assert all(torch.equal(after.tensors[name], tensor[[0, 2]]) for name, tensor in before.tensors.items())


def test_latents_whose_kept_model_changed_are_refused(chain: Chain, tmp_path: Path) -> None:
    shutil.copytree(chain.latents, tmp_path / "latents")
    settings = tmp_path / "latents/models/image_encoder/preprocessor_config.json"
    settings.write_text(settings.read_text().replace("0.5", "0.4", 1))
    with pytest.raises(OSError, match="is not the model that these latents were made with"):
        fetch_models(Dataset.open(str(tmp_path / "latents")), tmp_path / "models")


def test_stock_webdataset_reads_clips_and_latents(chain: Chain) -> None:
    import webdataset

    for uri in (chain.clips, chain.latents):
        tars = sorted(str(path) for path in Path(uri, "shards").glob("*.tar"))
        samples = list(webdataset.WebDataset(tars, shardshuffle=False))
        assert sorted(sample["__key__"] for sample in samples) == kept_keys(uri)


def test_generate_gives_the_same_wav_for_the_same_seed_whatever_its_neighbours(
    chain: Chain, tmp_path: Path
) -> None:
    pictures = sorted(frames_of(chain, tmp_path / "frames"))[:3]
    generate(
        GenerateConfig(
            model=chain.diffusion, images=str(tmp_path / "frames"), output=str(tmp_path / "all"), steps=3
        )
    )
    generate(
        GenerateConfig(model=chain.diffusion, images=str(pictures[1]), output=str(tmp_path / "one"), steps=3)
    )
    wav, rate_hz = soundfile.read(tmp_path / "all" / f"{pictures[1].stem}.wav")
    assert rate_hz == 16000 and len(wav) == 25600 and np.abs(wav).max() > 0
    assert np.array_equal(wav, soundfile.read(tmp_path / "one" / f"{pictures[1].stem}.wav")[0])
    generate(
        GenerateConfig(
            model=chain.diffusion, images=str(pictures[1]), output=str(tmp_path / "other"), steps=3, seed=1
        )
    )
    assert not np.array_equal(wav, soundfile.read(tmp_path / "other" / f"{pictures[1].stem}.wav")[0])


def test_a_picture_sounds_as_it_is_shown_and_each_of_a_tree_has_its_own_wav(
    chain: Chain, tmp_path: Path
) -> None:
    scene = Image.fromarray(
        np.kron(np.arange(0, 240, 5).reshape(6, 8), np.ones((8, 8))).astype(np.uint8)
    ).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    for folder in ("a", "b"):
        (tmp_path / "photos" / folder).mkdir(parents=True)
    scene.save(tmp_path / "photos/a/x.png")
    scene.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "photos/b/x.png", exif=exif)
    scene.convert("RGBA").save(tmp_path / "photos/b/x.tif")
    (tmp_path / "photos/bad.JPG").write_bytes(b"no picture")
    settings = GenerateConfig(
        model=chain.diffusion, images=f"{tmp_path}/photos", output=f"{tmp_path}/out", steps=2, threads=1
    )
    with pytest.raises(
        UserError, match=r"1 of 4 cannot be used: .*bad.JPG \(not a picture of .*skip_unreadable=true"
    ):
        generate(settings)
    assert not (tmp_path / "out").exists()
    found = generate(replace(settings, skip_unreadable=True))
    names = [str(Path(path).relative_to(tmp_path / "out")) for path in found["wavs"]]
    assert names == ["a/x.wav", "b/x.png.wav", "b/x.tif.wav"] and list(found["skipped"]) == [
        f"{tmp_path}/photos/bad.JPG"
    ]
    sounds = [soundfile.read(path)[0] for path in found["wavs"]]
    assert np.array_equal(sounds[0], sounds[1]) and np.array_equal(sounds[0], sounds[2])


def test_the_exported_folder_loads_in_stock_diffusers_and_sounds_the_same(
    chain: Chain, tmp_path: Path
) -> None:
    picture = frames_of(chain, tmp_path / "frames")[0]
    export(ExportConfig(model=chain.diffusion, output=str(tmp_path / "export")))
    generate(
        GenerateConfig(
            model=chain.diffusion, images=str(picture), output=str(tmp_path / "ours"), steps=3, threads=1
        )
    )
    program = f"""
import numpy as np, sys
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({str(tmp_path / "export")!r}, trust_remote_code=True)
assert not any(name.split(".")[0] in ("training", "configs", "cluster", "ingest") for name in sys.modules)
np.save({str(tmp_path / "wav.npy")!r}, pipe(Image.open({str(picture)!r}), seed=0, steps=3))
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        cwd=tmp_path,
        env={**environment, "HF_HOME": str(tmp_path / "hub")},
    )
    ours, _ = soundfile.read(tmp_path / "ours" / f"{picture.stem}.wav", dtype="float32")
    theirs = np.load(tmp_path / "wav.npy")[0]
    assert np.abs(ours - theirs).max() < 2 / 32768


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


def test_guidance_leads_away_from_the_null_embedding(chain: Chain) -> None:
    pipe = open_pipeline(chain.diffusion)
    condition = torch.randn(2, len(pipe.config.conditioning["null_embedding"]))
    null = torch.tensor(pipe.config.conditioning["null_embedding"])
    with mock.patch.object(
        pipe.unet,
        "forward",
        lambda mixed, timestep, class_labels, **other: SimpleNamespace(sample=class_labels),
    ):
        assert torch.allclose(
            pipe._flow(condition, torch.tensor(1.0), condition, 2.0), 2 * condition - null, atol=1e-5
        )
        assert torch.equal(pipe._flow(condition, torch.tensor(1.0), condition, 1), condition)


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


def frames_of(chain: Chain, folder: Path, count: int = 4) -> list[Path]:
    """The first frames of the dataset, as files."""
    dataset = Dataset.open(chain.clips)
    folder.mkdir(exist_ok=True)
    commits = dataset.commits()
    for row in [row for row in dataset.iter_rows() if row["status"] == "kept"][:count]:
        (member,) = [member for member in row["members"] if member["ext"] == "jpg"]
        tar = commits[row["unit"]].tar
        assert tar
        data = dataset.store.read_range(tar.name, member["offset"], member["offset"] + member["size"])
        (folder / f"{row['key']}.jpg").write_bytes(data)
    return sorted(folder.iterdir())


@pytest.mark.parametrize(
    "change,says",
    [
        ({"model": "nowhere"}, "model=nowhere: does not exist"),
        ({"images": "nowhere"}, "images=nowhere: does not exist"),
        ({"steps": 0}, "steps=0"),
        ({"guidance": -1.0}, "guidance=-1.0"),
    ],
)
def test_generate_refuses_what_cannot_work(
    chain: Chain, tmp_path: Path, change: dict[str, object], says: str
) -> None:
    settings = {
        "model": chain.diffusion,
        "images": str(frames_of(chain, tmp_path / "frames")[0]),
        "output": str(tmp_path / "out"),
    }
    with pytest.raises(UserError) as error:
        generate(GenerateConfig(**{**settings, **change}))  # type: ignore[arg-type]
    assert says in str(error.value)


def latents_by_another_codec(chain: Chain, folder: Path) -> str:
    """Latents of the same clips by an autoencoder of other weights."""
    codec = shutil.copytree(f"{chain.autoencoder}/model", folder / "codec")
    model = load_autoencoder(codec)
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    model.save_pretrained(codec)
    models = {"autoencoder": str(codec), "image_encoder": chain.contrastive}
    precompute(
        PrecomputeConfig(data=chain.clips, output=f"{folder}/latents", workers=0, **models), progress=False
    )
    return f"{folder}/latents"


def copy_of_run(chain: Chain, folder: Path, latents: str, older: bool) -> Path:
    """A finished run that names `latents`; an older one carries no codec and recorded none by name."""
    run = Path(shutil.copytree(chain.diffusion, folder / "run"))
    path = run / "model/conditioning.json"
    conditioning = {**json.loads(path.read_text()), "latents": latents}
    if older:
        shutil.rmtree(run / "model/autoencoder")
        shutil.rmtree(run / "model/image_encoder")
        conditioning = {
            name: value for name, value in conditioning.items() if name not in ("sha256", "snapshots")
        }
    path.write_text(json.dumps(conditioning))
    return run


def test_a_model_is_decoded_by_its_own_codec_wherever_the_latents_went(chain: Chain, tmp_path: Path) -> None:
    run = copy_of_run(chain, tmp_path, str(tmp_path / "gone"), older=False)
    own, original = (open_pipeline(str(model)).autoencoder.state_dict() for model in (run, chain.diffusion))
    assert all(torch.equal(own[name], original[name]) for name in original)
    conditioning = json.loads((run / "model/conditioning.json").read_text())
    assert conditioning["sha256"] == Dataset.open(chain.latents).meta["config"]["sha256"]
    assert conditioning["snapshots"] == [Dataset.open(chain.latents).snapshot().id]


def test_another_codec_in_a_model_or_an_export_is_refused(chain: Chain, tmp_path: Path) -> None:
    run = copy_of_run(chain, tmp_path, chain.latents, older=False)
    export(ExportConfig(model=str(run), output=str(tmp_path / "export")))
    assert open_pipeline(str(tmp_path / "export")).config.conditioning["sha256"]
    for folder in (run / "model", tmp_path / "export"):
        with open(folder / "autoencoder/config.json", "a") as file:
            file.write(" ")
        with pytest.raises(UserError, match="its autoencoder .* is not the one it was made with"):
            open_pipeline(str(folder))


def test_an_older_model_opens_with_its_latents_and_refuses_those_of_another_codec(
    chain: Chain, tmp_path: Path
) -> None:
    assert open_pipeline(str(copy_of_run(chain, tmp_path / "a", chain.latents, older=True)))
    other = latents_by_another_codec(chain, tmp_path)
    run = copy_of_run(chain, tmp_path / "b", other, older=True)
    with pytest.raises(
        UserError,
        match=f"was trained on latents made with other settings or models .* than those now at {other}",
    ):
        open_pipeline(str(run))
    export(ExportConfig(model=str(run), output=str(tmp_path / "export"), latents=chain.latents))
    shutil.rmtree(other)
    with pytest.raises(UserError, match="its codec lies beside its latents, which are not at .*latents="):
        open_pipeline(str(run))


def test_a_run_does_not_go_on_with_latents_of_another_codec(chain: Chain, tmp_path: Path) -> None:
    run = copy_of_run(chain, tmp_path, chain.latents, older=False)
    other = latents_by_another_codec(chain, tmp_path)
    unet = diffusion.Config(
        channels=[8, 16], head_counts=[2, 2], layers_per_block=1, attention=False, norm_groups=4
    )
    shared = {"workers": 0, "steps": 4, "global_batch": 4, "lanes": 4, "checkpoint_every": 2, "zero_stage": 0}
    with pytest.raises(
        UserError, match="was made with another codec or image encoder .*autoencoder: .*existing.*yours"
    ):
        train(TrainConfig(data=other, output=str(run), diffusion=unet, **shared))


def test_training_on_clips_where_latents_are_needed_is_refused(chain: Chain, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="need latents; run python -m training precompute first"):
        train(TrainConfig(data=chain.clips, output=str(tmp_path / "run"), workers=0))
