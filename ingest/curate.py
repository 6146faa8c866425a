"""`ingest curate DATASET`: what only the whole dataset can tell: duplicates, near duplicates, caps, media in
two splits.

    curate(CurateConfig("out/clips", max_per_channel=200))

Reads the indexes alone and writes tombstones with the reasons `duplicate`, `near_duplicate`, `channel_cap`,
`split_conflict`; run again, it adds none. Samples are sorted by key before anything is decided, and the
lowest key stays, so the order of shards plays no part. A clip is a duplicate only if picture *and* sound are:
many sounds over one still are kept, and whatever is removed has a near one that stays.

Which clips are compared is decided by ingest.dedup.neighbours: every pair up to 6 bits of the image and 7 of
the sound's shape apart is found, of those further apart most. That compares clips cut at the same times;
ingest.dedup.reuploads finds videos that were cut at other times.

Rows and near pairs are in a temporary SQLite file (about 500 bytes per sample, 20 per pair); in memory are 41
bytes per sample, 50 more at times, and the keys of the tombstones. It removes no bytes (ingest.remove does).
"""

import hashlib
import itertools
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np

from cluster.dataset import Dataset
from cluster.scratch import scratch_folder
from cluster.shards import Status
from configs.load import UserError, at_least
from ingest.dedup.fingerprint import AUDIO_BYTES, IMAGE_BYTES, SHADES, audio_distances, image_distances
from ingest.dedup.neighbours import CHUNK, candidate_pairs
from ingest.dedup.reuploads import LEAST_FRAMES, Tracks, find_reuploads
from ingest.rows import ClipRow
from ingest.sample import split_group

REASONS = ("", "duplicate", "near_duplicate", "channel_cap", "split_conflict")
DUPLICATE, NEAR, CAPPED, SPLIT = range(1, 5)
PRINTS = ("image_hash", "audio_fingerprint", "image_palette", "audio_sequence")
COLUMNS = ("key", "status", "source", "media_id", "channel", "split", "duration_s", *PRINTS)
MAX_IMAGE_DISTANCE = 6  # of 8 bytes, two are left untouched by 6 bits
WORDS = (IMAGE_BYTES + AUDIO_BYTES) // 8
FIRST_BYTES = 4
TABLE = """
    CREATE TABLE samples (
        key TEXT PRIMARY KEY, media TEXT, split_group TEXT, channel TEXT, split TEXT, duration_s REAL,
        prints BLOB, palette BLOB, sequence BLOB
    ) WITHOUT ROWID
"""
SPLIT_GROUPS_IN_TWO = """
    SELECT split_group, split, MIN(key) FROM samples GROUP BY split_group HAVING COUNT(DISTINCT split) > 1
"""


@dataclass
class CurateConfig:
    """Of duplicates, both distances must be near; a channel of iNaturalist is an observer."""

    dataset: str  # a folder or URI that scrape made
    max_per_channel: int = 0  # clips that stay of a channel (iNaturalist: an observer); 0 = no cap
    max_hours_per_channel: float = 0.0  # hours that stay of a channel; 0 = no cap
    image_distance: int = 6  # duplicates are at most this near, in bits of 64, and near in sound, too
    audio_distance: float = 0.28  # duplicates are at most this near, 0 to 1 (ingest.dedup.fingerprint)

    def __post_init__(self) -> None:
        at_least(self, 0, "max_per_channel", "max_hours_per_channel", meaning="no cap")
        if not 0 <= self.image_distance <= MAX_IMAGE_DISTANCE:
            raise UserError(f"image_distance={self.image_distance}: give 0 to {MAX_IMAGE_DISTANCE} bits")
        if not 0 <= self.audio_distance < 0.5:
            fix = "give 0 to 0.5; from 0.33 on, other sounds count as near"
            raise UserError(f"audio_distance={self.audio_distance}: {fix}")


class CurateSummary(TypedDict):
    """Counts of samples: all that no earlier tombstone named, those that stay, and the others by reason."""

    dataset: str
    samples: int
    kept: int
    buried: dict[str, int]


# a row of TABLE
SampleRecord = tuple[str | None, str, str, str, str, float, bytes, bytes, bytes]


