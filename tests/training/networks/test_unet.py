"""The UNet: AudioLDM's shapes, convolutional in both axes, steered by its condition."""

import pytest
import torch

from training.networks.unet import build_unet
from training.pipeline.codec import predict
from training.recipes.diffusion import Config

TINY = Config(channels=[8, 16], head_counts=[2, 2], layers_per_block=1, norm_groups=4)


@pytest.mark.parametrize("shape", [(8, 4, 4), (8, 16, 4)])
def test_latents_of_any_length_keep_their_shape(shape: tuple[int, int, int]) -> None:
    unet = build_unet(TINY, latent_channels=8, condition_dim=12)
    latent = torch.randn(2, *shape)
    flow = predict(unet, latent, torch.tensor([10.0, 500.0]), torch.randn(2, 12), torch.float32)
    assert flow.shape == latent.shape


def test_another_condition_gives_another_flow() -> None:
    torch.manual_seed(0)
    unet = build_unet(TINY, latent_channels=8, condition_dim=12)
    latent = torch.randn(1, 8, 4, 4).expand(2, -1, -1, -1)
    flow = predict(unet, latent, torch.tensor([500.0, 500.0]), torch.randn(2, 12), torch.float32)
    assert not torch.allclose(flow[0], flow[1])


def test_the_finest_level_never_attends() -> None:
    unet = build_unet(TINY, latent_channels=8, condition_dim=12)
    assert list(unet.config.down_block_types) == ["DownBlock2D", "CrossAttnDownBlock2D"]
