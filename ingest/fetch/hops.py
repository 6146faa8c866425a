"""What each request passes, those of redirects included: urllib's handlers, made safe for the open web.

`GuardedRH` is the request handler that `ingest.fetch.web` gives to yt-dlp. Which addresses may be connected
to is `ingest.fetch.guard`'s.
"""

import io
import urllib.request
import urllib.response
import zlib
from collections.abc import Callable
from typing import Any

from yt_dlp.networking._urllib import HTTPHandler, ProxyHandler, RedirectHandler, UrllibRH

from ingest.fetch.guard import Abort
from ingest.fetch.sniff import HEAD_BYTES, is_text, media_type
from ingest.sample import Reason

BLOCK_BYTES = 65536
NO_ENCODINGS = ("identity", "none", "binary", "7bit", "8bit", "utf-8", "utf8", "aws-chunked", "chunked")
"""Values of Content-Encoding that servers send although the bytes are plain."""


class GuardedRH(UrllibRH):  # type: ignore[misc]  # yt-dlp has no types: its classes are Any to mypy
    """urllib's handler for http and https only, with decompression in pieces and proxies for named hosts."""

    _SUPPORTED_URL_SCHEMES = ("http", "https")
    _SUPPORTED_PROXY_SCHEMES = ("http",)

    def __init__(
        self,
        proxy_refusal: Callable[[str], str | None],
        before_hop: Callable[[str], None],
        **settings: Any,
    ):
        super().__init__(**settings)
        self._proxy_refusal = proxy_refusal
        self._before_hop = before_hop

    def _create_instance(
        self, proxies: Any, cookiejar: Any, legacy_ssl_support: Any = None
    ) -> urllib.request.OpenerDirector:
        opener = urllib.request.OpenerDirector()
        for handler in (
            RateLimitHandler(self._before_hop),
            ProxyAllowlistHandler(proxies, self._proxy_refusal),
            EncodedHTTPHandler(context=self._make_sslcontext(legacy_ssl_support=legacy_ssl_support)),
            urllib.request.HTTPCookieProcessor(cookiejar),
            urllib.request.UnknownHandler(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            BodilessRedirectHandler(),
        ):
            opener.add_handler(handler)
        opener.addheaders = []  # urllib would add a User-Agent of its own
        return opener


class RateLimitHandler(urllib.request.BaseHandler):
    """Holds every hop back until its host's rate and cooldown allow it."""

    def __init__(self, before_hop: Callable[[str], None]):
        self._before_hop = before_hop

    def http_request(self, req: Any) -> Any:
        self._before_hop(req.full_url)
        return req

    https_request = http_request


class ProxyAllowlistHandler(ProxyHandler):  # type: ignore[misc]  # as above
    """Sends a request, redirected ones too, through the proxy, if its host may be requested there."""

    def __init__(self, proxies: Any, refusal: Callable[[str], str | None]):
        super().__init__(proxies)
        self._refusal = refusal

    def proxy_open(self, req: Any) -> Any:
        why = self._refusal(req.full_url) if any(self.proxies.values()) else None
        if why:
            raise Abort(Reason.ADDRESS, why)
        return super().proxy_open(req)


class EncodedHTTPHandler(HTTPHandler):  # type: ignore[misc]  # as above
    """Undoes gzip and deflate piece by piece.

    yt-dlp would do it at once, and a gzip bomb of 1 MB holds 1 GB. The header is a claim: object stores keep
    names like aws-chunked or utf-8 there, and some state gzip for plain bytes.
    """

    def http_response(self, req: Any, resp: Any) -> Any:
        stated = (resp.headers.get("Content-Encoding") or "").lower()
        stripped = [name.strip() for name in stated.split(",")]
        names = [name for name in stripped if name and name not in NO_ENCODINGS]
        if stated and not 300 <= resp.status < 400:  # the body of a redirect is never read
            resp = self._plain(resp, names)
        return super().http_response(req, resp)

    https_response = http_response

    def _plain(self, resp: Any, names: list[str]) -> Any:
        """The answer as it was before its encodings; one that is not encoded as stated is taken as it is."""
        body = Peeked(resp)
        head = body.peek(HEAD_BYTES) if names else b""
        is_gzip = head.startswith(b"\x1f\x8b")
        # deflate may come without a header of its own (RFC 1951 alone): what else could the bytes be?
        is_deflate = names == ["deflate"] and not (media_type(head) or is_text(head))
        if (is_gzip or is_deflate) and set(names) <= {"gzip", "x-gzip", "deflate"}:
            body = Inflated(body)
            del resp.headers["Content-Length"]
        elif names and head and not (media_type(head) or is_text(head)):
            raise Abort(Reason.UNSUPPORTED, f"content encoding {', '.join(names)[:40]!r}")
        del resp.headers["Content-Encoding"]
        plain = urllib.response.addinfourl(body, resp.headers, resp.url, resp.status)  # type: ignore[arg-type]
        plain.msg = resp.reason  # type: ignore[attr-defined]
        return plain


class Peeked(io.BufferedIOBase):
    """An answer whose first bytes may be looked at before they are read."""

    def __init__(self, inner: Any):
        self._inner = inner
        self._head = b""

    def peek(self, num_bytes: int) -> bytes:
        """Up to `num_bytes` from the start; fewer only where the answer is shorter."""
        while len(self._head) < num_bytes and (block := self._inner.read(num_bytes - len(self._head))):
            self._head += block
        return self._head

    def read(self, amt: int | None = None) -> bytes:
        if amt is None or amt < 0:
            head = self._head
            self._head = b""
            return head + bytes(self._inner.read())
        if not self._head:
            return bytes(self._inner.read(amt))
        head = self._head[:amt]
        self._head = self._head[amt:]
        return head

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._inner.close()
        super().close()


class Inflated(Peeked):
    """The bytes that were packed with gzip, zlib or bare deflate; in memory only as many as one read returns.

    `Abort` (corrupt) for other bytes, (network) where the stream ends too early.
    """

    def __init__(self, inner: Peeked):
        super().__init__(inner)
        is_bare = inner.peek(2)[:1] not in (b"\x1f", b"\x78")  # neither gzip's nor zlib's first byte
        # zlib's convention: negative for bare deflate, + 32 to detect gzip or zlib by the header
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS if is_bare else zlib.MAX_WBITS | 32)
        self._packed = b""

    def read(self, amt: int | None = None) -> bytes:
        reads_all = amt is None or amt < 0
        max_bytes = BLOCK_BYTES if reads_all else max(1, amt or 0)  # zlib takes 0 for "without a limit"
        data = b""
        while not self._inflate.eof and (reads_all or not data):
            data += self._inflate_some(max_bytes)
        return data

    def _inflate_some(self, max_bytes: int) -> bytes:
        packed = self._packed or self._inner.read(BLOCK_BYTES)
        if not packed:
            raise Abort(Reason.NETWORK, "a compressed answer was cut off")
        try:
            data = self._inflate.decompress(packed, max_bytes)
        except zlib.error as error:
            raise Abort(Reason.CORRUPT, f"bad content encoding: {error}") from None
        self._packed = self._inflate.unconsumed_tail
        return data


class BodilessRedirectHandler(RedirectHandler):  # type: ignore[misc]  # as above
    """Follows without the redirect's own body, which urllib would read to its end, however long that is."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> Any:
        fp.read = bytes
        return super().redirect_request(req, fp, code, msg, headers, newurl)
