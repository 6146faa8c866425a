"""Starting from a pipeline of diffusers: its network, codec, vocoder and scale give what they gave there."""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from cluster.dataset import Dataset
from configs.load import UserError
from tests.fakes.chain import Chain
from tests.fakes.pipelines import (
    SCALING_FACTOR,
    audioldm_scheduler,
    audioldm_unet,
    save_audioldm2,
    save_pipeline,
)
from training.data.catalogue import Catalogue
from training.data.npy import read_npy
from training.export import ExportConfig, export, open_pipeline
from training.pipeline.codec import predict
from training.precompute import PrecomputeConfig, precompute
from training.pretrained import fetch_models
from training.recipes import diffusion
from training.recipes.conditions import SequenceConfig
from training.recipes.recipe import Geometry
from training.run.initial import fill
from training.run.prepare import prepare
from training.settings import TrainConfig
from training.train import train

PICTURE = Image.new("RGB", (40, 32), (200, 30, 90))


@dataclass
class Published:
    """A pipeline, its folder, and latents made with its codec."""

    folder: Path
    pipeline: Any
    latents: str


@pytest.fixture(scope="module")
def published(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Published:
    root = tmp_path_factory.mktemp("published")
    pipeline = save_pipeline(root / "audioldm", audioldm_unet())
    precompute(
        PrecomputeConfig(
            data=chain.clips,
            output=str(root / "latents"),
            autoencoder=str(root / "audioldm"),
            image_encoder=chain.contrastive,
            patch_tokens=True,
            workers=0,
        ),
        progress=False,
    )
    return Published(root / "audioldm", pipeline, str(root / "latents"))


def settings(published: Published, output: Path, source: object = "", **changes: Any) -> TrainConfig:
    section = {"objective": "eps", "projection": "linear", **changes}
    return TrainConfig(
        data=published.latents,
        output=str(output),
        init_from=str(source or published.folder),
        workers=0,
        steps=2,
        global_batch=4,
        lanes=4,
        checkpoint_every=2,
        zero_stage=0,
        diffusion=diffusion.Config(**section),
    )


def started(config: TrainConfig) -> tuple[Any, Geometry]:
    """The model of step 0, as a rank makes it."""
    plan = prepare(config)
    torch.manual_seed(0)
    model = diffusion.build_model(config.diffusion, plan.geometry)
    assert plan.origin
    fill(model, config, plan.geometry, plan.origin)
    return model.eval(), plan.geometry


def saved(config: TrainConfig, folder: Path) -> Any:
    """The pipeline of the model of step 0."""
    model, geometry = started(config)
    diffusion.save(model.state_dict(), config.diffusion, geometry, folder)
    fetch_models(Dataset.open(config.data), folder)
    return open_pipeline(str(folder), vocoder=config.init_from)


def test_the_network_gives_what_it_gave_to_the_bit(published: Published, tmp_path: Path) -> None:
    model, geometry = started(settings(published, tmp_path / "run"))
    latent = torch.randn(2, *geometry["latent_shape"])
    time = torch.tensor([3.0, 700.0])
    labels = torch.nn.functional.normalize(torch.randn(2, 512), dim=-1)
    with torch.no_grad():
        ours = model.unet(latent, time, encoder_hidden_states=None, class_labels=labels).sample
        theirs = published.pipeline.unet(latent, time, encoder_hidden_states=None, class_labels=labels)
    assert torch.equal(ours, theirs.sample)


def test_its_latents_are_scaled_as_it_knows_them(published: Published, tmp_path: Path) -> None:
    geometry = prepare(settings(published, tmp_path / "run")).geometry
    assert geometry["latent_mean"] == [0.0] * 8
    assert geometry["latent_std"] == [1 / SCALING_FACTOR] * 8
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["facts"]["latent_std"] == geometry["latent_std"]
    assert record["origin"]["license"] == "CC-BY-NC-SA-4.0"


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_the_whole_pipeline_gives_the_sound_of_the_stock_one(
    published: Published, tmp_path: Path, guidance: float
) -> None:
    pipe = saved(settings(published, tmp_path / "run"), tmp_path / "model")
    stock = published.pipeline
    given = pipe._given(pipe.embed(PICTURE), {}, 1)
    embeds, negative = (pipe._conditions(each)["class_labels"] for each in (given, pipe._free(given)))
    assert torch.allclose(embeds.norm(dim=-1), torch.ones(1))
    noise = torch.randn(
        1, *pipe.config.conditioning["latent_shape"], generator=torch.Generator().manual_seed(3)
    )
    for scheduler in (pipe.scheduler, audioldm_scheduler()):
        pipe.scheduler = stock.scheduler = scheduler
        theirs = stock(
            prompt_embeds=embeds,
            negative_prompt_embeds=negative,
            latents=noise,
            num_inference_steps=5,
            guidance_scale=guidance,
            audio_length_in_s=pipe.mel.num_samples / 16000,
        ).audios
        generator = torch.Generator().manual_seed(3)
        ours = pipe(image=PICTURE, generator=generator, num_inference_steps=5, guidance_scale=guidance).audios
        assert ours.shape == theirs.shape
        # weights of random numbers give a quiet sound, in which guidance is a hundredth
        assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()
        assert np.abs(theirs).max() > 1e-3


def test_a_run_from_it_trains_resumes_and_ships(published: Published, tmp_path: Path) -> None:
    config = settings(published, tmp_path / "run")
    train(config)
    pipe = open_pipeline(config.output, vocoder=str(published.folder))
    assert pipe.conditioner.config.label_dim == 512
    assert np.isfinite(pipe(PICTURE, steps=2)).all()
    # a run from that run: the same network, and what its vectors pass first
    again, geometry = started(settings(published, tmp_path / "again", source=config.output))
    assert geometry["latent_std"] == [1 / SCALING_FACTOR] * 8
    assert torch.equal(again.conditioner.label.weight, pipe.conditioner.label.weight)
    assert torch.equal(again.null_embedding, torch.tensor(pipe.config.conditioning["null_embedding"]))


def test_a_tower_of_another_width_needs_a_projection(published: Published, tmp_path: Path) -> None:
    for projection in ("none", "identity"):
        config = settings(published, tmp_path / "run", projection=projection)
        with pytest.raises(UserError, match="gives 16 numbers, the network takes 512.*projection=linear"):
            prepare(config)


@pytest.mark.parametrize("projection", ["none", "identity"])
def test_a_tower_that_is_aligned_with_clap_enters_as_it_is(projection: str, published: Published) -> None:
    geometry: Geometry = {
        "latent_shape": [8, 4, 16],
        "image_mean": [3.0] * 512,
        "image_std": [2.0] * 512,
    }
    config = diffusion.Config(objective="eps", projection=projection)
    taken = diffusion.adopted(str(published.folder), config, geometry)
    assert (taken["image_mean"], taken["image_std"]) == ([0.0] * 512, [1.0] * 512)
    model: Any = diffusion.build_model(config, taken)
    vector = torch.nn.functional.normalize(torch.randn(2, 512), dim=-1)
    labels = model.conditions({"image": vector, "drop": torch.zeros(2)})["class_labels"]
    assert torch.allclose(labels, vector, atol=1e-6)


def test_guidance_of_an_aligned_tower_leads_away_from_no_text(published: Published) -> None:
    geometry: Geometry = {"latent_shape": [8, 4, 16], "image_mean": [0.0] * 512, "image_std": [1.0] * 512}
    encoder = published.pipeline.text_encoder
    with torch.no_grad():
        # as the stock pipeline has it: padded, and masked
        ids = torch.tensor([[0, 2, 1, 1, 1]])
        stock = encoder(ids, attention_mask=(ids != 1).long()).text_embeds[0]
    for projection, is_known in (("none", True), ("identity", True), ("linear", False)):
        config = diffusion.Config(objective="eps", projection=projection)
        taken = diffusion.adopted(str(published.folder), config, geometry)
        weights = diffusion.initial(str(published.folder), config, taken)
        assert ("null_embedding" in weights) == is_known
        if is_known:
            assert torch.allclose(weights["null_embedding"], stock / stock.norm(), atol=1e-5)


def test_another_objective_is_refused(published: Published, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="objective=flow: .* predicts eps; give diffusion.objective=eps"):
        prepare(settings(published, tmp_path / "run", objective="flow"))


def test_other_betas_are_refused(published: Published, tmp_path: Path) -> None:
    scheduler = audioldm_scheduler()
    scheduler.register_to_config(beta_end=0.02)
    save_pipeline(tmp_path / "other", audioldm_unet(), scheduler)
    with pytest.raises(UserError, match="was trained with betas .*0.02"):
        prepare(settings(published, tmp_path / "run", source=tmp_path / "other"))


def test_latents_of_another_codec_are_said_to_be(
    published: Published, chain: Chain, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        prepare(settings(published, tmp_path / "own"))
        assert "not made by the autoencoder" not in caplog.text
        other = Published(published.folder, published.pipeline, chain.latents)
        prepare(settings(other, tmp_path / "other"))
    assert "the latents were not made by the autoencoder of init_from" in caplog.text


def test_moments_of_a_run_of_ours_are_kept_where_that_is_asked_for(chain: Chain, tmp_path: Path) -> None:
    data = Published(Path(chain.diffusion), None, chain.latents)
    own = json.loads(Path(chain.diffusion, "model/conditioning.json").read_text())
    shifted: Geometry = {
        "latent_shape": own["latent_shape"],
        "latent_mean": [9.0] * 8,
        "latent_std": [9.0] * 8,
        "image_mean": [9.0] * 16,
        "image_std": [9.0] * 16,
    }
    for whitening, source in (("data", shifted), ("origin", own)):
        config = diffusion.Config(whitening=whitening)
        taken = diffusion.adopted(str(data.folder), config, shifted)
        assert all(taken[name] == source[name] for name in ("latent_mean", "image_std"))  # type: ignore[literal-required]


# --- Sequences ----------------------------------------------------------------------------------------------


def patches(published: Published, **other: Any) -> SequenceConfig:
    """The image patches of the latents."""
    latents = Dataset.open(published.latents)
    sample = Catalogue.of(latents, latents.snapshot(), "train", ("tokens.npy",)).read([0])[0]
    assert sample
    length, dim = read_npy(sample["tokens.npy"]).shape
    return SequenceConfig("tokens.npy", **{"dim": dim, "length": length, **other})


def test_with_patches_added_it_gives_the_sound_it_gave_until_it_learns(
    published: Published, tmp_path: Path
) -> None:
    plain = saved(settings(published, tmp_path / "plain"), tmp_path / "model")
    changes = {"sequences": [patches(published)], "widths": [16]}
    wider = saved(settings(published, tmp_path / "wider", **changes), tmp_path / "wider_model")
    # the projection of the vector is drawn anew: the same one for both
    wider.conditioner.label.load_state_dict(plain.conditioner.label.state_dict())
    sounds = [pipe(PICTURE, steps=3, guidance=1) for pipe in (plain, wider)]
    assert np.array_equal(*sounds)


def test_patches_are_learnt_from_and_come_from_the_picture(published: Published, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"sequences": [patches(published, dropout=0.5)], "widths": [16]}
    config = settings(published, tmp_path / "run", **changes, condition_dropout=0.0)
    train(replace(config, lr=0.1))
    export(ExportConfig(model=config.output, output=str(tmp_path / "export")))
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "export", trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    assert "diffusers_modules" in type(pipe.conditioner).__module__
    own = pipe(PICTURE, steps=2)
    vectors, tokens = pipe._embed(PICTURE)
    assert np.array_equal(pipe(PICTURE, steps=2, conditions={"tokens": tokens[0]}), own)
    assert not np.array_equal(pipe(PICTURE, steps=2, conditions={"tokens": tokens + 1}), own)
    # of what has a null that was trained: guidance by it alone
    assert pipe.guidance_for(None) == 2 and not pipe.has_null_vector
    for conditions, message in (
        ({"text": tokens}, "conditions: text: this model takes tokens"),
        ({"tokens": tokens[..., 1:]}, r"conditions: tokens of shape .*: give \[t, "),
    ):
        with pytest.raises(ValueError, match=message):
            pipe(PICTURE, steps=2, conditions=conditions)


def test_audioldm2_starts_from_its_pipeline(published: Published, tmp_path: Path) -> None:
    stock = save_audioldm2(tmp_path / "audioldm2")
    text = SequenceConfig("text.npy", dim=40, length=3, projection="none", slot=1)
    changes: dict[str, Any] = {"network": "audioldm2", "projection": "none"}
    config = settings(published, tmp_path / "run", tmp_path / "audioldm2", **changes)
    config.diffusion.sequences = [patches(published, slot=0)]
    model, geometry = started(config)
    conditions = model.conditions(
        {
            "image": torch.randn(2, len(geometry["image_mean"])),
            "tokens": torch.randn(2, patches(published).length, patches(published).dim),
            "tokens_present": torch.ones(2, patches(published).length),
        }
    )
    assert {name: tuple(values.shape[-1:]) for name, values in conditions.items() if "states" in name} == {
        "encoder_hidden_states": (24,),
        "encoder_hidden_states_1": (40,),
    }
    latent = torch.randn(2, *geometry["latent_shape"])
    times = torch.tensor([3.0, 700.0])
    with torch.no_grad():
        ours = predict(model.unet, latent, times, conditions, torch.float32)
        assert torch.equal(ours, stock(latent, times, **conditions).sample)
    # tokens it was trained on enter as they are
    config.diffusion.sequences = [text]
    model = diffusion.build_model(config.diffusion, geometry)
    tokens = torch.randn(2, 3, 40)
    made = model.conditions({"image": torch.randn(2, 16), "text": tokens, "text_present": torch.ones(2, 3)})
    assert torch.equal(made["encoder_hidden_states_1"], tokens)


def test_a_run_of_audioldm2_trains_and_ships(published: Published, tmp_path: Path) -> None:
    save_audioldm2(tmp_path / "audioldm2")
    changes: dict[str, Any] = {"network": "audioldm2", "projection": "none"}
    changes["sequences"] = [patches(published)]
    config = settings(published, tmp_path / "run", tmp_path / "audioldm2", **changes)
    train(config)
    pipe = open_pipeline(config.output)
    assert np.isfinite(pipe(PICTURE, steps=2)).all() and pipe.guidance_for(None) == 2
    # and one of random weights, of the same kind
    train(
        replace(
            settings(published, tmp_path / "new", **changes),
            init_from="",
            diffusion=replace(
                config.diffusion,
                channels=[8, 16],
                head_counts=[2, 2],
                layers_per_block=1,
                norm_groups=4,
                widths=[8, 12],
            ),
        )
    )
    assert type(open_pipeline(str(tmp_path / "new")).unet).__name__ == "AudioLDM2UNet2DConditionModel"
