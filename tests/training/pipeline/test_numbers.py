"""Numbers of sampling and whitening: the sampler's times, guidance, statistics of what never varied, decoders
that diverged.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image

from configs.load import StoppedError, UserError
from training.export import ExportConfig, export
from training.generate import GenerateConfig, check_sampling, choose_guidance, generate
from training.pipeline.codec import BadMelError, check_log_mel
from training.pipeline.mel import MelConfig, wav_to_log_mel
from training.pipeline.pipeline import StillsoundPipeline
from training.recipes import autoencoder, contrastive, diffusion

MEL = MelConfig(duration_s=0.16)
UNET = diffusion.Config(
    channels=[8, 16], head_counts=[2, 2], layers_per_block=1, attention=False, norm_groups=4
)
CODEC = autoencoder.Config(channels=[8, 8, 8], layers_per_block=1, norm_groups=4, attention=False)
TOWER = contrastive.ImageTowerConfig(kind="resnet", widths=[8], depths=[1], stem=8, norm_groups=4, size_px=32)
PROCESSOR = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
PICTURE = Image.new("RGB", (40, 32), (200, 30, 90))


def pipeline(**other: Any) -> StillsoundPipeline:
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
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000),
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
    return str(export(ExportConfig(model=str(folder / "saved"), output=str(folder / "export")))["output"])


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


def moments(values: np.ndarray) -> dict[str, Any]:
    return {
        "image_count": len(values),
        "image_sum": values.sum(0).tolist(),
        "image_sumsq": (values**2).sum(0).tolist(),
    }


@pytest.mark.parametrize("level", [0.0, 1e-5, 0.7, -300.0])
def test_what_never_varied_is_divided_by_one(level: float) -> None:
    values = np.random.default_rng(0).normal(2, 3, (500, 2)).astype(np.float16).astype(float)
    values[:, 1] = np.float16(level)
    mean, spread = diffusion.merge_moments([moments(values[:200]), moments(values[200:])], "image")
    assert spread[1] == 1
    assert spread[0] == pytest.approx(values[:, 0].std(), rel=1e-6)
    new = diffusion.whiten(np.array([2, level + 0.05], np.float32), {"image_mean": mean, "image_std": spread})
    assert new[1] == pytest.approx(0.05, abs=1e-3)


def test_rounding_to_float16_is_no_variation() -> None:
    dice = np.random.default_rng(0)
    values = np.where(
        dice.random((500, 1)) < 0.5, np.float16(1), np.nextafter(np.float16(1), np.float16(2))
    ).astype(float)
    assert diffusion.merge_moments([moments(values)], "image")[1] == [1]


def test_a_small_spread_that_is_one_is_kept() -> None:
    values = np.random.default_rng(0).normal(0, 1e-3, (500, 1))
    assert diffusion.merge_moments([moments(values)], "image")[1] == pytest.approx([values.std()])


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
    with pytest.raises(StoppedError, match=r"a.png: log mels from .* were decoded"):
        generate(
            GenerateConfig(
                model=folder,
                images=str(tmp_path / "a.png"),
                output=str(tmp_path / "wavs"),
                steps=1,
                threads=1,
            )
        )
    assert not list((tmp_path / "wavs").iterdir())


def test_one_bad_value_in_a_batch_is_found() -> None:
    log_mel = torch.full((3, 16, 64), -11.5)
    check_log_mel(log_mel)
    log_mel[2, 7, 9] = torch.nan
    with pytest.raises(BadMelError):
        check_log_mel(log_mel)


def test_the_loudest_sound_there_can_be_is_no_bad_mel() -> None:
    time = torch.arange(MEL.num_samples) / MEL.sample_rate_hz
    for wav in (
        torch.ones_like(time),
        torch.sign(torch.sin(2 * torch.pi * 200 * time)),
        torch.zeros_like(time),
    ):
        check_log_mel(wav_to_log_mel(wav[None], MEL))


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_a_condition_dropout_that_is_no_share_is_refused(dropout: float) -> None:
    with pytest.raises(UserError, match="condition_dropout"):
        diffusion.check_config(diffusion.Config(condition_dropout=dropout))
