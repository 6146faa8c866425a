"""Which of a page's formats to download: a pure choice over yt-dlp's format dicts.

The smallest video stream whose short side reaches the frame size plus an audio stream, unmerged; else the smallest
progressive file that reaches it; else the largest there is. Nothing that only ffmpeg could download is ever chosen.
"""

from typing import Any

from ingest.guard import url_refusal
from ingest.sample import Reason, Refused

Format = dict[str, Any]

PROTOCOLS = frozenset({"http", "https", "m3u8", "m3u8_native", "http_dash_segments"})
ENOUGH_AUDIO_KBPS = 64  # below this a codec is heard at 16 kHz mono


def choose_formats(formats: list[Format], need_short_side_px: int) -> list[Format]:
    """One format (picture and sound in one file), or two: picture, then sound. `formats` go from worst to best.

    Raises `Refused`: unsupported where nothing can be downloaded, no_video or no_audio where one is surely missing.
    """
    usable = [f for f in formats if _usable(f)]
    if not usable:
        raise Refused(Reason.UNSUPPORTED, "no format that the native downloaders can fetch")
    sounds = [f for f in usable if f.get("vcodec") == "none" and f.get("acodec") != "none"]
    pictures = [f for f in usable if f.get("acodec") == "none" and f.get("vcodec") != "none"]
    progressive = [f for f in usable if "none" not in (f.get("vcodec"), f.get("acodec"))]
    if not pictures and not progressive:
        raise Refused(Reason.NO_VIDEO, "only sound on offer")
    if not sounds and not progressive:
        raise Refused(Reason.NO_AUDIO, "only a silent picture on offer")
    pairs = [[picture, _sound(sounds)] for picture in _large_enough(pictures, need_short_side_px)] if sounds else []
    singles = [[f] for f in _large_enough(progressive, need_short_side_px)]
    unknown = [[f] for f in progressive if short_side_px(f) is None]
    if pairs or singles or unknown:
        return (pairs or singles or unknown)[0]
    best_pair = [[max(pictures, key=_area), _sound(sounds)]] if pictures and sounds else []
    best_single = [[max(progressive, key=_area)]] if progressive else []
    return max(best_pair + best_single, key=lambda choice: _area(choice[0]))


def short_side_px(f: Format) -> int | None:
    """The shorter of width and height, or the one that is known, or None."""
    sides = [side for side in (f.get("width"), f.get("height")) if side]
    return min(sides) if sides else None


def _usable(f: Format) -> bool:
    protocol = f.get("protocol") or str(f.get("url", "")).split(":")[0]
    return protocol in PROTOCOLS and not f.get("has_drm") and not url_refusal(str(f.get("manifest_url") or f.get("url") or ""))


def _large_enough(formats: list[Format], need_px: int) -> list[Format]:
    """Those whose short side reaches `need_px`, smallest first."""
    reaching = [f for f in formats if (short_side_px(f) or 0) >= need_px]
    return sorted(reaching, key=lambda f: (short_side_px(f) or 0, f.get("tbr") or f.get("filesize") or float("inf")))


def _sound(sounds: list[Format]) -> Format:
    """The leanest sound that is still good enough, else the best."""

    def rate(f: Format) -> float:
        return float(f.get("abr") or f.get("tbr") or 0)

    good = [f for f in sounds if rate(f) >= ENOUGH_AUDIO_KBPS]
    return min(good, key=rate) if good else max(sounds, key=rate)


def _area(f: Format) -> float:
    return float((f.get("width") or f.get("height") or 0) * (f.get("height") or f.get("width") or 0))
