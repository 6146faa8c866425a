"""Validation in the loop: the loss of fixed items with fixed noise and fixed times, the same number at any world size.

    validation = Validation.of(dataset, snapshot, config, facts, rank, world)        # None where validate_every=0
    validation.measure(engine)            # all ranks; {"loss": …, "loss_at_0.1": …, …}

Items are taken in batches that do not depend on the number of ranks, by the live weights. A recipe draws what it draws from
the keys of these items (epoch VALIDATION), so every measurement sees the same.
"""

from collections import defaultdict
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from cluster.dataset import Dataset, Snapshot
from training.catalogue import Catalogue
from training.randomness import VALIDATION, SampleKey
from training.settings import TrainConfig

BATCH_SIZE = 16


@dataclass
class Validation:
    """`batches`: item numbers; those of this rank are every `world`-th from `rank` on. `places`: item -> 0, 1, 2, …"""

    recipe: ModuleType
    section: Any
    facts: dict[str, Any]
    seed: int
    catalogue: Catalogue
    batches: list[list[int]]
    places: dict[int, int]
    rank: int
    world: int

    @staticmethod
    def of(dataset: Dataset, snapshot: Snapshot, config: TrainConfig, facts: dict[str, Any], rank: int, world: int) -> "Validation | None":
        """`UserError` where the snapshot holds nothing of `validation_split`."""
        if not config.validate_every:
            return None
        catalogue = Catalogue.of(dataset, snapshot, config.validation_split, config.module.MEMBERS)
        whole = np.flatnonzero(~catalogue.holes)
        chosen = whole[np.unique(np.linspace(0, len(whole) - 1, min(config.validation_items, len(whole))).round().astype(int))].tolist()
        batches = [chosen[start : start + BATCH_SIZE] for start in range(0, len(chosen), BATCH_SIZE)]
        places = {item: place for place, item in enumerate(chosen)}
        return Validation(config.module, config.section, facts, config.seed, catalogue, batches, places, rank, world)

    def measure(self, engine: Any) -> dict[str, float]:
        """Means over the items, on every rank: of all, and for each diffusion time apart."""
        found: list[tuple[int, float | None, float]] = []
        engine.eval()
        with torch.no_grad():
            for first in range(0, len(self.batches), self.world):  # as many forward passes on each rank: ZeRO 3 gathers in them
                number = first + self.rank
                items = self.batches[min(number, len(self.batches) - 1)]
                tensors = self._batch(items)
                losses = engine({name: tensor.to(engine.device) for name, tensor in tensors.items()})["loss"].float().cpu()
                if number < len(self.batches):
                    times = tensors["time"].tolist() if "time" in tensors else [None] * len(items)
                    found += zip(items, times, losses.tolist(), strict=True)
        engine.train()
        gathered: list[Any] = [None] * self.world
        dist.all_gather_object(gathered, found)
        return _means(sorted((line for part in gathered for line in part), key=lambda line: line[0]))

    def _batch(self, items: list[int]) -> dict[str, torch.Tensor]:
        read = self.catalogue.read(items)
        keys = [SampleKey(self.seed, VALIDATION, self.places[item]) for item in items]
        return self.recipe.make_batch([read[item] for item in items], keys, self.section, self.facts)


def _means(lines: list[tuple[int, float | None, float]]) -> dict[str, float]:
    apart: dict[str, list[float]] = defaultdict(list)
    for _, time, loss in lines:
        apart["loss"].append(loss)
        if time is not None:
            apart[f"loss_at_{time:.1f}"].append(loss)
    return {name: float(np.mean(losses)) for name, losses in sorted(apart.items())}
