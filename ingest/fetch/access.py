"""How YouTube is reached: settings, the files of secrets that they name, and the routes of requests.

Cookies, proxies and PO tokens are secrets: settings name the files that hold them, so that no setting, log or
record ever holds one, and every machine that fetches needs the files. No error quotes from such a file.

This module imports no yt-dlp: settings are read in every scrape actor, and only the fetch child extracts.
"""

import re
import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.load import UserError, at_least, operational
from ingest.licenses import is_code, suggestion

HOSTS = ("youtube.com", "youtu.be", "youtubei.googleapis.com", "googlevideo.com")

CHANNEL_ID = re.compile(r"UC[\w-]{22}")
PO_TOKEN = re.compile(r"\w+\.(gvs|player|subs)\+([\w%-]{4})+")  # CLIENT.CONTEXT+TOKEN, base64url
UNQUOTED_COMMA = re.compile(r"(?<!\\),")

# a shorter cookie value, such as "1" or "true", is in many messages by chance
MIN_SECRET_COOKIE_LETTERS = 6

ExtractorArgs = dict[str, dict[str, list[str]]]

YtdlpOptions = dict[str, Any]
"""Options of `yt_dlp.YoutubeDL`, by the names of its own API."""


@dataclass(frozen=True)
class Egress:
    """By which routes a source's requests leave, and as whom.

    `proxies` and the cookies of `cookies_file` are secrets.
    """

    proxies: tuple[str, ...] = ()  # http://[user:password@]host:port, an item each in turn
    # all that may be requested through a proxy: the guard sees the connect to the proxy, not the next one
    hosts: tuple[str, ...] = ()
    cookies_file: str = ""  # Netscape format; read once, never written
    options: YtdlpOptions = field(default_factory=dict)
    cooldown_s: float = 0.0  # of a route that met a bot check or a rate limit

    def secrets(self) -> list[str]:
        """Texts that must not be logged: proxies, their passwords, PO tokens."""
        passwords = [urllib.parse.urlsplit(proxy).password for proxy in self.proxies]
        tokens = self.options.get("extractor_args", {}).get("youtube", {}).get("po_token") or []
        return [*self.proxies, *tokens, *filter(None, passwords)]


@dataclass
class YoutubeConfig:
    """How YouTube is used.

    Files of secrets are named, never quoted: cookies (Netscape format), proxies and PO tokens by line.
    """

    max_results: int = operational(200)  # videos of each search, channel or playlist; 0 = all
    # channel id (UC…) -> license, your own statement
    vouched_channels: dict[str, str] = field(default_factory=dict)
    cookies_file: str = operational("")  # a file of cookies (Netscape format)
    # one http://[user:password@]host:port a line; private addresses also in network.allow_private
    proxies_file: str = operational("")
    po_tokens_file: str = operational("")  # one CLIENT.CONTEXT+TOKEN a line, as in yt-dlp's youtube:po_token
    # "deno" (the youtube extra) or a path of one: runs YouTube's scripts, sandboxed; "" = none
    js_runtime: str = operational("")
    # as yt-dlp takes them: "youtube:player_client=visionos;lang=en"
    extractor_args: list[str] = operational([])
    sleep_requests_s: float = operational(0.75)  # wait before each request of an extraction
    sleep_s: float = operational(2.0)  # wait before each download, at least
    max_sleep_s: float = operational(5.0)  # wait before each download, at most
    # cooldown of a proxy (or of this machine) that met a bot check
    rest_s: float = operational(600.0)

    def __post_init__(self) -> None:
        section = "source.youtube."
        at_least(self, 0, "max_results", "sleep_requests_s", "sleep_s", "rest_s", section=section)
        if self.max_sleep_s < self.sleep_s:
            raise UserError(f"{section}max_sleep_s={self.max_sleep_s}: give sleep_s={self.sleep_s} or more")
        for channel, license in self.vouched_channels.items():
            _check_vouched(channel, license)
        parse_extractor_args(self.extractor_args)


def _check_vouched(channel: str, license: str) -> None:
    setting = "source.youtube.vouched_channels"
    if not CHANNEL_ID.fullmatch(channel):
        # a handle (@name) is not accepted: it can be given to someone else
        why = "is no channel id (UC…, 24 letters); a handle can change hands"
        raise UserError(f"{setting}: {channel!r} {why}")
    if not is_code(license) or license == "unknown":
        raise UserError(f"{setting}.{channel}={license}: no license code{suggestion(license)}")


