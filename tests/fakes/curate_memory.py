"""Curates made-up samples and prints as JSON the memory that took, and what was buried (for test_curate).

python -m tests.fakes.curate_memory UNITS     # of 1000 samples
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.dataset import Dataset
from cluster.shards import Shard, index_schema
from ingest.curate import CurateConfig, curate
from ingest.rows import CLIP_COLUMNS

UNIT_SAMPLES = 1000
CLIPS_PER_MEDIUM = 10
FRAMES = 377  # of an audio sequence of 10.24 s
FRAMES_BETWEEN_CLIPS = 410


def sequences(seed: int) -> np.ndarray:
    """uint8 [1000, 377]: a sound that changes every 75 ms."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 256, (UNIT_SAMPLES, FRAMES // 3 + 1), np.uint8)
    return values.repeat(3, axis=1)[:, :FRAMES]


def unit_table(unit: int) -> pa.Table:
    """Samples of 100 media; the first medium is the same in all units, the others share nothing."""
    rng = np.random.default_rng(unit)
    # [sample, bytes] of each column
    images = rng.integers(0, 256, (UNIT_SAMPLES, 8), np.uint8)
    palettes = rng.integers(0, 5, (UNIT_SAMPLES, 125), np.uint8)
    fingerprints = rng.integers(0, 256, (UNIT_SAMPLES, 32), np.uint8)
    frames = sequences(unit)
    images[:CLIPS_PER_MEDIUM] = 0x35
    frames[:CLIPS_PER_MEDIUM] = sequences(0)[:CLIPS_PER_MEDIUM]
    rows = []
    for ordinal in range(UNIT_SAMPLES):
        medium = f"{unit:05d}-{ordinal // CLIPS_PER_MEDIUM:03d}"
        clip = ordinal % CLIPS_PER_MEDIUM
        start = np.uint32(FRAMES_BETWEEN_CLIPS * clip)
        row = {
            "ordinal": ordinal,
            "item_id": medium,
            "key": f"urls_{medium}_{clip}",
            "status": "kept",
            "members": [],
            "source": "urls",
            "media_id": medium,
            "split": "train",
            "duration_s": 10.24,
            "image_hash": images[ordinal].tobytes().hex(),
            "image_palette": palettes[ordinal].tobytes(),
            "audio_fingerprint": fingerprints[ordinal].tobytes().hex(),
            "audio_sequence": start.tobytes() + frames[ordinal].tobytes(),
        }
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=index_schema(CLIP_COLUMNS))


def main(units: int) -> None:
    with tempfile.TemporaryDirectory(prefix="stillsound-test-") as name:
        dataset = Dataset.create_or_open(f"{name}/clips", "clips", {}, [])
        for unit in range(units):
            path = Path(name) / "index.parquet"
            pq.write_table(unit_table(unit), path, compression="zstd", store_schema=False)
            dataset.commit(f"u{unit:07d}", 0, Shard(None, path, {"kept": UNIT_SAMPLES}), {})
        before_mb = peak_mb()
        started_s = time.monotonic()
        summary = curate(CurateConfig(dataset.uri))
        figures = {
            "before_mb": before_mb,
            "peak_mb": peak_mb(),
            "seconds": time.monotonic() - started_s,
        }
        print(json.dumps({**figures, **summary}))


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main(int(sys.argv[1]))