def curate(config: CurateConfig, dry_run: bool = False) -> CurateSummary:
    """Tombstones what is too much.

    `UserError` where the dataset is not there, is not of clips, or was scraped before fingerprints were
    recorded.
    """
    dataset = Dataset.open(config.dataset, "clips")
    with scratch_folder("curate") as folder:
        database = sqlite3.connect(Path(folder) / "rows.sqlite", isolation_level=None)
        try:
            _spool(dataset, database)
            marks = _judge(database, config, Path(folder))
            if not dry_run:
                for batch in _batches(database, marks):
                    dataset.bury(batch)
        finally:
            database.close()
    counts = {REASONS[mark]: int((marks == mark).sum()) for mark in range(1, len(REASONS))}
    return {
        "dataset": config.dataset,
        "samples": len(marks),
        "kept": int((marks == 0).sum()),
        "buried": counts,
    }


def _spool(dataset: Dataset, database: sqlite3.Connection) -> None:
    """The samples of every index that no tombstone names, into a table that is sorted by key."""
    database.execute("PRAGMA journal_mode = OFF")
    database.execute("PRAGMA synchronous = OFF")
    database.execute(TABLE)
    tombstoned = dataset.tombstones()
    split_by = dataset.meta["config"].get("split", {}).get("by", "media")
    database.execute("BEGIN")
    for commit in dataset.iter_commits():
        table = dataset.read_index(commit)
        lacking = [name for name in COLUMNS if name not in table.column_names]
        rows = [] if lacking else table.select(COLUMNS).to_pylist()
        kept_rows = [row for row in rows if row["status"] == Status.KEPT and row["key"] not in tombstoned]
        if lacking or not all(row["image_hash"] and row["audio_fingerprint"] for row in kept_rows):
            what = f"the index of unit {commit.unit} has no {lacking[0] if lacking else 'image_hash'}"
            fix = "it was made before fingerprints were recorded; scrape again into another output"
            raise UserError(f"{dataset.uri}: {what}: {fix}")
        database.executemany(
            "INSERT OR IGNORE INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (_record(row, split_by) for row in kept_rows),
        )
    database.execute("COMMIT")


def _record(row: ClipRow, split_by: str) -> SampleRecord:
    source = row["source"] or ""
    media = row["media_id"] or ""
    channel = row["channel"] or ""
    return (
        row["key"],
        f"{source}:{media}",
        split_group(source, media, channel, split_by),
        f"{source}@{channel}" if channel else "",
        row["split"] or "",
        row["duration_s"] or 0.0,
        bytes.fromhex((row["image_hash"] or "") + (row["audio_fingerprint"] or "")),
        row["image_palette"] or b"",
        row["audio_sequence"] or b"",
    )


def _judge(database: sqlite3.Connection, config: CurateConfig, folder: Path) -> np.ndarray:
    """uint8 [num_samples], in the order of keys: 0 stays, else the index of the reason in REASONS."""
    prints = _load(database)
    marks = np.zeros(len(prints), np.uint8)
    _mark_splits(database, marks)
    _mark_duplicates(prints, marks)
    _mark_near(database, prints, marks, config)
    _mark_reuploads(database, prints[:, 0].copy(), marks, folder)
    _mark_channels(database, marks, config)
    return marks


def _load(database: sqlite3.Connection) -> np.ndarray:
    """uint64 [num_samples, 5]: image hash, two words of the sound's shape, two of its change."""
    (count,) = database.execute("SELECT COUNT(*) FROM samples").fetchone()
    prints = np.empty((count, WORDS), np.uint64)
    cursor = database.execute("SELECT prints FROM samples ORDER BY key")
    for start in range(0, count, CHUNK):
        data = b"".join(blob for (blob,) in cursor.fetchmany(CHUNK))
        prints[start : start + CHUNK] = np.frombuffer(data, np.uint64).reshape(-1, WORDS)
    return prints


def _mark_splits(database: sqlite3.Connection, marks: np.ndarray) -> None:
    """All clips of a `split_group` fall into the split of its lowest key; elsewhere they would leak."""
    split_of = {group: split for group, split, _ in database.execute(SPLIT_GROUPS_IN_TWO)}
    if split_of:
        rows = database.execute("SELECT split_group, split FROM samples ORDER BY key")
        for index, (group, split) in enumerate(rows):
            if split_of.get(group, split) != split:
                marks[index] = SPLIT


def _mark_duplicates(prints: np.ndarray, marks: np.ndarray) -> None:
    """Of samples with the same prints, the first stays."""
    remaining = np.flatnonzero(marks == 0)
    order = remaining[np.lexsort(prints[remaining].T)]  # stable: equal ones keep the order of keys
    same = (prints[order[1:]] == prints[order[:-1]]).all(axis=1)
    marks[order[1:][same]] = DUPLICATE


