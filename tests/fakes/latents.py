"""A small dataset of latents for the training tests: random numbers in the real format, written by the real
commit protocol.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.dataset import Dataset
from cluster.shards import Row, write_shard
from training.data.npy import to_npy
from training.pipeline.mel import MelConfig

COLUMNS = pa.schema([("split", pa.string())])
LATENT_SHAPE = (8, 4, 16)
IMAGE_DIM = 12
LATENT_SPREAD = 0.1
TOKEN_DIM = 6
MOST_TOKENS = 5


def make_latents(
    root: Path, units: int = 4, per_unit: int = 13, seed: int = 0, has_tokens: bool = False
) -> Dataset:
    """`units` shards of `per_unit` training samples and one held-out one each.

    `has_tokens`: each with a sequence [0 to MOST_TOKENS, TOKEN_DIM] in tokens.npy.
    """
    rng = np.random.default_rng(seed)
    mel = MelConfig(duration_s=0.16)
    dataset = Dataset.create_or_open(str(root), "latents", {"mel": asdict(mel)}, [])
    dataset.worklist.append(((f"item{index}", {}) for index in range(units)), 1)
    for unit_index, task in enumerate(dataset.worklist.units()):
        # [n, mean and spread, c, t, f] and [n, d]; the first sample is the held-out one
        latents = rng.standard_normal((per_unit + 1, 2, *LATENT_SHAPE)).astype(np.float16)
        images = rng.standard_normal((per_unit + 1, IMAGE_DIM)).astype(np.float16)
        latents[:, 1] = LATENT_SPREAD
        rows = [
            Row(
                task.items[0].item_id,
                f"k_{unit_index:03d}_{index:04d}",
                columns={"split": "train" if index else "validation"},
                members={
                    "latent.npy": to_npy(latents[index]),
                    "image.npy": to_npy(images[index]),
                    **(tokens_of(unit_index * per_unit + index) if has_tokens else {}),
                },
            )
            for index in range(per_unit + 1)
        ]
        folder = root.parent / f"scratch-{unit_index}"
        folder.mkdir(parents=True, exist_ok=True)
        shard = write_shard(folder, rows, COLUMNS)
        dataset.commit(task.unit, 0, shard, statistics_of(latents[1:], images[1:]))
    return dataset


def tokens_of(index: int) -> dict[str, bytes]:
    """The sequence of one sample; of some it is empty."""
    rng = np.random.default_rng(index)
    tokens = rng.standard_normal((index % (MOST_TOKENS + 1), TOKEN_DIM))
    return {"tokens.npy": to_npy(tokens.astype(np.float16))}


def statistics_of(latents: np.ndarray, images: np.ndarray) -> dict[str, Any]:
    """Counts, sums and sums of squares per latent channel and embedding dimension, as precompute commits them."""
    mean = latents[:, 0].astype(float)
    image = images.astype(float)
    return {
        "latent_count": mean[:, 0].size,
        "image_count": len(images),
        "latent_shape": list(LATENT_SHAPE),
        "latent_sum": mean.sum((0, 2, 3)).tolist(),
        "latent_sumsq": (mean**2).sum((0, 2, 3)).tolist(),
        "image_sum": image.sum(0).tolist(),
        "image_sumsq": (image**2).sum(0).tolist(),
    }
