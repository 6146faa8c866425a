"""A small dataset of clips for the training tests: tones in the real format, by the real commit protocol."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import soundfile

from cluster.dataset import Dataset
from cluster.shards import Row, write_shard

COLUMNS = pa.schema([("split", pa.string())])
RATE_HZ = 16000
CLIP = {"audio": {"sample_rate_hz": RATE_HZ}, "clip": {"duration_s": 0.64}}


def make_clips(root: Path, units: int = 2, per_unit: int = 9) -> Dataset:
    """`units` shards of `per_unit` training samples and one held-out one each."""
    dataset = Dataset.create_or_open(str(root), "clips", CLIP, [])
    dataset.worklist.append(((f"item{index}", {}) for index in range(units)), 1)
    for unit_index, task in enumerate(dataset.worklist.units()):
        rows = [
            Row(
                task.items[0].item_id,
                f"k_{unit_index:03d}_{index:04d}",
                columns={"split": "train" if index else "validation"},
                members={"flac": tone(100.0 * (1 + unit_index + index))},
            )
            for index in range(per_unit + 1)
        ]
        folder = root.parent / f"scratch-{unit_index}"
        folder.mkdir(parents=True, exist_ok=True)
        dataset.commit(task.unit, 0, write_shard(folder, rows, COLUMNS), {})
    return dataset


def tone(frequency_hz: float) -> bytes:
    """FLAC of a sine that fades in, at a quarter of full scale."""
    time_s = np.arange(int(CLIP["clip"]["duration_s"] * RATE_HZ)) / RATE_HZ
    wav = 0.25 * np.sin(2 * np.pi * frequency_hz * time_s) * np.minimum(1, time_s / 0.1)
    flac = io.BytesIO()
    soundfile.write(flac, wav.astype(np.float32), RATE_HZ, format="FLAC")
    return flac.getvalue()
