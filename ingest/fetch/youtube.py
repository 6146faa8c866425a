"""YouTube in the fetch child: extractors, what a list holds, licenses, and what errors mean.

Settings and secrets are `ingest.fetch.access`'s, the driver's side is `ingest.sources.youtube`. A video is
extracted once, by `ingest.fetch.process`, which knows this module through its table `SITES`. A JavaScript
runtime is started by option only (`js_runtime`), in the sandbox of `ingest.fetch.runtime`.
"""

import contextlib
import re
import urllib.parse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

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

from configs.load import UserError
from ingest.fetch.access import YoutubeConfig
from ingest.fetch.messages import Description
from ingest.fetch.retries import causes
from ingest.fetch.runtime import find_deno, write_launcher
from ingest.fetch.web import Info, Web
from ingest.license_table import YOUTUBE_MARKS
from ingest.sample import Reason, Refused

# anchored: a bare name would also match every name that contains it
VIDEO_EXTRACTORS = ("^youtube$",)
LIST_EXTRACTORS = (
    "^youtube$",
    "^youtube:tab$",
    "^youtube:playlist$",
    "^youtube:search$",
    "^youtube:search_url$",
)
SITE_HOSTS = ("youtube.com", "youtu.be")
MAX_DEPTH = 2  # a channel lists its tabs, a tab its videos

# The first pattern that matches what YouTube or yt-dlp wrote decides: from the most specific to the vaguest,
# as most messages of the upper kinds also match patterns of the lower ones ("private", "not available").
MESSAGES = (
    (Reason.BOT_CHECK, r"not a bot|captcha|likely being blocked|unusual traffic|^please sign in"),
    (Reason.RATE_LIMITED, r"\brate.?limited|try again later|too many requests"),
    (
        Reason.AGE,
        r"confirm your age|age.restricted|age.verif|inappropriate (for some users|or offensive)"
        r"|self-harm topics",
    ),
    (
        Reason.MEMBERS_ONLY,
        r"join this channel|members.only|channel's members|premium members|requires (payment|purchase)",
    ),
    (Reason.GEO, r"in your country|(from|in) your location|in your region|geo.?restrict"),
    (Reason.LIVE, r"live event|premier(e|es|ing)\b|live ?stream|is offline|^offline"),
    (
        Reason.FORMAT,
        r"\bsabr\b|po token|processing this video|being processed|on this (app|device|website)"
        r"|latest version of youtube|on other websites|restricted mode|error code: 15\d",
    ),
    (Reason.PRIVATE, r"private|granted access|registered users|log ?in (details|required)|sign in"),
    (
        Reason.UNSUPPORTED,
        r"drm.protected|unsupported url|no suitable extractor|incomplete youtube id|looks truncated"
        r"|unviewable",
    ),
    (Reason.FORMAT, r"requested format is not available|no video formats found|only images are available"),
    (
        Reason.REMOVED,
        r"removed|terminated|been deleted|(does|do)(n't| not) exist|no longer available"
        r"|(not|isn't) available|unavailable",
    ),
)


# What a URL is


def video_id(url: str) -> str:
    """The id of a single video's URL, or ""; `watch?v=…&list=…` is a playlist."""
    if not is_youtube(url) or not YoutubeIE.suitable(url):
        return ""
    return str(YoutubeIE.get_temp_id(url) or "")


def is_listable(target: str) -> bool:
    """Whether it is a search, a channel or a playlist."""
    if YoutubeSearchIE.suitable(target):
        return True
    extractors = (YoutubeTabIE, YoutubePlaylistIE, YoutubeSearchURLIE)
    return is_youtube(target) and any(extractor.suitable(target) for extractor in extractors)


def is_youtube(url: str) -> bool:
    """By its host: yt-dlp's patterns also match mirrors run by others."""
    if not url.startswith(("http://", "https://")):
        return False
    with contextlib.suppress(ValueError):
        host = (urllib.parse.urlsplit(url).hostname or "").lower()
        return host in SITE_HOSTS or host.endswith(".youtube.com")
    return False


# Lists


def list_videos(web: Web, target: str, config: YoutubeConfig) -> Iterator[dict[str, str]]:
    """{"id", "title", "channel_id"} of the videos behind a search, channel or playlist.

    The list is read flat: opening each video would cost a request, and the fetch makes that one anyway.
    """
    info = web.extract_info(target, download=False) or {}
    if "entries" not in info:  # a single video
        info = {"entries": [{**info, "url": info.get("webpage_url")}]}
    yield from islice(_videos(web, info, MAX_DEPTH), config.max_results or None)


