"""The shapes the models promise, against the literals of AudioLDM, and what a hole in a batch does."""

import numpy as np
import pytest
import torch

from tests.fakes.latents import IMAGE_DIM, LATENT_SHAPE
from training.data.npy import to_npy
from training.data.randomness import SampleKey
from training.pipeline.mel import MelConfig
from training.recipes import autoencoder, diffusion

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
