"""The diffusion recipe: AudioLDM's sizes, what is drawn from the keys, and statistics of latents."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.load import UserError, load_config
from tests.conftest import ROOT
from tests.fakes.latents import IMAGE_DIM, LATENT_SHAPE
from training.data.npy import to_npy
from training.data.randomness import SampleKey
from training.pipeline.mel import MelConfig
from training.pipeline.sampling import objective_of
from training.pretrained import load_scheduler
from training.recipes import diffusion, objectives
from training.settings import TrainConfig

MEL = MelConfig(duration_s=0.16)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_a_condition_dropout_that_is_no_share_is_refused(dropout: float) -> None:
    with pytest.raises(UserError, match="condition_dropout"):
        diffusion.check_config(diffusion.Config(condition_dropout=dropout))


FACTS = {
    "latent_shape": list(LATENT_SHAPE),
    "latent_mean": [0.0] * 8,
    "latent_std": [1.0] * 8,
    "image_mean": [0.0] * IMAGE_DIM,
    "image_std": [1.0] * IMAGE_DIM,
}


TINY = diffusion.Config(
    channels=[8, 16], head_counts=[2, 2], layers_per_block=1, attention=False, norm_groups=4
)


def millions(model: torch.nn.Module) -> float:
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


@pytest.mark.parametrize(
    "channels,parameters",
    [([128, 256, 384, 640], 185.04), ([192, 384, 576, 960], 415.95), ([256, 512, 768, 1280], 739.14)],
)
def test_the_unet_of_each_size_has_audioldms_number_of_parameters(
    channels: list[int], parameters: float
) -> None:
    with torch.device("meta"):
        unet = diffusion.build_unet(diffusion.Config(channels=channels), 8, 512)
    assert millions(unet) == pytest.approx(parameters, abs=0.005)


def sample(seed: int) -> dict[str, bytes]:
    rng = np.random.default_rng(seed)
    return {
        "latent.npy": to_npy(rng.standard_normal((2, *LATENT_SHAPE)).astype(np.float16)),
        "image.npy": to_npy(rng.standard_normal(IMAGE_DIM).astype(np.float16)),
    }


def test_a_hole_weighs_nothing_and_changes_no_other_loss() -> None:
    torch.manual_seed(0)
    model = diffusion.build_model(TINY, FACTS)
    keys = [SampleKey(0, 0, position) for position in range(3)]
    samples = [sample(0), sample(1), sample(2)]
    whole = model(diffusion.make_batch(samples, keys, TINY, FACTS))["loss"]
    holed = model(diffusion.make_batch([samples[0], None, samples[2]], keys, TINY, FACTS))["loss"]
    assert holed[1].item() == 0.0
    assert torch.allclose(whole[[0, 2]], holed[[0, 2]], atol=1e-6)


def test_bf16_weights_see_the_exact_time_and_give_nearly_the_loss_of_fp32() -> None:
    torch.manual_seed(0)
    model, keys = diffusion.build_model(TINY, FACTS), [SampleKey(0, 0, position) for position in range(64)]
    batch = diffusion.make_batch([sample(seed) for seed in range(64)], keys, TINY, FACTS)
    exact, times = model(batch)["loss"], []
    model.bfloat16().unet.time_proj.register_forward_hook(
        lambda module, given, result: times.append(given[0])
    )
    loss = model(batch)["loss"]
    assert torch.equal(times[0], batch["time"] * 1000) and loss.dtype == torch.float32
    assert (loss - exact).abs().mean() < 8e-4


def test_a_samples_noise_does_not_depend_on_its_place_in_the_batch() -> None:
    keys = [SampleKey(0, 0, position) for position in range(2)]
    pair = diffusion.make_batch([sample(0), sample(1)], keys, TINY, FACTS)
    alone = diffusion.make_batch([sample(1)], keys[1:], TINY, FACTS)
    assert all(torch.equal(pair[name][1], alone[name][0]) for name in pair)


@pytest.mark.parametrize(
    "setting,message",
    [
        ({"objective": "x0"}, "diffusion.objective=x0: give one of flow, eps, v, shortcut"),
        ({"times": "normal"}, "diffusion.times=normal: give one of uniform, logit_normal"),
        ({"min_snr": -1.0}, r"diffusion.min_snr=-1.0: give 0 \(off\) or more"),
    ],
)
def test_an_objective_that_is_none_is_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        diffusion.check_config(diffusion.Config(**setting))


@pytest.mark.parametrize("objective", ["flow", "eps", "v"])
def test_the_loss_is_the_objectives_and_is_weighed_in_training_alone(objective: str) -> None:
    torch.manual_seed(0)
    config = replace(TINY, objective=objective, min_snr=5.0)
    model = diffusion.build_model(config, FACTS)
    keys = [SampleKey(0, 0, position) for position in range(8)]
    batch = diffusion.make_batch([sample(seed) for seed in range(8)], keys, config, FACTS)
    told: list[torch.Tensor] = []
    model.unet.register_forward_hook(lambda module, given, result: told.append(result.sample))
    loss = model.eval()(batch)["loss"]
    wanted = objectives.target(objective, batch["latent"], batch["noise"], batch["time"])
    assert torch.allclose(loss, (told[0] - wanted).square().mean((1, 2, 3)), atol=1e-6)
    weight = objectives.min_snr(objective, batch["time"], 5.0)
    assert torch.allclose(model.train()(batch)["loss"], loss * weight, atol=1e-6)
    assert (batch["time"] * 1000 % 1 < 1e-3).all() == (objective != "flow")


@pytest.mark.parametrize("objective", ["flow", "eps", "v"])
def test_a_finished_model_has_the_scheduler_of_its_objective(objective: str, tmp_path: Path) -> None:
    config = replace(TINY, objective=objective)
    model = diffusion.build_model(config, FACTS)
    diffusion.save(model.state_dict(), config, FACTS, tmp_path)
    scheduler = load_scheduler(tmp_path / "scheduler")
    assert objective_of(scheduler) == objective
    assert type(scheduler).__name__ == (
        "FlowMatchEulerDiscreteScheduler" if objective == "flow" else "DDIMScheduler"
    )


def test_condition_dropout_is_drawn_once_at_its_rate() -> None:
    keys = [SampleKey(0, 0, position) for position in range(4000)]
    batch = diffusion.make_batch([sample(0)] * 4000, keys, TINY, FACTS)
    assert batch["drop"].mean() == pytest.approx(0.1, abs=0.015)
    assert batch["drop"].unique().tolist() == [0.0, 1.0]
    model, labels = diffusion.build_model(TINY, FACTS), []
    model.unet.class_embedding.register_forward_pre_hook(lambda module, given: labels.append(given[0]))
    model({name: tensor[:64] for name, tensor in batch.items()})
    dropped = (labels[0] == model.null_embedding).all(1)
    assert torch.equal(dropped, batch["drop"][:64] == 1)


def test_a_latents_moments_are_used_the_loss_of_the_true_flow_is_zero() -> None:
    batch = diffusion.make_batch([sample(0)], [SampleKey(0, 0, 5)], TINY, FACTS)
    mixed = torch.lerp(batch["latent"], batch["noise"], batch["time"][:, None, None, None])
    flow = batch["noise"] - batch["latent"]
    assert torch.allclose(mixed - batch["time"][:, None, None, None] * flow, batch["latent"], atol=1e-5)


@pytest.mark.parametrize(
    "preset", sorted(path.name for path in (ROOT / "configs/training").glob("diff*.yaml"))
)
def test_the_presets_can_be_trained(preset: str) -> None:
    config = load_config(TrainConfig, [str(ROOT / "configs/training" / preset)])
    diffusion.check_config(config.diffusion)
    assert preset.startswith("diffusion_audioldm") == bool(config.init_from)
