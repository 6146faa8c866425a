"""Discriminators: what each of them sees, and that nothing depends on what is beside a sample."""

import pytest
import torch

from training.networks.discriminators import DiscriminatorConfig, PeriodDiscriminator, WaveDiscriminators

SMALL = DiscriminatorConfig(
    periods=[2, 5], period_channels=[4, 8], num_scales=3, scale_channels=[4, 4, 8, 8, 8, 8, 8]
)


def noise(samples: int) -> torch.Tensor:
    return torch.randn(3, samples, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("samples", [2560, 2561, 2567])
def test_any_length_is_judged_by_all(samples: int) -> None:
    opinions = WaveDiscriminators(SMALL)(noise(samples))
    assert len(opinions) == 5
    assert [len(opinion.features) for opinion in opinions] == [3, 3, 8, 8, 8]
    assert all(opinion.logits.shape[0] == 3 and opinion.logits.ndim == 2 for opinion in opinions)


def test_a_sample_is_judged_by_itself() -> None:
    discriminators = WaveDiscriminators(SMALL)
    together = discriminators(noise(2560))
    alone = discriminators(noise(2560)[1:2])
    for many, one in zip(together, alone, strict=True):
        assert torch.allclose(many.logits[1:2], one.logits, atol=1e-6)


def test_a_period_sees_samples_that_far_apart_and_no_others() -> None:
    discriminator = PeriodDiscriminator(5, [4, 8])
    wav = noise(500)[:1, None].requires_grad_()
    opinion = discriminator(wav)
    # the logits of the first column, [b, rows * 5]
    opinion.logits[0, ::5].sum().backward()
    seen = wav.grad.abs()[0, 0].view(-1, 5).amax(0) > 0
    assert seen.tolist() == [True, False, False, False, False]
