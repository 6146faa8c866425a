"""Rows of a shard: ids that fit a tar and stay apart."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from ingest.sample import Clip, Item, Media
from ingest.shard import clip_row


def test_long_ids_fit_a_tar_and_stay_apart(tmp_path: Path) -> None:
    jpeg = io.BytesIO()
    Image.new("RGB", (64, 64)).save(jpeg, "JPEG")
    clip = Clip(3599.9, 1.6, 16000, np.zeros(25600, np.int16), jpeg.getvalue(), 64, 64, 3600.0, 0.0)
    media = Media(tmp_path, tmp_path, False, "own")
    keys = set()
    for media_id in ("a" * 80, "a" * 79 + "b", "x/" * 40, "https://example.org/" + "y" * 200, "é" * 60):
        row = clip_row(Item("inaturalist", media_id, ""), "", media, clip, "train", None, {})
        keys.add(row.key)
        assert row.key and len(f"{row.key}.flac") <= 99
    assert len(keys) == 5
