"""One shard: a deterministic WebDataset tar and its parquet index, written from a list of rows on local disk.

`write_shard(folder, rows, columns)` writes both. The index has a row per kept sample and per refused item,
with the byte offset, size and crc32 of every tar member, so that readers can fetch single members by range.
Uses `tarfile`, not webdataset: that would import torch (219 MB) into every ingest actor. Knows nothing of
storage but reading a member, and nothing of commits.
"""

import io
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage import Store

MEMBER = pa.struct(
    [("ext", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("crc32", pa.uint32())]
)
CORE = [
    ("ordinal", pa.int32()),
    ("item_id", pa.string()),
    ("key", pa.string()),
    ("status", pa.string()),
    ("reason", pa.string()),
    ("detail", pa.string()),
]


class Status(StrEnum):
    """What became of an item or clip: in the tar, refused with a reason, or removed later."""

    KEPT = "kept"
    REFUSED = "refused"
    REMOVED = "removed"


class MemberRow(TypedDict):
    """An entry of the index column `members`."""

    ext: str
    offset: int
    size: int
    crc32: int


class IndexRow(TypedDict, total=False):
    """The columns that every index has; a stage adds its own. A reader of some columns has only these."""

    ordinal: int
    item_id: str
    key: str | None
    status: str
    reason: str | None
    detail: str | None
    members: list[MemberRow]


class DamagedMemberError(OSError):
    """A tar member is missing or has other bytes than the index recorded."""


@dataclass(frozen=True)
class Member:
    """A file of a sample in its tar: offset of its first byte, size in bytes, and their crc32."""

    ext: str
    offset: int
    size: int
    crc32: int

    @property
    def end(self) -> int:
        return self.offset + self.size


@dataclass
class Row:
    """A kept sample (`members`: extension -> bytes) or a refused item or clip (`reason` set, no members)."""

    item_id: str
    key: str | None = None
    status: Status = Status.KEPT
    reason: str | None = None
    detail: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    members: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Shard:
    """Local files of a built shard. `tar`: None where no row was kept.

    `counts`: status or `refused:<reason>` -> rows.
    """

    tar: Path | None
    index: Path
    counts: dict[str, int]


def write_shard(folder: Path, rows: list[Row], columns: pa.Schema) -> Shard:
    """Writes `shard.tar` (if any row is kept) and `shard.parquet` in `folder`, and reads every member back.

    Rows keep their order: the ordinal of a row is its index in `rows`. Tar members are sorted by the keys of
    their rows. `ValueError` for two kept rows with one key.
    """
    samples = sorted((row for row in rows if row.status == Status.KEPT), key=lambda row: row.key or "")
    keys = [row.key for row in samples]
    if len(set(keys)) != len(keys) or None in keys:
        examples = sorted(map(str, keys))[:10]
        raise ValueError(f"keys of kept rows must be set and unique within a unit: {examples}…")
    tar: Path | None = None
    members: dict[str, list[MemberRow]] = {}
    if samples:
        tar = folder / "shard.tar"
        members = _write_tar(tar, samples)
        _check_tar(tar, members)
    index = folder / "shard.parquet"
    _write_index(index, rows, members, columns)
    return Shard(tar, index, count_rows(rows))


def count_rows(rows: list[Row]) -> dict[str, int]:
    """`{"kept": n, "refused:<reason>": n}`, sorted by name."""
    counts: dict[str, int] = {}
    for row in rows:
        name = row.status if row.status == Status.KEPT else f"{row.status}:{row.reason}"
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))


def verify_member(data: bytes | memoryview, crc32: int) -> bool:
    """Whether a member's bytes are those the index recorded."""
    return zlib.crc32(data) == crc32


def members_of(row: Mapping[str, Any]) -> list[Member]:
    """The members of a row of an index; none of what was not kept."""
    return [Member(**member) for member in row["members"] or []]


def read_member(store: Store, tar: str, member: Member) -> bytes:
    """A member's bytes, by one range request. `DamagedMemberError` where they are not those of the index."""
    try:
        data = store.read_range(tar, member.offset, member.end)
    except FileNotFoundError:
        raise DamagedMemberError(f"{member.ext} in {tar} is missing") from None
    return check_member(data, member, tar)


def check_member(data: bytes, member: Member, tar: str) -> bytes:
    """`data` itself. `DamagedMemberError` where it is not what the index recorded of `member`."""
    if not verify_member(data, member.crc32):
        raise DamagedMemberError(f"{member.ext} in {tar} is damaged (bytes {member.offset} to {member.end})")
    return data


def index_schema(columns: pa.Schema) -> pa.Schema:
    """The index schema: the fixed columns, the stage's own, and the members."""
    return pa.schema([*CORE, *[(f.name, f.type) for f in columns], ("members", pa.list_(MEMBER))])


def _write_tar(path: Path, samples: list[Row]) -> dict[str, list[MemberRow]]:
    members: dict[str, list[MemberRow]] = {}
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for row in samples:
            assert row.key is not None
            members[row.key] = []
            for ext in sorted(row.members):
                data = row.members[ext]
                offset = tar.offset + tarfile.BLOCKSIZE
                tar.addfile(_header(f"{row.key}.{ext}", len(data)), io.BytesIO(data))
                members[row.key].append(
                    {"ext": ext, "offset": offset, "size": len(data), "crc32": zlib.crc32(data)}
                )
    return members


def _header(name: str, size: int) -> tarfile.TarInfo:
    """Time, owner and mode are constant: the same samples give the same bytes on every machine."""
    # USTAR has room for 100 bytes and then needs a second header block, which the offsets do not expect
    if len(name) > 99:
        raise ValueError(f"sample name {name!r} is longer than 99 characters: shorten the item id")
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o644
    info.mtime = info.uid = info.gid = 0
    return info


def _check_tar(path: Path, members: dict[str, list[MemberRow]]) -> None:
    with open(path, "rb") as file:
        for key, entries in members.items():
            for entry in entries:
                file.seek(entry["offset"])
                if not verify_member(file.read(entry["size"]), entry["crc32"]):
                    name = f"{key}.{entry['ext']}"
                    raise OSError(f"{path}: {name} reads back with other bytes; is the local disk failing?")


def _write_index(
    path: Path, rows: list[Row], members: dict[str, list[MemberRow]], columns: pa.Schema
) -> None:
    def record(ordinal: int, row: Row) -> dict[str, object]:
        own_columns = {name: row.columns.get(name) for name in columns.names}
        return {
            "ordinal": ordinal,
            "item_id": row.item_id,
            "key": row.key,
            "status": row.status,
            "reason": row.reason,
            "detail": row.detail,
            **own_columns,
            "members": members.get(row.key or "", []) if row.status == Status.KEPT else [],
        }

    records = [record(ordinal, row) for ordinal, row in enumerate(rows)]
    pq.write_table(
        pa.Table.from_pylist(records, schema=index_schema(columns)),
        path,
        compression="zstd",
        store_schema=False,
    )
