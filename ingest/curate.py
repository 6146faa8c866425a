"""`ingest curate DATASET`: what only the whole dataset can tell: duplicates, near duplicates, caps, media in
two splits.

    curate(CurateConfig("out/clips", max_per_channel=200))

Reads the indexes alone and writes tombstones with the reasons `duplicate`, `near_duplicate`, `channel_cap`,
`split_conflict`; run again, it buries nothing new. Samples are sorted by key before anything is decided, and
the lowest key stays, so the order of shards plays no part. A clip is a duplicate only if picture *and* sound
are: many sounds over one still are kept, and whatever is buried has a near one that stays. Candidates share
16 of the image hash's bits and 16 of the sound's shape: every pair up to 6 image bits and 7 shape bits apart
is found, of those further apart most. Where more than 256 share all that (a camera that never moves), they
must share 16 bits of the sound's change, too.

That compares clips cut at the same times; ingest.dedup.reuploads finds videos whose windows lie elsewhere.
Rows and near pairs lie in a temporary SQLite file (about 500 bytes per sample, 20 per pair); in memory stand
41 bytes per sample, 50 more at times, and the keys of the tombstones. It removes no bytes (ingest.remove
does).
"""

import hashlib
import itertools
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.dataset import Dataset
from cluster.scratch import scratch_folder
from cluster.shards import Status
from configs.load import UserError
from ingest.dedup.fingerprint import AUDIO_BYTES, IMAGE_BYTES, SHADES, audio_distances, image_distances
from ingest.dedup.reuploads import LEAST_FRAMES, Tracks, find_reuploads
from ingest.sample import split_group

REASONS = ("", "duplicate", "near_duplicate", "channel_cap", "split_conflict")
DUPLICATE, NEAR, CAPPED, SPLIT = range(1, 5)
PRINTS = ("image_hash", "audio_fingerprint", "image_palette", "audio_sequence")
COLUMNS = ("key", "status", "source", "media_id", "channel", "split", "duration_s", *PRINTS)
MAX_IMAGE_DISTANCE = 6  # of 8 bytes, two are left untouched by 6 bits
WORDS = (IMAGE_BYTES + AUDIO_BYTES) // 8
FIRST_BYTES = 4
CHUNK = 200_000
CROWD = 256


@dataclass
class CurateConfig:
    """`image_distance`: bits of 64; `audio_distance`: see ingest.dedup.fingerprint. Both must be near. Of a
    channel (iNaturalist: an observer), at most `max_per_channel` clips and `max_hours_per_channel` hours
    stay; 0: no cap.
    """

    dataset: str
    max_per_channel: int = 0
    max_hours_per_channel: float = 0.0
    image_distance: int = 6
    audio_distance: float = 0.28

    def __post_init__(self) -> None:
        for name in ("max_per_channel", "max_hours_per_channel"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)}: give 0 (no cap) or more")
        if not 0 <= self.image_distance <= MAX_IMAGE_DISTANCE:
            raise UserError(f"image_distance={self.image_distance}: give 0 to {MAX_IMAGE_DISTANCE} bits")
        if not 0 <= self.audio_distance < 0.5:
            raise UserError(
                f"audio_distance={self.audio_distance}: give 0 to 0.5; from 0.33 on, other sounds count as near"
            )


