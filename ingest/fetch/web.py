"""The one door to the network: yt-dlp's engine with every request metered, paced, retried and checked for
opt-outs.

`Web(limits, extractors)` is a `YoutubeDL` whose `urlopen` is the only way out, for extractors, the native HLS
and DASH downloaders and our own requests alike. It owns all retrying of requests (yt-dlp's downloaders only
resume a body that was cut). No ftp/file/data URLs, bounded decompression; no proxies and no cookies kept from
item to item but those of an `Egress` (YouTube's). `begin` starts an item. Rates are per host and process;
rests outlive it (`Rests`). Addresses are not its business: `ingest.fetch.guard` sees every connect.
"""

import contextlib
import email.utils
import hashlib
import http.client
import io
import os
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from yt_dlp import YoutubeDL
from yt_dlp.networking import Request, Response
from yt_dlp.networking.exceptions import HTTPError, TransportError
from yt_dlp.utils import DownloadError

from ingest.fetch.answers import Metered, content_length, is_part, range_of, states_whole
from ingest.fetch.guard import Abort, url_refusal
from ingest.fetch.hops import GuardedRH
from ingest.fetch.sniff import HEAD_BYTES, MANIFESTS, is_text, media_type, text_type
from ingest.rights.permission import Answer, Permission
from ingest.rights.robots import MAX_BYTES as MAX_ROBOTS_BYTES
from ingest.rights.robots import agent_name
from ingest.rights.usage import AGENT
from ingest.sample import Reason

MAX_REST_S = 86_400.0  # of a host, whatever it asks for


@dataclass(frozen=True)
class Limits:
    """What one item may cost.

    `requests_per_s` and `bytes_per_s` (0: unpaced) hold per host; hosts of `allow_private` are not paced.
    """

    max_bytes: int
    max_text_bytes: int
    max_duration_s: float
    timeout_s: float
    socket_timeout_s: float
    retries: int
    max_wait_s: float
    requests_per_s: float
    burst_requests: float
    bytes_per_s: float
    user_agent: str
    allow_private: tuple[str, ...]


@dataclass(frozen=True)
class Egress:
    """By which ways a source's requests leave, and as whom.

    `proxies` and the cookies of `cookies_file` are secrets.
    """

    proxies: tuple[str, ...] = ()  # http://[user:password@]host:port, an item each in turn
    hosts: tuple[
        str, ...
    ] = ()  # all that may be asked for through a proxy: what it connects to, no guard of ours sees
    cookies_file: str = ""  # Netscape format; read once, never written
    options: dict[str, Any] = field(default_factory=dict)  # more of yt-dlp's own
    rest_s: float = 0.0  # how long a way is left alone that met a bot check or a rate limit


@dataclass
class Rests:
    """What is to be left alone, and for how long: ways out by `_way_name`, and hosts by way and host.

    Outlives the process.
    """

    until_s: dict[str, float] = field(default_factory=dict)  # monotonic
    _news: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, left_s: dict[str, float]) -> "Rests":
        """From names and the seconds to come."""
        return cls({name: time.monotonic() + seconds for name, seconds in left_s.items()})

    def add(self, name: str, seconds: float) -> None:
        if seconds > 0:
            self.until_s[name] = time.monotonic() + seconds
            self._news[name] = seconds

    def left_s(self, name: str) -> float:
        return max(0.0, self.until_s.get(name, 0.0) - time.monotonic())

    def take_news(self) -> dict[str, float]:
        """What was added since the last call, for the parent: name -> seconds."""
        news, self._news = self._news, {}
        return news


@dataclass(frozen=True)
class Landing:
    """What stands at the item's URL, by its bytes.

    `body` is None for a media file, of which only the head has been read.
    """

    url: str
    content_type: str
    body: bytes | None
    charset: str


