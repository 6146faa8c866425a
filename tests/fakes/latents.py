"""A small dataset of latents for the training tests: random numbers in the real format, written by the real
commit protocol.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa

from cluster.dataset import Dataset
from cluster.shards import Row, write_shard
from training.data.npy import to_npy
from training.pipeline.mel import MelConfig

COLUMNS = pa.schema([("split", pa.string())])
LATENT_SHAPE = (8, 4, 16)
IMAGE_DIM = 12


def make_latents(root: Path, units: int = 4, per_unit: int = 13, seed: int = 0) -> Dataset:
    """`units` shards of `per_unit` training samples and one held-out one each."""
    rng = np.random.default_rng(seed)
    mel = MelConfig(duration_s=0.16)
    dataset = Dataset.create_or_open(str(root), "latents", {"mel": asdict(mel)}, [])
    dataset.worklist.append(((f"item{n}", {}) for n in range(units)), 1)
    for unit, task in enumerate(dataset.worklist.units()):
        rows, facts = [], {"latent_count": 0, "image_count": 0, "latent_shape": list(LATENT_SHAPE)}
        latents = rng.standard_normal((per_unit + 1, 2, *LATENT_SHAPE)).astype(np.float16)
        images = rng.standard_normal((per_unit + 1, IMAGE_DIM)).astype(np.float16)
        latents[:, 1] = 0.1
        for number in range(per_unit + 1):
            split = "train" if number else "validation"
            members = {"latent.npy": to_npy(latents[number]), "image.npy": to_npy(images[number])}
            rows.append(
                Row(
                    task.items[0].item_id,
                    f"k_{unit:03d}_{number:04d}",
                    columns={"split": split},
                    members=members,
                )
            )
        mean = latents[1:, 0].astype(float)
        facts |= {"latent_count": per_unit * mean[0, 0].size, "image_count": per_unit}
        facts |= {
            "latent_sum": mean.sum((0, 2, 3)).tolist(),
            "latent_sumsq": (mean**2).sum((0, 2, 3)).tolist(),
        }
        facts |= {
            "image_sum": images[1:].astype(float).sum(0).tolist(),
            "image_sumsq": (images[1:].astype(float) ** 2).sum(0).tolist(),
        }
        folder = root.parent / f"scratch-{unit}"
        folder.mkdir(parents=True, exist_ok=True)
        dataset.commit(task.unit, 0, write_shard(folder, rows, COLUMNS), facts)
    return dataset
