"""YouTube through yt-dlp: what to list, the settings that get it through, its licenses, and what its errors
mean.

    source.path=https://www.youtube.com/@channel        a channel, playlist or video, a page of search results,
    source.path='ytsearch50:rain in the forest'         a search, or a file with one of these, or an id, per line

`list_videos` enumerates flat, in the fetch process; `enumerate_youtube` is the driver's side of it. A video
is extracted once, by `ingest.fetch.process`. Cookies, proxies and PO tokens are secrets: settings name the
files that hold them, so that no setting, log or record ever holds one, and every machine that fetches needs
the files. A JavaScript runtime is started by option only (`js_runtime`), in the sandbox of
`ingest.fetch.runtime`.
"""

import contextlib
import logging
import re
import tempfile
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from yt_dlp.dependencies import yt_dlp_ejs
from yt_dlp.extractor.youtube import (
    YoutubeIE,
    YoutubePlaylistIE,
    YoutubeSearchIE,
    YoutubeSearchURLIE,
    YoutubeTabIE,
)
from yt_dlp.extractor.youtube.jsc._builtin.vendor import VERSION as EJS_VERSION
from yt_dlp.networking.exceptions import HTTPError, RequestError
from yt_dlp.utils import DownloadError, ExtractorError, GeoRestrictedError
from yt_dlp.utils._jsruntime import DenoJsRuntime

from configs.load import UserError, operational
from ingest.fetch.fetcher import FetchConfig, Fetcher
from ingest.fetch.runtime import find_deno, write_launcher
from ingest.fetch.web import Egress, Web, causes
from ingest.license_table import YOUTUBE_MARKS
from ingest.licenses import is_code, suggestion
from ingest.sample import Item, Reason, Refused

log = logging.getLogger(__name__)

VIDEO_EXTRACTORS = ("^youtube$",)  # anchored: a bare name would also match every name that contains it
LIST_EXTRACTORS = (
    "^youtube$",
    "^youtube:tab$",
    "^youtube:playlist$",
    "^youtube:search$",
    "^youtube:search_url$",
)
HOSTS = ("youtube.com", "youtu.be", "youtubei.googleapis.com", "googlevideo.com")
NO_RUNTIME = (
    "source.youtube.cookies_file: of a signed-in session YouTube's media are found with a JavaScript runtime only: expect rows with the"
    " reason `format`, or set source.youtube.js_runtime=deno (the youtube extra); without cookies, what is public comes through"
)  # yt-dlp 2026.10: every client that takes cookies needs a player's script, and the one without (visionos) takes none
BARE_ID = re.compile(r"[A-Za-z0-9_-]{11}")
MAX_DEPTH = 2  # a channel lists its tabs, a tab its videos

SAYINGS = (  # the first that is found in what YouTube or yt-dlp says, from the most specific to the vaguest
    (Reason.BOT_CHECK, r"not a bot|captcha|likely being blocked|unusual traffic|^please sign in"),
    (Reason.RATE_LIMITED, r"\brate.?limited|try again later|too many requests"),
    (
        Reason.AGE,
        r"confirm your age|age.restricted|age.verif|inappropriate (for some users|or offensive)|self-harm topics",
    ),
    (
        Reason.MEMBERS_ONLY,
        r"join this channel|members.only|channel's members|premium members|requires (payment|purchase)",
    ),
    (Reason.GEO, r"in your country|(from|in) your location|in your region|geo.?restrict"),
    (Reason.LIVE, r"live event|premier(e|es|ing)\b|live ?stream|is offline|^offline"),
    (
        Reason.FORMAT,
        r"\bsabr\b|po token|processing this video|being processed|on this (app|device|website)|latest version of youtube"
        r"|on other websites|restricted mode|error code: 15\d",
    ),
    (Reason.PRIVATE, r"private|granted access|registered users|log ?in (details|required)|sign in"),
    (
        Reason.UNSUPPORTED,
        r"drm.protected|unsupported url|no suitable extractor|incomplete youtube id|looks truncated|unviewable",
    ),
    (Reason.FORMAT, r"requested format is not available|no video formats found|only images are available"),
    (
        Reason.REMOVED,
        r"removed|terminated|been deleted|(does|do)(n't| not) exist|no longer available|(not|isn't) available|unavailable",
    ),
)