class Web(YoutubeDL):
    """yt-dlp behind one door; see the module's text.

    Failures of the world raise `Abort`, or yt-dlp's own errors.
    """

    def __init__(
        self,
        limits: Limits,
        extractors: tuple[str, ...],
        egress: Egress | None = None,
        rests: Rests | None = None,
    ):
        self.limits = limits
        self.egress = egress or Egress()
        self.rests = rests or Rests()
        self.permission = Permission(self._ask_plainly, (AGENT, agent_name(limits.user_agent)))
        self._proxy = ""
        self._turn = os.getpid()  # so that not all workers start with the same proxy
        self._buckets: dict[str, tuple[float, float]] = {}
        self._pages: dict[str, Landing] = {}
        self.manifests: dict[str, str] = {}
        self._bytes = 0
        self._waited_s = 0.0
        self._downloading = False
        self._cut = ""
        self._held_back = False  # refused by a rest of ours, not by the site
        self.looks_only = False  # the item is asked for without the bodies of its media
        super().__init__({**_parameters(limits, extractors), **self.egress.options})
        if self.egress.cookies_file:
            self.cookiejar.load(self.egress.cookies_file)

    @cached_property
    def _request_director(self) -> Any:
        def handler(**settings: Any) -> GuardedRH:
            return GuardedRH(self.far_side_refusal, self._before_hop, **settings)

        return self.build_request_director([handler], [])

    def begin(self) -> None:
        """Forgets the item before: its bytes, waits, pages and cookies (a session of the operator's stays).

        `Abort`: all ways rest.
        """
        self._bytes, self._waited_s, self._cut, self._held_back = 0, 0.0, "", False
        self._pages.clear()
        self.manifests.clear()
        if not self.egress.cookies_file:
            self.cookiejar.clear()
        self._proxy = self._next_way()

    def _next_way(self) -> str:
        """The next proxy in turn that does not rest; "" is the direct way, where there are no proxies."""
        ways = self.egress.proxies or ("",)
        left_s = {way: self.rests.left_s(_way_name(way)) if self.egress.rest_s else 0.0 for way in ways}
        free = [way for way in ways if left_s[way] <= 0]
        if not free:
            self._held_back = True
            raise Abort(
                Reason.BOT_CHECK,
                f"every way out rests after a bot check or a rate limit, {min(left_s.values()):.0f} s more",
            )
        self._turn += 1
        return free[self._turn % len(free)]

    def rest(self) -> None:
        """Leaves the way of this item alone for `rest_s`: asking on would only prolong a block.

        A rest never prolongs itself.
        """
        if not self._held_back:
            self.rests.add(_way_name(self._proxy), self.egress.rest_s)

    def _host_name(self, url: str) -> str:
        return f"{_way_name(self._proxy)} {_host_and_port(url)}"

    def far_side_refusal(self, url: str) -> str | None:
        """Why `url` may not be asked for through a proxy, or None: only named hosts, and the operator's own
        servers.
        """
        parts = urllib.parse.urlsplit(url)
        host = (parts.hostname or "").lower()
        named = any(host == name or host.endswith(f".{name}") for name in self.egress.hosts)
        return (
            None
            if named or parts.netloc.lower() in self.limits.allow_private
            else f"{host} is not asked for through a proxy"
        )

    def land(self, url: str) -> Landing:
        """Opens the item's URL. A text (page, manifest) is read and kept: yt-dlp's own look at it sends no
        second request.
        """
        response = self.urlopen(Request(url, headers={"Accept-Encoding": "identity"}))
        assert isinstance(response, Metered), "no page is kept before the item's own"
        stated = response.headers.get_content_type() if response.headers.get("Content-Type") else ""
        charset = _charset(response)
        head = response.peek(HEAD_BYTES)
        content_type = media_type(head) or ("" if is_text(head) else stated or "application/octet-stream")
        body = None if content_type or (not head and _is_media(stated)) else response.read()
        content_type = content_type or text_type(head, stated)
        response.close()
        landing = Landing(response.url, content_type, body, charset)
        if body is not None:
            self._pages.update({url: landing, response.url: landing})
        return landing

    def look(self, url: str) -> None:
        """Asks for a medium as a download would, and reads nothing of its body."""
        self.urlopen(Request(url, headers={"Accept-Encoding": "identity"})).close()

    def download(self, path: str, facts: dict[str, Any]) -> bool:
        """Downloads what the info dict `facts` names into `path`. yt-dlp forgets why it gave up: the door
        remembers.
        """
        self._downloading = True
        try:
            done, _ = self.dl(path, facts)
        except DownloadError as error:
            if self._cut:
                raise Abort(Reason.NETWORK, self._cut) from error
            raise
        finally:
            self._downloading = False
        return bool(done)

    def urlopen(self, req: Request | str) -> Response:
        request = Request(req) if isinstance(req, str) else req
        page = self._pages.get(request.url)
        if page and page.body is not None and request.method == "GET":
            headers = (
                {"Content-Type": f"{page.content_type}; charset={page.charset}"} if page.content_type else {}
            )
            return Response(io.BytesIO(page.body), page.url, headers)
        why = url_refusal(request.url)
        if why:
            raise Abort(Reason.ADDRESS, why)
        if self._proxy:
            request.proxies = {"all": self._proxy}
        try:
            response = self._part_or_whole(request)
        except HTTPError as error:
            if self._downloading:
                raise Abort(
                    status_reason(error.status), f"HTTP {error.status} {error.reason or ''}".strip()
                ) from error
            raise
        self.permission.check_response(response.url, response.headers)
        if self._bytes + content_length(response) > self.limits.max_bytes:
            raise Abort(
                Reason.TOO_LARGE,
                f"{content_length(response)} bytes announced, {self.limits.max_bytes} allowed in all",
            )
        metered = Metered(response, self)
        part = range_of(request)
        if part and part[1] is not None and response.status == 200:
            metered.cut_out(part[0], part[1])
        return metered

    def _part_or_whole(self, request: Request) -> Response:
        """The part that a request asks for.

        The whole where a server refuses that, sends another or does not say which it is.
        """
        part = range_of(request)
        try:
            response = self._answer(request)
            if response.status != 206 or is_part(response, part) or states_whole(response):
                return response
            response.close()
        except HTTPError as error:
            if error.status != 416 or not part:
                raise
            error.close()
        whole = request.copy()
        whole.headers.pop("Range", None)
        response = self._answer(whole)
        if response.status == 206 and not is_part(response, None):
            raise Abort(Reason.NETWORK, "a part came (HTTP 206) although the whole was asked for")
        return response

    def _answer(self, request: Request) -> Response:
        """The first answer that is not a passing failure. 429 and 503 with a short Retry-After are waited
        for.
        """
        for attempt in range(self.limits.retries + 1):
            last = attempt == self.limits.retries
            try:
                return super().urlopen(request)
            except HTTPError as error:
                if error.status != 429 and error.status < 500:
                    raise
                error.close()
                self._wait_or_abort(error, last, 0.5 * 2**attempt)
            except TransportError as error:
                if last:
                    raise Abort(*classify_transport(error)) from error
                time.sleep(0.5 * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def _ask_plainly(self, url: str) -> Answer:
        """A site's statement (robots.txt and its like): its status and first bytes.

        `Abort` where that fails in passing.
        """
        request = Request(
            url,
            headers={"Accept-Encoding": "identity"},
            proxies={"all": self._proxy} if self._proxy else None,
        )
        data = b""
        try:
            with contextlib.closing(self._answer(request)) as response:
                while len(data) <= MAX_ROBOTS_BYTES and (block := response.read(65536)):
                    data += block
                    self._take("bytes", url, len(block), self.limits.bytes_per_s, self.limits.bytes_per_s)
        except HTTPError as error:
            error.close()
            return Answer(error.status)
        except Abort as error:
            if self._is_own_server_without_statements(url, error):
                return Answer(404)
            raise
        except TransportError as error:
            raise Abort(*classify_transport(error)) from error
        if len(data) < min(content_length(response), MAX_ROBOTS_BYTES):
            raise Abort(
                Reason.NETWORK,
                f"the connection was cut after {len(data)} of {content_length(response)} bytes",
            )
        return Answer(response.status, data)

    def _is_own_server_without_statements(self, url: str, error: Abort) -> bool:
        """Whether a server of `allow_private` hung up without a word.

        It is the operator's: simple ones know no robots.txt.
        """
        hung_up = any(isinstance(one, http.client.RemoteDisconnected) for one in causes(error))
        return hung_up and urllib.parse.urlsplit(url).netloc.lower() in self.limits.allow_private

    def _before_hop(self, url: str) -> None:
        """Before every request that leaves, those that a redirect sends on included."""
        self.permission.check_url(url)
        self._wait_while_it_rests(url)
        self._pace(url)

    def _wait_while_it_rests(self, url: str) -> None:
        """A host that asked an earlier item for more time gets it: here where it is short, else by an item
        that comes back later.
        """
        left_s = self.rests.left_s(self._host_name(url))
        if self._waited_s + left_s > self.limits.max_wait_s:
            self._held_back = True
            raise Abort(Reason.RATE_LIMITED, f"the host asked to be left alone for {left_s:.0f} s more")
        self._waited_s += left_s
        time.sleep(left_s)

    def _wait_or_abort(self, error: HTTPError, last: bool, backoff_s: float) -> None:
        reason = Reason.RATE_LIMITED if error.status == 429 else Reason.SERVER_ERROR
        asked_s = retry_after_s(error.response.headers.get("Retry-After"), time.time())
        wait_s = asked_s if asked_s is not None else backoff_s
        unasked_429 = error.status == 429 and asked_s is None
        if last or unasked_429 or self._waited_s + wait_s > self.limits.max_wait_s:
            asked = f", Retry-After {asked_s:.0f} s" if asked_s is not None else ""
            self.rests.add(self._host_name(error.response.url), min(asked_s or 0.0, MAX_REST_S))
            raise Abort(reason, f"HTTP {error.status}{asked}")
        self._waited_s += wait_s
        time.sleep(wait_s)

    def _pace(self, url: str) -> None:
        """Waits until the host may be asked once more."""
        self._take("requests", url, 1, self.limits.requests_per_s, self.limits.burst_requests)

    def _take(self, what: str, url: str, amount: float, rate: float, most: float) -> None:
        """Takes from the host's token bucket and waits while that is overdrawn.

        Hosts of `allow_private` are the operator's own.
        """
        if rate <= 0 or urllib.parse.urlsplit(url).netloc.lower() in self.limits.allow_private:
            return
        name, now_s = f"{what} {self._host_name(url)}", time.monotonic()
        tokens, then_s = self._buckets.get(name, (most, now_s))
        tokens = min(most, tokens + (now_s - then_s) * rate) - amount
        self._buckets[name] = (tokens, now_s)
        time.sleep(max(0.0, -tokens / rate))

    def spend(self, num_bytes: int, url: str) -> None:
        """Counts bytes that arrived, and waits until its host may send more;

        `Abort` (too_large) past the item's cap.
        """
        self._bytes += num_bytes
        if self._bytes > self.limits.max_bytes:
            raise Abort(Reason.TOO_LARGE, f"more than {self.limits.max_bytes} bytes")
        self._take("bytes", url, num_bytes, self.limits.bytes_per_s, self.limits.bytes_per_s)

    @property
    def max_text_bytes(self) -> int:
        return self.limits.max_text_bytes

    def keep_text(self, url: str, data: bytes) -> None:
        """Keeps the manifests of this item: what yt-dlp makes of them leaves out which sound is the main one."""
        if text_type(data[:HEAD_BYTES], "") in MANIFESTS:
            self.manifests[url] = data.decode("utf-8", "replace")

    def cut_at(self, num_bytes: int, why: str) -> None:
        """Notes that a body ended early; it may still be resumed."""
        self._cut = f"the connection was cut after {num_bytes} bytes: {why}"


def _host_and_port(url: str) -> str:
    """One name for a host, however it is written."""
    parts = urllib.parse.urlsplit(url)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:  # no number: nothing will be connected to
        return parts.netloc
    return f"{(parts.hostname or '').rstrip('.')}:{port}"


def _way_name(proxy: str) -> str:
    """A proxy by a name that gives nothing away, as it leaves this process; "" is the direct way."""
    return hashlib.sha256(proxy.encode()).hexdigest()[:16] if proxy else ""


def status_reason(status: int) -> Reason:
    """The reason for an HTTP status that is an error."""
    named = {
        401: Reason.PRIVATE,
        402: Reason.PRIVATE,
        403: Reason.PRIVATE,
        404: Reason.REMOVED,
        410: Reason.REMOVED,
    }
    named |= {408: Reason.TIMEOUT, 425: Reason.RATE_LIMITED, 429: Reason.RATE_LIMITED, 451: Reason.REMOVED}
    return named.get(status, Reason.SERVER_ERROR if status >= 500 else Reason.UNSUPPORTED)


def classify_transport(error: BaseException) -> tuple[Reason, str]:
    """timeout or network, from an error and everything that caused it."""
    timed_out = any(isinstance(e, TimeoutError) or "timed out" in str(e).lower() for e in causes(error))
    return Reason.TIMEOUT if timed_out else Reason.NETWORK, str(error)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """`error` and what caused it, through yt-dlp's own links (`exc_info`, `cause`) and Python's, each once."""
    seen: set[int] = set()
    queue = [error]
    while queue:
        one = queue.pop(0)
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            yield one
            queue += [
                getattr(one, "cause", None),
                (getattr(one, "exc_info", None) or [None, None])[1],
                one.__cause__,
            ]


def retry_after_s(value: str | None, now_s: float) -> float | None:
    """Seconds that a Retry-After header (delta or HTTP date) asks for at `now_s` (epoch), or None where it
    asks nothing.
    """
    if not value:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now_s)
    except ValueError:
        return None