def parse_extractor_args(texts: Iterable[str]) -> ExtractorArgs:
    """yt-dlp's `IE_KEY:name=value,value;name=value` texts as its API takes them.

    `UserError` for another form, or a secret.
    """
    setting = "source.youtube.extractor_args"
    parsed: ExtractorArgs = {}
    for text in texts:
        key, colon, body = text.partition(":")
        pairs = [pair.partition("=") for pair in body.split(";")]
        if not (colon and key.strip() and all(name.strip() for name, _, _ in pairs)):
            raise UserError(f"{setting}: write youtube:name=value,value;name=value")
        extractor = parsed.setdefault(key.strip().lower(), {})
        for name, _, values in pairs:
            name = name.strip().lower().replace("-", "_")
            if name == "po_token":
                advice = "put it into a file and name that as po_tokens_file"
                raise UserError(f"{setting}: a PO token is a secret; {advice}")
            extractor[name] = [value.replace("\\,", ",").strip() for value in UNQUOTED_COMMA.split(values)]
    return parsed


def secrets_of(config: YoutubeConfig) -> tuple[list[str], list[str]]:
    """(proxies, PO tokens) from their files.

    `UserError` for a file that cannot be used, cookies included; it never quotes from the file.
    """
    proxies = _lines(config.proxies_file, "proxies_file")
    for index, proxy in enumerate(proxies, 1):
        if not _is_proxy(proxy):
            why = f"line {index} is not http://[user:password@]host:port"
            raise _unusable("proxies_file", config.proxies_file, why)
    cookies = _lines(config.cookies_file, "cookies_file", comments=("# ", "#\n"))
    for index, cookie in enumerate(cookies, 1):
        if not _is_cookie(cookie):
            why = f"entry {index} is not in Netscape's cookie format"
            raise _unusable("cookies_file", config.cookies_file, why)
    tokens = _lines(config.po_tokens_file, "po_tokens_file")
    for index, token in enumerate(tokens, 1):
        if not PO_TOKEN.fullmatch(token.replace("=", "_").replace("%3D", "_")):
            why = f"line {index} is not CLIENT.CONTEXT+TOKEN"
            raise _unusable("po_tokens_file", config.po_tokens_file, why)
    return proxies, tokens


def _unusable(setting: str, path: str, why: str) -> UserError:
    return UserError(f"source.youtube.{setting}={path}: {why}")


def _lines(path: str, setting: str, comments: tuple[str, ...] = ("#",)) -> list[str]:
    """The lines of a file of secrets that hold something; none where no file is named."""
    if not path:
        return []
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        # its type only: a UnicodeDecodeError's text quotes bytes of the file
        raise _unusable(setting, path, f"cannot be read: {type(error).__name__}") from None
    stripped = [line.strip() for line in text.splitlines()]
    return [line for line in stripped if line and not f"{line}\n".startswith(comments)]


def _is_proxy(text: str) -> bool:
    try:
        proxy = urllib.parse.urlsplit(text)
        return proxy.scheme == "http" and bool(proxy.hostname and proxy.port) and proxy.path in ("", "/")
    except ValueError:
        return False


def _is_cookie(line: str) -> bool:
    """Whether http.cookiejar can read the line: six or seven fields, the fifth a time."""
    if line.startswith("#\t"):
        return True  # a comment, too
    fields = line.removeprefix("#HttpOnly_").split("\t")
    return len(fields) in (6, 7) and bool(re.fullmatch(r"[0-9.]*", fields[4]))


def youtube_egress(config: YoutubeConfig, listing: bool, launcher: str = "") -> Egress:
    """Proxies and yt-dlp's options for YouTube; for listing flat, or for extracting a video.

    `launcher` is the path of the JavaScript runtime, "" without one. `UserError` as `secrets_of`.
    """
    proxies, tokens = secrets_of(config)
    extractor_args = parse_extractor_args(config.extractor_args)
    if tokens:
        extractor_args.setdefault("youtube", {})["po_token"] = tokens
    options: YtdlpOptions = {
        "extractor_args": extractor_args,
        "sleep_interval_requests": config.sleep_requests_s,
        "sleep_interval": config.sleep_s,
        "max_sleep_interval": config.max_sleep_s,
    }
    if listing:
        options["extract_flat"] = "in_playlist"
        options["noplaylist"] = False
        options["playlist_items"] = f"1:{config.max_results}" if config.max_results else None
    elif launcher:  # a list needs no script of a player
        options["js_runtimes"] = {"deno": {"path": launcher}}
    return Egress(tuple(proxies), HOSTS, config.cookies_file, options, config.rest_s)


def redacted(text: str, secrets: Iterable[str]) -> str:
    """`text` without any of `secrets`, should an error ever quote one."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text
