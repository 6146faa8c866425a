"""Randomness that depends on a key and a purpose, and on nothing else."""

import numpy as np

from training.data.randomness import SampleKey, keyed_rng

KEY = SampleKey(seed=0, epoch=2, position=31007)


def drawn(key: SampleKey, purpose: str = "noise") -> list[float]:
    values: list[float] = keyed_rng(key, purpose).standard_normal(4).tolist()
    return values


def test_a_key_gives_the_same_numbers_whatever_was_drawn_before() -> None:
    first = drawn(KEY)
    np.random.default_rng().standard_normal(3)
    assert drawn(KEY) == first


def test_every_field_of_a_key_and_every_purpose_has_a_stream_of_its_own() -> None:
    keys = [KEY, SampleKey(1, 2, 31007), SampleKey(0, 1, 31007), SampleKey(0, 2, 31008)]
    streams = {tuple(drawn(key)) for key in keys} | {tuple(drawn(KEY, "crop"))}
    assert len(streams) == 5