def curate(config: CurateConfig, dry_run: bool = False) -> dict[str, Any]:
    """Buries what is too much; returns how many samples stay, and how many were buried by reason.

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
    """The living samples of every index, into a table that is sorted by key."""
    database.execute("PRAGMA journal_mode = OFF")
    database.execute("PRAGMA synchronous = OFF")
    database.execute(
        "CREATE TABLE samples (key TEXT PRIMARY KEY, media TEXT, fellows TEXT, channel TEXT, split TEXT, duration_s REAL, prints BLOB,"
        " palette BLOB, sequence BLOB) WITHOUT ROWID"
    )
    buried = dataset.tombstones()
    split_by = dataset.meta["config"].get("split", {}).get("by", "media")
    database.execute("BEGIN")
    for commit in dataset.iter_commits():
        table = dataset.read_index(commit)
        lacking = [name for name in COLUMNS if name not in table.column_names]
        rows = [] if lacking else table.select(COLUMNS).to_pylist()
        living = [row for row in rows if row["status"] == Status.KEPT and row["key"] not in buried]
        if lacking or not all(row["image_hash"] and row["audio_fingerprint"] for row in living):
            what = f"the index of unit {commit.unit} has no {lacking[0] if lacking else 'image_hash'}"
            raise UserError(
                f"{dataset.uri}: {what}: it was made before fingerprints were recorded; scrape again into another output"
            )
        database.executemany(
            "INSERT OR IGNORE INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (_record(row, split_by) for row in living),
        )
    database.execute("COMMIT")


def _record(row: dict[str, Any], split_by: str) -> tuple[str, str, str, str, str, float, bytes, bytes, bytes]:
    source, media, channel = row["source"] or "", row["media_id"] or "", row["channel"] or ""
    prints = bytes.fromhex(row["image_hash"] + row["audio_fingerprint"])
    fellows = split_group(source, media, channel, split_by)
    told = (f"{source}@{channel}" if channel else "", row["split"] or "", row["duration_s"] or 0.0)
    return (
        row["key"],
        f"{source}:{media}",
        fellows,
        *told,
        prints,
        row["image_palette"] or b"",
        row["audio_sequence"] or b"",
    )


def _judge(database: sqlite3.Connection, config: CurateConfig, folder: Path) -> np.ndarray:
    """uint8 [num_samples], in the order of keys: 0 stays, else the place of the reason in REASONS."""
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
    """All clips of a `split_group` fall into the split of its lowest key; a clip in another one would leak."""
    firsts = "SELECT fellows, split, MIN(key) FROM samples GROUP BY fellows HAVING COUNT(DISTINCT split) > 1"
    split_of = {fellows: split for fellows, split, _ in database.execute(firsts)}
    if split_of:
        for place, (fellows, split) in enumerate(
            database.execute("SELECT fellows, split FROM samples ORDER BY key")
        ):
            if split_of.get(fellows, split) != split:
                marks[place] = SPLIT


def _mark_duplicates(prints: np.ndarray, marks: np.ndarray) -> None:
    """Of samples with the same prints, the first stays."""
    living = np.flatnonzero(marks == 0)
    order = living[np.lexsort(prints[living].T)]  # stable: equal ones stand in the order of keys
    same = (prints[order[1:]] == prints[order[:-1]]).all(axis=1)
    marks[order[1:][same]] = DUPLICATE


def _mark_near(
    database: sqlite3.Connection, prints: np.ndarray, marks: np.ndarray, config: CurateConfig
) -> None:
    """In the order of keys, a sample goes if one near it stays."""
    database.execute("CREATE TABLE near (high INTEGER, low INTEGER, PRIMARY KEY (high, low)) WITHOUT ROWID")
    living = np.flatnonzero(marks == 0)
    database.execute("BEGIN")
    for low, high in _candidates(prints[living]):
        low, high = living[low], living[high]
        near = image_distances(prints[low, 0], prints[high, 0]) <= config.image_distance
        low, high = low[near], high[near]
        near = audio_distances(prints[low, 1:], prints[high, 1:]) <= config.audio_distance
        pairs = zip(high[near].tolist(), low[near].tolist())
        database.executemany("INSERT OR IGNORE INTO near VALUES (?, ?)", pairs)
    database.execute("COMMIT")
    for high, low in database.execute("SELECT high, low FROM near ORDER BY high, low"):
        if marks[high] == 0 and marks[low] == 0:
            marks[high] = NEAR


def _candidates(prints: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places (low, high), each int [n], of samples that share a bucket: two bytes of the image hash, 16 bits
    of shape.

    A bucket of more than CROWD is divided by 16 bits of change, in eight ways.
    """
    image = np.ascontiguousarray(prints[:, :1]).view(np.uint8).astype(np.uint32)
    shape, change = (
        np.ascontiguousarray(prints[:, words]).view(np.uint16) for words in (slice(1, 3), slice(3, 5))
    )
    for one, other in itertools.combinations(range(IMAGE_BYTES), 2):
        picture = image[:, one] << 24 | image[:, other] << 16
        for word in range(shape.shape[1]):
            bucket = picture | shape[:, word]
            order = np.argsort(bucket, kind="stable")
            bucket = bucket[order]
            crowded = _crowded(bucket)
            yield from _neighbours(bucket[~crowded], order[~crowded])
            crowd, bucket = order[crowded], bucket[crowded].astype(np.uint64) << np.uint64(16)
            for part in change.T if len(crowd) else ():
                divided = bucket | part[crowd]
                again = np.argsort(divided, kind="stable")
                yield from _neighbours(divided[again], crowd[again])


