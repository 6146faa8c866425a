"""Which of a page's formats to download: a pure choice over yt-dlp's format dicts.

The smallest video stream whose short side reaches the frame size plus an audio stream, unmerged; else the
smallest progressive file that reaches it; else the largest there is. Nothing that only ffmpeg could download
is ever chosen. The sound is the original's where there are dubs, audio descriptions or compressed (DRC)
variants of it beside.
"""

import re
import urllib.parse
import xml.etree.ElementTree
from typing import Any

from ingest.fetch.guard import url_refusal
from ingest.sample import Reason, Refused

Format = dict[str, Any]
"""yt-dlp's dict of one format: open, and any field may be missing."""

PROTOCOLS = frozenset({"http", "https", "m3u8", "m3u8_native", "http_dash_segments"})
ENOUGH_AUDIO_KBPS = 64  # below this a codec is heard at 16 kHz mono
ORIGINAL = 10  # yt-dlp's `language_preference` of the original's language
OTHER = -10  # and of an audio description
OTHER_ROLES = {"dub", "description", "commentary", "alternate"}  # ISO/IEC 23009-1, table 34
NOT_STATED = -1  # as yt-dlp takes a preference that is missing
ALTERED = re.compile(r"\bdrc\b|descri|\bdub|commentary", re.IGNORECASE)


def choose_formats(formats: list[Format], need_short_side_px: int) -> list[Format]:
    """One format (picture and sound in one file), or two: picture, then sound.

    `formats` go from worst to best. Raises `Refused`: unsupported where nothing can be downloaded, no_video
    or no_audio where one is surely missing.
    """
    usable = [f for f in formats if _usable(f)]
    if not usable:
        raise Refused(Reason.UNSUPPORTED, "no format that the native downloaders can fetch")
    usable = _original_only(usable)
    sounds = [f for f in usable if f.get("vcodec") == "none" and f.get("acodec") != "none"]
    pictures = [f for f in usable if f.get("acodec") == "none" and f.get("vcodec") != "none"]
    progressive = [f for f in usable if "none" not in (f.get("vcodec"), f.get("acodec"))]
    if not pictures and not progressive:
        raise Refused(Reason.NO_VIDEO, "only sound on offer")
    if not sounds and not progressive:
        raise Refused(Reason.NO_AUDIO, "only a silent picture on offer")
    pairs = []
    if sounds:
        sound = _sound(sounds)
        pairs = [[picture, sound] for picture in _large_enough(pictures, need_short_side_px)]
    singles = [[f] for f in _large_enough(progressive, need_short_side_px)]
    unknown = [[f] for f in progressive if short_side_px(f) is None]
    if pairs or singles or unknown:
        return (pairs or singles or unknown)[0]
    best_pair = [[max(pictures, key=_area), _sound(sounds)]] if pictures and sounds else []
    best_single = [[max(progressive, key=_area)]] if progressive else []
    return max(best_pair + best_single, key=lambda choice: _area(choice[0]))


def mark_main_sounds(formats: list[Format], manifests: dict[str, str]) -> None:
    """Sets `language_preference` of sounds by their manifest (URL -> text): HLS's DEFAULT, DASH's Role."""
    stated: dict[str, int] = {}
    for url, text in manifests.items():
        stated |= _hls_sounds(text, url) if text.lstrip().startswith("#EXTM3U") else _dash_sounds(text)
    for f in formats:
        preference = stated.get(str(f.get("url"))) or stated.get(str(f.get("format_id")))
        # what yt-dlp read itself goes first
        if preference and f.get("language_preference") is None and f.get("vcodec") == "none":
            f["language_preference"] = preference


def _hls_sounds(text: str, base_url: str) -> dict[str, int]:
    """Address of each rendition of sound -> preference (RFC 8216, 4.3.4.1)."""
    preferences = {}
    for line in re.findall(r"^#EXT-X-MEDIA:(.*)$", text, re.MULTILINE):
        attributes = re.findall(r'([A-Z-]+)=(?:"([^"]*)"|([^",]*))', line)
        named = {name: quoted or plain for name, quoted, plain in attributes}
        if named.get("TYPE") == "AUDIO" and named.get("URI"):
            is_default = named.get("DEFAULT") == "YES"
            is_altered = "describes" in named.get("CHARACTERISTICS", "") or ALTERED.search(
                named.get("NAME", "")
            )
            address = urllib.parse.urljoin(base_url, named["URI"])
            preferences[address] = OTHER if is_altered else ORIGINAL if is_default else 0
    return preferences


def _dash_sounds(text: str) -> dict[str, int]:
    """Id of each representation -> preference, by the Role of its set (ISO/IEC 23009-1, 5.8.5.5)."""
    try:
        root = xml.etree.ElementTree.fromstring(text)
    except (xml.etree.ElementTree.ParseError, ValueError):
        return {}  # yt-dlp has read it, by means of its own
    preferences: dict[str, int] = {}
    for adaptation in root.iterfind(".//{*}AdaptationSet"):
        roles = {str(role.get("value")) for role in adaptation.iterfind("{*}Role")}
        preference = 0
        if "main" in roles:
            preference = ORIGINAL
        elif roles & OTHER_ROLES:
            preference = OTHER
        for representation in adaptation.iterfind("{*}Representation"):
            preferences[str(representation.get("id"))] = preference
    return preferences


def _original_only(formats: list[Format]) -> list[Format]:
    """Without sounds in other languages than the preferred one: of a dubbed video, only the original."""
    best = max((_language(f) for f in formats if f.get("acodec") != "none"), default=NOT_STATED)
    return [f for f in formats if f.get("acodec") == "none" or _language(f) == best]


def _language(f: Format) -> int:
    return _preference(f, "language_preference")


def _preference(f: Format, name: str) -> int:
    return NOT_STATED if f.get(name) is None else int(f[name])


def short_side_px(f: Format) -> int | None:
    """The shorter of width and height, or the one that is known, or None."""
    sides = [side for side in (f.get("width"), f.get("height")) if side]
    return min(sides) if sides else None


def _usable(f: Format) -> bool:
    protocol = f.get("protocol") or str(f.get("url", "")).split(":")[0]
    return (
        protocol in PROTOCOLS
        and not f.get("has_drm")
        and not url_refusal(str(f.get("manifest_url") or f.get("url") or ""))
    )


def _large_enough(formats: list[Format], need_px: int) -> list[Format]:
    """Those whose short side reaches `need_px`, smallest first."""
    reaching = [f for f in formats if (short_side_px(f) or 0) >= need_px]

    def cost(f: Format) -> tuple[int, float]:
        return short_side_px(f) or 0, f.get("tbr") or f.get("filesize") or float("inf")

    return sorted(reaching, key=cost)


def _sound(sounds: list[Format]) -> Format:
    """Of the sounds nearest to the original, the leanest that is still good enough, else the best."""

    def rate(f: Format) -> float:
        return float(f.get("abr") or f.get("tbr") or 0)

    def originality(f: Format) -> tuple[bool, int]:
        label = f"{f.get('format_id') or ''} {f.get('format_note') or ''}"
        return not ALTERED.search(label), _preference(f, "source_preference")

    nearest = max(map(originality, sounds))
    sounds = [f for f in sounds if originality(f) == nearest]
    good = [f for f in sounds if rate(f) >= ENOUGH_AUDIO_KBPS]
    return min(good, key=rate) if good else max(sounds, key=rate)


def _area(f: Format) -> float:
    return float((f.get("width") or f.get("height") or 0) * (f.get("height") or f.get("width") or 0))
