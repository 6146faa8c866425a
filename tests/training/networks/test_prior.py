"""The prior's network: a token sees the picture and what came before it, and nothing that comes after."""

from pathlib import Path
from typing import Any

import pytest
import torch

from training.networks.prior import TokenPrior


def narrow() -> Any:
    torch.manual_seed(0)
    prior = TokenPrior(image_dim=6, token_dim=5, num_tokens=8, width=16, layers=2, heads=2)
    return prior.eval()


@torch.no_grad()
def test_tokens_come_one_by_one_each_from_those_before() -> None:
    prior = narrow()
    image = torch.randn(3, 6)
    tokens = prior.predict(image)
    assert tokens.shape == (3, 8, 5)
    # as in training: all at once, from the same tokens before
    assert torch.allclose(prior(image, tokens[:, :-1]), tokens, atol=1e-5)
    assert (tokens[:, 0] - tokens[:, 1]).abs().max() > 1e-3


@torch.no_grad()
def test_no_token_sees_a_later_one() -> None:
    prior = narrow()
    image, tokens = torch.randn(2, 6), torch.randn(2, 7, 5)
    changed = tokens.clone()
    changed[:, 4] += 1
    difference = (prior(image, changed) - prior(image, tokens)).abs().amax((0, 2))
    # the fifth token is seen from the sixth on
    assert (difference[:5] < 1e-6).all() and (difference[5:] > 1e-4).all()


@torch.no_grad()
def test_every_token_depends_on_the_picture_and_no_sample_on_another() -> None:
    prior = narrow()
    image = torch.randn(2, 6)
    both = prior.predict(image)
    assert (both[0] - both[1]).abs().amax(1).min() > 1e-3
    assert torch.allclose(prior.predict(image[1:]), both[1:], atol=1e-5)


@torch.no_grad()
def test_embeddings_are_taken_as_their_encoder_gives_them() -> None:
    prior = narrow()
    image = torch.randn(2, 6)
    plain = prior.predict(image)
    prior.image_mean.fill_(3.0)
    prior.image_std.fill_(2.0)
    assert torch.allclose(prior.predict(image * 2 + 3), plain, atol=1e-5)


@torch.no_grad()
def test_a_saved_one_is_the_same(tmp_path: Path) -> None:
    prior = narrow()
    prior.image_mean.fill_(1.0)
    prior.save_pretrained(tmp_path)
    again, info = TokenPrior.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    image = torch.randn(2, 6)
    assert torch.equal(again.eval().predict(image), prior.predict(image))


def test_gpt2s_smallest_without_its_words() -> None:
    with torch.device("meta"):
        prior = TokenPrior()
    millions = sum(parameter.numel() for parameter in prior.parameters()) / 1e6
    # 12 layers of 7.09 M, and three projections
    assert millions == pytest.approx(86.6, abs=0.1)
