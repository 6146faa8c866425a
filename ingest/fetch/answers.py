"""An answer of the web while it is read: counted, cut to the part that was asked for, its first bytes looked
at.

`Metered` is what `ingest.fetch.web` hands to yt-dlp's downloaders and extractors. What an item may cost in
all is kept by its `Meter`.
"""

from typing import Any, Protocol

from yt_dlp.networking import Request, Response
from yt_dlp.networking.exceptions import IncompleteRead, TransportError
from yt_dlp.utils import parse_http_range

from ingest.fetch.guard import Abort
from ingest.sample import Reason


class Meter(Protocol):
    """What an answer reports to while it is read."""

    @property
    def max_text_bytes(self) -> int: ...

    def spend(self, num_bytes: int, url: str) -> None: ...
    def cut_at(self, num_bytes: int, why: str) -> None: ...
    def keep_text(self, url: str, data: bytes) -> None: ...


class Metered(Response):
    """A response that counts what is read; a read of the whole (a page, a manifest) is held to
    `max_text_bytes`.
    """

    def __init__(self, inner: Response, meter: Meter):
        super().__init__(inner, inner.url, inner.headers, inner.status, inner.reason, inner.extensions)
        self._inner: Response | Limited = inner
        self._meter = meter
        self._num_read = 0
        self._head = b""

    def peek(self, num_bytes: int) -> bytes:
        """Up to `num_bytes` from the start, which the next reads give again; fewer only where the answer is
        shorter.
        """
        while len(self._head) < num_bytes and (block := self._read_some(num_bytes - len(self._head))):
            self._head += block
        return self._head

    def cut_out(self, first: int, last: int) -> None:
        """Turns a whole answer into the part of bytes `first` to `last` that was asked for: some servers know
        no ranges.
        """
        left = first
        while left > 0 and (block := self._read_some(min(left, 65536))):
            left -= len(block)
        total = content_length(self)
        length = max(0, min(last + 1, total) - first) if total else last - first + 1
        self._inner = Limited(self._inner, length)
        self._num_read = 0
        self.status = 206
        del self.headers["Content-Length"]
        self.headers["Content-Length"] = str(length)
        self.headers["Content-Range"] = f"bytes {first}-{first + length - 1}/{total or '*'}"

    def read(self, amt: int | None = None) -> bytes:
        if amt is None:
            return self._read_text()
        if self._head:
            head, self._head = self._head[:amt], self._head[amt:]
            return head
        return self._read_some(amt)

    def _read_some(self, amt: int) -> bytes:
        try:
            data: bytes = self._inner.read(amt)
        except TransportError as error:  # yt-dlp's downloaders would forget why they gave up
            self._meter.cut_at(self._num_read, str(error))
            raise
        self._num_read += len(data)
        self._meter.spend(len(data), self.url)
        if amt and not data and self._num_read < content_length(self):
            self._meter.cut_at(self._num_read, f"{content_length(self)} bytes announced")
        return data

    def _read_text(self) -> bytes:
        cap, announced = self._meter.max_text_bytes, content_length(self) - self._num_read + len(self._head)
        data = b""
        while announced <= cap and len(data) <= cap:
            block = self.read(65536)
            if not block:
                break
            data += block
        if max(len(data), announced) > cap:
            raise Abort(Reason.TOO_LARGE, f"a text of more than {cap} bytes")
        self._meter.keep_text(self.url, data)
        if len(data) < announced:  # http.client notices only where it reads to the end in one call
            raise IncompleteRead(len(data), announced - len(data))
        return data


class Limited:
    """The first `num_bytes` of what is left of an answer."""

    def __init__(self, inner: Any, num_bytes: int):
        self._inner = inner
        self._left = num_bytes

    def read(self, amt: int) -> bytes:
        data: bytes = self._inner.read(min(amt, self._left)) if self._left else b""
        self._left -= len(data)
        return data

    def close(self) -> None:
        self._inner.close()


def range_of(request: Request) -> tuple[int, int | None] | None:
    """First and last byte that a request asks for; None where it asks for the whole."""
    first, last, _ = parse_http_range(request.headers.get("Range"))
    return None if first is None else (first, last)


def is_part(response: Response, part: tuple[int, int | None] | None) -> bool:
    """Whether a 206 says that it holds `part` (to the end where that has no last byte; None: the whole)."""
    stated = response.headers.get("Content-Range")
    if not stated and part in (None, (0, None)):
        return True  # nothing says that something is left out
    first, last, total = parse_http_range(stated)
    asked_first, asked_last = part or (0, None)
    reaches = total is None or last is None or last + 1 >= total
    return first == asked_first and (reaches or asked_last is not None)


def states_whole(response: Response) -> bool:
    """Whether a 206 says that it holds everything: a downloader starts anew from it."""
    first, last, total = parse_http_range(response.headers.get("Content-Range"))
    return first == 0 and last is not None and last + 1 == total


def content_length(response: Response) -> int:
    text = response.headers.get("Content-Length") or ""
    return int(text) if text.isdecimal() else 0