@dataclass
class YoutubeConfig:
    """How YouTube is asked.

    Files of secrets are named, never quoted: cookies (Netscape format), proxies and PO tokens by line.
    """

    max_results: int = operational(200)  # of each search, channel or playlist; 0 = all
    vouched_channels: dict[str, str] = field(
        default_factory=dict
    )  # channel id (UC…) -> license, your own statement
    cookies_file: str = operational("")
    proxies_file: str = operational(
        ""
    )  # http://[user:password@]host:port; on a private address also in network.allow_private
    po_tokens_file: str = operational("")  # CLIENT.CONTEXT+TOKEN, as in yt-dlp's youtube:po_token
    js_runtime: str = operational(
        ""
    )  # "deno" (the youtube extra) or a path of one: runs YouTube's scripts, sandboxed; "" = none
    extractor_args: list[str] = operational(
        []
    )  # as yt-dlp takes them: "youtube:player_client=visionos;lang=en"
    sleep_requests_s: float = operational(0.75)  # before each request of an extraction
    sleep_s: float = operational(2.0)  # before each download, at least
    max_sleep_s: float = operational(5.0)  # and at most
    rest_s: float = operational(
        600.0
    )  # how long a proxy (or this machine) that met a bot check is left alone

    def __post_init__(self) -> None:
        for name in ("max_results", "sleep_requests_s", "sleep_s", "rest_s"):
            if getattr(self, name) < 0:
                raise UserError(f"source.youtube.{name}={getattr(self, name)}: give 0 or more")
        if self.max_sleep_s < self.sleep_s:
            raise UserError(
                f"source.youtube.max_sleep_s={self.max_sleep_s}: give sleep_s={self.sleep_s} or more"
            )
        for channel, license in self.vouched_channels.items():
            if not re.fullmatch(r"UC[\w-]{22}", channel):
                raise UserError(
                    f"source.youtube.vouched_channels: {channel!r} is no channel id (UC…, 24 letters); a handle can change hands"
                )
            if not is_code(license) or license == "unknown":
                raise UserError(
                    f"source.youtube.vouched_channels.{channel}={license}: no license code{suggestion(license)}"
                )
        parse_extractor_args(self.extractor_args)


def parse_extractor_args(texts: list[str]) -> dict[str, dict[str, list[str]]]:
    """yt-dlp's `IE_KEY:name=value,value;name=value` texts as its API takes them.

    `UserError` for another form, or a secret.
    """
    parsed: dict[str, dict[str, list[str]]] = {}
    for text in texts:
        key, colon, rest = text.partition(":")
        settings = [one.partition("=") for one in rest.split(";")]
        if not (colon and key.strip() and all(name.strip() for name, _, _ in settings)):
            raise UserError("source.youtube.extractor_args: write youtube:name=value,value;name=value")
        for name, _, values in settings:
            name = name.strip().lower().replace("-", "_")
            if name == "po_token":
                raise UserError(
                    "source.youtube.extractor_args: a PO token is a secret; put it into a file and name that as po_tokens_file"
                )
            parsed.setdefault(key.strip().lower(), {})[name] = [
                one.replace("\\,", ",").strip() for one in re.split(r"(?<!\\),", values)
            ]
    return parsed


