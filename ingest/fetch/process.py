"""The warm child that touches the network: `ingest.fetch.fetcher` runs it, one a worker.

It gets its settings, then a request per item (or per list or text to read), and replies with what it fetched
or why it refused. It is guarded (`ingest.fetch.guard`) before the first URL, and starts no program but, by
option, the launcher of `ingest.fetch.runtime`; it ends with its parent, and is killed by it when it overruns.
It does not decode media and knows nothing of datasets.
"""

import contextlib
import json
import resource
import signal
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from yt_dlp.networking import Request
from yt_dlp.networking.exceptions import HTTPError, RequestError
from yt_dlp.utils import ContentTooShortError, GeoRestrictedError, YoutubeDLError

from cluster.jsonl import JsonObject
from ingest.child import RefusalHeader, die_with_parent, reply, requests, take_stdout
from ingest.fetch import youtube
from ingest.fetch.access import Egress, YoutubeConfig, redacted, youtube_egress
from ingest.fetch.formats import Format, choose_formats, mark_main_sounds
from ingest.fetch.guard import Abort, install_guard
from ingest.fetch.messages import Chosen, Description, Fetched, MediaHeader
from ingest.fetch.retries import Cooldowns, causes, status_reason, transport_reason
from ingest.fetch.settings import FetchConfig
from ingest.fetch.web import Info, Landing, Web
from ingest.licenses import allowed, first_allowed
from ingest.rights.page import PageStatements, read_page
from ingest.sample import Item, Reason, Refused

EXTRACTORS = ("^generic$", "^html5$")  # anchored: a bare name would also match every name that contains it
EXTENSIONS = frozenset(
    "mp4 m4v mov mkv webm ts mpg mpeg avi flv ogv 3gp m4a mp3 aac ogg oga opus flac wav"
    " jpg jpeg png webp gif avif".split()
)
MAX_MEMORY_BYTES = 4 << 30  # of addresses: yt-dlp's modules and a manifest of max_text_bytes need far less

# what yt-dlp and urllib raise where they trust what they parse; nothing of it says that our code is wrong
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

# of a format chosen alone: yt-dlp would download all that these name
SELECTION_KEYS = ("requested_formats", "requested_downloads", "formats", "section_start", "section_end")


class Site(NamedTuple):
    """What a source with extractors of its own brings: settings, routes, licenses, what errors mean."""

    config: Callable[..., Any]  # the dataclass of its settings
    video_extractors: tuple[str, ...]
    list_extractors: tuple[str, ...]
    egress: Callable[[Any, bool, str], Egress]  # (config, listing, launcher)
    prepare: Callable[[Any, Path], str]  # (config, folder) -> launcher of a JavaScript runtime, or ""
    list_videos: Callable[[Web, str, Any], Iterator[dict[str, str]]]
    license_of: Callable[[Info, Any], str]
    describe: Callable[[Info], Description]
    refusal_of: Callable[[BaseException], Refused | None]


SITES: dict[str, Site] = {
    "youtube": Site(
        config=YoutubeConfig,
        video_extractors=youtube.VIDEO_EXTRACTORS,
        list_extractors=youtube.LIST_EXTRACTORS,
        egress=youtube_egress,
        prepare=youtube.prepare_runtime,
        list_videos=youtube.list_videos,
        license_of=youtube.license_of,
        describe=youtube.describe,
        refusal_of=youtube.refusal_of,
    )
}
"""By `Item.source`; items of all other sources are media files and pages."""


@dataclass(frozen=True)
class Task:
    """An item, an empty folder to write in, the frame size, the licenses that may enter.

    `site_config`: the settings of the item's own site, where it has one.
    """

    item: Item
    folder: Path
    need_short_side_px: int
    allow: tuple[str, ...]
    site_config: Any = None


# One item


def fetch_item(web: Web, task: Task) -> Fetched:
    """Fetches one item into the task's folder.

    Raises `Refused`, `Abort`, or yt-dlp's errors, for `refusal_of` to class. The license is known to be
    allowed before any media body is requested.
    """
    item = task.item
    if item.source in SITES:
        return _from_site(web, task, SITES[item.source])
    if item.sound_url:
        license_allowed(item.license, task.allow)
        picture = _direct(web, item.url, task, "picture")
        return _direct_media(item, picture, _direct(web, item.sound_url, task, "sound"))
    with _unreadable_is_corrupt():
        landing = web.land(item.url)
    if landing.body is not None:
        return _from_page(web, landing, task)
    license_allowed(item.license, task.allow)
    if landing.content_type.startswith("image/"):
        raise Refused(Reason.NO_AUDIO, f"a still picture ({landing.content_type})")
    name = _direct(web, landing.url, task, "media")
    return _direct_media(item, name, name)


