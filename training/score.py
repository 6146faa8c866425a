"""Shares of sounds whose attributes are right, against what chance and the codec give, with intervals.

    scores, intervals = score(generated, real, truths, media, seed=0)

Of lists of what training.judge heard. `generated` and `real` are judged by their own truth; `chance` is real
sounds, `shuffled` generated ones, judged by the truth of another clip: the mean over NUM_DERANGEMENTS
exchanges of the truths. `closed` is the share of the gap from chance to real that generated sounds close, and
`shuffled_closed` likewise. It synthesizes nothing and reads no files.
"""

from collections.abc import Sequence

import numpy as np

from training.judge import Attributes, correct

ATTRIBUTES = ("timbre", "f0", "rate")
SHARES = ("generated", "real", "chance", "shuffled")
NUM_DERANGEMENTS = 5
NUM_RESAMPLED = 1000  # of the bootstrap
INTERVAL = (2.5, 97.5)  # percentiles
Scores = dict[str, dict[str, float]]
Intervals = dict[str, dict[str, list[float]]]


def score(
    generated: list[Attributes],
    real: list[Attributes],
    truths: list[Attributes],
    media: Sequence[str],
    seed: int,
) -> tuple[Scores, Intervals]:
    """Per attribute the four shares and the closed gaps, and the 95 % interval of each.

    Intervals are a bootstrap over media, whose clips resemble each other; there is none for a single medium.
    """
    hits = _hits(generated, real, truths, media, seed)
    names, medium_of = np.unique(np.asarray(media), return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), NUM_RESAMPLED)  # [times, media]
    scores: Scores = {}
    intervals: Intervals = {}
    for attribute, values in hits.items():
        shares = _with_gaps(values.mean(0)[None])
        scores[attribute] = {name: round(float(share[0]), 4) for name, share in shares.items()}
        # drawing one medium again and again gives the same clips each time: no interval at all
        if len(names) < 2:
            continue
        # whole media are drawn, so that sums and counts by medium are all it takes
        sums = np.stack([np.bincount(medium_of, column, len(names)) for column in values.T], 1)
        resampled = _with_gaps((drawn @ sums) / (drawn @ np.bincount(medium_of))[:, None])
        intervals[attribute] = {
            name: np.percentile(values, INTERVAL).round(4).tolist() for name, values in resampled.items()
        }
    return scores, intervals


def derangement(media: Sequence[str], seed: int, index: int = 0) -> np.ndarray:
    """A random permutation [num_clips] without fixed points.

    No clip meets one of its own medium, unless most are of one.
    """
    rng = np.random.default_rng([seed, index])
    names, medium_of, counts = np.unique(np.asarray(media), return_inverse=True, return_counts=True)
    # the clips of a medium in a row, shuffled within; media in random order
    within = rng.random(len(media))
    order = np.lexsort((within, rng.permutation(len(names))[medium_of]))
    # a step as long as the longest row leaves every medium
    longest = int(counts.max())
    step = len(media) // 2
    if 2 * longest <= len(media):
        step = int(rng.integers(longest, len(media) - longest + 1))
    exchanged = np.empty(len(media), dtype=int)
    exchanged[order] = np.roll(order, step)
    return exchanged


def _hits(
    generated: list[Attributes],
    real: list[Attributes],
    truths: list[Attributes],
    media: Sequence[str],
    seed: int,
) -> dict[str, np.ndarray]:
    """Per attribute, what each clip adds to the four `SHARES`, float [num_clips, 4] in 0..1."""
    exchanges = [derangement(media, seed, index) for index in range(NUM_DERANGEMENTS)]

    def right(heard: list[Attributes], truth_indexes: np.ndarray) -> list[dict[str, bool]]:
        return [correct(sound, truths[index]) for sound, index in zip(heard, truth_indexes, strict=True)]

    in_order = np.arange(len(truths))
    hits = {
        "generated": [right(generated, in_order)],
        "real": [right(real, in_order)],
        "chance": [right(real, exchange) for exchange in exchanges],
        "shuffled": [right(generated, exchange) for exchange in exchanges],
    }

    def of_attribute(clips: list[dict[str, bool]], attribute: str) -> list[bool]:
        return [clip[attribute] for clip in clips]

    def share(name: str, attribute: str) -> np.ndarray:
        """[n]: per clip, in how many of the rounds it was right; one round but for chance and shuffled."""
        rounds = [of_attribute(clips, attribute) for clips in hits[name]]
        return np.asarray(np.mean(rounds, axis=0))

    def shares(attribute: str) -> np.ndarray:
        return np.stack([share(name, attribute) for name in SHARES], 1)

    return {attribute: shares(attribute) for attribute in ATTRIBUTES}


def _with_gaps(shares: np.ndarray) -> dict[str, np.ndarray]:
    """Shares [times, 4] by name, with `closed` and `shuffled_closed`, which are 0 where there is no gap."""
    named = {name: shares[:, column] for column, name in enumerate(SHARES)}
    gap = named["real"] - named["chance"]
    for name, share in (("closed", "generated"), ("shuffled_closed", "shuffled")):
        named[name] = np.divide(named[share] - named["chance"], gap, out=np.zeros_like(gap), where=gap > 0)
    return named
