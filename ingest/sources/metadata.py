"""What lists, sidecars and tars state about media -> text, numbers and JSON that every index can hold.

    text_of(value)       a cell of a known column: "" for what is empty, NaN or null; 3 for 3.0; bytes as UTF-8
    plain_json(value)    any cell: nothing that is not JSON (no NaN, no infinity, no bytes; dates and decimals as text)
    read_facts(data)     license, channel, title and other facts of a sample's JSON, also of yt-dlp's .info.json

Everything here was written by somebody else. Nothing is opened or fetched.
"""

import datetime
import itertools
import json
import math
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from ingest.licenses import MAX_CHARS
from ingest.sample import storable

MAX_FACTS = 50  # of a sample
MAX_DEPTH = 20
MAX_TEXT = 1000
MAX_FACTS_BYTES = 1 << 20
MAX_INFO_BYTES = 32 << 20  # yt-dlp's .info.json names every format with its address
OWN_FIELDS = ("id", "title", "license", "sound_url", "channel")  # facts that an item has a place for
OWN_INFO = ("license", "title", "channel", "channel_id", "uploader", "uploader_id")
INFO_FIELDS = ("id", "webpage_url", "extractor", "upload_date", "caption")  # what is kept of an .info.json


@dataclass(frozen=True)
class Facts:
    """What somebody states about a sample. `license` as written, `others` for its JSON."""

    license: str = ""
    channel: str = ""
    title: str = ""
    others: dict[str, Any] = field(default_factory=dict)


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
    """A cell as text. `ValueError` for bytes that are not UTF-8.

    Whole floats lose their point: a column of whole numbers becomes one of floats as soon as one of them is
    missing.
    """
    if is_empty(value):
        return ""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return storable(bytes(value).decode("utf-8").strip())
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value():
        return str(int(value))
    return storable(str(value).strip())


def seconds_of(value: Any) -> float:
    """A time in seconds; 0.0 for an empty cell. `ValueError` for what is no finite time from 0 on."""
    text = text_of(value)
    seconds = float(text) if text else 0.0
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(text)
    return seconds


def plain_json(value: Any, depth: int = 0) -> Any:
    """`value` as JSON can hold it. NaN and infinity become null, at any depth."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).decode("utf-8", "backslashreplace")
    if isinstance(value, Decimal):
        return str(value) if value.is_finite() else None
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if depth < MAX_DEPTH and isinstance(value, dict):
        return {storable(str(name)): plain_json(one, depth + 1) for name, one in value.items()}
    if depth < MAX_DEPTH and isinstance(value, (list, tuple, set)):
        return [plain_json(one, depth + 1) for one in value]
    if hasattr(value, "tolist"):  # numpy's scalars and arrays
        return plain_json(value.tolist(), depth + 1) if depth < MAX_DEPTH else None
    return storable(str(value))


def plain_facts(facts: dict[Any, Any]) -> dict[str, Any]:
    """The entries of `facts` that hold something, as JSON can hold them."""
    named = ((storable(str(name)), value) for name, value in facts.items() if not is_empty(value))
    plain = ((name, plain_json(value)) for name, value in named)
    return {name: value for name, value in plain if value is not None}


def read_facts(data: bytes, info: bool = False) -> Facts:
    """The facts of a sample's JSON; none of a broken one.

    `info`: yt-dlp's .info.json, of which only a few are kept.
    """
    try:
        read = json.loads(data)
    except (ValueError, RecursionError):
        return Facts()
    if not isinstance(read, dict):
        return Facts()
    return _facts_of(
        {name: read[name] for name in read if name in (*INFO_FIELDS, *OWN_INFO)} if info else read, info
    )


def _facts_of(facts: dict[str, Any], info: bool) -> Facts:
    """Also where video2dataset puts what YouTube states."""
    nested = facts.get("yt_meta_dict")
    site = (nested.get("info") if isinstance(nested, dict) else None) or {}
    site = site if isinstance(site, dict) else {}
    license = str(facts.get("license") or site.get("license") or "")
    if info:
        channel = (
            facts.get("channel_id")
            or facts.get("channel")
            or facts.get("uploader_id")
            or facts.get("uploader")
            or ""
        )
    else:
        channel = facts.get("channel") or site.get("channel_id") or ""
    title = facts.get("title") or site.get("title") or facts.get("caption") or ""
    dropped = OWN_INFO if info else OWN_FIELDS
    kept = {
        storable(str(name))[:100]: value
        for name, value in facts.items()
        if name not in dropped and _is_plain(value)
    }
    others = {
        name: storable(value)[:MAX_TEXT] if isinstance(value, str) else value for name, value in kept.items()
    }
    return Facts(
        license[: MAX_CHARS + 1],
        storable(str(channel))[:MAX_TEXT],
        storable(str(title))[:MAX_TEXT],
        dict(itertools.islice(others.items(), MAX_FACTS)),
    )


def caption_of(data: bytes) -> str:
    """The text of a caption file."""
    return " ".join(storable(data.decode("utf-8-sig", "replace")).split())[:MAX_TEXT]


def merged(first: Facts, second: Facts) -> Facts:
    """What either states; where both do, the first."""
    return Facts(
        first.license or second.license,
        first.channel or second.channel,
        first.title or second.title,
        {**second.others, **first.others},
    )


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value))
