"""The columns of an index of clips, for whoever writes one (ingest.shard) or reads it."""

import pyarrow as pa

from cluster.shards import IndexRow

CLIP_COLUMNS = pa.schema(
    [
        ("source", pa.string()),
        ("media_id", pa.string()),
        ("url", pa.string()),
        ("license", pa.string()),
        ("channel", pa.string()),
        ("title", pa.string()),
        ("split", pa.string()),
        ("start_s", pa.float64()),
        ("duration_s", pa.float64()),
        ("frame_time_s", pa.float64()),
        ("frame_offset_s", pa.float64()),
        ("scores", pa.string()),
        ("image_hash", pa.string()),
        ("audio_fingerprint", pa.string()),
        ("audio_sequence", pa.binary()),
        ("image_palette", pa.binary()),
    ]
)


class ClipRow(IndexRow, total=False):
    """A row of the index of clips. A refused item has fewer values; a removed one keeps its ids."""

    source: str | None
    media_id: str | None
    url: str | None
    license: str | None
    channel: str | None
    title: str | None
    split: str | None
    start_s: float | None
    duration_s: float | None
    frame_time_s: float | None
    frame_offset_s: float | None
    scores: str | None
    image_hash: str | None
    audio_fingerprint: str | None
    audio_sequence: bytes | None
    image_palette: bytes | None
