"""KL divergence and inception score by hand."""

import math

import numpy as np
import pytest

from training.judging.classes import divergences, inception_score, inception_scores


def test_kl_by_hand_and_in_its_direction() -> None:
    reference = np.array([[0.5, 0.5], [1.0, 0.0]])
    generated = np.array([[0.25, 0.75], [0.5, 0.5]])
    by_hand = [0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75), math.log(2)]
    assert divergences(reference, generated) == pytest.approx(by_hand)
    # what is impossible by the generated sound is far, not infinitely
    assert divergences(generated, reference)[1] > 20
    assert divergences(reference, reference) == pytest.approx(0)


def test_inception_score_by_hand() -> None:
    certain = np.eye(4)
    assert inception_score(certain) == pytest.approx(4)
    assert inception_score(np.tile(certain[:1], (4, 1))) == pytest.approx(1)
    pair = np.array([[0.9, 0.1], [0.2, 0.8]])
    mean = pair.mean(0)
    by_hand = math.exp(
        np.mean([sum(p * math.log(p / m) for p, m in zip(row, mean, strict=True)) for row in pair])
    )
    assert inception_score(pair) == pytest.approx(by_hand)


def test_a_draw_is_the_score_of_what_was_drawn() -> None:
    probabilities = np.random.default_rng(0).dirichlet(np.ones(5), 6)
    counts = np.array([[2, 0, 1, 1, 0, 2]])
    drawn = np.repeat(probabilities, counts[0], axis=0)
    assert inception_scores(probabilities, counts) == pytest.approx(inception_score(drawn))
    assert len(inception_scores(probabilities, np.zeros((0, 6), int))) == 0
