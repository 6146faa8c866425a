"""Which items a measurement takes depends on their keys alone."""

import numpy as np

from training.data.choice import choose

KEYS = [f"key{number:03d}" for number in range(100)]


def holes(*indexes: int) -> np.ndarray:
    mask = np.zeros(len(KEYS), bool)
    mask[list(indexes)] = True
    return mask


def test_a_removed_item_changes_no_other_choice() -> None:
    chosen = choose(KEYS, holes(), 10)
    assert choose(KEYS, holes(chosen[0]), 10) == chosen


def test_enough_items_are_no_holes() -> None:
    chosen = choose(KEYS, holes(), 3)
    replaced = choose(KEYS, holes(*chosen), 3, at_least=2)
    assert replaced[:3] == chosen and len(replaced) == 5


def test_nothing_is_chosen_of_holes_alone() -> None:
    assert choose(KEYS, np.ones(len(KEYS), bool), 3) == []