def secrets_of(config: YoutubeConfig) -> tuple[list[str], list[str]]:
    """(proxies, PO tokens) from their files.

    `UserError` for a file that cannot be used, which never quotes from it.
    """
    proxies = _lines(config.proxies_file, "proxies_file")
    for number, proxy in enumerate(proxies, 1):
        if not _is_proxy(proxy):
            raise UserError(
                f"source.youtube.proxies_file={config.proxies_file}: line {number} is not http://[user:password@]host:port"
            )
    if config.cookies_file:
        for number, line in enumerate(_lines(config.cookies_file, "cookies_file", comments=("# ", "#\n")), 1):
            fields = line.removeprefix("#HttpOnly_").split("\t")
            if not line.startswith("#\t") and (
                len(fields) not in (6, 7) or not re.fullmatch(r"[0-9.]*", fields[4])
            ):
                raise UserError(
                    f"source.youtube.cookies_file={config.cookies_file}: entry {number} is not in Netscape's cookie format"
                )
    tokens = _lines(config.po_tokens_file, "po_tokens_file")
    for number, token in enumerate(tokens, 1):
        if not re.fullmatch(
            r"\w+\.(gvs|player|subs)\+([\w%-]{4})+", token.replace("=", "_").replace("%3D", "_")
        ):
            raise UserError(
                f"source.youtube.po_tokens_file={config.po_tokens_file}: line {number} is not CLIENT.CONTEXT+TOKEN"
            )
    return proxies, tokens


def _lines(path: str, name: str, comments: tuple[str, ...] = ("#",)) -> list[str]:
    try:
        text = Path(path).read_text(encoding="utf-8") if path else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"source.youtube.{name}={path}: cannot be read: {type(error).__name__}") from None
    return [
        line.strip()
        for line in text.splitlines()
        if line.strip() and not f"{line.strip()}\n".startswith(comments)
    ]


