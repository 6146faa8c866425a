"""The network client of the fetch child: yt-dlp's engine, every request metered, paced, retried, checked.

`Web(config, extractors)` is a `YoutubeDL` whose `urlopen` sends every request: of extractors, of the native
HLS and DASH downloaders and of our own. It owns all retrying of requests (yt-dlp's downloaders only resume a
body that was cut), and asks `ingest.rights.permission` before each. `begin` starts an item.

Covered: http and https only, bounded decompression, no cookies kept from item to item, no proxies but those
of an `Egress`. Rates are per host and process; cooldowns outlive the process (`ingest.fetch.retries`).
Not covered: addresses. `ingest.fetch.guard` sees every connect.
"""

import contextlib
import http.client
import io
import os
import time
import urllib.parse
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from yt_dlp import YoutubeDL
from yt_dlp.networking import Request, Response
from yt_dlp.networking.exceptions import HTTPError, TransportError
from yt_dlp.utils import DownloadError

from ingest.fetch.access import MIN_SECRET_COOKIE_LETTERS, Egress, YtdlpOptions
from ingest.fetch.answers import Metered, content_length, is_part, range_of, states_whole
from ingest.fetch.guard import Abort, url_refusal
from ingest.fetch.hops import GuardedRH
from ingest.fetch.pacing import TokenBucket
from ingest.fetch.retries import (
    MAX_COOLDOWN_S,
    Cooldowns,
    causes,
    retry_after_s,
    route_name,
    status_reason,
    transport_reason,
)
from ingest.fetch.settings import FetchConfig
from ingest.fetch.sniff import HEAD_BYTES, MANIFESTS, is_text, media_type, text_type
from ingest.rights.permission import Answer, Permission
from ingest.rights.robots import MAX_BYTES as MAX_ROBOTS_BYTES
from ingest.rights.robots import agent_name
from ingest.rights.usage import AGENT
from ingest.sample import Reason

Info = dict[str, Any]
"""yt-dlp's info dict, of a video, a page or a list: open, and any field may be missing."""

BLOCK_BYTES = 65536
BACKOFF_S = 0.5  # before the first retry; doubled for each one after
PLAIN = {"Accept-Encoding": "identity"}  # a Content-Length then counts what arrives


@dataclass(frozen=True)
class Landing:
    """What the item's URL leads to, by its bytes.

    `body` is None for a media file, of which only the head has been read.
    """

    url: str
    content_type: str
    body: bytes | None
    charset: str


@dataclass
class ItemBudget:
    """What one item has used so far, and what was learnt meanwhile; replaced by the next item's."""

    proxy: str = ""  # "" is the direct route
    num_bytes: int = 0
    waited_s: float = 0.0
    pages: dict[str, Landing] = field(default_factory=dict)  # by URL: no text is requested twice
    manifests: dict[str, str] = field(default_factory=dict)  # URL -> text
    cut: str = ""  # how a body ended early, which yt-dlp's downloaders forget
    refused_by_cooldown: bool = False  # by ours, not by the site

    def spend(self, num_bytes: int, max_bytes: int) -> None:
        """Counts bytes that arrived. `Abort` (too_large) past the item's cap."""
        self.num_bytes += num_bytes
        if self.num_bytes > max_bytes:
            raise Abort(Reason.TOO_LARGE, f"more than {max_bytes} bytes")


