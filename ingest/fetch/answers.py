"""An answer of the web while it is read: counted, cut to the range that was requested, its head peeked at.

`Metered` is what `ingest.fetch.web` hands to yt-dlp's downloaders and extractors. What an item may cost in
all is kept by its `Meter`.
"""

from typing import Any, Protocol

from yt_dlp.networking import Request, Response
from yt_dlp.networking.exceptions import IncompleteRead, TransportError
from yt_dlp.utils import parse_http_range

from ingest.fetch.guard import Abort
from ingest.sample import Reason

BLOCK_BYTES = 65536


class Meter(Protocol):
    """What an answer reports to while it is read."""

    @property
    def max_text_bytes(self) -> int: ...

    def spend(self, num_bytes: int, url: str) -> None: ...
    def cut_at(self, num_bytes: int, why: str) -> None: ...
    def keep_text(self, url: str, data: bytes) -> None: ...


class Metered(Response):  # type: ignore[misc]  # yt-dlp has no types: its classes are Any to mypy
    """A response that counts what is read; a page or manifest, read at once, is held to `max_text_bytes`."""

    def __init__(self, inner: Response, meter: Meter):
        super().__init__(inner, inner.url, inner.headers, inner.status, inner.reason, inner.extensions)
        self._inner: Response | Limited = inner
        self._meter = meter
        self._num_read = 0
        self._head = b""

    def peek(self, num_bytes: int) -> bytes:
        """Up to `num_bytes` from the start, which later reads return again; fewer of a shorter answer."""
        while len(self._head) < num_bytes and (block := self._read_some(num_bytes - len(self._head))):
            self._head += block
        return self._head

    def cut_out(self, first: int, last: int) -> None:
        """Turns a complete answer into the requested bytes `first` to `last`: some servers know no ranges."""
        to_skip = first
        while to_skip > 0 and (block := self._read_some(min(to_skip, BLOCK_BYTES))):
            to_skip -= len(block)
        total = content_length(self)
        length = max(0, min(last + 1, total) - first) if total else last - first + 1
        self._inner = Limited(self._inner, length)
        self._num_read = 0
        self.status = 206
        del self.headers["Content-Length"]  # setting alone would append a second one
        self.headers["Content-Length"] = str(length)
        self.headers["Content-Range"] = f"bytes {first}-{first + length - 1}/{total or '*'}"

    def read(self, amt: int | None = None) -> bytes:
        if amt is None:
            return self._read_text()
        if self._head:
            head = self._head[:amt]
            self._head = self._head[amt:]
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
        cap = self._meter.max_text_bytes
        # what is announced to be too long is refused before it is read
        announced = content_length(self) - self._num_read + len(self._head)
        data = b""
        while announced <= cap and len(data) <= cap:
            block = self.read(BLOCK_BYTES)
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
    """The next `num_bytes` of an answer."""

    def __init__(self, inner: Any, num_bytes: int):
        self._inner = inner
        self._remaining = num_bytes

    def read(self, amt: int) -> bytes:
        data: bytes = self._inner.read(min(amt, self._remaining)) if self._remaining else b""
        self._remaining -= len(data)
        return data

    def close(self) -> None:
        self._inner.close()


def range_of(request: Request) -> tuple[int, int | None] | None:
    """First and last byte of a request's Range (last None: to the end); None where it has none."""
    first, last, _ = parse_http_range(request.headers.get("Range"))
    return None if first is None else (first, last)


def is_part(response: Response, part: tuple[int, int | None] | None) -> bool:
    """Whether a 206 states that it holds `part`: to the end without a last byte, everything for None."""
    stated = response.headers.get("Content-Range")
    if not stated and part in (None, (0, None)):
        return True  # nothing states that something is missing
    first, last, total = parse_http_range(stated)
    first_requested, last_requested = part or (0, None)
    reaches = total is None or last is None or last + 1 >= total
    return first == first_requested and (reaches or last_requested is not None)


def states_whole(response: Response) -> bool:
    """Whether a 206 states that it holds everything: a downloader starts anew from it."""
    first, last, total = parse_http_range(response.headers.get("Content-Range"))
    return first == 0 and last is not None and last + 1 == total


def content_length(response: Response) -> int:
    # by digits alone: int() would also take "-1", "1_0" and blanks
    text = response.headers.get("Content-Length") or ""
    return int(text) if text.isdecimal() else 0
