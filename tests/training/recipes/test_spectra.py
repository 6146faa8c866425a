"""Distances of spectra: zero for equal sounds, blind to phase, finite on silence, and hear a lost beat."""

import torch

from training.recipes.spectra import modulation_distance, stft_distance


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


def beats(shift: int) -> torch.Tensor:
    """A log mel [1, 128, 64] that beats every 8 frames."""
    time = torch.arange(128.0)[None, :, None] + shift
    return -6 + 3 * torch.sin(2 * torch.pi * time / 8).expand(1, 128, 64)


def test_a_lost_beat_is_far_and_a_shifted_one_near() -> None:
    flat = torch.full((1, 128, 64), -6.0)
    lost = modulation_distance(flat, beats(0))
    shifted = modulation_distance(beats(2), beats(0))
    # the absolute error says the opposite: the shifted one is further off
    assert (beats(2) - beats(0)).abs().mean() > 1.3 * (flat - beats(0)).abs().mean()
    assert lost > 2 * shifted


def test_modulation_is_per_sample_and_zero_for_equal_ones() -> None:
    mixed = torch.cat([beats(0), torch.full((1, 128, 64), -6.0)])
    distance = modulation_distance(mixed, beats(0).expand(2, -1, -1))
    assert distance[0] == 0 and distance[1] > 0.3


def test_its_unit_is_that_of_an_absolute_error() -> None:
    noise = torch.randn(1, 512, 64, generator=torch.Generator().manual_seed(0))
    distance = modulation_distance(noise, torch.zeros(1, 512, 64))
    assert 0.7 < distance / noise.abs().mean() < 1.3


def test_a_crop_shorter_than_a_window_is_compared_with_the_shorter_ones() -> None:
    made = torch.randn(1, 17, 4, requires_grad=True)
    distance = modulation_distance(made, torch.zeros(1, 17, 4))
    distance.sum().backward()
    assert distance > 0 and torch.isfinite(made.grad).all()