def _direct_media(item: Item, picture: str, sound: str) -> Fetched:
    return {
        "picture": picture,
        "sound": sound,
        "license": item.license,
        "title": item.title,
        "channel": "",
        "extractor": "direct",
    }


def _from_page(web: Web, landing: Landing, task: Task) -> Fetched:
    page = read_page(_text(landing), landing.url)
    web.permission.check_page(page, landing.url)
    # checked twice: no extraction without a chance of a license, no download without one of this medium
    license_allowed(task.item.license or first_allowed(page.licenses, task.allow), task.allow)
    info = _extract(web, task.item.url)
    _check_cost(info, web.config)
    licenses = (task.item.license,) if task.item.license else page.media.of(_addresses(info))
    license = first_allowed(licenses, task.allow)
    license_allowed(license, task.allow, page)
    media = _chosen(web, info, task)
    if len(licenses) > 1:
        media["meta"]["licenses"] = list(licenses)
    host = urllib.parse.urlsplit(landing.url).hostname
    channel = info.get("channel") or info.get("uploader") or host or ""
    title = page.title or info.get("title") or ""
    return {**media, "license": license, "title": title, "channel": channel}


def _addresses(info: Info) -> set[str]:
    """Every URL under which a medium can be fetched."""
    addresses = set()
    for source in (info, *(info.get("formats") or [])):
        addresses |= {str(source[name]) for name in ("url", "manifest_url") if source.get(name)}
    return addresses


def _from_site(web: Web, task: Task, site: Site) -> Fetched:
    """One extraction; the media's own URLs are requested only when the license is known to be allowed."""
    info = _extract(web, task.item.url, Reason.EXTRACTOR)
    _check_cost(info, web.config)
    license = site.license_of(info, task.site_config)
    license_allowed(license, task.allow)
    if web.looks_only:
        return {"license": license}
    try:
        media = _chosen(web, info, task)
    except Refused as refusal:
        if refusal.reason == Reason.UNSUPPORTED:  # the site's next answer may hold other formats
            raise Refused(Reason.FORMAT, refusal.detail) from None
        raise
    described = site.describe(info)
    meta = {**media["meta"], **described["meta"]}
    return {**media, "license": license, **described, "meta": meta}


def _chosen(web: Web, info: Info, task: Task) -> Chosen:
    """Chooses among the formats, and downloads: one file, or two that are never merged."""
    formats = list(info.get("formats") or [info])
    mark_main_sounds(formats, web.budget.manifests)
    chosen = choose_formats(formats, task.need_short_side_px)
    stems = ("media",) if len(chosen) == 1 else ("picture", "sound")
    names = [_download(web, info, f, task.folder, stem) for f, stem in zip(chosen, stems, strict=True)]
    extractor = str(info.get("extractor", "")).lower()
    return {"picture": names[0], "sound": names[-1], "extractor": extractor, "meta": _formats_meta(chosen)}


def _formats_meta(chosen: list[Format]) -> JsonObject:
    """Which formats were taken, and what the site says of the sound's language.

    A preference below 0 is no original's.
    """
    meta: JsonObject = {"formats": [str(f.get("format_id") or "") for f in chosen]}
    sound = chosen[-1]
    for name in ("language", "language_preference"):
        if sound.get(name) is not None:
            meta[name] = sound[name]
    return meta


def _extract(web: Web, url: str, unreadable: Reason = Reason.CORRUPT) -> Info:
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
    """yt-dlp and urllib trust what they parse: their exceptions over a page or header are no crash of ours.

    And a retry would meet the same bytes, so the reason is a final one.
    """
    try:
        yield
    except UNREADABLE as error:
        raise Refused(reason, f"cannot be read: {type(error).__name__}: {error}") from None


