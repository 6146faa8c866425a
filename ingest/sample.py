"""What travels between the steps of ingest: items, fetched media, cut clips, and why something was refused.

Every step takes and returns these plain records, so that each can be tested alone. A failure of the world is
raised as `Refused` with a reason from the closed enum and ends as a row of the index. This module does no
I/O.
"""

import hashlib
import re
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.jsonl import JsonObject
from configs.terminal import printable

if TYPE_CHECKING:
    # for its name alone: the fetcher's children use no arrays, and start sooner without
    import numpy as np

ACCESS_PARAMETER = re.compile(
    r"([?&;#](?:[^=&;#?\s]*(?:token|signature|secret|password|api_?key)"
    r"|(?:[^=&;#?\s]*[-_.])?(?:sig|key|pwd|auth|credential|session|sid|policy|hmac|jwt))=)([^&;#\s\"'<>]+)",
    re.IGNORECASE,
)
"""A parameter of a URL that gives access to what it names, and its value."""


class Reason(StrEnum):
    """Why an item or a clip was refused. Members of `RETRYABLE` may succeed later; all others are final."""

    REMOVED = "removed"
    PRIVATE = "private"
    AGE = "age"
    GEO = "geo"
    MEMBERS_ONLY = "members_only"
    LIVE = "live"
    LICENSE = "license"
    OPT_OUT = "opt_out"
    ADDRESS = "address"
    UNSUPPORTED = "unsupported"
    TOO_LARGE = "too_large"
    TOO_LONG = "too_long"
    TOO_SHORT = "too_short"
    NO_AUDIO = "no_audio"
    NO_VIDEO = "no_video"
    CORRUPT = "corrupt"
    DECODER_CRASHED = "decoder_crashed"
    DECODER_TIMEOUT = "decoder_timeout"
    TOO_SMALL = "too_small"
    SILENT = "silent"
    CLIPPED = "clipped"
    CONSTANT = "constant"
    BLANK = "blank"
    DARK = "dark"
    BLURRED = "blurred"
    DAMAGED = "damaged"
    TAKEN_DOWN = "taken_down"  # by a removal of its medium, channel or license, before it was fetched
    BOT_CHECK = "bot_check"
    RATE_LIMITED = "rate_limited"
    FORMAT = "format"  # none was offered to us: a matter of tokens and of yt-dlp's age, not of the video
    EXTRACTOR = "extractor"  # yt-dlp did not understand the site; a newer one may
    TIMEOUT = "timeout"
    SERVER_ERROR = "server_error"
    NETWORK = "network"
    WORKER_CRASHED = "worker_crashed"


RETRYABLE = frozenset(
    {
        Reason.BOT_CHECK,
        Reason.RATE_LIMITED,
        Reason.FORMAT,
        Reason.EXTRACTOR,
        Reason.TIMEOUT,
        Reason.SERVER_ERROR,
        Reason.NETWORK,
        Reason.WORKER_CRASHED,
    }
)

