"""The UNet: AudioLDM's shapes, convolutional in both axes, steered by its condition."""

import pytest
import torch

from tests.fakes.pipelines import audioldm2_unet, audioldm_unet
from training.networks.conditioner import SLOTS
from training.networks.unet import (
    build_unet,
    from_settings,
    label_dim_of,
    renamed,
    shapes_of,
    widths_of,
    with_sequences,
)
from training.pipeline.codec import predict
from training.recipes.diffusion import Config

TINY = Config(channels=[8, 16], head_counts=[2, 2], layers_per_block=1, norm_groups=4)


@pytest.mark.parametrize("shape", [(8, 4, 4), (8, 16, 4)])
def test_latents_of_any_length_keep_their_shape(shape: tuple[int, int, int]) -> None:
    unet = build_unet(TINY, latent_channels=8, condition_dim=12)
    latent = torch.randn(2, *shape)
    flow = predict(
        unet, latent, torch.tensor([10.0, 500.0]), {"class_labels": torch.randn(2, 12)}, torch.float32
    )
    assert flow.shape == latent.shape


def test_another_condition_gives_another_flow() -> None:
    torch.manual_seed(0)
    unet = build_unet(TINY, latent_channels=8, condition_dim=12)
    latent = torch.randn(1, 8, 4, 4).expand(2, -1, -1, -1)
    flow = predict(
        unet, latent, torch.tensor([500.0, 500.0]), {"class_labels": torch.randn(2, 12)}, torch.float32
    )
    assert not torch.allclose(flow[0], flow[1])


def test_the_finest_level_never_attends() -> None:
    unet = build_unet(TINY, latent_channels=8, condition_dim=12)
    assert list(unet.config.down_block_types) == ["DownBlock2D", "CrossAttnDownBlock2D"]


# --- Sequences ----------------------------------------------------------------------------------------------


def given(widths: list[int], count: int = 2) -> dict[str, torch.Tensor]:
    """Tokens of every slot, the last of them masked."""
    conditions = {}
    for (states, mask), width in zip(SLOTS, widths, strict=False):
        conditions[states] = torch.randn(count, 3, width)
        conditions[mask] = torch.tensor([[1.0, 1, 0]] * count)
    return conditions


@pytest.mark.parametrize("widths", [[24], [24, 40]])
@pytest.mark.parametrize("source", ["ours", "published"])
def test_a_unet_that_is_given_sequences_gives_the_same_to_the_bit_until_it_learns(
    source: str, widths: list[int]
) -> None:
    unet = build_unet(TINY, 8, 512) if source == "ours" else audioldm_unet()
    unet = unet.eval()
    wider = with_sequences({**unet.config, "_class_name": "UNet2DConditionModel"}, widths).eval()
    state = {renamed(name, len(widths)): tensor for name, tensor in unet.state_dict().items()}
    missing, unexpected = wider.load_state_dict(state, strict=False)
    assert not unexpected and missing
    latent = torch.randn(2, 8, 8, 4)
    times = torch.tensor([3.0, 700.0])
    labels = {"class_labels": torch.randn(2, 512)}
    with torch.no_grad():
        before = predict(unet, latent, times, labels, torch.float32)
        assert torch.equal(predict(wider, latent, times, labels | given(widths), torch.float32), before)
        for name, parameter in wider.named_parameters():
            if name in missing and "proj_out" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        first = labels | given(widths)
        after = predict(wider, latent, times, first, torch.float32)
        assert not torch.allclose(after, before, atol=1e-3)
        # every slot is attended to, and nothing that is masked
        for (states, mask), _ in zip(SLOTS, widths, strict=False):
            other = {**first, states: first[states] + first[mask][..., None]}
            assert not torch.allclose(predict(wider, latent, times, other, torch.float32), after, atol=1e-4)
            masked = {**first, states: first[states] + 9 * (1 - first[mask][..., None])}
            assert torch.allclose(predict(wider, latent, times, masked, torch.float32), after, atol=1e-5)


def test_a_published_network_of_audioldm2_is_built_by_its_settings() -> None:
    stock = audioldm2_unet().eval()
    settings = {**stock.config, "_class_name": "AudioLDM2UNet2DConditionModel"}
    assert (widths_of(settings), label_dim_of(settings)) == ([24, 40], 0)
    ours = from_settings(settings).eval()
    ours.load_state_dict(stock.state_dict())
    conditions = given([24, 40])
    latent = torch.randn(2, 8, 8, 4)
    times = torch.tensor([3.0, 700.0])
    with torch.no_grad():
        theirs = stock(latent, times, **conditions).sample
        assert torch.equal(predict(ours, latent, times, conditions, torch.float32), theirs)


def test_shapes_are_those_of_the_network_without_its_weights() -> None:
    settings = shapes_of(TINY, 8, 12)
    unet = build_unet(TINY, 8, 12)
    assert {name: tensor.shape for name, tensor in from_settings(settings).state_dict().items()} == {
        name: tensor.shape for name, tensor in unet.state_dict().items()
    }
    assert (widths_of(settings), label_dim_of(settings)) == ([], 12)
    assert label_dim_of(shapes_of(TINY, 8, 0)) == 0


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"mid_block_type": "UNetMidBlock2D"}, "without attention cannot attend"),
        ({"dual_cross_attention": True}, "dual_cross_attention=True: a UNet with it cannot attend"),
    ],
)
def test_a_unet_that_cannot_attend_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_sequences({**shapes_of(TINY, 8, 12), **settings}, [24])
    with pytest.raises(ValueError, match=r"cross_attention_dim=.*: need \[null, …\]"):
        widths_of({"_class_name": "AudioLDM2UNet2DConditionModel", "cross_attention_dim": [[24], [24]]})
    with pytest.raises(ValueError, match="class_embed_type=timestep"):
        label_dim_of({"class_embed_type": "timestep"})
