"""Curates a dataset of so many thousand made-up samples; prints the memory that took, and what was buried, as
JSON (for test_curate).
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
from ingest.shard import CLIP_COLUMNS

UNIT, CLIPS, FRAMES = 1000, 10, 377


def sequences(seed: int) -> np.ndarray:
    """uint8 [1000, 377]: a sound that changes every 75 ms."""
    return (
        np.random.default_rng(seed)
        .integers(0, 256, (UNIT, FRAMES // 3 + 1), np.uint8)
        .repeat(3, axis=1)[:, :FRAMES]
    )


def unit_table(number: int) -> pa.Table:
    """Samples of 100 media that share nothing with others, but for the first one: it is the same in all
    units.
    """
    rng = np.random.default_rng(number)
    frames, images, palettes = (
        sequences(number),
        rng.bytes(8 * UNIT),
        rng.integers(0, 5, (UNIT, 125), np.uint8),
    )
    frames[:CLIPS], images, sounds = (
        sequences(0)[:CLIPS],
        b"\x35" * 8 * CLIPS + images[8 * CLIPS :],
        rng.bytes(32 * UNIT),
    )
    rows = []
    for place in range(UNIT):
        medium, clip = f"{number:05d}-{place // CLIPS:03d}", place % CLIPS
        row = {
            "ordinal": place,
            "item_id": medium,
            "key": f"urls_{medium}_{clip}",
            "status": "kept",
            "members": [],
        }
        row |= {"source": "urls", "media_id": medium, "split": "train", "duration_s": 10.24}
        row |= {
            "image_hash": images[8 * place :][:8].hex(),
            "audio_fingerprint": sounds[32 * place :][:32].hex(),
        }
        row["audio_sequence"] = np.uint32(410 * clip).tobytes() + frames[place].tobytes()
        rows.append({**row, "image_palette": palettes[place].tobytes()})
    return pa.Table.from_pylist(rows, schema=index_schema(CLIP_COLUMNS))


def main(units: int) -> None:
    with tempfile.TemporaryDirectory(prefix="stillsound-test-") as name:
        dataset = Dataset.create_or_open(f"{name}/clips", "clips", {}, [])
        for number in range(units):
            path = Path(name) / "index.parquet"
            pq.write_table(unit_table(number), path, compression="zstd", store_schema=False)
            dataset.commit(f"u{number:07d}", 0, Shard(None, path, {"kept": UNIT}), {})
        before_kb, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        summary = curate(CurateConfig(dataset.uri))
        peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            json.dumps(
                {
                    "before_mb": before_kb / 1024,
                    "peak_mb": peak_kb / 1024,
                    "seconds": time.monotonic() - started,
                }
                | summary
            )
        )


if __name__ == "__main__":
    main(int(sys.argv[1]))
