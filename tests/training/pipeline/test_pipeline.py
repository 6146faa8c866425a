"""Numbers of sampling and whitening: the sampler's times, guidance, statistics of what never varied, decoders
that diverged.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AudioPipelineOutput,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
)
from PIL import Image
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from configs.load import StoppedError, UserError
from training.audioldm_folder import check_audioldm
from training.export import ExportConfig, PartLicenses, export, open_pipeline
from training.generate import GenerateConfig, check_sampling, check_steps, choose_guidance, generate
from training.networks.unet import from_settings, with_time_condition
from training.pipeline.mel import MelConfig
from training.pipeline.pipeline import StillsoundPipeline
from training.pipeline.sampling import SAMPLERS, build_scheduler, objective_of
from training.pipeline.step_sizes import SIZE_FEATURES, told
from training.recipes import autoencoder, contrastive, diffusion

MEL = MelConfig(duration_s=0.16)
UNET = diffusion.Config(
    channels=[8, 16], head_counts=[2, 2], layers_per_block=1, attention=False, norm_groups=4
)
CODEC = autoencoder.Config(channels=[8, 8, 8], layers_per_block=1, norm_groups=4, attention=False)
TOWER = contrastive.ImageTowerConfig(kind="resnet", widths=[8], depths=[1], stem=8, norm_groups=4, size_px=32)
PROCESSOR = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
PICTURE = Image.new("RGB", (40, 32), (200, 30, 90))


def pipeline(objective: str = "flow", **other: Any) -> StillsoundPipeline:
    """Of random weights, with `other` in its conditioning."""
    torch.manual_seed(0)
    dim, (channels, *_) = 8, MEL.latent_shape
    moments = {
        "latent_mean": [0.0] * channels,
        "latent_std": [1.0] * channels,
        "image_mean": [0.0] * dim,
        "image_std": [1.0] * dim,
    }
    conditioning = {
        **moments,
        "null_embedding": [0.1] * dim,
        "latent_shape": list(MEL.latent_shape),
        "mel": {"duration_s": MEL.duration_s},
    }
    pipe = StillsoundPipeline(
        unet=diffusion.build_unet(UNET, channels, dim).eval(),
        autoencoder=autoencoder.Autoencoder(CODEC, MEL).codec.eval(),
        image_encoder=contrastive.build_image_tower(TOWER, 512).eval(),
        scheduler=build_scheduler("euler" if objective == "flow" else "ddim", objective),
        conditioning={**conditioning, "processor": PROCESSOR, **other},
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def times_of(pipe: Any, steps: int) -> list[float]:
    """At which the network is evaluated."""
    times: list[float] = []
    hook = pipe.unet.register_forward_pre_hook(lambda _, inputs: times.append(float(inputs[1]) / 1000))
    pipe(PICTURE, steps=steps, guidance=1)
    hook.remove()
    return times


def exported(pipe: StillsoundPipeline, folder: Path) -> str:
    """The folder that `export` writes for a pipeline."""
    pipe.save_pretrained(folder / "saved")
    # of random weights here: nothing in the folder could say so
    own = PartLicenses(unet="own", autoencoder="own", image_encoder="own")
    config = ExportConfig(str(folder / "saved"), str(folder / "export"), init_license=own)
    return export(config)["output"]


@pytest.mark.parametrize("steps", [1, 4, 25])
def test_the_sampler_evaluates_at_even_times_from_one_down_to_one_step(steps: int) -> None:
    assert times_of(pipeline(), steps) == pytest.approx([1 - step / steps for step in range(steps)], abs=1e-6)


def test_an_exported_folder_samples_at_the_same_times_in_stock_diffusers(tmp_path: Path) -> None:
    stock = DiffusionPipeline.from_pretrained(exported(pipeline(), tmp_path), trust_remote_code=True)
    stock.set_progress_bar_config(disable=True)
    assert times_of(stock, 4) == pytest.approx([1, 0.75, 0.5, 0.25], abs=1e-6)


def test_a_solver_with_a_grid_of_its_own_can_be_put_in() -> None:
    pipe = pipeline()
    pipe.scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    assert np.isfinite(pipe(PICTURE, steps=4, guidance=1)).all()


@pytest.mark.parametrize("objective", ["flow", "eps", "v"])
def test_a_model_is_sampled_by_the_sampler_that_is_named(objective: str, tmp_path: Path) -> None:
    folder = exported(pipeline(objective), tmp_path)
    sounds = set()
    for sampler, classes in SAMPLERS.items():
        if objective not in classes:
            with pytest.raises(UserError, match=f"sampler={sampler}: cannot sample a model of objective"):
                open_pipeline(folder, sampler=sampler)
            continue
        pipe = open_pipeline(folder, sampler=sampler)
        assert isinstance(pipe.scheduler, classes[objective])
        sounds.add(pipe(PICTURE, steps=3).tobytes())
    own = open_pipeline(folder)
    assert own(PICTURE, steps=3).tobytes() in sounds and len(sounds) == (3 if objective == "flow" else 4)
    with pytest.raises(UserError, match="sampler=heun: give one of ddim"):
        open_pipeline(folder, sampler="heun")


def test_an_export_keeps_the_sampler_it_was_made_with(tmp_path: Path) -> None:
    folder = exported(pipeline("v"), tmp_path)
    again = tmp_path / "again"
    export(ExportConfig(model=folder, output=str(again), sampler="unipc"))
    stock = DiffusionPipeline.from_pretrained(again, trust_remote_code=True)
    assert type(stock.scheduler).__name__ == "UniPCMultistepScheduler"
    assert objective_of(stock.scheduler) == "v"


def test_a_scheduler_of_another_prediction_is_refused(tmp_path: Path) -> None:
    folder = Path(exported(pipeline("eps"), tmp_path))
    path = folder / "scheduler/scheduler_config.json"
    path.write_text(path.read_text().replace('"epsilon"', '"sample"'))
    with pytest.raises(UserError, match="scheduler_config.json: cannot be used .prediction_type=sample"):
        open_pipeline(str(folder))
    path.write_text(path.read_text().replace('"DDIMScheduler"', '"UNet2DConditionModel"'))
    with pytest.raises(UserError, match="UNet2DConditionModel is no scheduler of diffusers"):
        open_pipeline(str(folder))


def test_without_a_trained_null_embedding_the_default_is_no_guidance_and_it_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert choose_guidance(pipeline(), None) == 2
    assert not caplog.text
    assert choose_guidance(pipeline(condition_dropout=0.0), None) == 1
    assert "condition_dropout=0" in caplog.text


@pytest.mark.parametrize("conditioning", [{"condition_dropout": 0.0}, {"null_embedding": [0.0] * 8}])
def test_guidance_without_a_trained_null_embedding_is_refused(conditioning: dict[str, Any]) -> None:
    pipe = pipeline(**conditioning)
    for guidance in (0.0, 2.0):
        with pytest.raises(UserError, match=f"guidance={guidance}.*give 1"):
            choose_guidance(pipe, guidance)
        with pytest.raises(ValueError, match=f"guidance={guidance}"):
            pipe(PICTURE, guidance=guidance, steps=1)
    assert choose_guidance(pipe, 1) == 1


@pytest.mark.parametrize("guidance", [-1.0, float("nan"), float("inf")])
def test_guidance_that_is_no_finite_number_is_refused(guidance: float) -> None:
    with pytest.raises(UserError, match="guidance="):
        check_sampling(guidance, 4)


@pytest.mark.parametrize("bias", [100.0, -100.0, float("nan"), float("inf"), -float("inf")])
def test_a_decoder_that_diverged_ends_in_an_error_and_no_file(bias: float, tmp_path: Path) -> None:
    pipe = pipeline()
    torch.nn.init.constant_(pipe.autoencoder.decoder.conv_out.bias, bias)
    PICTURE.save(tmp_path / "a.png")
    folder = exported(pipe, tmp_path)
    with pytest.raises(StoppedError, match=r"model=.*a.png: log mels from .* were decoded"):
        generate(
            GenerateConfig(
                model=folder,
                images=str(tmp_path / "a.png"),
                output=str(tmp_path / "wavs"),
                steps=1,
                threads=1,
            )
        )
    assert not list((tmp_path / "wavs").glob("*.wav"))


# --- As diffusers calls it ----------------------------------------------------------------------------------


def test_it_is_called_as_other_pipelines_of_diffusers() -> None:
    pipe = pipeline()
    output = pipe(
        image=PICTURE,
        num_inference_steps=2,
        guidance_scale=3.0,
        num_waveforms_per_image=3,
        generator=torch.Generator().manual_seed(1),
    )
    assert isinstance(output, AudioPipelineOutput)
    assert output.audios.shape == (3, MEL.num_samples)
    assert len({wav.tobytes() for wav in output.audios}) == 3
    (same,) = pipe(image=PICTURE, num_inference_steps=2, return_dict=False)
    assert np.array_equal(same, pipe(PICTURE, steps=2))


def test_a_picture_is_the_same_in_every_form(tmp_path: Path) -> None:
    pipe = pipeline()
    PICTURE.save(tmp_path / "a.png")
    array = np.asarray(PICTURE)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    forms = [
        str(tmp_path / "a.png"),
        tmp_path / "a.png",
        array,
        array / np.float32(255),
        tensor,
        tensor / 255,
    ]
    expected = pipe.embed(PICTURE)
    for form in [*forms, [PICTURE], array[None], tensor[None]]:
        assert torch.equal(pipe.embed(form), expected)
    assert torch.allclose(pipe.embed(forms), expected.expand(len(forms), -1), atol=1e-5)


def test_embeddings_that_were_stored_sound_like_their_pictures() -> None:
    pipe = pipeline()
    stored = pipe._embed([PICTURE, PICTURE.rotate(90)])[0].numpy()
    audios = pipe(image_embeds=stored, num_inference_steps=2, seed=3).audios
    pictures = [PICTURE, PICTURE.rotate(90)]
    assert np.array_equal(audios, pipe(image=pictures, num_inference_steps=2, seed=3).audios)


def test_a_file_is_upright_and_on_white(tmp_path: Path) -> None:
    turned = PICTURE.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(pipeline().embed(tmp_path / "turned.png"), pipeline().embed(PICTURE))
    Image.new("RGBA", (40, 32), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    white = Image.new("RGB", (40, 32), "white")
    assert torch.equal(pipeline().embed(tmp_path / "clear.png"), pipeline().embed(white))


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({}, "image: give a picture"),
        ({"images": PICTURE, "image": PICTURE}, "image: give a picture"),
        ({"image": PICTURE, "image_embeds": np.zeros((1, 8))}, "image_embeds and no picture"),
        ({"image_embeds": np.zeros((1, 3))}, r"image_embeds of shape \[1, 3\]: give \[b, 8\]"),
        ({"image": np.zeros((3, 8, 8), np.uint8)}, r"shape \(3, 8, 8\): give an array \[h, w, 3\]"),
        ({"image": np.full((8, 8, 3), 2.0)}, "of 2 to 2: give bytes, or 0 to 1"),
        ({"image": PICTURE, "num_waveforms_per_image": 0}, "num_waveforms_per_image=0: give 1 or more"),
        ({"image": PICTURE, "generator": []}, "0 generators for 1 sounds"),
    ],
)
def test_what_cannot_be_a_call_is_one_clear_error(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline()(**arguments)


# --- Sequences ----------------------------------------------------------------------------------------------

SEQUENCES = [
    {"name": "text", "dim": 6, "length": 3, "dropout": 0.1, "projection": "linear", "slot": 0},
    {"name": "phonemes", "dim": 4, "length": 2, "dropout": 0.0, "projection": "linear", "slot": 0},
]


@pytest.mark.parametrize("vector_dropout", [0.0, 0.1])
def test_guidance_leads_away_from_the_conditions_that_were_dropped_in_training(vector_dropout: float) -> None:
    pipe = pipeline(sequences=SEQUENCES, condition_dropout=vector_dropout)
    given = {"text": np.ones((3, 6)), "phonemes": np.ones((1, 4))}
    vectors, sequences = pipe._given(torch.ones(2, 8), given, 2)
    assert vectors.shape == (4, 8) and sequences["text"][0].shape == (4, 3, 6)
    assert sequences["phonemes"][1].tolist() == [[1, 0]] * 4
    free_vectors, free = pipe._free((vectors, sequences))
    assert not free["text"][1].any() and torch.equal(free["phonemes"][1], sequences["phonemes"][1])
    assert torch.equal(free_vectors, vectors) == (vector_dropout == 0)
    assert pipe.guidance_for(None) == 2


def test_a_model_of_sequences_alone_is_given_no_vector_of_the_picture() -> None:
    pipe = pipeline(condition="none", condition_dropout=0.0)
    other = Image.new("RGB", (40, 32), (20, 230, 90))
    assert np.array_equal(pipe(PICTURE, steps=2, guidance=1), pipe(other, steps=2, guidance=1))


# --- Shortcut models ----------------------------------------------------------------------------------------


def shortcut_pipeline() -> StillsoundPipeline:
    """Of random weights, told step sizes of 1 to 1/4."""
    pipe = pipeline(shortcut={"sizes": 3, "guidance": 2.0})
    settings = with_time_condition(pipe.unet.config, SIZE_FEATURES)
    pipe.unet = from_settings({**settings, "_class_name": "UNet2DConditionModel"}).eval()
    return pipe


def sizes_told(pipe: Any, steps: int | None) -> list[tuple[float, list[float]]]:
    """Times at which the network is evaluated, and which step size of 1, 1/2 and 1/4 it is told."""
    known = {size: told(torch.tensor([size]))["timestep_cond"] for size in (1.0, 0.5, 0.25)}
    seen: list[tuple[float, list[float]]] = []

    def look(_: Any, inputs: Any, named: Any) -> None:
        sizes = [size for size, features in known.items() if torch.equal(named["timestep_cond"], features)]
        seen.append((float(inputs[1]) / 1000, sizes))

    hook = pipe.unet.register_forward_pre_hook(look, with_kwargs=True)
    pipe(image=PICTURE, num_inference_steps=steps)
    hook.remove()
    return seen


def test_a_shortcut_model_is_told_the_size_of_each_step_also_as_an_export(tmp_path: Path) -> None:
    pipe = shortcut_pipeline()
    folder = exported(pipe, tmp_path)
    stock = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    stock.set_progress_bar_config(disable=True)
    for each in (pipe, stock, open_pipeline(folder, sampler="euler")):
        assert sizes_told(each, 1) == [(1, [1])]
        assert sizes_told(each, 3) == [(1, [0.5]), (0.5, [0.25]), (0.25, [0.25])]
    assert len(sizes_told(pipe, None)) == 4
    assert "num_inference_steps=4)" in Path(folder, "README.md").read_text()
    with pytest.raises(UserError, match="audioldm=true: AudioLDMPipeline tells a network no step size"):
        check_audioldm(with_vocoder(pipe))


def with_vocoder(pipe: StillsoundPipeline) -> StillsoundPipeline:
    """With a vocoder that AudioLDM's pipeline takes."""
    pipe.vocoder = SpeechT5HifiGan(SpeechT5HifiGanConfig(upsample_initial_channel=32))
    return pipe


def test_what_a_shortcut_model_cannot_do_is_refused(tmp_path: Path) -> None:
    pipe = shortcut_pipeline()
    assert choose_guidance(pipe, None) == choose_guidance(pipe, 1) == 1
    with pytest.raises(
        UserError, match=r"guidance=3.0: a shortcut model has its guidance \(2\) in its steps"
    ):
        choose_guidance(pipe, 3.0)
    check_steps(pipe, 4)
    with pytest.raises(UserError, match="steps=5: this shortcut model takes 1 to 4 steps"):
        check_steps(pipe, 5)
    with pytest.raises(UserError, match="sampler=unipc: cannot sample a shortcut model; give euler"):
        open_pipeline(exported(pipe, tmp_path), sampler="unipc")
    pipe.scheduler = build_scheduler("dpmsolver", "flow")
    with pytest.raises(ValueError, match="DPMSolverMultistepScheduler cannot sample a shortcut model"):
        pipe(PICTURE, steps=2)
