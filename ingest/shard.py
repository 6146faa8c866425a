"""From clips to rows of a shard: FLAC, JPEG and JSON members, and the index columns of a dataset of clips.

Pure functions; `cluster.shards.write_shard` puts the rows on disk.
"""

import hashlib
import io
import json
from functools import cache
from importlib.metadata import version

import soundfile

from cluster.jsonl import JsonObject
from cluster.shards import Row, Status
from ingest.dedup.fingerprint import audio_fingerprint, audio_sequence, image_hash, image_palette
from ingest.rows import ClipRow
from ingest.sample import Clip, Item, Media, Reason, Refused, sample_key, without_tokens
from ingest.sources.metadata import plain_json

MAX_ID_CHARS = 60  # a tar member's name has 99 characters, for source, id, start and extension together
# what may change a sample's bytes: their versions are kept with every sample
TOOLS = ("av", "ffmpeg-python", "imageio-ffmpeg", "yt-dlp", "soundfile", "pillow", "numpy")


def refused_row(item: Item, item_id: str, refusal: Refused, license: str = "", channel: str = "") -> Row:
    """The row of an item that gave no clip at all."""
    columns = {
        "source": item.source,
        "media_id": item.media_id,
        "url": without_tokens(item.url),
        "title": item.title,
        "license": license or item.license,
        "channel": channel or item.channel,
    }
    return Row(item_id, None, Status.REFUSED, str(refusal.reason), refusal.detail, columns)


def banned_row(item: Item, item_id: str) -> Row:
    """The row of an item that a removal keeps out: neither its title nor its address."""
    columns = {"source": item.source, "media_id": item.media_id}
    return Row(item_id, None, Status.REFUSED, str(Reason.TAKEN_DOWN), None, columns)


def clip_row(
    item: Item,
    item_id: str,
    media: Media,
    clip: Clip,
    split: str,
    reason: Reason | None,
    scores: dict[str, float],
) -> Row:
    """A kept sample with its members; where the filter gave a `reason`, a refused row with the scores."""
    provenance: ClipRow = {
        "source": item.source,
        "media_id": item.media_id,
        "url": without_tokens(media.page_url or item.url),
        "license": media.license,
        "channel": media.channel or item.channel,
        "title": media.title or item.title,
        "split": split,
        "start_s": clip.start_s,
        "duration_s": clip.duration_s,
        "frame_time_s": clip.frame_time_s,
        "frame_offset_s": clip.frame_offset_s,
    }
    key = sample_key(item.source, (_short(item.id),), clip.start_s)
    columns: JsonObject = {**provenance, "scores": json.dumps(scores, sort_keys=True)}
    if reason:
        return Row(item_id, key, Status.REFUSED, str(reason), None, columns)
    columns |= {
        "image_hash": image_hash(clip.image),
        "audio_fingerprint": audio_fingerprint(clip.own_audio, clip.sample_rate_hz),
    }
    columns["image_palette"] = image_palette(clip.image)
    start = round(clip.start_s * clip.sample_rate_hz)
    columns["audio_sequence"] = audio_sequence(clip.own_audio, clip.sample_rate_hz, start)
    meta = plain_json({**item.meta, **media.meta})
    members = _members(clip, {**provenance, "scores": scores, "meta": meta})
    return Row(item_id, key, columns=columns, members=members)


def _short(media_id: str) -> str:
    """The id, or where that is too long for a tar its beginning and a hash of the whole."""
    if len(media_id) <= MAX_ID_CHARS:
        return media_id
    return f"{media_id[: MAX_ID_CHARS - 17]}-{hashlib.sha256(media_id.encode()).hexdigest()[:16]}"


def _members(clip: Clip, metadata: JsonObject) -> dict[str, bytes]:
    flac = io.BytesIO()
    soundfile.write(flac, clip.audio, clip.sample_rate_hz, format="FLAC", subtype="PCM_16")
    hashes = {
        "audio_sha256": hashlib.sha256(clip.audio.tobytes()).hexdigest(),
        "image_sha256": hashlib.sha256(clip.image).hexdigest(),
    }
    shape = {"sample_rate_hz": clip.sample_rate_hz, "width_px": clip.width_px, "height_px": clip.height_px}
    laid = {"mode": clip.mode, "valid_s": clip.duration_s if clip.valid_s is None else clip.valid_s}
    text = json.dumps(
        {**metadata, **shape, **laid, **hashes, "tools": _tool_versions()}, sort_keys=True, ensure_ascii=False
    )
    return {"flac": flac.getvalue(), "jpg": clip.image, "json": text.encode()}


@cache
def _tool_versions() -> dict[str, str]:
    return {name: version(name) for name in TOOLS}