def _is_proxy(text: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(text)
        return parts.scheme == "http" and bool(parts.hostname and parts.port) and parts.path in ("", "/")
    except ValueError:
        return False


def prepare_runtime(js_runtime: str, folder: Path) -> str:
    """Writes the launcher of `source.youtube.js_runtime` into `folder`, and tries it. Returns its path, ""
    without a runtime.

    `UserError` where yt-dlp could not use it.
    """
    if not js_runtime:
        return ""
    try:
        launcher = write_launcher(find_deno(js_runtime), folder)
    except OSError as error:
        raise _unusable(
            js_runtime, f"{error}; install the youtube extra (deno, yt-dlp-ejs), or give the path of a deno"
        ) from None
    deno = DenoJsRuntime(path=str(launcher)).info
    oldest = ".".join(map(str, DenoJsRuntime.MIN_SUPPORTED_VERSION))
    if not deno or not deno.version[:1].isdigit():
        raise _unusable(
            js_runtime,
            f"does not run here as deno; give the binary of deno {oldest} or newer, not a script that starts it",
        )
    if not deno.supported:
        raise _unusable(js_runtime, f"deno {deno.version} is too old; yt-dlp needs {oldest} or newer")
    if not yt_dlp_ejs or yt_dlp_ejs.version.split(".")[:2] != EJS_VERSION.split(".")[:2]:
        found = f"yt-dlp-ejs {yt_dlp_ejs.version}" if yt_dlp_ejs else "no yt-dlp-ejs"
        raise _unusable(js_runtime, f"{found} is installed; this yt-dlp needs yt-dlp-ejs=={EJS_VERSION}")
    return str(launcher)


def _unusable(js_runtime: str, why: str) -> UserError:
    return UserError(f"source.youtube.js_runtime={js_runtime}: {why}")


def egress(config: YoutubeConfig, listing: bool, launcher: str = "") -> Egress:
    """Proxies and yt-dlp's options for YouTube; for listing flat, or for extracting a video. `UserError` as
    `secrets_of`.

    `launcher` is the path of the JavaScript runtime, as `prepare_runtime` gave it.
    """
    proxies, tokens = secrets_of(config)
    arguments = parse_extractor_args(config.extractor_args)
    if tokens:
        arguments.setdefault("youtube", {})["po_token"] = tokens
    options: dict[str, Any] = {
        "extractor_args": arguments,
        "sleep_interval_requests": config.sleep_requests_s,
    }
    options |= {"sleep_interval": config.sleep_s, "max_sleep_interval": config.max_sleep_s}
    if launcher and not listing:
        options["js_runtimes"] = {"deno": {"path": launcher}}
    if listing:
        items = f"1:{config.max_results}" if config.max_results else None
        options |= {"extract_flat": "in_playlist", "noplaylist": False, "playlist_items": items}
    return Egress(tuple(proxies), HOSTS, config.cookies_file, options, config.rest_s)


def redacted(text: str, web: Web) -> str:
    """`text` without the secrets of `web`, should an error ever quote one."""
    words = [
        *web.egress.proxies,
        *(web.egress.options.get("extractor_args", {}).get("youtube", {}).get("po_token") or []),
    ]
    words += [
        part for proxy in web.egress.proxies for part in (urllib.parse.urlsplit(proxy).password,) if part
    ]
    words += (
        [cookie.value for cookie in web.cookiejar if cookie.value and len(cookie.value) > 5]
        if web.egress.cookies_file
        else []
    )
    for word in words:
        text = text.replace(word, "***")
    return text


def targets(path: str) -> list[str]:
    """What `source.path` asks for: itself, or the lines of a file.

    `UserError` names what is no search, channel, playlist or video.
    """
    lines = [path]
    if Path(path).is_file():
        text = Path(path).read_text(encoding="utf-8-sig", errors="replace")
        lines = [
            line.strip() for line in text.split("\n") if line.strip() and not line.strip().startswith("#")
        ]
        lines = [watch_url(line) if BARE_ID.fullmatch(line) else line for line in lines]
    elif "://" not in path and not path.startswith("ytsearch"):
        raise UserError(
            f"source.path={path}: no such file; give a list of YouTube URLs, one URL, or 'ytsearch50:words'"
        )
    for line in lines:
        if not (video_id(line) or _is_listable(line)):
            raise UserError(f"source.path={path}: {line!r} is no YouTube search, channel, playlist or video")
    return lines


def watch_url(id: str) -> str:
    """The page of a video."""
    return f"https://www.youtube.com/watch?v={id}"


def video_id(url: str) -> str:
    """The id of a single video's URL, or ""; `watch?v=…&list=…` is a playlist."""
    if not _is_youtube(url) or not YoutubeIE.suitable(url):
        return ""
    return str(YoutubeIE.get_temp_id(url) or "")


def _is_listable(target: str) -> bool:
    if YoutubeSearchIE.suitable(target):
        return True
    return _is_youtube(target) and any(
        one.suitable(target) for one in (YoutubeTabIE, YoutubePlaylistIE, YoutubeSearchURLIE)
    )


def _is_youtube(url: str) -> bool:
    """yt-dlp's patterns also know mirrors run by others."""
    with contextlib.suppress(ValueError):
        host = (urllib.parse.urlsplit(url).hostname or "").lower()
        return url.startswith(("http://", "https://")) and (
            host in HOSTS[:2] or host.endswith(".youtube.com")
        )
    return False


def enumerate_youtube(path: str, config: YoutubeConfig, network: FetchConfig, spool: Path) -> Iterator[Item]:
    """The videos of every target, each once, in order.

    A list that fails is told in the log; `UserError` where all do.
    """
    wanted = targets(path)
    check_session(config)
    return _found(path, wanted, config, network, spool)


def check_session(config: YoutubeConfig) -> None:
    """`UserError` as `secrets_of` and `prepare_runtime`, and a line where cookies will not do what one
    expects of them.
    """
    secrets_of(config)
    with tempfile.TemporaryDirectory() as folder:
        prepare_runtime(config.js_runtime, Path(folder))
    if config.cookies_file and not config.js_runtime:
        log.warning(NO_RUNTIME)


def _found(
    path: str, wanted: list[str], config: YoutubeConfig, network: FetchConfig, spool: Path
) -> Iterator[Item]:
    seen: set[str] = set()
    failures = []
    with Fetcher(network, spool, youtube=config) as fetcher:
        for target in wanted:
            try:
                found = (
                    [{"id": video_id(target)}]
                    if video_id(target)
                    else fetcher.list_videos(_for_yt_dlp(target, config.max_results))
                )
            except Refused as refusal:
                failures.append(f"{target}: {refusal.reason}: {refusal.detail}")
                log.warning("could not be listed: %s", failures[-1])
                continue
            for video in found:
                if video["id"] not in seen:
                    seen.add(video["id"])
                    yield _item(video, target)
    if failures and len(failures) == len(wanted):
        raise UserError(f"source.path={path}: nothing could be listed: {failures[0]}; try again later")


def _for_yt_dlp(target: str, max_results: int) -> str:
    """The playlist of `watch?v=…&list=…` by its own page;

    `ytsearch:` with a number, without which it means one result.
    """
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(target).query) if _is_youtube(target) else {}
    if "list" in query and not target.startswith("ytsearch"):
        return f"https://www.youtube.com/playlist?list={query['list'][0]}"
    return (
        target.replace("ytsearch:", f"ytsearch{max_results or 'all'}:", 1)
        if target.startswith("ytsearch:")
        else target
    )


