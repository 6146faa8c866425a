"""What lists, sidecars and tars state about media -> text, numbers and JSON that every index can hold.

    text_of(value)         a cell of a known column: "" for empty, NaN or null; "3" for 3.0; bytes as UTF-8
    plain_json(value)      any cell as JSON: no NaN, infinity or bytes; dates and decimals as text
    read_metadata(data)    license, channel, title and more of a sample's JSON, or of yt-dlp's .info.json

All of it is untrusted: written by somebody else, bounded here in length, depth and count. Nothing is opened
or fetched.
"""

import datetime
import itertools
import json
import math
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from cluster.jsonl import JsonObject
from ingest.licenses import MAX_CHARS
from ingest.sample import storable

MAX_FIELDS = 50  # of one sample: they travel in every clip's JSON
MAX_DEPTH = 20  # far above any real metadata, far below Python's recursion limit
MAX_TEXT = 1000  # characters of a title, channel or caption
MAX_NAME = 100  # characters of a field's name
MAX_JSON_BYTES = 1 << 20
MAX_INFO_BYTES = 32 << 20  # yt-dlp's .info.json names every format with its address
ITEM_FIELDS = ("id", "title", "license", "sound_url", "channel")  # those that an item has a field for
ITEM_INFO = ("license", "title", "channel", "channel_id", "uploader", "uploader_id")
EXTRA_INFO = ("id", "webpage_url", "extractor", "upload_date", "caption")  # what else is kept of .info.json


@dataclass(frozen=True)
class Metadata:
    """What somebody states about a sample.

    `license` is as written. `extra` is what an item has no field for, as JSON can hold it.
    """

    license: str = ""
    channel: str = ""
    title: str = ""
    extra: JsonObject = field(default_factory=dict)


def is_empty(value: Any) -> bool:
    """Whether a cell holds nothing: None, NaN of any type, or blank text."""
    if value is None:
        return True
    if isinstance(value, (str, bytes)):
        return not value.strip()
    if isinstance(value, Decimal):
        return value.is_nan()
    return isinstance(value, float) and math.isnan(value)


def text_of(value: Any) -> str:
    """A cell as text. `ValueError` for bytes that are not UTF-8."""
    if is_empty(value):
        return ""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return storable(bytes(value).decode("utf-8").strip())
    # a column of integers becomes one of floats as soon as one is missing: an id 3.0 was written as 3
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value():
        return str(int(value))
    return storable(str(value).strip())


def seconds_of(value: Any) -> float:
    """A time in seconds; 0.0 for an empty cell. `ValueError` for what is negative, infinite or no number."""
    text = text_of(value)
    seconds = float(text) if text else 0.0
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(text)
    return seconds


def plain_json(value: Any, depth: int = 0) -> Any:
    """`value` as JSON can hold it. NaN and infinity become null, at any depth."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, (float, str, bytes, bytearray, memoryview, Decimal, datetime.date, datetime.time)):
        return _plain_scalar(value)
    if depth < MAX_DEPTH and isinstance(value, dict):
        return {storable(str(name)): plain_json(child, depth + 1) for name, child in value.items()}
    if depth < MAX_DEPTH and isinstance(value, (list, tuple, set)):
        return [plain_json(child, depth + 1) for child in value]
    if hasattr(value, "tolist"):  # numpy's scalars and arrays
        return plain_json(value.tolist(), depth + 1) if depth < MAX_DEPTH else None
    return storable(str(value))


def _plain_scalar(
    value: float | str | bytes | bytearray | memoryview | Decimal | datetime.date | datetime.time,
) -> float | str | None:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).decode("utf-8", "backslashreplace")
    if isinstance(value, Decimal):
        return str(value) if value.is_finite() else None
    return value.isoformat()


def plain_fields(fields: dict[Any, Any]) -> JsonObject:
    """Those of `fields` that hold something, as JSON can hold them."""
    plain = {}
    for name, value in fields.items():
        converted = None if is_empty(value) else plain_json(value)
        if converted is not None:
            plain[storable(str(name))] = converted
    return plain


def read_metadata(data: bytes, is_info: bool = False) -> Metadata:
    """What a sample's JSON states; nothing for a broken one. `is_info`: it is yt-dlp's .info.json."""
    try:
        read = json.loads(data)
    except (ValueError, RecursionError):
        return Metadata()
    if not isinstance(read, dict):
        return Metadata()
    return _of_info(read) if is_info else _of_json(read)


def _of_info(info: JsonObject) -> Metadata:
    """Of yt-dlp's .info.json, which holds several hundred fields, the few that say what the video is."""
    # a channel's id stays when its name and its handle change
    names = ("channel_id", "channel", "uploader_id", "uploader")
    channel = next((info[name] for name in names if info.get(name)), "")
    title = info.get("title") or info.get("caption") or ""
    extra = {name: value for name, value in info.items() if name in EXTRA_INFO}
    return _bounded(info.get("license") or "", channel, title, extra)


def _of_json(fields: JsonObject) -> Metadata:
    """Of a person's or a tool's JSON; video2dataset nests what YouTube states."""
    nested = fields.get("yt_meta_dict")
    site = nested.get("info") if isinstance(nested, dict) else None
    site = site if isinstance(site, dict) else {}
    license = fields.get("license") or site.get("license") or ""
    channel = fields.get("channel") or site.get("channel_id") or ""
    title = fields.get("title") or site.get("title") or fields.get("caption") or ""
    extra = {name: value for name, value in fields.items() if name not in ITEM_FIELDS}
    return _bounded(license, channel, title, extra)


def _bounded(license: Any, channel: Any, title: Any, fields: JsonObject) -> Metadata:
    extra: JsonObject = {}
    for name, value in fields.items():
        if _is_plain(value):
            short = storable(value)[:MAX_TEXT] if isinstance(value, str) else value
            extra[storable(str(name))[:MAX_NAME]] = short
    return Metadata(
        str(license)[: MAX_CHARS + 1],  # one more, so that what is too long is seen to be too long
        storable(str(channel))[:MAX_TEXT],
        storable(str(title))[:MAX_TEXT],
        dict(itertools.islice(extra.items(), MAX_FIELDS)),
    )


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value))


def caption_of(data: bytes) -> str:
    """The text of a caption file, on one line."""
    return " ".join(storable(data.decode("utf-8-sig", "replace")).split())[:MAX_TEXT]


def merged(first: Metadata, second: Metadata) -> Metadata:
    """What either states; where both do, the first."""
    return Metadata(
        first.license or second.license,
        first.channel or second.channel,
        first.title or second.title,
        {**second.extra, **first.extra},
    )
