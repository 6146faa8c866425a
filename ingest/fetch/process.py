"""The warm child that touches the network: started by `ingest.fetch.fetcher` as `python -m
ingest.fetch.process`, one per worker.

It speaks JSON lines: first a line of settings, then a line per item (or per list or text to read); it answers
each with what it fetched or why it refused. It is guarded (`ingest.fetch.guard`) before the first URL, starts
no program but, by option, the launcher of `ingest.fetch.runtime`; it dies with its parent, and is killed by
it when it overruns. It does not decode media and knows nothing of datasets.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yt_dlp.networking import Request
from yt_dlp.networking.exceptions import HTTPError, RequestError
from yt_dlp.utils import ContentTooShortError, GeoRestrictedError, YoutubeDLError

from ingest.fetch.formats import Format, choose_formats, mark_main_sounds
from ingest.fetch.guard import Abort, install_guard
from ingest.fetch.web import Landing, Limits, Rests, Web, causes, classify_transport, status_reason
from ingest.licenses import allowed, first_allowed
from ingest.rights.page import PageFacts, read_page
from ingest.sample import Item, Reason, Refused
from ingest.sources.youtube import (
    LIST_EXTRACTORS,
    VIDEO_EXTRACTORS,
    YoutubeConfig,
    egress,
    license_of,
    list_videos,
    prepare_runtime,
    redacted,
)
from ingest.sources.youtube import refusal_of as youtube_refusal_of

EXTRACTORS = ("^generic$", "^html5$")  # anchored: a bare name would also match every name that contains it
EXTENSIONS = frozenset(
    "mp4 m4v mov mkv webm ts mpg mpeg avi flv ogv 3gp m4a mp3 aac ogg oga opus flac wav jpg jpeg png webp gif avif".split()
)
MAX_MEMORY_BYTES = 4 << 30
UNREADABLE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RecursionError,
    SyntaxError,
)


@dataclass(frozen=True)
class Task:
    """What the parent asks: an item, an empty folder to write in, the frame size, the licenses that may
    enter.
    """

    item: Item
    folder: Path
    need_short_side_px: int
    allow: tuple[str, ...]
    vouched_channels: dict[str, str] = field(default_factory=dict)


def fetch_item(web: Web, task: Task) -> dict[str, Any]:
    """Fetches one item: {"picture": file name, "sound": file name, "license", "title", "channel",
    "extractor"}.

    Raises `Refused`, `Abort`, or yt-dlp's errors, for `refusal_of` to class. The license is known to be
    allowed before any media body is asked for.
    """
    item = task.item
    if item.source == "youtube":
        return _from_youtube(web, task)
    if item.sound_url:
        license_allowed(item.license, task.allow)
        names = {
            "picture": _direct(web, item.url, task, "picture"),
            "sound": _direct(web, item.sound_url, task, "sound"),
        }
        return {
            **names,
            "license": item.license,
            "title": item.title,
            "channel": item.channel,
            "extractor": "direct",
        }
    with _unreadable_is_corrupt():
        landing = web.land(item.url)
    if landing.body is None:
        license_allowed(item.license, task.allow)
        if landing.content_type.startswith("image/"):
            raise Refused(Reason.NO_AUDIO, f"a still picture ({landing.content_type})")
        name = _direct(web, landing.url, task, "media")
        return {
            "picture": name,
            "sound": name,
            "license": item.license,
            "title": item.title,
            "channel": "",
            "extractor": "direct",
        }
    return _from_page(web, landing, task)


def _from_page(web: Web, landing: Landing, task: Task) -> dict[str, Any]:
    page = read_page(_text(landing), landing.url)
    web.permission.check_page(page, landing.url)
    license_allowed(task.item.license or first_allowed(page.licenses, task.allow), task.allow)
    info = _extract(web, task.item.url)
    _check_facts(info, web.limits)
    choices = (task.item.license,) if task.item.license else page.media.of(_addresses(info))
    license = first_allowed(choices, task.allow)
    license_allowed(license, task.allow, page)
    more = {"licenses": list(choices)} if len(choices) > 1 else {}
    channel = info.get("channel") or info.get("uploader") or urllib.parse.urlsplit(landing.url).hostname or ""
    told = {"license": license, "title": page.title or info.get("title") or "", "channel": channel}
    chosen = _chosen(web, info, task)
    return {**chosen, **told, "meta": {**chosen["meta"], **more}}


def _addresses(info: dict[str, Any]) -> set[str]:
    """Every URL under which a medium can be fetched."""
    places = [info, *(info.get("formats") or [])]
    return {str(place[name]) for place in places for name in ("url", "manifest_url") if place.get(name)}


def _from_youtube(web: Web, task: Task) -> dict[str, Any]:
    """One extraction; the media's own addresses are asked only when the license is known to be allowed."""
    info = _extract(web, task.item.url, Reason.EXTRACTOR)
    _check_facts(info, web.limits)
    license = license_of(info, task.vouched_channels)
    license_allowed(license, task.allow)
    if web.looks_only:
        return {"license": license}
    try:
        chosen = _chosen(web, info, task)
    except Refused as refusal:
        raise (
            Refused(Reason.FORMAT, refusal.detail) if refusal.reason == Reason.UNSUPPORTED else refusal
        ) from None
    author = info.get("channel") or info.get("uploader") or ""
    told = {"license": license, "title": info.get("title") or "", "channel": info.get("channel_id") or author}
    meta = {**chosen["meta"], "author": author, "license_stated": info.get("license") or ""}
    return {**chosen, **told, "meta": meta}


