"""Clips of tones with pictures and captions that tell their pitch: what a contrastive model can learn in seconds.

    dataset = make_captioned(tmp_path / "clips")      # 2 units of 24 training samples and 8 held-out ones

Every fourth sample of a unit has no caption. Each is of a medium of its own.
"""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from cluster.dataset import Dataset
from cluster.shards import Row, write_shard
from tests.fakes.clips import CLIP, tone

COLUMNS = pa.schema(
    [("split", pa.string()), ("media_id", pa.string()), ("start_s", pa.float64()), ("license", pa.string())]
)
PITCHES = 8
NAMES = ("do", "re", "mi", "fa", "sol", "la", "ti", "high do")


def make_captioned(root: Path, units: int = 2, per_unit: int = 24, held_out: int = 8) -> Dataset:
    dataset = Dataset.create_or_open(str(root), "clips", CLIP, [])
    dataset.worklist.append(((f"item{index}", {}) for index in range(units)), 1)
    for unit, task in enumerate(dataset.worklist.units()):
        rows = [row_of(unit, index, held_out) for index in range(per_unit + held_out)]
        folder = root.parent / f"scratch-{unit}"
        folder.mkdir(parents=True, exist_ok=True)
        dataset.commit(task.unit, 0, write_shard(folder, rows, COLUMNS), {})
    return dataset


def row_of(unit: int, index: int, held_out: int) -> Row:
    pitch = index % PITCHES
    metadata = {"source": "tones", "media_id": f"{unit}-{index}", "title": f"clip {index}", "meta": {}}
    # held-out ones come first, and all of them are named
    if index < held_out or index % 4:
        metadata["meta"] = {"caption": f"a {NAMES[pitch]}, take {unit}.{index}"}
    members = {
        "flac": tone(200.0 * 2 ** (pitch / 4) * (1 + 0.002 * unit)),
        "jpg": picture(pitch),
        "json": json.dumps(metadata).encode(),
    }
    columns = {
        "split": "validation" if index < held_out else "train",
        "media_id": metadata["media_id"],
        "start_s": 0.0,
        "license": "own",
    }
    return Row(f"item{unit}", f"k_{unit:03d}_{index:04d}", columns=columns, members=members)


def picture(pitch: int) -> bytes:
    """A JPEG whose stripes are as fine as the tone is high."""
    wave = np.sin(np.arange(32) * (0.2 + 0.25 * pitch))
    pixels = np.repeat((127 + 120 * wave)[:, None], 32, 1).astype(np.uint8)
    jpeg = io.BytesIO()
    Image.fromarray(pixels).convert("RGB").save(jpeg, "JPEG")
    return jpeg.getvalue()