def _crowded(bucket: np.ndarray) -> np.ndarray:
    """bool [n]: whether the bucket of a sample, in the sorted `bucket` [n], holds more than CROWD."""
    starts = np.flatnonzero(np.concatenate([[True], bucket[1:] != bucket[:-1]])[: len(bucket)])
    sizes = np.diff(starts, append=len(bucket))
    return np.repeat(sizes > CROWD, sizes)


def _neighbours(bucket: np.ndarray, places: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of `places` [n] in one bucket (sorted, [n]), at most CROWD apart."""
    firsts = np.flatnonzero(bucket[1:] == bucket[:-1])
    for distance in range(1, CROWD + 1):
        firsts = firsts[firsts + distance < len(bucket)]
        firsts = firsts[bucket[firsts] == bucket[firsts + distance]]
        if not len(firsts):
            return
        for start in range(0, len(firsts), CHUNK):
            part = firsts[start : start + CHUNK]
            yield places[part], places[part + distance]


def _mark_reuploads(
    database: sqlite3.Connection, images: np.ndarray, marks: np.ndarray, folder: Path
) -> None:
    """Clips of media that were found again, cut elsewhere."""
    (longest,) = database.execute("SELECT MAX(LENGTH(sequence)) FROM samples").fetchone()
    if not longest or longest < FIRST_BYTES + LEAST_FRAMES:
        return
    frames = np.memmap(folder / "frames", np.uint8, "w+", shape=(len(marks), longest - FIRST_BYTES))
    palettes = np.memmap(folder / "palettes", np.uint8, "w+", shape=(len(marks), SHADES**3))
    first, media = np.zeros(len(marks), np.int32), np.zeros(len(marks), np.uint64)
    for place, (name, palette, sequence) in enumerate(
        database.execute("SELECT media, palette, sequence FROM samples ORDER BY key")
    ):
        media[place] = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
        if sequence and palette:
            palettes[place] = np.frombuffer(palette, np.uint8)
            first[place] = int.from_bytes(sequence[:FIRST_BYTES], "little")
            frames[place, : len(sequence) - FIRST_BYTES] = np.frombuffer(
                sequence, np.uint8, offset=FIRST_BYTES
            )
    _, lowest, number = np.unique(media, return_index=True, return_inverse=True)
    ranks = np.empty(len(lowest), np.int32)
    ranks[np.argsort(lowest)] = np.arange(len(lowest))
    gone = marks != 0
    find_reuploads(Tracks(frames, first, ranks[number], images, palettes), gone, folder)
    marks[gone & (marks == 0)] = NEAR


def _mark_channels(database: sqlite3.Connection, marks: np.ndarray, config: CurateConfig) -> None:
    """Of a channel's samples, the lowest keys stay, up to either cap."""
    most, most_s = config.max_per_channel or float("inf"), config.max_hours_per_channel * 3600 or float("inf")
    if min(most, most_s) == float("inf"):
        return
    counts, seconds = Counter[str](), defaultdict[str, float](float)
    for place, (channel, duration_s) in enumerate(
        database.execute("SELECT channel, duration_s FROM samples ORDER BY key")
    ):
        if marks[place] == 0 and channel:
            if counts[channel] + 1 > most or seconds[channel] + duration_s > most_s + 1e-6:
                marks[place] = CAPPED
            else:
                counts[channel] += 1
                seconds[channel] += duration_s


def _batches(database: sqlite3.Connection, marks: np.ndarray) -> Iterator[dict[str, str]]:
    """Key -> reason of what goes, in the order of keys, at most CHUNK at a time."""
    keys = (key for (key,) in database.execute("SELECT key FROM samples ORDER BY key"))
    going = ((key, REASONS[mark]) for key, mark in zip(keys, marks.tolist(), strict=True) if mark)
    while batch := dict(itertools.islice(going, CHUNK)):
        yield batch
