"""Parts of a checkpoint: any number of ranks finds its values in those of any other."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, strategies
from hypothesis import settings as hypothesis_settings

from cluster.storage import Store, open_store
from training.checkpoints.fragments import Address
from training.checkpoints.parts import AVERAGE, Parts, snapshot
from training.checkpoints.store import DamagedError, Draft, Saver, read_marker

Split = list[tuple[str, int, int]]


class FakeFragment:
    """A fragment without an optimiser."""

    def __init__(self, name: str, start: int, master: torch.Tensor):
        self.address = (name, start, len(master))
        self.master = master

    def values(self, kind: str) -> torch.Tensor:
        return self.master * {"master": 1, "exp_avg": 2, "exp_avg_sq": 3}[kind]


def split_evenly(sizes: dict[str, int], world: int) -> list[Split]:
    """All values of all parameters in a row, dealt out evenly, as ZeRO 1 does: a parameter may begin and end
    anywhere.
    """
    share = -(-sum(sizes.values()) // world)
    ranks: list[Split] = [[] for _ in range(world)]
    position = 0
    for name, size in sizes.items():
        first = position
        while position < first + size:
            rank = position // share
            taken = min(first + size, (rank + 1) * share) - position
            ranks[rank].append((name, position - first, taken))
            position += taken
    return ranks


def save(store: Store, values: dict[str, torch.Tensor], splits: list[Split]) -> None:
    """A checkpoint of step 1, by as many ranks as there are splits; averages are 4 times the values."""
    world = len(splits)
    savers = [Saver(store, rank, world, keep=1) for rank in range(world)]
    for saver, split in zip(savers, splits, strict=True):
        fragments: Any = [
            FakeFragment(name, start, values[name][start : start + size]) for name, start, size in split
        ]
        averages = [fragment.master * 4 for fragment in fragments]
        shapes = {name: list(tensor.shape) for name, tensor in values.items()}
        write = snapshot(fragments, {AVERAGE: averages}, {}, shapes)
        saver.save(Draft(1, "a", write, {"workers": world}, lambda: None))
    for saver in savers:
        saver.join()
        saver.close()


@hypothesis_settings(max_examples=30, deadline=None)
@given(
    sizes=strategies.lists(strategies.integers(1, 40), min_size=1, max_size=6),
    before=strategies.integers(1, 5),
    now=strategies.integers(1, 5),
)
def test_any_number_of_ranks_finds_its_values(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], before: int, now: int
) -> None:
    named = {f"p{index}": size for index, size in enumerate(sizes)}
    values = {name: torch.arange(size) + 1000.0 * int(name[1:]) for name, size in named.items()}
    store = open_store(str(tmp_path_factory.mktemp("run")), writable=True)
    save(store, values, split_evenly(named, before))
    checkpoint = read_marker(store, 1)
    for rank, split in enumerate(split_evenly(named, now)):
        parts = Parts(store, checkpoint, tmp_path_factory.mktemp("parts"))
        targets = [(Address(*address), torch.zeros(address[2])) for address in split]
        parts.fetch("exp_avg", targets, rank)()
        for (name, start, size), tensor in targets:
            assert torch.equal(tensor, 2 * values[name][start : start + size])
        if before == now:
            assert {source for source, _ in parts.paths} <= {rank}
    assert all(torch.equal(tensor, 4 * values[name]) for name, tensor in parts.average().items())


def test_a_value_that_no_part_holds_is_damage(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "run"), writable=True)
    save(store, {"a": torch.arange(10.0)}, [[("a", 0, 4)], [("a", 5, 5)]])
    parts = Parts(store, read_marker(store, 1), tmp_path / "parts")
    with pytest.raises(DamagedError, match="no part holds value 4 of a"):
        parts.fetch("master", [(Address("a", 0, 10), torch.zeros(10))], rank=0)