def license_allowed(code: str, allow: tuple[str, ...], page: PageStatements | None = None) -> None:
    """Raises `Refused` (license) unless `allow` lets `code` in, with what the page stated."""
    if allowed(code, allow):
        return
    if page and page.licenses and not code:
        stated = ", ".join(page.licenses)
        detail = f"the page states licenses ({stated}), but not plainly one of this medium"
        raise Refused(Reason.LICENSE, detail)
    raise Refused(Reason.LICENSE, f"license {code} is not allowed" if code else "no license stated")


def _check_cost(info: Info, config: FetchConfig) -> None:
    if info.get("is_live") or info.get("live_status") in ("is_live", "is_upcoming", "post_live"):
        raise Refused(Reason.LIVE, f"a live stream ({info.get('live_status') or 'is_live'})")
    if (info.get("duration") or 0) > config.max_duration_s:
        raise Refused(Reason.TOO_LONG, f"{info['duration']:.0f} s, {config.max_duration_s:.0f} s allowed")


def _direct(web: Web, url: str, task: Task, stem: str) -> str:
    extension = Path(urllib.parse.urlsplit(url).path).suffix.lower().lstrip(".")
    chosen = {"url": url, "protocol": "https", "ext": extension}
    return _download(web, {"id": stem, "title": stem}, chosen, task.folder, stem)


def _download(web: Web, info: Info, chosen: Format, folder: Path, stem: str) -> str:
    """Downloads one format under a name of ours; returns the name."""
    if web.looks_only:
        with _unreadable_is_corrupt():
            web.look(str(chosen["url"]))
        return stem
    extension = chosen.get("ext") if chosen.get("ext") in EXTENSIONS else "bin"
    path = folder / f"{stem}.{extension}"
    alone = {key: value for key, value in {**info, **chosen}.items() if key not in SELECTION_KEYS}
    with _unreadable_is_corrupt():
        done = web.download(str(path), alone)
    if not done or not path.is_file():
        raise Refused(Reason.NETWORK, "the download did not finish")
    if path.stat().st_size == 0:
        raise Refused(Reason.CORRUPT, "empty file")
    return path.name


def _text(landing: Landing) -> str:
    body = landing.body or b""
    try:
        return body.decode(landing.charset, "replace")
    except (LookupError, ValueError):  # an unknown charset, or one that is no encoding of a text
        return body.decode("utf-8", "replace")


def refusal_of(error: BaseException) -> Refused:
    """The reason of the closed list for an error of yt-dlp, of the network or of ours.

    Other errors are raised again.
    """
    chain = list(causes(error))
    for cause in chain:
        refusal = _stated_refusal(cause)
        if refusal:
            return refusal
    for cause in chain:
        if isinstance(cause, (RequestError, OSError, ContentTooShortError)):
            return Refused(*transport_reason(cause))
    if any(isinstance(cause, GeoRestrictedError) for cause in chain):
        return Refused(Reason.GEO, "not available from here")
    if isinstance(error, YoutubeDLError):
        return Refused(Reason.UNSUPPORTED, str(getattr(error, "orig_msg", None) or error))
    raise error


