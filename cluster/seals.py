"""Objects that carry their own hash, so that any flipped byte of them is noticed: JSON and parquet.

    data = seal_json({"kind": "clips"})
    body = open_json(data)                # ValueError where a byte is not as it was written
    data = seal_table(table)
    file = open_table(data)               # the same; stock parquet readers read it as well

For the small objects that everything depends on. Shards and indexes have their hash in the commit.

A sealed parquet file; the hash is of the whole file with zeros in its place:

    PAR1 | row groups | footer: … "stillsound-sha256" <thrift> <64 hex digits> … | length | PAR1
                                TABLE_FIELD                  the hash
"""

import hashlib
import io
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.jsonl import JsonObject

FIELD = "sha256"
TABLE_FIELD = b"stillsound-sha256"
BLANK = b"0" * 64
# between the name of a footer's entry and its value, thrift has a type and a length: a few bytes
HASH_WITHIN_BYTES = 80


def seal_json(body: JsonObject) -> bytes:
    """Canonical JSON with its hash in it."""
    sha256 = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, FIELD: sha256}, indent=1, sort_keys=True).encode()


def open_json(data: bytes) -> JsonObject:
    """The body that was sealed. `ValueError` unless all bytes are as `seal_json` writes them."""
    body = json.loads(data)
    if not isinstance(body, dict) or FIELD not in body:
        raise ValueError("it carries no hash")
    del body[FIELD]
    if seal_json(body) != data:
        raise ValueError("other bytes than were written")
    return body


def seal_table(table: pa.Table, row_group_size: int | None = None) -> bytes:
    """Parquet with the hash of the file in its footer."""
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, table.schema, store_schema=False, compression="zstd") as writer:
        writer.write_table(table, row_group_size)
        # after the rows: it is then the last entry of the footer, which no content can imitate
        writer.add_key_value_metadata({TABLE_FIELD: BLANK})
    data = buffer.getvalue()
    start = _hash_at(data)
    return data[:start] + hashlib.sha256(data).hexdigest().encode() + data[start + len(BLANK) :]


def open_table(data: bytes) -> pq.ParquetFile:
    """`ValueError` unless all bytes are as `seal_table` wrote them."""
    start = _hash_at(data)
    end = start + len(BLANK)
    sha256 = hashlib.sha256(data[:start] + BLANK + data[end:]).hexdigest()
    if sha256.encode() != data[start:end]:
        raise ValueError("other bytes than were written")
    return open_parquet(data)


def open_parquet(data: bytes) -> pq.ParquetFile:
    """A parquet file in memory; to be read with `use_threads=False`.

    The process aborts (exit code 134, Arrow 26) if it ends while a thread of Arrow still holds something of
    Python's. A file of Python's would be read on such a thread, a `BufferReader` is read on ours.
    """
    return pq.ParquetFile(pa.BufferReader(data))


def _hash_at(data: bytes) -> int:
    after = data.rfind(TABLE_FIELD) + len(TABLE_FIELD)
    match = re.search(rb"[0-9a-f]{64}", data[after : after + HASH_WITHIN_BYTES])
    # rfind gives -1 where there is no such entry
    if after < len(TABLE_FIELD) or not match:
        raise ValueError("it carries no hash")
    return after + match.start()
