"""A dataset of clips, and latents made of it, for tests of take-down and garbage collection."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.dataset import Dataset
from cluster.shards import Row, write_shard
from ingest.remove import RemoveConfig
from ingest.sample import Item, Reason, Refused
from ingest.shard import refused_row
from tests.ingest.dedup.test_fingerprint import noise
from tests.ingest.test_curate import clip, picture, row, write

MEMBERS = ("flac", "jpg")
LATENT_COLUMNS = pa.schema(
    [("split", pa.string()), ("media_id", pa.string()), ("start_s", pa.float64()), ("license", pa.string())]
)
NAMES = [f"m{index}" for index in range(9)]
GONE = {"urls_m1_0", "urls_m5_0"}  # channel bad


def nine_clips() -> list[Row]:
    """Nine clips, two of them of channel bad, and a refused item."""
    rows = []
    for n, name in enumerate(NAMES):
        content = clip(picture(n, 96), noise(n, 0.5))
        channel = "bad" if n in (1, 5) else "good"
        split = "test" if n == 8 else "train"
        rows.append(row(name, content, channel=channel, split=split, title=f"SECRET{n}"))
    item = Item("urls", "m9", "http://x/m9", title="SECRET9")
    rows.append(refused_row(item, "urls:m9", Refused(Reason.TIMEOUT, "SECRET")))
    return rows


def make(root: Path, rows: list[Row]) -> tuple[Dataset, Dataset]:
    """Clips in three units, and latents derived from them, as precompute lays them out."""
    clips = write(root / "clips", [rows[:4], rows[4:6], rows[6:]])
    # not the real URI: the metadata must be the same wherever the test puts the datasets
    parents = [{"uri": "clips", "snapshot": clips.snapshot().id}]
    latents = Dataset.create_or_open(str(root / "latents"), "latents", {}, parents)
    latents.worklist.append(((f"{c.unit}.0", {}) for c in clips.snapshot().commits), 1)
    for task, commit in zip(latents.worklist.units(), clips.snapshot().commits, strict=True):
        derived = [latent_row(record) for record in clips.read_index(commit).to_pylist()]
        folder = root / f"scratch-{task.unit}"
        folder.mkdir()
        latents.commit(task.unit, 0, write_shard(folder, derived, LATENT_COLUMNS), {"latent_count": 3})
    return clips, latents


def latent_row(record: dict[str, Any]) -> Row:
    """Of a row of clips, with random numbers as its latent."""
    members = {"latent.npy": npy(record["key"])} if record["status"] == "kept" else {}
    columns = {name: record[name] for name in LATENT_COLUMNS.names}
    return Row(record["item_id"], record["key"], record["status"], record["reason"], None, columns, members)


def npy(key: str) -> bytes:
    data = io.BytesIO()
    np.save(data, np.random.default_rng(list(key.encode())).standard_normal(64))
    return data.getvalue()


def members_of(dataset: Dataset) -> dict[tuple[str, str], bytes]:
    """(key, extension) -> bytes, of the newest generations."""
    members = {}
    for commit in dataset.commits().values():
        for record in dataset.read_index(commit).to_pylist():
            for member in record["members"]:
                assert commit.tar
                end = member["offset"] + member["size"]
                data = dataset.store.read_range(commit.tar.name, member["offset"], end)
                members[record["key"], member["ext"]] = data
    return members


def places(dataset: Dataset) -> dict[tuple[str, int], tuple[str, str]]:
    """(unit, ordinal) -> key and item."""
    return {
        (record["unit"], record["ordinal"]): (record["key"], record["item_id"])
        for record in dataset.iter_rows()
    }


def keys_buried(dataset: Dataset) -> set[str]:
    """The tombstones of samples, without the bans."""
    return {key for key in dataset.tombstones() if ":" not in key}


def objects(root: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too. Tombstones by their keys and reasons, as they carry a date."""
    files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    for name in files:
        if name.startswith("tombstones/"):
            buried = Dataset.open(str(root)).buried()
            files[name] = repr(sorted(buried.items())).encode()
    return files


def config_of(root: Path, **settings: Any) -> RemoveConfig:
    selection = settings or {"channel": "bad"}
    return RemoveConfig(str(root / "clips"), derived=[str(root / "latents")], workers=1, **selection)
