"""Figures of a classifier's probabilities: KL divergence of pairs, and the inception score of a set.

    kl = divergences(reference, generated)             # [n, classes] twice -> nats [n]
    score = inception_score(generated)                 # exp of the mean KL to the mean prediction

KL(reference || generated), of softmax probabilities, as evaluations of sounds of pictures have it since
Iashin and Rahtu 2021 (SpecVQGAN); the inception score is Salimans et al. 2016's, over the whole set.
"""

import numpy as np

TINY = 1e-30  # a probability of 0 says nothing, and not that it is infinitely far


def divergences(reference: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """KL(reference || generated) in nats of each pair of probabilities [n, classes], [n]."""
    logs = np.log(reference + TINY) - np.log(generated + TINY)
    summed: np.ndarray = (reference * logs).sum(1)
    return summed


def inception_score(probabilities: np.ndarray) -> float:
    """Of a set [n, classes]: 1 where all are alike, at most the number of classes."""
    return float(inception_scores(probabilities, np.ones((1, len(probabilities))))[0])


def inception_scores(probabilities: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Of each draw (`drawn` [times, n]: how often each clip) [times].

    The mean KL to the mean prediction is the entropy of that mean minus the mean entropy.
    """
    weights = drawn / drawn.sum(1, keepdims=True) if len(drawn) else drawn
    scores: np.ndarray = np.exp(_entropy(weights @ probabilities) - weights @ _entropy(probabilities))
    return scores


def _entropy(probabilities: np.ndarray) -> np.ndarray:
    """[..., classes] -> nats [...]."""
    summed: np.ndarray = -(probabilities * np.log(probabilities + TINY)).sum(-1)
    return summed