class Web(YoutubeDL):  # type: ignore[misc]  # yt-dlp has no types: its classes are Any to mypy
    """yt-dlp as one network client; see the module's text.

    Failures of the world raise `Abort`, or yt-dlp's own errors.
    """

    def __init__(
        self,
        config: FetchConfig,
        extractors: tuple[str, ...],
        egress: Egress | None = None,
        cooldowns: Cooldowns | None = None,
    ):
        self.config = config
        self.egress = egress or Egress()
        self.cooldowns = cooldowns or Cooldowns()
        self.permission = Permission(self._fetch_statement, (AGENT, agent_name(config.user_agent)))
        self.budget = ItemBudget()
        self.looks_only = False  # the item is checked without the bodies of its media
        self._turn = os.getpid()  # so that not all workers start with the same proxy
        self._buckets: dict[str, TokenBucket] = {}
        self._downloading = False
        super().__init__({**_parameters(config, extractors), **self.egress.options})
        if self.egress.cookies_file:
            self.cookiejar.load(self.egress.cookies_file)

    @cached_property
    def _request_director(self) -> Any:
        def handler(**settings: Any) -> GuardedRH:
            return GuardedRH(self.proxy_refusal, self._before_hop, **settings)

        return self.build_request_director([handler], [])

    # An item

    def begin(self) -> None:
        """Forgets the item before: its bytes, waits, pages and cookies (a session of the operator's stays).

        `Abort`: all routes are cooling down.
        """
        self.budget = ItemBudget()
        if not self.egress.cookies_file:
            self.cookiejar.clear()
        self.budget.proxy = self._next_route()

    def _next_route(self) -> str:
        """The next proxy in turn that is not cooling down; without proxies "", the direct route."""
        routes = self.egress.proxies or ("",)
        remaining_s = dict.fromkeys(routes, 0.0)
        if self.egress.cooldown_s:
            remaining_s = {route: self.cooldowns.remaining_s(route_name(route)) for route in routes}
        free = [route for route in routes if remaining_s[route] <= 0]
        if not free:
            self.budget.refused_by_cooldown = True
            shortest_s = min(remaining_s.values())
            detail = f"every route cools down after a bot check or a rate limit, {shortest_s:.0f} s more"
            raise Abort(Reason.BOT_CHECK, detail)
        self._turn += 1
        return free[self._turn % len(free)]

    def cool_down(self) -> None:
        """Cools this item's route down: more requests would only prolong a block.

        A running cooldown is never extended.
        """
        if not self.budget.refused_by_cooldown:
            self.cooldowns.add(route_name(self.budget.proxy), self.egress.cooldown_s)

    def secrets(self) -> list[str]:
        """Texts that must not be logged, such as the values of the operator's cookies."""
        if not self.egress.cookies_file:
            return self.egress.secrets()
        values = [cookie.value or "" for cookie in self.cookiejar]
        return [
            *self.egress.secrets(),
            *(value for value in values if len(value) >= MIN_SECRET_COOKIE_LETTERS),
        ]

    def land(self, url: str) -> Landing:
        """Opens the item's URL. A text (page, manifest) is read and kept.

        yt-dlp's own look at it then sends no second request.
        """
        response = self.urlopen(Request(url, headers=PLAIN))
        assert isinstance(response, Metered), "no page is kept before the item's own"
        stated = response.headers.get_content_type() if response.headers.get("Content-Type") else ""
        charset = _charset(response)
        head = response.peek(HEAD_BYTES)
        content_type = media_type(head) or ("" if is_text(head) else stated or "application/octet-stream")
        is_medium = bool(content_type) or (not head and _is_media(stated))
        body = None if is_medium else response.read()
        content_type = content_type or text_type(head, stated)
        response.close()
        landing = Landing(response.url, content_type, body, charset)
        if body is not None:
            self.budget.pages.update({url: landing, response.url: landing})
        return landing

    def look(self, url: str) -> None:
        """Requests a medium as a download would, and reads nothing of its body."""
        self.urlopen(Request(url, headers=PLAIN)).close()

    def download(self, path: str, info: Info) -> bool:
        """Downloads the format that `info` (yt-dlp's) describes into `path`; False: it did not finish."""
        self._downloading = True
        try:
            done, _ = self.dl(path, info)
        except DownloadError as error:
            if self.budget.cut:
                raise Abort(Reason.NETWORK, self.budget.cut) from error
            raise
        finally:
            self._downloading = False
        return bool(done)

    # A request

    def urlopen(self, req: Request | str) -> Response:
        request = Request(req) if isinstance(req, str) else req
        page = self.budget.pages.get(request.url)
        if page and page.body is not None and request.method == "GET":
            return _response_of(page)
        why = url_refusal(request.url)
        if why:
            raise Abort(Reason.ADDRESS, why)
        if self.budget.proxy:
            request.proxies = {"all": self.budget.proxy}
        try:
            response = self._part_or_whole(request)
        except HTTPError as error:
            if self._downloading:  # yt-dlp's downloaders would retry, which is done already
                detail = f"HTTP {error.status} {error.reason or ''}".strip()
                raise Abort(status_reason(error.status), detail) from error
            raise
        self.permission.check_response(response.url, response.headers)
        announced = content_length(response)
        if self.budget.num_bytes + announced > self.config.max_bytes:
            detail = f"{announced} bytes announced, {self.config.max_bytes} allowed in all"
            raise Abort(Reason.TOO_LARGE, detail)
        metered = Metered(response, self)
        requested = range_of(request)
        if requested and requested[1] is not None and response.status == 200:
            metered.cut_out(requested[0], requested[1])
        return metered

    def _part_or_whole(self, request: Request) -> Response:
        """The part that a request asks for.

        The whole where a server refuses that, sends another or does not say which it is.
        """
        requested = range_of(request)
        try:
            response = self._answer(request)
            if response.status != 206 or is_part(response, requested) or states_whole(response):
                return response
            response.close()
        except HTTPError as error:
            if error.status != 416 or not requested:  # 416: range not satisfiable (RFC 9110, 15.5.17)
                raise
            error.close()
        unranged = request.copy()
        unranged.headers.pop("Range", None)
        response = self._answer(unranged)
        if response.status == 206 and not is_part(response, None):
            raise Abort(Reason.NETWORK, "a part came (HTTP 206) although the whole was requested")
        return response

    def _answer(self, request: Request) -> Response:
        """The first answer that is no transient failure.

        429 and 503 with a short Retry-After are waited for.
        """
        for attempt in range(self.config.retries + 1):
            is_last = attempt == self.config.retries
            backoff_s = BACKOFF_S * 2**attempt
            try:
                return super().urlopen(request)
            except HTTPError as error:
                if error.status != 429 and error.status < 500:
                    raise
                error.close()
                self._wait_or_abort(error, is_last, backoff_s)
            except TransportError as error:
                if is_last:
                    raise Abort(*transport_reason(error)) from error
                time.sleep(backoff_s)
        raise AssertionError("the last attempt returns or raises")

    def _wait_or_abort(self, error: HTTPError, is_last: bool, backoff_s: float) -> None:
        requested_s = retry_after_s(error.response.headers.get("Retry-After"), time.time())
        wait_s = backoff_s if requested_s is None else requested_s
        # a 429 without a Retry-After does not say that half a second would do
        is_vague = error.status == 429 and requested_s is None
        if is_last or is_vague or self.budget.waited_s + wait_s > self.config.max_wait_s:
            reason = Reason.RATE_LIMITED if error.status == 429 else Reason.SERVER_ERROR
            retry_after = f", Retry-After {requested_s:.0f} s" if requested_s is not None else ""
            self.cooldowns.add(
                self._route_and_host(error.response.url), min(requested_s or 0.0, MAX_COOLDOWN_S)
            )
            raise Abort(reason, f"HTTP {error.status}{retry_after}")
        self.budget.waited_s += wait_s
        time.sleep(wait_s)

    def _fetch_statement(self, url: str) -> Answer:
        """A site's statement (robots.txt and its like): its status and first bytes.

        `Abort` on a transient failure.
        """
        proxies = {"all": self.budget.proxy} if self.budget.proxy else None
        request = Request(url, headers=PLAIN, proxies=proxies)
        data = b""
        try:
            with contextlib.closing(self._answer(request)) as response:
                while len(data) <= MAX_ROBOTS_BYTES and (block := response.read(BLOCK_BYTES)):
                    data += block
                    self._pace_bytes(url, len(block))
        except HTTPError as error:
            error.close()
            return Answer(error.status)
        except Abort as error:
            if self._is_own_server_without_statements(url, error):
                return Answer(404)
            raise
        except TransportError as error:
            raise Abort(*transport_reason(error)) from error
        announced = content_length(response)
        if len(data) < min(announced, MAX_ROBOTS_BYTES):
            raise Abort(Reason.NETWORK, f"the connection was cut after {len(data)} of {announced} bytes")
        return Answer(response.status, data)

    def _is_own_server_without_statements(self, url: str, error: Abort) -> bool:
        """Whether a server of `allow_private` hung up without an answer.

        It is the operator's: simple ones know no robots.txt.
        """
        hung_up = any(isinstance(cause, http.client.RemoteDisconnected) for cause in causes(error))
        return hung_up and self._is_own_server(url)

    # Before each request that leaves

    def proxy_refusal(self, url: str) -> str | None:
        """Why `url` may not be requested through a proxy, or None.

        Only named hosts, and the operator's own servers.
        """
        host = (urllib.parse.urlsplit(url).hostname or "").lower()
        is_named = any(host == name or host.endswith(f".{name}") for name in self.egress.hosts)
        if is_named or self._is_own_server(url):
            return None
        return f"{host} is not requested through a proxy"

    def _before_hop(self, url: str) -> None:
        """Before every request that leaves, those of redirects included."""
        self.permission.check_url(url)
        self._wait_for_cooldown(url)
        self._pace_request(url)

    def _wait_for_cooldown(self, url: str) -> None:
        """A host that made an earlier item wait gets its time.

        Here where it is short, else by an item that is retried later.
        """
        remaining_s = self.cooldowns.remaining_s(self._route_and_host(url))
        if self.budget.waited_s + remaining_s > self.config.max_wait_s:
            self.budget.refused_by_cooldown = True
            raise Abort(Reason.RATE_LIMITED, f"the host cools down for {remaining_s:.0f} s more")
        self.budget.waited_s += remaining_s
        time.sleep(remaining_s)

    def _pace_request(self, url: str) -> None:
        """Waits until the host may get one more request."""
        self._pace("requests", url, 1, self.config.requests_per_s, self.config.burst_requests)

    def _pace_bytes(self, url: str, num_bytes: int) -> None:
        """Waits until the host may send more."""
        self._pace("bytes", url, num_bytes, self.config.bytes_per_s, self.config.bytes_per_s)

    def _pace(self, unit: str, url: str, amount: float, rate: float, capacity: float) -> None:
        if rate <= 0 or self._is_own_server(url):
            return
        name = f"{unit} {self._route_and_host(url)}"
        bucket = self._buckets.setdefault(name, TokenBucket(rate, capacity))
        time.sleep(bucket.take(amount))

    def _route_and_host(self, url: str) -> str:
        return f"{route_name(self.budget.proxy)} {_host_and_port(url)}"

    def _is_own_server(self, url: str) -> bool:
        return urllib.parse.urlsplit(url).netloc.lower() in self.config.allow_private

    # What an answer reports while it is read (`ingest.fetch.answers.Meter`)

    def spend(self, num_bytes: int, url: str) -> None:
        """Counts bytes that arrived, and waits until its host may send more."""
        self.budget.spend(num_bytes, self.config.max_bytes)
        self._pace_bytes(url, num_bytes)

    @property
    def max_text_bytes(self) -> int:
        return self.config.max_text_bytes

    def keep_text(self, url: str, data: bytes) -> None:
        """Keeps this item's manifests: yt-dlp's reading of them leaves out which sound is the main one."""
        if text_type(data[:HEAD_BYTES], "") in MANIFESTS:
            self.budget.manifests[url] = data.decode("utf-8", "replace")

    def cut_at(self, num_bytes: int, why: str) -> None:
        """Notes that a body ended early; it may still be resumed."""
        self.budget.cut = f"the connection was cut after {num_bytes} bytes: {why}"