def _mark_near(
    database: sqlite3.Connection, prints: np.ndarray, marks: np.ndarray, config: CurateConfig
) -> None:
    """In the order of keys, a sample goes if one near it stays."""
    database.execute("CREATE TABLE near (high INTEGER, low INTEGER, PRIMARY KEY (high, low)) WITHOUT ROWID")
    remaining = np.flatnonzero(marks == 0)
    database.execute("BEGIN")
    for pairs in candidate_pairs(prints[remaining]):
        low = remaining[pairs[0]]
        high = remaining[pairs[1]]
        alike = image_distances(prints[low, 0], prints[high, 0]) <= config.image_distance
        low = low[alike]
        high = high[alike]
        near = audio_distances(prints[low, 1:], prints[high, 1:]) <= config.audio_distance
        rows = zip(high[near].tolist(), low[near].tolist())
        database.executemany("INSERT OR IGNORE INTO near VALUES (?, ?)", rows)
    database.execute("COMMIT")
    for high, low in database.execute("SELECT high, low FROM near ORDER BY high, low"):
        if marks[high] == 0 and marks[low] == 0:
            marks[high] = NEAR


def _mark_reuploads(
    database: sqlite3.Connection, images: np.ndarray, marks: np.ndarray, folder: Path
) -> None:
    """Clips of media that were found again, cut elsewhere."""
    (longest,) = database.execute("SELECT MAX(LENGTH(sequence)) FROM samples").fetchone()
    if not longest or longest < FIRST_BYTES + LEAST_FRAMES:
        return
    frames = np.memmap(folder / "frames", np.uint8, "w+", shape=(len(marks), longest - FIRST_BYTES))
    palettes = np.memmap(folder / "palettes", np.uint8, "w+", shape=(len(marks), SHADES**3))
    first_frames = np.zeros(len(marks), np.int32)
    media = np.zeros(len(marks), np.uint64)
    rows = database.execute("SELECT media, palette, sequence FROM samples ORDER BY key")
    for index, (name, palette, sequence) in enumerate(rows):
        media[index] = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
        if sequence and palette:
            palettes[index] = np.frombuffer(palette, np.uint8)
            first_frames[index] = int.from_bytes(sequence[:FIRST_BYTES], "little")
            track = np.frombuffer(sequence, np.uint8, offset=FIRST_BYTES)
            frames[index, : len(track)] = track
    removed = marks != 0
    tracks = Tracks(frames, first_frames, _ranks_by_first_clip(media), images, palettes)
    find_reuploads(tracks, removed, folder)
    marks[removed & (marks == 0)] = NEAR


def _ranks_by_first_clip(media: np.ndarray) -> np.ndarray:
    """int32 [n]: of each clip the rank of its medium, in the order of the media's lowest keys."""
    _, lowest, medium = np.unique(media, return_index=True, return_inverse=True)
    ranks = np.empty(len(lowest), np.int32)
    ranks[np.argsort(lowest)] = np.arange(len(lowest))
    return ranks[medium]


def _mark_channels(database: sqlite3.Connection, marks: np.ndarray, config: CurateConfig) -> None:
    """Of a channel's samples, the lowest keys stay, up to either cap."""
    max_count = config.max_per_channel or float("inf")
    max_s = config.max_hours_per_channel * 3600 or float("inf")
    if min(max_count, max_s) == float("inf"):
        return
    counts = Counter[str]()
    seconds = defaultdict[str, float](float)
    rows = database.execute("SELECT channel, duration_s FROM samples ORDER BY key")
    for index, (channel, duration_s) in enumerate(rows):
        if marks[index] == 0 and channel:
            # durations are sums of floats: a cap that is met exactly is not exceeded
            if counts[channel] + 1 > max_count or seconds[channel] + duration_s > max_s + 1e-6:
                marks[index] = CAPPED
            else:
                counts[channel] += 1
                seconds[channel] += duration_s


def _batches(database: sqlite3.Connection, marks: np.ndarray) -> Iterator[dict[str, str]]:
    """Key -> reason of what goes, in the order of keys, at most CHUNK at a time."""
    keys = (key for (key,) in database.execute("SELECT key FROM samples ORDER BY key"))
    reasons = ((key, REASONS[mark]) for key, mark in zip(keys, marks.tolist(), strict=True) if mark)
    while batch := dict(itertools.islice(reasons, CHUNK)):
        yield batch
