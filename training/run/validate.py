"""Validation in the loop: the loss of fixed items with fixed noise and fixed times, the same number at any
world size.

    validation = Validation.of(dataset, snapshot, config, geometry, rank, world)   # None if validate_every=0
    validation.measure(engine)            # all ranks; {"loss": …, "loss_at_0.1": …, …}

Which items is a function of their keys (training.data.choice). They are taken in batches that do not depend
on the number of ranks, by the live weights. A recipe draws what is random from their positions (epoch
VALIDATION), so every measurement sees the same. What was removed or is damaged keeps its position and weighs
nothing.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from cluster.dataset import Dataset, Snapshot
from training.data.catalogue import Catalogue
from training.data.choice import choose
from training.data.randomness import VALIDATION, SampleKey
from training.recipes.recipe import Batch, Geometry, Recipe
from training.run.ranks import gather
from training.settings import TrainConfig

BATCH_SIZE = 16


class ItemLoss(NamedTuple):
    """`group`: as the recipe names it, "" for none."""

    item: int
    group: str
    loss: float


@dataclass
class Validation:
    """`batches`: item numbers, nearly as many in each; every `world`-th from `rank` on is this rank's.
    `positions`: item -> 0, 1, 2, …

    `damaged`: keys of items found damaged by any rank so far.
    """

    recipe: Recipe
    section: Any
    geometry: Geometry
    seed: int
    catalogue: Catalogue
    batches: list[list[int]]
    positions: dict[int, int]
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
        """`UserError` if the snapshot holds nothing of `validation_split`."""
        if not config.validate_every:
            return None
        catalogue = Catalogue.of(dataset, snapshot, config.validation_split, config.members)
        chosen = choose(catalogue.keys, catalogue.holes, config.validation_items)
        # evenly: in contrastive training a last batch of one item would have no negatives
        num_batches = -(-len(chosen) // BATCH_SIZE)
        return Validation(
            recipe=config.module,
            section=config.section,
            geometry=geometry,
            seed=config.seed,
            catalogue=catalogue,
            batches=[items.tolist() for items in np.array_split(chosen, num_batches)],
            positions={item: position for position, item in enumerate(chosen)},
            rank=rank,
            world=world,
        )

    def measure(self, engine: Any) -> dict[str, float]:
        """Means over the items that are no holes, on every rank: of all, and apart as the recipe groups them.

        Empty if all are holes.
        """
        engine.eval()
        measured: list[ItemLoss] = []
        # as many forward passes on each rank, because ZeRO 3 gathers in them; the surplus ones do not count
        for first in range(0, len(self.batches), self.world):
            index = first + self.rank
            losses = self._losses(engine, self.batches[min(index, len(self.batches) - 1)])
            if index < len(self.batches):
                measured += losses
        engine.train()
        damaged = [str(self.catalogue.keys[item]) for item in self.catalogue.damaged]
        all_losses: list[ItemLoss] = []
        for losses, keys in gather((measured, damaged), self.world):
            all_losses += losses
            self.damaged.update(keys)
        # by item: a sum of floats depends on its order, which must not depend on the ranks
        return _means(sorted(all_losses, key=lambda line: line.item))

    @torch.no_grad()
    def _losses(self, engine: Any, items: list[int]) -> list[ItemLoss]:
        """Of the items that are no holes."""
        batch = self._batch(items)
        on_device = {name: values.to(engine.device) for name, values in batch.items()}
        losses = engine(on_device)["loss"].float().cpu().tolist()
        groups = self.recipe.loss_groups(batch) or [""] * len(items)
        weights = batch["weight"].tolist()
        lines = zip(items, groups, losses, weights, strict=True)
        return [ItemLoss(item, group, loss) for item, group, loss, weight in lines if weight]

    def _batch(self, items: list[int]) -> Batch:
        samples = self.catalogue.read(items)
        keys = [SampleKey(self.seed, VALIDATION, self.positions[item]) for item in items]
        return self.recipe.make_batch([samples[item] for item in items], keys, self.section, self.geometry)


def _means(losses: list[ItemLoss]) -> dict[str, float]:
    by_group: dict[str, list[float]] = defaultdict(list)
    for line in losses:
        by_group["loss"].append(line.loss)
        if line.group:
            by_group[line.group].append(line.loss)
    return {name: float(np.mean(values)) for name, values in sorted(by_group.items())}