def _response_of(page: Landing) -> Response:
    """A page that was read before, as if requested anew."""
    headers = {}
    if page.content_type:
        headers["Content-Type"] = f"{page.content_type}; charset={page.charset}"
    return Response(io.BytesIO(page.body or b""), page.url, headers)


def _host_and_port(url: str) -> str:
    """One name for a host, however it is written."""
    address = urllib.parse.urlsplit(url)
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
    except ValueError:  # not a port: no connect will follow
        return address.netloc
    # a name may end in the root's dot, and is the same host with and without it
    return f"{(address.hostname or '').rstrip('.')}:{port}"


def _charset(response: Response) -> str:
    try:
        return str(response.headers.get_content_charset("utf-8"))
    except TypeError:  # pieces of a parameter, numbered in a form that the email package cannot sort
        return "utf-8"


def _is_media(content_type: str) -> bool:
    """For an answer without a body, which has no bytes to judge by."""
    is_named = content_type in ("application/ogg", "application/octet-stream")
    return is_named or content_type.startswith(("video/", "audio/", "image/"))


class _Silent:
    def debug(self, message: str) -> None: ...

    def warning(self, message: str) -> None: ...

    def error(self, message: str) -> None: ...


def _parameters(config: FetchConfig, extractors: tuple[str, ...]) -> YtdlpOptions:
    """Only the named extractors, native downloaders, nothing read from or written to the machine."""
    return {
        "allowed_extractors": list(extractors),
        "external_downloader": "native",
        "hls_prefer_native": True,
        "skip_unavailable_fragments": False,  # a medium with a hole is none
        "concurrent_fragment_downloads": 1,  # more would share one budget between threads
        "retries": config.retries,
        "fragment_retries": config.retries,
        "extractor_retries": 0,  # `Web._answer` retries
        "file_access_retries": 1,
        "socket_timeout": config.socket_timeout_s,
        "http_headers": {"User-Agent": config.full_user_agent},
        "proxy": "",  # none of the environment's
        # any: the choice is ours, afterwards (ingest.fetch.formats.choose_formats)
        "format": lambda ctx: ctx["formats"][:1],
        "noplaylist": True,
        "playlist_items": "1",
        "cachedir": False,
        # a program: none is started but by source.youtube.js_runtime (ingest.fetch.runtime)
        "js_runtimes": {},
        # the certificates that the operator named, where there are some
        "compat_opts": {"no-certifi"} if "SSL_CERT_FILE" in os.environ else set(),
        "updatetime": False,
        "quiet": True,
        "noprogress": True,
        "logger": _Silent(),
        "color": "never",
    }
