"""The autoencoder recipe: AudioLDM's size and its loss, in AudioLDM's units."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import MMAudioVAE

from cluster.jsonl import read_lines
from configs.load import UserError, load_config
from tests.conftest import ROOT
from tests.fakes import opposed_ranks
from tests.fakes.clips import make_clips
from tests.fakes.contrastive_ranks import by_ranks
from tests.fakes.ranks import killed_and_whole
from tests.fakes.runs import settings
from training.pipeline.mel import SPECTROGRAMS, MelConfig
from training.recipes import autoencoder
from training.recipes.autoencoder import Autoencoder, Config
from training.settings import TrainConfig
from training.train import train

TINY = Config(channels=[8, 8, 8], layers_per_block=1, norm_groups=4, attention=False)


def losses(config: Config, frames: int) -> dict[str, torch.Tensor]:
    """Of two clips of noise."""
    torch.manual_seed(0)
    mel = MelConfig()
    model: Any = Autoencoder(config, mel)
    log_mel, noise = torch.randn(2, 1, frames, 64), torch.randn(2, mel.latent_channels, frames // 4, 16)
    with torch.no_grad():
        return model({"log_mel": log_mel, "noise": noise, "weight": torch.ones(2)})


def test_a_whole_clips_loss_is_audioldms_over_its_number_of_values() -> None:
    found = losses(replace(TINY, kl_weight=1000), frames=1024)
    theirs = 1024 * 64 * found["error"] + 1000 * found["kl"]
    assert torch.allclose(found["loss"], theirs / (1024 * 64), rtol=1e-5)


def test_the_balance_of_error_and_kl_does_not_depend_on_the_crop() -> None:
    found = losses(replace(TINY, kl_weight=1000), frames=64)
    assert torch.allclose(found["loss"] - found["error"], 0.0152588 * found["kl"], rtol=1e-3)


def test_the_preset_of_audioldms_size_has_its_weight() -> None:
    config = load_config(TrainConfig, [str(ROOT / "configs/training/autoencoder.yaml"), "data=x", "output=y"])
    assert config.autoencoder.kl_weight == Config().kl_weight == 1000


@pytest.mark.parametrize(
    "change", [{"kl_weight": -1.0}, {"kl_weight": float("nan")}, {"level": "loud"}, {"spectral_weight": -1.0}]
)
def test_settings_that_no_codec_can_be_trained_with_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"autoencoder.{next(iter(change))}="):
        autoencoder.check_config(replace(TINY, **change))


def millions(model: torch.nn.Module) -> float:
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def test_the_autoencoder_has_audioldms_size_and_ratio() -> None:
    mel = MelConfig()
    with torch.device("meta"):
        model = autoencoder.Autoencoder(autoencoder.Config(), mel)
        assert (
            model.codec.encode(torch.empty(1, 1, 1024, 64)).latent_dist.mean.shape
            == (1, *mel.latent_shape)
            == (1, 8, 256, 16)
        )
    assert millions(model.codec) == pytest.approx(55.4, abs=0.05)


# --- The spectral term --------------------------------------------------------------------------------------


def test_the_spectral_term_is_added_by_its_weight_and_changes_nothing_at_none() -> None:
    plain = losses(TINY, frames=64)
    found = losses(replace(TINY, spectral_weight=0.5), frames=64)
    assert "spectral" not in plain and (found["spectral"] > 0).all()
    assert torch.allclose(found["loss"], plain["loss"] + 0.5 * found["spectral"])


def test_a_hole_has_no_spectral_term() -> None:
    torch.manual_seed(0)
    model: Any = Autoencoder(replace(TINY, spectral_weight=0.5), MelConfig())
    batch = {"log_mel": torch.randn(2, 1, 64, 64), "noise": torch.zeros(2, 8, 16, 16)}
    found = model(batch | {"weight": torch.tensor([1.0, 0.0])})
    assert found["spectral"][1] == found["loss"][1] == 0 < found["spectral"][0]


def test_a_run_with_the_spectral_term_learns_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips").uri
    codec = replace(TINY, spectral_weight=0.5, crop_frames=32)
    more = {"recipe": "autoencoder", "autoencoder": codec, "global_batch": 4, "lr": 3e-3}
    train(settings(clips, tmp_path / "whole", **more, steps=40))
    train(settings(clips, tmp_path / "run", **more, steps=20))
    train(settings(clips, tmp_path / "run", **more, steps=40))
    whole, run = (
        [line["loss"] for line in read_lines(tmp_path / name / "metrics.jsonl")] for name in ("whole", "run")
    )
    assert whole == run and sum(whole[-5:]) < 0.9 * sum(whole[:5])


def test_a_crop_too_short_for_its_windows_is_refused(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips").uri
    codec = replace(TINY, spectral_weight=0.5, crop_frames=4)
    with pytest.raises(UserError, match="crop_frames=4: spectral_weight needs 16 or more, and 128"):
        train(settings(clips, tmp_path / "run", recipe="autoencoder", autoencoder=codec))


# --- The adversary ------------------------------------------------------------------------------------------

OPPOSED = replace(TINY, discriminator_weight=0.5, discriminator_start=3, discriminator_channels=8)


def opposed_model() -> Any:
    torch.manual_seed(0)
    return Autoencoder(OPPOSED, MelConfig())


def opposed_batch(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    log_mel = torch.randn(3, 1, 64, 64, generator=generator) - 6
    noise = torch.randn(3, 8, 16, 16, generator=generator)
    weight = torch.tensor([1.0, 0.0, 1.0])
    return {"log_mel": log_mel, "noise": noise, "weight": weight, "step": torch.full((3,), step)}


def test_before_its_step_the_adversary_is_not_heeded() -> None:
    torch.manual_seed(0)
    alone = Autoencoder(TINY, MelConfig())
    model = opposed_model()
    model.codec.load_state_dict(alone.codec.state_dict())
    batch = opposed_batch(2)
    losses = model(batch)
    assert torch.equal(losses["loss"], alone(batch)["loss"])
    assert not model(batch | {"decoded": losses["decoded"]}, "discriminator")["loss"].any()


def test_its_weight_is_esser_et_als() -> None:
    """Against autograd at the last layer, twice through the discriminator, as their code has it."""
    model = opposed_model()
    batch = opposed_batch(3)
    loss = model(batch)["loss"]
    gradients = torch.autograd.grad(loss.sum(), list(model.codec.parameters()))
    last = model.codec.decoder.conv_out.weight
    plain = model(batch | {"step": torch.zeros(3)})
    latent = model.codec.quant_conv(model.codec.encoder(batch["log_mel"]))
    mean, log_variance = latent.chunk(2, dim=1)
    latent = mean + (0.5 * log_variance.clamp(-30, 20)).exp() * batch["noise"]
    decoded = model.codec.decoder(model.codec.post_quant_conv(latent))
    weight = batch["weight"]
    error = ((decoded - batch["log_mel"]).abs().mean((1, 2, 3)) * weight).sum()
    fooled = (-model.discriminator(decoded).mean((1, 2, 3)) * weight).sum()
    norms = [torch.autograd.grad(value, last, retain_graph=True)[0].norm() for value in (error, fooled)]
    adaptive = (norms[0] / (norms[1] + 1e-4)).clamp(max=1e4)
    expected = plain["loss"].sum() + 0.5 * adaptive * fooled
    assert loss.sum().item() == pytest.approx(expected.item(), rel=1e-4)
    expected = plain["loss"].sum() + 0.5 * adaptive.detach() * fooled
    for found, right in zip(
        gradients, torch.autograd.grad(expected, list(model.codec.parameters())), strict=True
    ):
        assert torch.allclose(found, right, rtol=1e-3, atol=1e-6)


def test_the_codec_gets_no_gradient_of_the_discriminators_loss() -> None:
    model = opposed_model()
    batch = opposed_batch(3)
    decoded = model(batch)["decoded"]
    loss = model(batch | {"decoded": decoded}, "discriminator")["loss"]
    assert loss[1] == 0 and loss[0] > 0
    loss.sum().backward()
    assert all(parameter.grad is None for parameter in model.codec.parameters())
    assert all(parameter.grad is not None for parameter in model.discriminator.parameters())


def test_validation_is_without_the_adversary() -> None:
    model = opposed_model().eval()
    batch = opposed_batch(3)
    del batch["step"]
    assert torch.allclose(model(batch)["loss"], model(batch)["error"] + model.kl_weight * model(batch)["kl"])


def test_any_number_of_workers_weighs_the_adversary_alike(tmp_path: Path) -> None:
    by_ranks(tmp_path, opposed_ranks.build, opposed_ranks.batch_of)
    alone = torch.load(tmp_path / "1.pt")
    for world in (2, 4):
        for name, value in torch.load(tmp_path / f"{world}.pt").items():
            assert torch.allclose(value, alone[name], rtol=1e-3, atol=1e-6), (world, name)


@pytest.mark.parametrize("stage", range(4))
def test_both_optimisers_resume_bit_for_bit(tmp_path: Path, stage: int) -> None:
    clips = make_clips(tmp_path / "clips").uri
    opposed = replace(OPPOSED, crop_frames=64)
    more = {
        "recipe": "autoencoder",
        "autoencoder": opposed,
        "steps": 8,
        "global_batch": 4,
        "zero_stage": stage,
    }
    train(settings(clips, tmp_path / "whole", **more))
    train(settings(clips, tmp_path / "run", **{**more, "steps": 4}))
    train(settings(clips, tmp_path / "run", **more))
    lines = [read_lines(tmp_path / name / "metrics.jsonl") for name in ("whole", "run")]
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]
    judged = [line["loss_discriminator"] for line in lines[0]]
    assert judged == [line["loss_discriminator"] for line in lines[1]]
    assert judged[:2] == [0, 0] and all(judged[2:])


def test_a_run_of_before_there_was_an_adversary_resumes(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips").uri
    more = {"recipe": "autoencoder", "autoencoder": replace(TINY, crop_frames=16), "global_batch": 4}
    train(settings(clips, tmp_path / "run", **more, steps=4))
    record = json.loads((tmp_path / "run/run.json").read_text())
    for name in ("discriminator_weight", "discriminator_start", "discriminator_channels"):
        del record["config"]["autoencoder"][name]
    (tmp_path / "run/run.json").write_text(json.dumps(record))
    train(settings(clips, tmp_path / "run", **more, steps=8))
    assert read_lines(tmp_path / "run/metrics.jsonl")[-1]["step"] == 8
    opposed = {**more, "autoencoder": replace(TINY, crop_frames=16, discriminator_weight=0.5)}
    with pytest.raises(UserError, match="discriminator_weight: 0.0 .existing. -> 0.5 .yours."):
        train(settings(clips, tmp_path / "run", **opposed, steps=8))


# --- MMAudio's ----------------------------------------------------------------------------------------------

FLAT = Config(kind="mmaudio", channels=[16, 32], layers_per_block=1, crop_frames=32, discriminator_channels=8)
FLAT_ARGS = [
    "recipe=autoencoder",
    "autoencoder.kind=mmaudio",
    "autoencoder.channels=[16,32]",
    "autoencoder.layers_per_block=1",
    "autoencoder.crop_frames=32",
]


def run_flat(clips: str, output: Path, **changes: Any) -> list[float]:
    """Losses of a run of the one-dimensional codec."""
    defaults = {"recipe": "autoencoder", "autoencoder": FLAT, "steps": 8, "global_batch": 8}
    train(settings(clips, output, **{**defaults, **changes}))
    return [line["loss"] for line in read_lines(output / "metrics.jsonl")]


@pytest.mark.parametrize("stage", range(4))
def test_a_flat_codec_resumes_bit_for_bit(tmp_path: Path, stage: int) -> None:
    clips = make_clips(tmp_path / "clips").uri
    opposed = replace(FLAT, discriminator_weight=0.5, discriminator_start=3, spectral_weight=0.1)
    more: dict[str, Any] = {"zero_stage": stage, "autoencoder": opposed}
    whole = run_flat(clips, tmp_path / "whole", **more)
    run_flat(clips, tmp_path / "run", steps=4, **more)
    assert run_flat(clips, tmp_path / "run", **more) == whole


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_flat_codec_learns_and_stock_diffusers_loads_it(tmp_path: Path, precision: str) -> None:
    clips = make_clips(tmp_path / "clips").uri
    found = run_flat(clips, tmp_path / "run", steps=60, lr=3e-3, precision=precision, preview_every=60)
    assert sum(found[-5:]) < 0.8 * sum(found[:5])
    stock = MMAudioVAE.from_pretrained(tmp_path / "run/model")
    assert stock.config.hop_length == 256 and stock.config.mel_bins == 80
    wav = 0.25 * torch.sin(torch.arange(10240.0) * 0.2)[None]
    with torch.no_grad():
        decoded = stock(wav).sample
        # as it was made: no precision of training has rounded its front end
        assert torch.equal(
            stock.mel_converter.mel_basis, MMAudioVAE.from_config(stock.config).mel_converter.mel_basis
        )
    truth = stock.mel_converter(wav)
    assert (decoded - truth).abs().mean() < 0.75 * (truth - truth.mean()).abs().mean()


def test_a_killed_rank_of_a_flat_codec_costs_no_bit_and_one_rank_gives_the_same(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips").uri
    whole = killed_and_whole(clips, tmp_path, *FLAT_ARGS)
    alone = run_flat(clips, tmp_path / "alone", steps=12, zero_stage=1)
    assert alone == pytest.approx(whole, rel=1e-5)


def test_a_flat_codec_starts_from_a_stock_one_and_from_log10_weights(tmp_path: Path) -> None:
    facts: Any = {"mel": MelConfig(duration_s=0.64, **SPECTROGRAMS["mmaudio"]).settings()}
    torch.manual_seed(0)
    stock = autoencoder.build_model(FLAT, facts)
    autoencoder.save(stock.state_dict(), FLAT, facts, tmp_path)
    weights = autoencoder.initial(str(tmp_path), FLAT, facts)
    assert weights.keys() == stock.state_dict().keys()
    converted = autoencoder.initial(str(tmp_path), replace(FLAT, init_log10=True), facts)
    assert torch.allclose(converted["codec.vae.data_std"], weights["codec.vae.data_std"] * math.log(10))
    other: Any = {"mel": MelConfig(duration_s=0.64).settings()}
    with pytest.raises(UserError, match="other mels than autoencoder.kind=mel2d has; give kind=mmaudio"):
        autoencoder.initial(str(tmp_path), TINY, other)


@pytest.mark.parametrize(
    "change,says",
    [
        ({"kind": "wavelets"}, "kind=wavelets: give one of mel2d, mmaudio"),
        ({"kind": "mmaudio", "channels": [16, 24]}, r"channels=\[16, 24\]: give 2 levels or more, multiples"),
        ({"kind": "mmaudio", "channels": [16]}, r"channels=\[16\]: give 2 levels"),
        ({"init_log10": True}, "init_log10=true: only of kind=mmaudio"),
    ],
)
def test_settings_of_no_kind_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        autoencoder.check_config(replace(TINY, **change))


@pytest.mark.parametrize("dims", [1, 2])
def test_the_norm_at_the_last_layer_is_autograds(dims: int) -> None:
    torch.manual_seed(0)
    layer: Any = (torch.nn.Conv1d(4, 5, 3, padding=1), torch.nn.Conv2d(4, 1, 3, padding=1))[dims - 1]
    hidden = torch.randn(2, 4, *[8] * dims)
    output = layer(hidden)
    (output**2).sum().backward()
    found = autoencoder._last_layer_norm(hidden, 2 * output.detach())
    assert found.item() == pytest.approx(layer.weight.grad.norm().item(), rel=1e-5)