MEANINGS: dict[Reason, str] = {
    Reason.REMOVED: "deleted at its source (404, 410); nothing to do",
    Reason.PRIVATE: "only its owner can see it; nothing to do",
    Reason.AGE: "age-restricted; source.youtube.cookies_file of an account that may see it opens it",
    Reason.GEO: "not available from this country; source.youtube.proxies_file names proxies elsewhere",
    Reason.MEMBERS_ONLY: "for paying members; source.youtube.cookies_file of a member opens it",
    Reason.LIVE: "a live stream or a premiere, not a recording yet; nothing to do",
    Reason.LICENSE: "its license is missing, not understood, or not in license.allow",
    Reason.OPT_OUT: "its site or the medium itself reserves it from machine use; this is obeyed",
    Reason.ADDRESS: "its address is private, local, or not http(s); network.allow_private lists exceptions",
    Reason.UNSUPPORTED: "a format, page or site that is not read",
    Reason.TOO_LARGE: "over network.max_bytes, or more pixels than limits.max_pixels",
    Reason.TOO_LONG: "longer than limits.max_duration_s or network.max_duration_s",
    Reason.TOO_SHORT: "no window of clip.duration_s fits; clip.short=pad or loop admits shorter media",
    Reason.NO_AUDIO: "has no sound track that can be decoded",
    Reason.NO_VIDEO: "has no picture track that can be decoded",
    Reason.CORRUPT: "its bytes are not those of a whole medium or page",
    Reason.DECODER_CRASHED: "the decoder process died on it; the file may be damaged or hostile",
    Reason.DECODER_TIMEOUT: "decoding took longer than limits.timeout_s",
    Reason.TOO_SMALL: "its picture is smaller than frame.short_side_px; pictures are never enlarged",
    Reason.SILENT: "quieter than filter.min_rms_dbfs",
    Reason.CLIPPED: "more samples at full scale than filter.max_clipped_share",
    Reason.CONSTANT: "its spectrum changes less than filter.min_spectral_change: a tone or hum",
    Reason.BLANK: "the frame has less contrast than filter.min_contrast",
    Reason.DARK: "the frame is darker than filter.min_brightness",
    Reason.BLURRED: "the frame is less sharp than filter.min_sharpness",
    Reason.DAMAGED: "its bytes in the shard were damaged when the unit was rewritten",
    Reason.TAKEN_DOWN: "its medium, channel or license was removed from this dataset before it was fetched",
    Reason.BOT_CHECK: "the site suspects a bot; retried later; a lower rate or another proxy may help",
    Reason.RATE_LIMITED: "the site asked for fewer requests (429); retried after its cooldown",
    Reason.FORMAT: "no format was offered; retried later; a newer yt-dlp or a PO token may help",
    Reason.EXTRACTOR: "yt-dlp did not understand the site; a newer yt-dlp may",
    Reason.TIMEOUT: "the site did not answer in network.timeout_s; retried later",
    Reason.SERVER_ERROR: "the server failed (5xx); retried later",
    Reason.NETWORK: "DNS, connection or TLS failed; retried later",
    Reason.WORKER_CRASHED: "the fetch process died on it; retried later",
}
"""One line for a person: what a reason means, and what helps if anything does. Shown by `ingest show`."""

SELECTORS = ("key", "media", "channel", "license", "ids")
"""The settings by which `ingest remove` selects samples. Values may name a person: reports hide them."""


class Refused(Exception):
    """The world said no: raised by fetch, clip and license checks, turned into an index row at the item
    border.
    """

    def __init__(self, reason: Reason, detail: str = ""):
        detail = without_tokens(printable(detail))[:500]
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type, tuple[Reason, str]]:
        return Refused, (self.reason, self.detail)


@dataclass(frozen=True)
class Item:
    """One thing to fetch: a video, or a photo with its sound.

    `url` is an http(s) URL, or an absolute path for local files; `sound_url` is set where picture and sound
    are two objects (iNaturalist, still + sound), and `url` is then the picture. `license` is a code of
    `ingest.licenses`, or "" where only the fetched page can tell. Of a piece of a longer medium, [`start_s`,
    `end_s`) counts (an `end_s` of 0 is its end), and `medium` is the id that all pieces share.
    """

    source: str
    id: str
    url: str
    license: str = ""
    sound_url: str = ""
    channel: str = ""
    title: str = ""
    meta: JsonObject = field(default_factory=dict)
    start_s: float = 0.0
    end_s: float = 0.0
    medium: str = ""

    @property
    def media_id(self) -> str:
        """By which splits are drawn and media are removed: that of the whole medium."""
        return self.medium or self.id

    def bans(self, channel: str = "", license: str = "") -> set[str]:
        """Every ban that would keep it out: of the whole medium, and of this piece.

        What fetch learnt goes before its own words.
        """
        channel, license = channel or self.channel, license or self.license
        return bans_of(self.source, self.media_id, channel, license) | bans_of(
            self.source, self.id, channel, license
        )