def _chosen(web: Web, info: dict[str, Any], task: Task) -> dict[str, Any]:
    """Chooses among the formats, and downloads: names of picture and sound (one file, or two that are never
    merged).
    """
    formats = list(info.get("formats") or [info])
    mark_main_sounds(formats, web.manifests)
    chosen = choose_formats(formats, task.need_short_side_px)
    stems = ("media",) if len(chosen) == 1 else ("picture", "sound")
    names = [_download(web, info, f, task.folder, stem) for f, stem in zip(chosen, stems, strict=True)]
    extractor = str(info.get("extractor", "")).lower()
    return {"picture": names[0], "sound": names[-1], "extractor": extractor, "meta": _formats_meta(chosen)}


def _formats_meta(chosen: list[Format]) -> dict[str, Any]:
    """Which formats were taken, and what the site says of the sound's language; a preference below 0 is no
    original's.
    """
    sound = chosen[-1]
    known = {name: sound[name] for name in ("language", "language_preference") if sound.get(name) is not None}
    return {"formats": [str(f.get("format_id") or "") for f in chosen], **known}


def _extract(web: Web, url: str, unreadable: Reason = Reason.CORRUPT) -> dict[str, Any]:
    """What yt-dlp makes of the page or manifest: the info dict of its first medium."""
    with _unreadable_is_corrupt(unreadable):
        info = web.extract_info(url, download=False)
        entries = (info or {}).get("entries")
        if entries is not None:
            info = next(iter(entries), None)
    if not info:
        raise Refused(Reason.UNSUPPORTED, "no media on the page")
    return dict(info)


@contextlib.contextmanager
def _unreadable_is_corrupt(reason: Reason = Reason.CORRUPT) -> Iterator[None]:
    """yt-dlp and urllib trust what they parse: their stumbling over a page or header is no crash, and would
    happen again.
    """
    try:
        yield
    except UNREADABLE as error:
        raise Refused(reason, f"cannot be read: {type(error).__name__}: {error}") from None


def license_allowed(code: str, allow: tuple[str, ...], page: PageFacts | None = None) -> None:
    """Raises `Refused` (license) unless `allow` lets `code` in, saying what the page said."""
    if allowed(code, allow):
        return
    if page and page.licenses and not code:
        stated = ", ".join(page.licenses)
        raise Refused(
            Reason.LICENSE, f"the page states licenses ({stated}), but not plainly one of this medium"
        )
    raise Refused(Reason.LICENSE, f"license {code} is not allowed" if code else "no license stated")


def _check_facts(info: dict[str, Any], limits: Limits) -> None:
    if info.get("is_live") or info.get("live_status") in ("is_live", "is_upcoming", "post_live"):
        raise Refused(Reason.LIVE, f"a live stream ({info.get('live_status') or 'is_live'})")
    if (info.get("duration") or 0) > limits.max_duration_s:
        raise Refused(Reason.TOO_LONG, f"{info['duration']:.0f} s, {limits.max_duration_s:.0f} s allowed")


def _direct(web: Web, url: str, task: Task, stem: str) -> str:
    return _download(
        web,
        {"id": stem, "title": stem},
        {"url": url, "protocol": "https", "ext": _extension(url)},
        task.folder,
        stem,
    )


def _download(web: Web, info: dict[str, Any], chosen: Format, folder: Path, stem: str) -> str:
    """Downloads one format under a name of ours; returns the name."""
    if web.looks_only:
        with _unreadable_is_corrupt():
            web.look(str(chosen["url"]))
        return stem
    extension = chosen.get("ext") if chosen.get("ext") in EXTENSIONS else "bin"
    path = folder / f"{stem}.{extension}"
    dropped = ("requested_formats", "requested_downloads", "formats", "section_start", "section_end")
    facts = {key: value for key, value in {**info, **chosen}.items() if key not in dropped}
    with _unreadable_is_corrupt():
        done = web.download(str(path), facts)
    if not done or not path.is_file():
        raise Refused(Reason.NETWORK, "the download did not finish")
    if path.stat().st_size == 0:
        raise Refused(Reason.CORRUPT, "empty file")
    return path.name


def _extension(url: str) -> str:
    return Path(urllib.parse.urlsplit(url).path).suffix.lower().lstrip(".")


def _text(landing: Landing) -> str:
    try:
        return (landing.body or b"").decode(landing.charset, "replace")
    except (LookupError, ValueError):  # a charset nobody knows, or one that is no encoding of a text
        return (landing.body or b"").decode("utf-8", "replace")


