"""YouTube's lists in the driver: from searches, channels, playlists and videos to items.

    source.path=https://www.youtube.com/@channel     a channel, playlist, video or page of search results,
    source.path='ytsearch50:rain in the forest'      a search, or a file with one of these or an id per line

Lists are read flat, by a fetch child (`ingest.fetch.youtube`); a video is extracted later, in the actor that
fetches it. Settings and secrets are `ingest.fetch.access`'s.

Only functions import yt-dlp here, and only the driver calls them: a scrape actor imports this module through
the table of sources, and would otherwise hold 15 MB of extractors that its child has already.
"""

import logging
import re
import tempfile
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

from configs.load import UserError
from ingest.fetch.access import YoutubeConfig, secrets_of
from ingest.fetch.fetcher import Fetcher
from ingest.fetch.settings import FetchConfig
from ingest.sample import Item, Refused

log = logging.getLogger(__name__)

BARE_ID = re.compile(r"[A-Za-z0-9_-]{11}")

# yt-dlp 2026.10: every client that takes cookies needs a player's script, and the one that needs none
# (visionos) takes no cookies
NO_RUNTIME = (
    "source.youtube.cookies_file: of a signed-in session YouTube's media are found with a JavaScript runtime"
    " only: expect rows with the reason `format`, or set source.youtube.js_runtime=deno (the youtube extra);"
    " without cookies, what is public comes through"
)


def enumerate_youtube(path: str, config: YoutubeConfig, network: FetchConfig, spool: Path) -> Iterator[Item]:
    """The videos of every target, each once, in order.

    Logs a list that fails; `UserError` if all fail, and at once for a target or a secret that cannot be used.
    """
    listed = targets(path)
    check_session(config)
    return _items(path, listed, config, network, spool)


def check_session(config: YoutubeConfig) -> None:
    """`UserError` for secrets or a runtime that cannot be used; warns where cookies will bring no media."""
    secrets_of(config)
    if config.js_runtime:
        from ingest.fetch.youtube import prepare_runtime

        with tempfile.TemporaryDirectory() as folder:
            prepare_runtime(config, Path(folder))
    elif config.cookies_file:
        log.warning(NO_RUNTIME)


def _items(
    path: str, listed: list[str], config: YoutubeConfig, network: FetchConfig, spool: Path
) -> Iterator[Item]:
    seen: set[str] = set()  # a video may be in several of the lists
    failures = []
    with Fetcher(network, spool, sites={"youtube": config}) as fetcher:
        for target in listed:
            try:
                videos = _videos(fetcher, target, config)
            except Refused as refusal:
                failures.append(f"{target}: {refusal.reason}: {refusal.detail}")
                log.warning("could not be listed: %s", failures[-1])
                continue
            for video in videos:
                if video["id"] not in seen:
                    seen.add(video["id"])
                    yield _item(video, target)
    if failures and len(failures) == len(listed):
        raise UserError(f"source.path={path}: nothing could be listed: {failures[0]}; try again later")


def _videos(fetcher: Fetcher, target: str, config: YoutubeConfig) -> list[dict[str, str]]:
    id = video_id(target)
    if id:
        return [{"id": id}]
    return fetcher.list_site("youtube", _for_yt_dlp(target, config.max_results))


def _for_yt_dlp(target: str, max_results: int) -> str:
    """The target as yt-dlp lists all of it."""
    if target.startswith("ytsearch:"):  # without a number it means one result
        return target.replace("ytsearch:", f"ytsearch{max_results or 'all'}:", 1)
    if _is_youtube(target):
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(target).query)
        if "list" in query:  # of watch?v=…&list=…, yt-dlp would take the video
            return f"https://www.youtube.com/playlist?list={query['list'][0]}"
    return target


def _item(video: dict[str, str], target: str) -> Item:
    return Item(
        source="youtube",
        id=video["id"],
        url=watch_url(video["id"]),
        sound_url="",
        license="",  # the fetch reads it from the video
        channel=video.get("channel_id") or "",
        title=video.get("title") or "",
        meta={"found_by": target},
    )


def targets(path: str) -> list[str]:
    """What `source.path` names: itself, or the lines of a file.

    `UserError` names what is no search, channel, playlist or video.
    """
    lines = [path]
    if Path(path).is_file():
        lines = _lines(Path(path))
    elif "://" not in path and not path.startswith("ytsearch"):
        advice = "give a list of YouTube URLs, one URL, or 'ytsearch50:words'"
        raise UserError(f"source.path={path}: no such file; {advice}")
    # all of them before the first is listed: a typo in the last line should not cost the others' time
    for line in lines:
        if not (video_id(line) or _is_listable(line)):
            raise UserError(f"source.path={path}: {line!r} is no YouTube search, channel, playlist or video")
    return lines


def _lines(path: Path) -> list[str]:
    """A file's targets; bare ids become URLs."""
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    stripped = [line.strip() for line in text.split("\n")]
    lines = [line for line in stripped if line and not line.startswith("#")]
    return [watch_url(line) if BARE_ID.fullmatch(line) else line for line in lines]


def watch_url(id: str) -> str:
    """The page of a video."""
    return f"https://www.youtube.com/watch?v={id}"


def video_id(url: str) -> str:
    """The id of a single video's URL, or ""; `watch?v=…&list=…` is a playlist."""
    from ingest.fetch import youtube

    return youtube.video_id(url)


def _is_listable(target: str) -> bool:
    from ingest.fetch import youtube

    return youtube.is_listable(target)


def _is_youtube(url: str) -> bool:
    from ingest.fetch import youtube

    return youtube.is_youtube(url)
