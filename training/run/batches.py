"""The arrays of a batch, made by the recipe: for a GPU in parts, by as many threads as there are cores.

    batch = make_batch(recipe, config, geometry, device, samples, keys)

A decoded clip costs a core about 10 ms, so one core makes the samples of a hundredth of what a card learns
from. A recipe draws everything from the keys, and no sample knows of another: parts give the same bits.
"""

import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from training.data.randomness import SampleKey
from training.recipes.recipe import Batch, Geometry, Sample
from training.settings import TrainConfig

PART = 4  # samples: small, so that the threads end together


def make_batch(
    config: TrainConfig,
    geometry: Geometry,
    device: torch.device,
    samples: Sequence[Sample | None],
    keys: Sequence[SampleKey],
) -> Batch:
    """As the recipe makes it; for a GPU in memory that it can read while the next kernels are launched."""
    # a CPU's cores have enough to do
    if device.type != "cuda":
        return config.module.make_batch(samples, keys, config.section, geometry)
    batch = make_in_parts(config, geometry, samples, keys)
    # a thread starts on the first GPU, whichever the rank's is
    with torch.cuda.device(device):
        return {name: values.pin_memory() for name, values in batch.items()}


def make_in_parts(
    config: TrainConfig, geometry: Geometry, samples: Sequence[Sample | None], keys: Sequence[SampleKey]
) -> Batch:
    """The same batch, bit for bit, by several threads."""

    def make_part(first: int) -> Batch:
        part = slice(first, first + PART)
        return config.module.make_batch(samples[part], keys[part], config.section, geometry)

    parts = list(decoders().map(make_part, range(0, len(samples), PART)))
    batch: Batch = {}
    for name in parts[0]:
        batch[name] = torch.cat([part[name] for part in parts])
    return batch


@functools.cache
def decoders() -> ThreadPoolExecutor:
    """One pool for all batches that are made at once: its share of the cores for each GPU."""
    cores = len(os.sched_getaffinity(0)) // max(1, torch.cuda.device_count())
    return ThreadPoolExecutor(max(1, cores), "decoder")
