"""What crosses the pipe between `ingest.fetch.fetcher` and its child `ingest.fetch.process`, as JSON.

    {"item": …, "need_short_side_px": 256, "folder": …}       a request; the others are `list` and `read`
    {"media": {"picture": "media.mp4", …}}                    its reply: a `MediaHeader`, or a `RefusalHeader`

Types only, apart from both ends: the parent reads them without importing yt-dlp. Whatever the child replies
is untrusted all the same.
"""

from collections.abc import Sequence
from typing import NotRequired, TypedDict

from cluster.jsonl import JsonObject


class ChildSettings(TypedDict):
    """A new child's first line: the settings, and what the children before it learnt of hosts."""

    network: JsonObject  # `FetchConfig`
    allow: Sequence[str]
    sites: dict[str, JsonObject]  # settings by `Item.source`, for sources that have some
    cooldowns: dict[str, float]
    permission: list[JsonObject]  # `ingest.rights.permission.Record`s


class Chosen(TypedDict):
    """The files of one item, by name in the request's folder (twice the same for one), and their formats."""

    picture: str
    sound: str
    extractor: str
    meta: JsonObject


class Fetched(TypedDict, total=False):
    """What one item gave; `license` alone where only that was to be checked."""

    picture: str
    sound: str
    license: str
    title: str
    channel: str
    extractor: str
    meta: JsonObject


class Description(TypedDict):
    """What a site says of a video, as it enters its row."""

    title: str
    channel: str
    meta: JsonObject


class MediaHeader(TypedDict):
    """The header of a reply; lists and texts are in the file `answer` of the folder, not in it."""

    media: NotRequired[Fetched]