def _stated_refusal(error: BaseException) -> Refused | None:
    """Of an error that states its reason: ours, or an HTTP status."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, Abort):
        return Refused(error.reason, error.detail)
    if isinstance(error, HTTPError):
        return Refused(status_reason(error.status), f"HTTP {error.status} {error.reason or ''}".strip())
    return None


# The process


def _alarm(signum: int, frame: object) -> None:
    raise Abort(Reason.TIMEOUT, "the item took too long")


@dataclass
class FetchState:
    """What the child keeps from item to item: a network client per kind of request, and shared cooldowns."""

    config: FetchConfig
    allow: tuple[str, ...]
    site_configs: dict[str, Any]  # by name, one for each of SITES
    launcher: str = ""  # of the JavaScript runtime
    cooldowns: Cooldowns = field(default_factory=Cooldowns)
    webs: dict[tuple[str, bool], Web] = field(default_factory=dict)  # by site and whether it lists

    def web(self, source: str, listing: bool = False) -> Web:
        """The client for a site's videos or lists; for any other source the one of media files and pages.

        `UserError` where a file of secrets cannot be used here.
        """
        site = SITES.get(source)
        # a list is read by other extractors than a video, and yt-dlp fixes them when a client is made
        key = (source if site else "", listing and site is not None)
        if key not in self.webs:
            extractors: tuple[str, ...] = EXTRACTORS
            egress = Egress()
            if site:
                extractors = site.list_extractors if listing else site.video_extractors
                egress = site.egress(self.site_configs[source], listing, self.launcher)
            self.webs[key] = Web(self.config, extractors, egress, self.cooldowns)
        return self.webs[key]


def answer(state: FetchState, request: Mapping[str, Any]) -> MediaHeader | RefusalHeader:
    """One request of the parent -> the header of the reply.

    {"media": …} or {"refused": reason, "detail": …}; lists and texts go to a file.
    """
    source = request.get("site") or request.get("item", {}).get("source", "")
    site = SITES.get(source)
    web = state.web(source, "list" in request)
    # the child ends an item itself, so that it stays warm; the parent kills it a little later
    signal.setitimer(signal.ITIMER_REAL, state.config.timeout_s)
    try:
        web.begin()
        web.permission.begin(request.get("item", {}).get("source", ""))
        web.looks_only = bool(request.get("looks_only"))
        return _do(state, web, request)
    except (Abort, Refused, YoutubeDLError, OSError) as error:
        refusal = (site.refusal_of(error) if site else None) or refusal_of(error)
        if site and refusal.reason in (Reason.BOT_CHECK, Reason.RATE_LIMITED):
            web.cool_down()
        return {"refused": str(refusal.reason), "detail": redacted(refusal.detail, web.secrets())}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _do(state: FetchState, web: Web, request: Mapping[str, Any]) -> MediaHeader:
    folder = Path(request["folder"])
    if "item" in request:
        item = Item(**request["item"])
        site_config = state.site_configs.get(item.source)
        media = fetch_item(web, Task(item, folder, request["need_short_side_px"], state.allow, site_config))
        meta = {**media.get("meta", {}), "permission": web.permission.evidence()}
        return {"media": {**media, "meta": meta}}
    if "list" in request:
        _list(state, web, request["site"], request["list"], folder / "answer")
    else:
        with web.urlopen(Request(request["read"], headers={"Accept": "application/json"})) as response:
            (folder / "answer").write_bytes(response.read())
    return {}


def _list(state: FetchState, web: Web, site: str, target: str, path: Path) -> None:
    """Writes the videos behind `target` as JSON lines."""
    with _unreadable_is_corrupt(Reason.EXTRACTOR):
        videos = list(SITES[site].list_videos(web, target, state.site_configs[site]))
    path.write_text("".join(json.dumps(video) + "\n" for video in videos), encoding="utf-8")


def _confine(runs_programs: bool) -> None:
    """No core dump, bounded memory.

    The address space is a soft limit where a runtime may be started: V8 reserves far more of it than it uses,
    and the launcher sets limits of its own (`ingest.fetch.runtime`).
    """
    hard = resource.getrlimit(resource.RLIMIT_AS)[1] if runs_programs else MAX_MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _state(settings: Mapping[str, Any]) -> FetchState:
    """From the parent's first line. Tries the JavaScript runtime, if one is to be used."""
    configs = {name: site.config(**settings["sites"].get(name, {})) for name, site in SITES.items()}
    folder = Path("js-runtime").resolve()
    launchers = [site.prepare(configs[name], folder) for name, site in SITES.items()]
    launcher = next(filter(None, launchers), "")  # the guard lets one program start
    state = FetchState(FetchConfig(**settings["network"]), tuple(settings["allow"]), configs, launcher)
    state.cooldowns.merge(settings["cooldowns"])
    return state


def main() -> None:
    die_with_parent()
    replies = take_stdout()
    lines = requests()
    settings = next(lines)
    state = _state(settings)
    _confine(runs_programs=bool(state.launcher))
    signal.signal(signal.SIGALRM, _alarm)
    # one client for all media files and pages keeps what their hosts state; YouTube is exempt from asking
    urls = state.web("")  # before the guard: the first client imports what it needs
    urls.permission.learn(settings["permission"])
    install_guard(state.config.allow_private, state.launcher)
    reply(replies, {"ready": True})
    for request in lines:
        header = answer(state, request)
        # with a refusal, too: it is what most often brings a cooldown
        learnt = {"cooldowns": state.cooldowns.take_news(), "permission": urls.permission.take_news()}
        reply(replies, {**header, **learnt})


if __name__ == "__main__":
    main()
