"""The distance of spectra: zero for equal sounds, blind to phase, finite on silence."""

import torch

from training.recipes.spectra import stft_distance


def noise(seed: int) -> torch.Tensor:
    return 0.3 * torch.randn(2, 8000, generator=torch.Generator().manual_seed(seed))


def tone(phase: float) -> torch.Tensor:
    return torch.sin(torch.arange(8000.0)[None] * 0.3 + phase)


def test_equal_sounds_have_none() -> None:
    assert stft_distance(noise(0), noise(0)).abs().max() < 1e-6


def test_it_is_per_sample() -> None:
    mixed = torch.stack([noise(0)[0], noise(1)[1]])
    distance = stft_distance(mixed, noise(0))
    assert distance[0] < 1e-6 and distance[1] > 0.5


def test_a_phase_is_nearly_nothing_and_a_pitch_is_much() -> None:
    higher = torch.sin(torch.arange(8000.0)[None] * 0.6)
    assert stft_distance(tone(1.5), tone(0.0)) < 0.2 * stft_distance(higher, tone(0.0))


def test_silence_has_a_finite_distance_and_gradient() -> None:
    made = torch.zeros(1, 8000, requires_grad=True)
    distance = stft_distance(made, tone(0.0))
    distance.sum().backward()
    assert torch.isfinite(distance).all() and torch.isfinite(made.grad).all()
    assert torch.isfinite(stft_distance(tone(0.0), torch.zeros(1, 8000))).all()
