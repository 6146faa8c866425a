"""Validation in the loop: the loss of fixed items with fixed noise and fixed times, the same number at any
world size.

    validation = Validation.of(dataset, snapshot, config, geometry, rank, world)        # None where validate_every=0
    validation.measure(engine)            # all ranks; {"loss": …, "loss_at_0.1": …, …}

Which items is a function of their keys (training.data.choice). They are taken in batches that do not depend
on the number of ranks, by the live weights. A recipe draws what it draws from their places (epoch
VALIDATION), so every measurement sees the same. What was removed or is damaged keeps its place and weighs
nothing.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from cluster.dataset import Dataset, Snapshot
from training.data.catalogue import Catalogue
from training.data.choice import choose
from training.data.randomness import VALIDATION, SampleKey
from training.recipes.recipe import Geometry, Recipe
from training.settings import TrainConfig

BATCH_SIZE = 16


@dataclass
class Validation:
    """`batches`: item numbers, nearly as many in each; those of this rank are every `world`-th from `rank`
    on. `places`: item -> 0, 1, 2, …

    `damaged`: keys of items found damaged by any rank so far.
    """

    recipe: Recipe
    section: Any
    geometry: Geometry
    seed: int
    catalogue: Catalogue
    batches: list[list[int]]
    places: dict[int, int]
    rank: int
    world: int
    damaged: set[str] = field(default_factory=set)

    @staticmethod
    def of(
        dataset: Dataset,
        snapshot: Snapshot,
        config: TrainConfig,
        geometry: Geometry,
        rank: int,
        world: int,
    ) -> "Validation | None":
        """`UserError` where the snapshot holds nothing of `validation_split`."""
        if not config.validate_every:
            return None
        catalogue = Catalogue.of(dataset, snapshot, config.validation_split, config.module.MEMBERS)
        chosen = choose(catalogue.keys, catalogue.holes, config.validation_items)
        batches = [
            part.tolist() for part in np.array_split(chosen, -(-len(chosen) // BATCH_SIZE))
        ]  # a last one of one has no negatives
        places = {item: place for place, item in enumerate(chosen)}
        return Validation(
            config.module, config.section, geometry, config.seed, catalogue, batches, places, rank, world
        )

    def measure(self, engine: Any) -> dict[str, float]:
        """Means over the items that are no holes, on every rank: of all, and apart as the recipe groups them.

        Empty where all are holes.
        """
        measured: list[tuple[int, str, float]] = []
        engine.eval()
        with torch.no_grad():
            for first in range(
                0, len(self.batches), self.world
            ):  # as many forward passes on each rank: ZeRO 3 gathers in them
                number = first + self.rank
                items = self.batches[min(number, len(self.batches) - 1)]
                tensors = self._batch(items)
                losses = (
                    engine({name: tensor.to(engine.device) for name, tensor in tensors.items()})["loss"]
                    .float()
                    .cpu()
                )
                if number < len(self.batches):
                    groups = self.recipe.loss_groups(tensors) or [""] * len(items)
                    lines = zip(items, groups, losses.tolist(), tensors["weight"].tolist(), strict=True)
                    measured += [(item, group, loss) for item, group, loss, weight in lines if weight]
        engine.train()
        gathered: list[Any] = [None] * self.world
        dist.all_gather_object(gathered, (measured, self._damaged_here()))
        for _, keys in gathered:
            self.damaged.update(keys)
        return _means(sorted((line for part, _ in gathered for line in part), key=lambda line: line[0]))

    def _damaged_here(self) -> list[str]:
        """Keys of the items that this rank found damaged."""
        return [str(self.catalogue.keys[item]) for item in self.catalogue.damaged]

    def _batch(self, items: list[int]) -> dict[str, torch.Tensor]:
        read = self.catalogue.read(items)
        keys = [SampleKey(self.seed, VALIDATION, self.places[item]) for item in items]
        return self.recipe.make_batch([read[item] for item in items], keys, self.section, self.geometry)


def _means(lines: list[tuple[int, str, float]]) -> dict[str, float]:
    apart: dict[str, list[float]] = defaultdict(list)
    for _, group, loss in lines:
        apart["loss"].append(loss)
        if group:
            apart[group].append(loss)
    return {name: float(np.mean(losses)) for name, losses in sorted(apart.items())}