def _charset(response: Response) -> str:
    try:
        return str(response.headers.get_content_charset("utf-8"))
    except TypeError:  # parts of a parameter numbered in a way that the email package cannot sort
        return "utf-8"


def _is_media(content_type: str) -> bool:
    """For an answer without a body, whose bytes say nothing."""
    return content_type.startswith(("video/", "audio/", "image/")) or content_type in (
        "application/ogg",
        "application/octet-stream",
    )


class _Silent:
    def debug(self, message: str) -> None: ...

    def warning(self, message: str) -> None: ...

    def error(self, message: str) -> None: ...


def _parameters(limits: Limits, extractors: tuple[str, ...]) -> dict[str, Any]:
    """yt-dlp's options: only the named extractors, native downloaders, nothing read from or written to the
    machine.
    """
    return {
        "allowed_extractors": list(extractors),
        "external_downloader": "native",
        "hls_prefer_native": True,
        "skip_unavailable_fragments": False,
        "concurrent_fragment_downloads": 1,
        "retries": limits.retries,
        "fragment_retries": limits.retries,
        "extractor_retries": 0,
        "file_access_retries": 1,
        "socket_timeout": limits.socket_timeout_s,
        "http_headers": {"User-Agent": limits.user_agent},
        "proxy": "",
        "format": lambda ctx: ctx["formats"][
            :1
        ],  # the choice is ours, afterwards: see fetch_process.choose_formats
        "noplaylist": True,
        "playlist_items": "1",
        "cachedir": False,
        # a program: none is started but by source.youtube.js_runtime (ingest.fetch.runtime)
        "js_runtimes": {},
        "compat_opts": {"no-certifi"}
        if "SSL_CERT_FILE" in os.environ
        else set(),  # the certificates that the operator named
        "updatetime": False,
        "quiet": True,
        "noprogress": True,
        "logger": _Silent(),
        "color": "never",
    }