def refusal_of(error: BaseException) -> Refused:
    """The reason of the closed enum for an error of yt-dlp, of the network or of ours; other errors are
    raised again.
    """
    for one in causes(error):
        if isinstance(one, Refused):
            return one
        if isinstance(one, Abort):
            return Refused(one.reason, one.detail)
        if isinstance(one, HTTPError):
            return Refused(status_reason(one.status), f"HTTP {one.status} {one.reason or ''}".strip())
    network = next(
        (one for one in causes(error) if isinstance(one, (RequestError, OSError, ContentTooShortError))), None
    )
    if network is not None:
        return Refused(*classify_transport(network))
    if any(isinstance(one, GeoRestrictedError) for one in causes(error)):
        return Refused(Reason.GEO, "not available from here")
    if isinstance(error, YoutubeDLError):
        return Refused(Reason.UNSUPPORTED, str(getattr(error, "orig_msg", None) or error))
    raise error


def die_with_parent() -> None:
    """Asks Linux to kill this process when the thread that started it ends; elsewhere the end of stdin has to
    do.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() == 1 and os.environ.get("STILLSOUND_PARENT") != "1":
            sys.exit(1)


def _alarm(signum: int, frame: object) -> None:
    raise Abort(Reason.TIMEOUT, "the item took too long")


@dataclass
class Desk:
    """What the child keeps from item to item: a door to the network per kind of question, each with its own
    extractors.
    """

    limits: Limits
    allow: tuple[str, ...]
    youtube: YoutubeConfig
    launcher: str = ""  # of the JavaScript runtime
    rests: Rests = field(default_factory=Rests)
    webs: dict[str, Web] = field(default_factory=dict)

    def web(self, kind: str) -> Web:
        """The door for `urls`, `youtube` or `youtube:list`.

        `UserError` where a file of secrets cannot be used here.
        """
        if kind not in self.webs and kind == "urls":
            self.webs[kind] = Web(self.limits, EXTRACTORS, rests=self.rests)
        elif kind not in self.webs:
            listing = kind == "youtube:list"
            extractors = LIST_EXTRACTORS if listing else VIDEO_EXTRACTORS
            self.webs[kind] = Web(
                self.limits, extractors, egress(self.youtube, listing, self.launcher), self.rests
            )
        return self.webs[kind]


def answer(desk: Desk, asked: dict[str, Any]) -> dict[str, Any]:
    """One line of the parent -> one line back: {"media": …} or {"refused": reason, "detail": …}; lists and
    texts go to a file.
    """
    youtube = "list" in asked or asked.get("item", {}).get("source") == "youtube"
    web = desk.web("youtube:list" if "list" in asked else "youtube" if youtube else "urls")
    signal.setitimer(signal.ITIMER_REAL, desk.limits.timeout_s)
    try:
        web.begin()
        web.permission.begin(asked.get("item", {}).get("source", ""))
        web.looks_only = bool(asked.get("looks_only"))
        return _do(desk, web, asked)
    except (Abort, Refused, YoutubeDLError, OSError) as error:
        refusal = (youtube_refusal_of(error) if youtube else None) or refusal_of(error)
        if youtube and refusal.reason in (Reason.BOT_CHECK, Reason.RATE_LIMITED):
            web.rest()
        return {"refused": str(refusal.reason), "detail": redacted(refusal.detail, web)}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _do(desk: Desk, web: Web, asked: dict[str, Any]) -> dict[str, Any]:
    folder = Path(asked["folder"])
    if "item" in asked:
        task = Task(
            Item(**asked["item"]),
            folder,
            asked["need_short_side_px"],
            desk.allow,
            desk.youtube.vouched_channels,
        )
        media = fetch_item(web, task)
        return {
            "media": {**media, "meta": {**media.get("meta", {}), "permission": web.permission.evidence()}}
        }
    if "list" in asked:
        with _unreadable_is_corrupt(Reason.EXTRACTOR):
            found = list(list_videos(web, asked["list"], desk.youtube.max_results))
        (folder / "answer").write_text("".join(json.dumps(video) + "\n" for video in found), encoding="utf-8")
    else:
        with web.urlopen(Request(asked["read"], headers={"Accept": "application/json"})) as response:
            (folder / "answer").write_bytes(response.read())
    return {}


def main() -> None:
    die_with_parent()
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever prints, prints to stderr
    settings = json.loads(sys.stdin.readline())
    limits = Limits(**{**settings["limits"], "allow_private": tuple(settings["limits"]["allow_private"])})
    youtube = YoutubeConfig(**(settings["youtube"] or {}))
    launcher = prepare_runtime(youtube.js_runtime, Path("js-runtime").resolve())
    most = (
        resource.getrlimit(resource.RLIMIT_AS)[1] if launcher else MAX_MEMORY_BYTES
    )  # the runtime has limits of its own
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, _alarm)
    desk = Desk(limits, tuple(settings["allow"]), youtube, launcher, Rests.of(settings["rests"]))
    urls = desk.web("urls")  # warm before the guard: the first door imports what it needs
    urls.permission.learn(settings["permission"])
    install_guard(limits.allow_private, launcher)
    replies.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        reply: dict[str, Any] = answer(desk, json.loads(line))
        reply |= {"rests": desk.rests.take_news(), "permission": urls.permission.take_news()}
        replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()
