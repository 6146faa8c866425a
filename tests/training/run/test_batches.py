"""The arrays of a batch are the same bits, however many threads make them."""

from pathlib import Path

import pytest
import torch

from tests.fakes.clips import make_clips
from tests.fakes.latents import make_latents
from training.data.catalogue import Catalogue
from training.data.randomness import SampleKey
from training.run.batches import PART, make_batch, make_in_parts
from training.settings import RECIPES, TrainConfig

CPU = torch.device("cpu")


@pytest.mark.parametrize("recipe", ["autoencoder", "vocoder", "diffusion"])
def test_a_batch_made_in_parts_is_the_one_made_whole(tmp_path: Path, recipe: str) -> None:
    make = make_clips if RECIPES[recipe].LEARNS_FROM == "clips" else make_latents
    dataset = make(tmp_path / "data", units=1, per_unit=13)
    config = TrainConfig(data=dataset.uri, output="unused", recipe=recipe)
    geometry = config.module.geometry(dataset.snapshot(), dataset.meta, config.section)
    catalogue = Catalogue.of(dataset, dataset.snapshot(), "train", config.module.MEMBERS)
    count = 2 * PART + 1  # the last part is not full
    samples = list(catalogue.read(list(range(count))).values())
    samples[PART] = None
    keys = [SampleKey(0, 1, position) for position in range(count)]

    whole = make_batch(config, geometry, CPU, samples, keys)
    parts = make_in_parts(config, geometry, samples, keys)

    assert parts.keys() == whole.keys()
    for name, values in whole.items():
        assert torch.equal(parts[name], values), name