def _item(video: dict[str, Any], target: str) -> Item:
    return Item(
        "youtube",
        video["id"],
        watch_url(video["id"]),
        "",
        "",
        video.get("channel_id") or "",
        video.get("title") or "",
        {"found_by": target},
    )


def list_videos(web: Web, target: str, max_results: int) -> Iterator[dict[str, str]]:
    """{"id", "title", "channel_id"} of the videos behind a search, channel or playlist, flat: no video is
    opened.
    """
    info = web.extract_info(target, download=False) or {}
    listed = info if "entries" in info else {"entries": [{**info, "url": info.get("webpage_url")}]}
    yield from islice(_entries(web, listed, MAX_DEPTH), max_results or None)


def _entries(web: Web, info: dict[str, Any], depth: int) -> Iterator[dict[str, str]]:
    """Videos of a playlist; a channel is a playlist of its tabs, which yt-dlp gives with their videos or as
    links.
    """
    for entry in info.get("entries") or []:
        url = str((entry or {}).get("url") or "")
        if video_id(url):
            yield {
                "id": video_id(url),
                "title": str(entry.get("title") or ""),
                "channel_id": str(entry.get("channel_id") or ""),
            }
        elif depth and (entry or {}).get("entries"):
            yield from _entries(web, entry, depth - 1)
        elif depth and _is_listable(url):
            yield from _entries(web, web.extract_info(url, download=False) or {}, depth - 1)


def license_of(info: dict[str, Any], vouched_channels: dict[str, str]) -> str:
    """The video's own mark, else what the operator vouches for its channel; "" where neither says anything:
    that is not free.
    """
    told = str(info.get("license") or "").strip()
    if YOUTUBE_MARKS.get(told) == "CC-BY-3.0":
        return YOUTUBE_MARKS[told]
    return vouched_channels.get(
        str(info.get("channel_id")), YOUTUBE_MARKS.get(told, "unknown") if told else ""
    )


def refusal_of(error: BaseException) -> Refused | None:
    """The reason that YouTube, or yt-dlp on its behalf, gives for `error`, with the true words;

    None for other kinds of error.
    """
    for one in causes(error):
        if isinstance(one, HTTPError) and one.status in (403, 429):
            reason = (
                Reason.RATE_LIMITED if one.status == 429 else Reason.BOT_CHECK
            )  # 403: no video is forbidden, clients are
            return Refused(reason, f"HTTP {one.status} {one.reason or ''}".strip())
        if isinstance(one, HTTPError):
            return None
    chain = list(causes(error))
    if any(isinstance(one, (RequestError, OSError)) for one in chain):
        return None
    for one in chain:
        if isinstance(one, ExtractorError):
            reason = Reason.GEO if isinstance(one, GeoRestrictedError) else reason_of(str(one.orig_msg))
            return Refused(reason, str(one.orig_msg))
    told = next(
        (str(one) for one in chain if isinstance(one, DownloadError)), ""
    )  # keeps the words where it lost the error
    told = re.sub(r"^ERROR: (\[[\w:]+\] )?", "", told).split("; please report this")[0]
    return Refused(reason_of(told), told) if told else None


def reason_of(message: str) -> Reason:
    """The reason in the words of an error.

    What nobody has heard yet is `extractor`: it may pass, so it is not final.
    """
    plain = message.lower().replace("’", "'")
    return next((reason for reason, pattern in SAYINGS if re.search(pattern, plain)), Reason.EXTRACTOR)
