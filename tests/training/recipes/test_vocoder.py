"""The vocoder recipe: published sizes, two optimisers that resume bit for bit, and a model that stock classes load."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from diffusers import MMAudioVocoder
from transformers import SpeechT5HifiGan

from cluster.jsonl import read_lines
from configs.load import UserError
from tests.fakes.clips import make_clips, tone
from tests.fakes.ranks import train_ranks
from tests.fakes.runs import arguments, killed_run, losses, settings
from training.data.randomness import SampleKey
from training.networks.discriminators import DiscriminatorConfig, WaveDiscriminators
from training.networks.istft_vocoder import IstftVocoder
from training.networks.vocoders import VocoderConfig, build_vocoder
from training.pipeline.codec import vocode
from training.pipeline.mel import MelConfig
from training.recipes import vocoder
from training.train import train

MEL = MelConfig(duration_s=0.64)
GEOMETRY: Any = {"mel": MEL.settings()}
SMALL = DiscriminatorConfig(
    periods=[2, 3], period_channels=[4, 8], num_scales=2, scale_channels=[4, 4, 8, 8, 8, 8, 8]
)
GENERATORS = {
    "hifigan": VocoderConfig("hifigan", channels=64, block_kernels=[3], dilations=[1]),
    "bigvgan": VocoderConfig("bigvgan", 64, rate_kernels=[11, 8, 4, 4, 4], block_kernels=[3], dilations=[1]),
    "istft": VocoderConfig("istft", channels=16, layers=2, fft_size=512),
}
TINY = vocoder.Config(generator=GENERATORS["hifigan"], discriminators=SMALL, crop_frames=16)
# the same as arguments of a command
TINY_ARGS = [
    "recipe=vocoder",
    "vocoder.generator.channels=64",
    "vocoder.generator.block_kernels=[3]",
    "vocoder.generator.dilations=[1]",
    "vocoder.discriminators.periods=[2,3]",
    "vocoder.discriminators.period_channels=[4,8]",
    "vocoder.discriminators.num_scales=2",
    "vocoder.discriminators.scale_channels=[4,4,8,8,8,8,8]",
    "vocoder.crop_frames=16",
]
KEYS = [SampleKey(0, 0, position) for position in range(2)]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_clips(tmp_path_factory.mktemp("clips") / "data").uri


def model_of(config: vocoder.Config) -> Any:
    torch.manual_seed(0)
    return vocoder.build_model(config, GEOMETRY)


def batch_of(config: vocoder.Config, *samples: dict[str, bytes] | None) -> dict[str, torch.Tensor]:
    return vocoder.make_batch(samples, KEYS[: len(samples)], config, GEOMETRY)


# --- Sizes --------------------------------------------------------------------------------------------------


def millions(model: torch.nn.Module) -> float:
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def test_the_default_generator_is_audioldms() -> None:
    with torch.device("meta"):
        generator = build_vocoder(VocoderConfig(), 64, 16000)
    assert millions(generator) == pytest.approx(55.26, abs=0.01)


def test_the_default_discriminators_are_hifigans() -> None:
    # 41.1 M and 29.6 M of Kong et al.'s code
    assert millions(WaveDiscriminators(DiscriminatorConfig())) == pytest.approx(70.73, abs=0.02)


# --- Batches and losses -------------------------------------------------------------------------------------


def test_a_crop_is_of_the_same_place_in_both() -> None:
    config = vocoder.Config(crop_frames=16)
    silence_then_noise = np.zeros(10240, np.float32)
    silence_then_noise[5120:] = np.random.default_rng(0).uniform(-0.5, 0.5, 5120)
    flac = io.BytesIO()
    soundfile.write(flac, silence_then_noise, 16000, format="FLAC")
    for position in range(12):
        key = SampleKey(0, 0, position)
        batch = vocoder.make_batch([{"flac": flac.getvalue()}], [key], config, GEOMETRY)
        loud_frames = batch["log_mel"][0].mean(1) > -6
        loud_samples = batch["wav"][0].view(16, 160).abs().amax(1) > 0.1
        # a frame sees samples of its neighbours, too
        assert (loud_frames.int() - loud_samples.int()).abs().sum() <= 3


def test_a_hole_weighs_nothing_and_changes_no_other_loss() -> None:
    model = model_of(TINY)
    samples = [{"flac": tone(440)}, {"flac": tone(600)}]
    whole = batch_of(TINY, *samples)
    holed = batch_of(TINY, samples[0], None)
    for optimiser in ("generator", "discriminators"):
        made = {"made": model(whole)["made"]}
        losses = [model(batch | made, optimiser)["loss"] for batch in (whole, holed)]
        assert losses[1][1].item() == 0.0
        assert torch.allclose(losses[0][0], losses[1][0], atol=1e-5)


@pytest.mark.parametrize("kind", sorted(GENERATORS))
def test_stock_classes_load_what_is_saved(kind: str, tmp_path: Path) -> None:
    config = vocoder.Config(generator=GENERATORS[kind], discriminators=SMALL, crop_frames=16)
    model = model_of(config)
    for name, parameter in model.named_parameters():
        if name.endswith(".gain"):
            parameter.data *= 1.5
    vocoder.save(model.state_dict(), config, GEOMETRY, tmp_path)
    classes = {"hifigan": SpeechT5HifiGan, "bigvgan": MMAudioVocoder, "istft": IstftVocoder}
    stock: Any = classes[kind].from_pretrained(tmp_path)
    log_mel = batch_of(config, {"flac": tone(440)})["log_mel"]
    with torch.no_grad():
        trained = vocode(model.generator, log_mel, 2560)
        assert torch.allclose(vocode(stock, log_mel, 2560), trained, atol=1e-5)
    assert trained.shape == (1, 2560) and trained.std() > 0
    assert json.loads((tmp_path / "mel.json").read_text())["hop_size"] == 160


@pytest.mark.parametrize(
    "change,message",
    [
        ({"generator": VocoderConfig(kind="wavenet")}, "kind=wavenet: give one of hifigan, bigvgan, istft"),
        ({"generator": VocoderConfig(rates=[5, 4, 2, 2])}, "multiply to 80, need the hop of 160"),
        ({"generator": VocoderConfig(rate_kernels=[16])}, r"rate_kernels=\[16\]: give 5"),
        ({"discriminators": DiscriminatorConfig(scale_channels=[8])}, r"scale_channels=\[8\]: give 7"),
        ({"level": "loud"}, "level=loud: give one of recorded, audioldm"),
        ({"mel_weight": 0.0}, "mel_weight=0.0: give a positive number"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        vocoder.check_config(vocoder.Config(**change), MEL)


# --- Runs ---------------------------------------------------------------------------------------------------


def run(clips: str, output: Path, **changes: Any) -> list[dict[str, Any]]:
    """The metrics of a run, without times."""
    defaults = {"recipe": "vocoder", "vocoder": TINY, "steps": 8, "global_batch": 4, "beta1": 0.8}
    train(settings(clips, output, **{**defaults, **changes}))
    names = ("step", "loss", "grad_norm", "loss_discriminators", "grad_norm_discriminators")
    return [{name: line[name] for name in names} for line in read_lines(output / "metrics.jsonl")]


@pytest.mark.parametrize("stage", range(4))
def test_both_optimisers_resume_bit_for_bit(clips: str, tmp_path: Path, stage: int) -> None:
    whole = run(clips, tmp_path / "whole", zero_stage=stage)
    run(clips, tmp_path / "run", zero_stage=stage, steps=4)
    assert run(clips, tmp_path / "run", zero_stage=stage) == whole
    models = [(tmp_path / name / "model/model.safetensors").read_bytes() for name in ("whole", "run")]
    assert models[0] == models[1]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_stage_steps_both_alike(clips: str, tmp_path: Path, stage: int) -> None:
    expected = run(clips, tmp_path / "0", zero_stage=0)
    for line, same in zip(run(clips, tmp_path / "other", zero_stage=stage), expected, strict=True):
        assert line == pytest.approx(same, rel=1e-3)


def test_micro_batches_change_no_loss(clips: str, tmp_path: Path) -> None:
    expected = run(clips, tmp_path / "whole")
    for line, same in zip(run(clips, tmp_path / "parts", accumulate=2), expected, strict=True):
        assert line == pytest.approx(same, rel=1e-3)


def test_the_generator_learns(clips: str, tmp_path: Path) -> None:
    run(clips, tmp_path, steps=40, lr=3e-3, validate_every=20, validation_items=2)
    first, last = (line["ema_loss"] for line in read_lines(tmp_path / "validation.jsonl"))
    assert last < first


def test_it_is_previewed_as_it_sounds(clips: str, tmp_path: Path) -> None:
    run(clips, tmp_path, steps=2, preview_every=2, preview_items=1)
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.timeout(900)  # two starts of Ray's workers, each of a minute on a busy machine
def test_killed_workers_resume_bit_for_bit(clips: str, tmp_path: Path) -> None:
    """Under Ray, as a user types it: the one kill there of a run with two optimisers."""
    args = [*TINY_ARGS, "steps=24", "checkpoint_every=4", "beta1=0.8"]
    train_ranks(arguments(clips, tmp_path / "whole", *args), 2)
    killed = killed_run(clips, tmp_path, *args)
    assert losses(killed) == losses(tmp_path / "whole")
    alone = run(clips, tmp_path / "alone", steps=24, global_batch=8, zero_stage=1)
    # an opponent amplifies rounding: 1e-5 for the others, 1e-4 here
    assert [line["loss"] for line in alone] == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
