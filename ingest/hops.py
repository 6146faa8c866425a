"""What each request passes on its way, those of redirects included: urllib's handlers under yt-dlp's, made safe for the open web.

`GuardedRH` is the request handler that `ingest.web` gives to yt-dlp. Which addresses may be connected to is `ingest.guard`'s.
"""

import io
import urllib.request
import urllib.response
import zlib
from collections.abc import Callable
from typing import Any

from yt_dlp.networking._urllib import HTTPHandler, ProxyHandler, RedirectHandler, UrllibRH

from ingest.guard import Abort
from ingest.sample import Reason


class GuardedRH(UrllibRH):
    """urllib's handler without ftp, data and file URLs, with bounded decompression; a proxy is asked for named hosts only."""

    _SUPPORTED_URL_SCHEMES = ("http", "https")
    _SUPPORTED_PROXY_SCHEMES = ("http",)

    def __init__(self, far_side_refusal: Callable[[str], str | None], before_hop: Callable[[str], None], **settings: Any):
        super().__init__(**settings)
        self._far_side_refusal = far_side_refusal
        self._before_hop = before_hop

    def _create_instance(self, proxies: Any, cookiejar: Any, legacy_ssl_support: Any = None) -> urllib.request.OpenerDirector:
        opener = urllib.request.OpenerDirector()
        for handler in (
            Turnstile(self._before_hop),
            FarSide(proxies, self._far_side_refusal),
            BoundedHTTPHandler(context=self._make_sslcontext(legacy_ssl_support=legacy_ssl_support)),
            urllib.request.HTTPCookieProcessor(cookiejar),
            urllib.request.UnknownHandler(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            BodilessRedirectHandler(),
        ):
            opener.add_handler(handler)
        opener.addheaders = []
        return opener


class Turnstile(urllib.request.BaseHandler):
    """Holds every hop back for as long as its host's rate and rest ask."""

    def __init__(self, before_hop: Callable[[str], None]):
        self._before_hop = before_hop

    def http_request(self, req: Any) -> Any:
        self._before_hop(req.full_url)
        return req

    https_request = http_request


class FarSide(ProxyHandler):
    """Sends a request, redirected ones too, through the proxy, if its host may be asked for there."""

    def __init__(self, proxies: Any, refusal: Callable[[str], str | None]):
        super().__init__(proxies)
        self._refusal = refusal

    def proxy_open(self, req: Any) -> Any:
        why = self._refusal(req.full_url) if any(self.proxies.values()) else None
        if why:
            raise Abort(Reason.ADDRESS, why)
        return super().proxy_open(req)


class BoundedHTTPHandler(HTTPHandler):
    """Undoes gzip and deflate up to a bound, before yt-dlp would do it without one (a gzip bomb of 1 MB holds 1 GB)."""

    bound_bytes = 16 << 20

    def http_response(self, req: Any, resp: Any) -> Any:
        encoding = (resp.headers.get("Content-Encoding") or "identity").strip().lower()
        if encoding in ("gzip", "x-gzip", "deflate"):
            resp = self._decoded(resp)
        elif encoding != "identity":
            raise Abort(Reason.UNSUPPORTED, f"content encoding {encoding[:40]!r}")
        return super().http_response(req, resp)

    https_response = http_response

    def _decoded(self, resp: Any) -> Any:
        packed = resp.read(self.bound_bytes + 1)
        try:
            data = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(packed, self.bound_bytes + 1)
        except zlib.error as error:
            raise Abort(Reason.CORRUPT, f"bad content encoding: {error}") from None
        if max(len(packed), len(data)) > self.bound_bytes:
            raise Abort(Reason.TOO_LARGE, f"compressed answer of more than {self.bound_bytes} bytes")
        for name in ("Content-Encoding", "Content-Length"):
            del resp.headers[name]
        plain = urllib.response.addinfourl(io.BytesIO(data), resp.headers, resp.url, resp.status)
        plain.msg = resp.reason  # type: ignore[attr-defined]
        return plain


class BodilessRedirectHandler(RedirectHandler):
    """Follows without a look at the redirect's own body, which urllib would read to its end, however long that is."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> Any:
        fp.read = bytes
        return super().redirect_request(req, fp, code, msg, headers, newurl)
