"""A small dataset of latents with AudioMAE tokens: they follow from the image embedding by one rule."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from cluster.dataset import Dataset
from cluster.shards import Row, write_shard
from tests.fakes.latents import statistics_of
from training.data.npy import to_npy
from training.pipeline.mel import MelConfig

IMAGE_DIM = 6
TOKENS = (8, 5)
COLUMNS = pa.schema([("split", pa.string())])


def make_tokens(root: Path, units: int = 2, per_unit: int = 40) -> Dataset:
    """Latents whose tokens follow from their picture."""
    rng = np.random.default_rng(0)
    rule = rng.standard_normal((IMAGE_DIM, *TOKENS))
    mel = MelConfig(duration_s=0.16).settings()
    dataset = Dataset.create_or_open(str(root), "latents", {"mel": mel}, [])
    dataset.worklist.append(((f"item{index}", {}) for index in range(units)), 1)
    for unit_index, task in enumerate(dataset.worklist.units()):
        images = rng.standard_normal((per_unit, IMAGE_DIM)).astype(np.float16)
        tokens = np.tensordot(images, rule, 1).astype(np.float16)
        rows = [
            Row(
                task.items[0].item_id,
                f"k_{unit_index:03d}_{index:04d}",
                columns={"split": "train" if index >= 8 else "validation"},
                members={"image.npy": to_npy(images[index]), "audiomae.npy": to_npy(tokens[index])},
            )
            for index in range(per_unit)
        ]
        folder = root.parent / f"scratch-{unit_index}"
        folder.mkdir(parents=True, exist_ok=True)
        latents = np.zeros((per_unit, 2, 1, 1, 1))
        facts = {**statistics_of(latents, images), "audiomae_shape": list(TOKENS)}
        dataset.commit(task.unit, 0, write_shard(folder, rows, COLUMNS), facts)
    return dataset
