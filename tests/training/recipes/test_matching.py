"""Pairs that are told apart: the loss against torch's own, and whose negatives are whose."""

import pytest
import torch

from training.recipes.matching import HOLE, no_negatives, pair_loss


def unit(*shape: int) -> torch.Tensor:
    return torch.nn.functional.normalize(
        torch.randn(*shape, generator=torch.Generator().manual_seed(0)), dim=-1
    )


def test_the_loss_is_the_mean_of_both_ways_each_at_its_temperature() -> None:
    first, second = unit(8, 5).chunk(2)
    truth = torch.arange(4)
    nobody = torch.zeros(4, 4, dtype=torch.bool)
    scales = torch.tensor([1.0, 2.0])
    loss, hit = pair_loss((first, second), (first, second), scales, nobody, truth)
    there = torch.nn.functional.cross_entropy(scales[0].exp() * first @ second.T, truth, reduction="none")
    back = torch.nn.functional.cross_entropy(scales[1].exp() * second @ first.T, truth, reduction="none")
    assert torch.allclose(loss, (there + back) / 2, atol=1e-6)
    assert hit.tolist() == ((first @ second.T).argmax(1) == truth).tolist()


def test_a_temperature_has_a_bound() -> None:
    first, second = unit(8, 5).chunk(2)
    nobody = torch.zeros(4, 4, dtype=torch.bool)
    colder, coldest = (
        pair_loss((first, second), (first, second), torch.tensor([scale]), nobody, torch.arange(4))[0]
        for scale in (4.7, 9.0)
    )
    assert torch.equal(colder, coldest)


def test_what_is_masked_does_not_count() -> None:
    first, second = unit(8, 5).chunk(2)
    masked = torch.zeros(4, 4, dtype=torch.bool)
    masked[0, 1:] = True
    loss, hit = pair_loss((first, second), (first, second), torch.tensor([1.0]), masked, torch.arange(4))
    assert float(loss[0]) == pytest.approx(0, abs=1e-6) and hit[0]


def test_own_medium_and_holes_are_no_negatives_and_oneself_is_no_mask() -> None:
    media = torch.tensor([5, 6, 5, HOLE])
    assert no_negatives(media, media, torch.arange(4)).int().tolist() == [
        [0, 0, 1, 1],
        [0, 0, 0, 1],
        [1, 0, 0, 1],
        [0, 0, 0, 0],
    ]