@dataclass(frozen=True)
class Media:
    """What fetch leaves on the local disk. `picture` and `sound` may be one file; `still` says the picture is
    a photo.

    `license` is what fetch learnt (or the item's own); `owned` files lie in the spool and are deleted after
    clipping. Clips are cut from [`start_s`, `end_s`) only: seconds from the medium's beginning; an `end_s` of
    0 is its end.
    """

    picture: Path
    sound: Path
    still: bool
    license: str
    channel: str = ""
    title: str = ""
    page_url: str = ""
    num_bytes: int = 0
    owned: bool = True
    meta: JsonObject = field(default_factory=dict)
    start_s: float = 0.0
    end_s: float = 0.0


@dataclass(frozen=True)
class Clip:
    """One audio-frame pair, times in seconds of its media's playing time: from the first moment on, in the
    order of the file.

    `audio`: int16 [num_samples], mono at `sample_rate_hz`. `image`: JPEG bytes of the frame on screen at the
    clip's middle; `frame_time_s` is that frame's presentation time and `frame_offset_s` = frame_time_s -
    (start_s + duration_s / 2). Of a medium that is shorter than a clip only the first `valid_s` are its own
    (None: all), and the middle is theirs. `mode`: how the clip was laid, "keyframe", "grid" or "still".
    """

    start_s: float
    duration_s: float
    sample_rate_hz: int
    audio: "np.ndarray"
    image: bytes
    width_px: int
    height_px: int
    frame_time_s: float
    frame_offset_s: float
    valid_s: float | None = None
    mode: str = "grid"

    @property
    def own_audio(self) -> "np.ndarray":
        """int16: the samples that are the medium's own."""
        return self.audio if self.valid_s is None else self.audio[: round(self.valid_s * self.sample_rate_hz)]


def storable(text: str) -> str:
    """`text` with lone surrogates spelt out (`\\ud800`): no UTF-8 file, and so no index, can hold them."""
    return text.encode("utf-8", "backslashreplace").decode()


def safe_id(text: str) -> str:
    """`text` as it is if made of [A-Za-z0-9_-]; else its safe part plus a hash of the whole, so that two ids
    never meet.
    """
    if re.fullmatch(r"[A-Za-z0-9_-]{1,80}", text):
        return text
    readable = re.sub(r"[^A-Za-z0-9-]+", "-", text).strip("-")[:60]
    return f"{readable}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def split_group(source: str, media_id: str, channel: str, by: str) -> str:
    """What falls into one split together: a medium; by="channel": all that is of its channel; of iNaturalist,
    always its observer.
    """
    whole_channel = channel and (by == "channel" or source == "inaturalist")
    return f"{source}@{channel}" if whole_channel else f"{source}:{media_id}"


def ban(selector: str, value: str) -> str:
    """The tombstone of what a removal keeps out for good:

    `media:`, `channel:` or `license:` and a hash, so that it tells no name.
    """
    return f"{selector}:{hashlib.sha256(value.encode()).hexdigest()[:32]}"


def bans_of(source: str, media_id: str, channel: str, license: str) -> set[str]:
    """Every ban that would keep such a medium out. Keys of samples have no colon: no ban is taken for one."""
    claims = [
        ("media", media_id),
        ("media", f"{source}:{media_id}"),
        ("channel", channel),
        ("license", license),
    ]
    return {ban(selector, value) for selector, value in claims if value}


def without_tokens(text: str, apart: bool = False) -> str:
    """`text`, a URL or one that quotes some, with the values of parameters that give access masked: tokens,
    signatures, keys.

    `apart`: texts that differ in such a value still differ, as ids must.
    """

    def mask(found: re.Match[str]) -> str:
        return found[1] + "***" + (hashlib.sha256(found[2].encode()).hexdigest()[:8] if apart else "")

    return ACCESS_PARAMETER.sub(mask, text)


def sample_key(source: str, ids: tuple[str, ...], start_s: float) -> str:
    """`<source>_<id…>_<start_ms>`: safe characters, all ids of the pair, start in milliseconds."""
    return "_".join([safe_id(source), *(safe_id(i) for i in ids), str(round(start_s * 1000))])