def _videos(web: Web, info: Info, depth: int) -> Iterator[dict[str, str]]:
    """Videos of a playlist.

    A channel is a playlist of its tabs, which yt-dlp gives with their videos or as links.
    """
    for entry in info.get("entries") or []:
        if not entry:  # a video that was removed since
            continue
        url = str(entry.get("url") or "")
        id = video_id(url)
        if id:
            title = str(entry.get("title") or "")
            yield {"id": id, "title": title, "channel_id": str(entry.get("channel_id") or "")}
        elif depth and entry.get("entries"):
            yield from _videos(web, entry, depth - 1)
        elif depth and is_listable(url):
            yield from _videos(web, web.extract_info(url, download=False) or {}, depth - 1)


# Videos


def license_of(info: Info, config: YoutubeConfig) -> str:
    """The video's own mark, else what the operator vouches for its channel.

    "" where neither says anything: the standard YouTube license is not free.
    """
    stated = str(info.get("license") or "").strip()
    mark = YOUTUBE_MARKS.get(stated, "unknown") if stated else ""
    if mark == "CC-BY-3.0":
        return mark
    return config.vouched_channels.get(str(info.get("channel_id")), mark)


def describe(info: Info) -> Description:
    """title, channel and meta of a video, as they enter its row: a channel by its id, which stays."""
    author = info.get("channel") or info.get("uploader") or ""
    return {
        "title": info.get("title") or "",
        "channel": info.get("channel_id") or author,
        "meta": {"author": author, "license_stated": info.get("license") or ""},
    }


# Errors


def refusal_of(error: BaseException) -> Refused | None:
    """The reason that YouTube, or yt-dlp on its behalf, gives for `error`, with its message.

    None for other kinds of error.
    """
    chain = list(causes(error))
    for cause in chain:
        if isinstance(cause, HTTPError):
            return _refusal_of_status(cause)
    if any(isinstance(cause, (RequestError, OSError)) for cause in chain):
        return None
    for cause in chain:
        if isinstance(cause, ExtractorError):
            message = str(cause.orig_msg)
            reason = Reason.GEO if isinstance(cause, GeoRestrictedError) else reason_of(message)
            return Refused(reason, message)
    for cause in chain:
        if isinstance(cause, DownloadError):  # it keeps the message where it lost the error
            message = re.sub(r"^ERROR: (\[[\w:]+\] )?", "", str(cause)).split("; please report this")[0]
            return Refused(reason_of(message), message) if message else None
    return None


def _refusal_of_status(error: HTTPError) -> Refused | None:
    detail = f"HTTP {error.status} {error.reason or ''}".strip()
    if error.status == 429:
        return Refused(Reason.RATE_LIMITED, detail)
    if error.status == 403:  # YouTube forbids clients, never a video
        return Refused(Reason.BOT_CHECK, detail)
    return None


def reason_of(message: str) -> Reason:
    """The reason that an error's message states.

    A message that no pattern knows is `extractor`: it may pass with a newer yt-dlp, so it is not final.
    """
    plain = message.lower().replace("’", "'")
    return next((reason for reason, pattern in MESSAGES if re.search(pattern, plain)), Reason.EXTRACTOR)


# The JavaScript runtime


def prepare_runtime(config: YoutubeConfig, folder: Path) -> str:
    """Writes the launcher of `source.youtube.js_runtime` into `folder`, and tries it.

    Returns its path, "" without a runtime. `UserError` where yt-dlp could not use it.
    """
    js_runtime = config.js_runtime
    if not js_runtime:
        return ""
    try:
        launcher = write_launcher(find_deno(js_runtime), folder)
    except OSError as error:
        advice = "install the youtube extra (deno, yt-dlp-ejs), or give the path of a deno"
        raise _unusable(js_runtime, f"{error}; {advice}") from None
    deno = DenoJsRuntime(path=str(launcher)).info
    oldest = ".".join(map(str, DenoJsRuntime.MIN_SUPPORTED_VERSION))
    if not deno or not deno.version[:1].isdigit():
        advice = f"give the binary of deno {oldest} or newer, not a script that starts it"
        raise _unusable(js_runtime, f"does not run here as deno; {advice}")
    if not deno.supported:
        raise _unusable(js_runtime, f"deno {deno.version} is too old; yt-dlp needs {oldest} or newer")
    # yt-dlp takes a yt-dlp-ejs of the same major and minor version only
    if not yt_dlp_ejs or yt_dlp_ejs.version.split(".")[:2] != EJS_VERSION.split(".")[:2]:
        installed = f"yt-dlp-ejs {yt_dlp_ejs.version}" if yt_dlp_ejs else "no yt-dlp-ejs"
        raise _unusable(js_runtime, f"{installed} is installed; this yt-dlp needs yt-dlp-ejs=={EJS_VERSION}")
    return str(launcher)


def _unusable(js_runtime: str, why: str) -> UserError:
    return UserError(f"source.youtube.js_runtime={js_runtime}: {why}")
