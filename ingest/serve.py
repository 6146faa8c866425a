"""`ingest serve FOLDER`: a loopback web site of a synth folder, with a list of it for `source.kind=urls`.

    with running_site(folder) as site: …     # in tests: a server in a thread, site.url its address
    FOLDER/urls.csv                          url, id, title, license, sound_url; ids as in the catalogue

Most videos are pages with a <video> tag that state their license, as on the web; some are direct links. It
also holds what a scrape has to survive: a page without a license, one that opts out, one that is busy at
first, dead links. It listens on 127.0.0.1 alone and serves exactly the files below FOLDER/media; the truth
stays untold. It is no server for real use.
"""

import contextlib
import csv
import errno
import html
import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO, ClassVar
from urllib.parse import quote, unquote, urlsplit

from cluster.files import replacing
from configs.load import UserError, operational
from ingest.synth import LICENSE_URLS, CatalogueEntry

HOST = "127.0.0.1"
COLUMNS = ("url", "id", "title", "license", "sound_url")
CONTENT_TYPES = {
    ".mp4": "video/mp4",
    ".webm": "video/webm",
    ".m3u8": "application/vnd.apple.mpegurl",
    ".ts": "video/mp2t",
    ".mpd": "application/dash+xml",
    ".m4s": "video/iso.segment",
    ".jpg": "image/jpeg",
    ".wav": "audio/wav",
}
MP4_ROLES = {
    1: "direct",
    2: "busy",
    3: "unlicensed",
    4: "noai",
}  # by place in the catalogue; and every tenth is direct
DEAD = {"/watch/dead0000.html": 404, "/watch/dead0001.html": 410, "/media/dead0002.mp4": 404}
BLOCK_BYTES = 1 << 18


@dataclass
class ServeConfig:
    """What is served, and where."""

    path: str  # the folder that `ingest synth` made
    port: int = operational(8765)  # on 127.0.0.1; 0 takes any free one

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UserError(f"port={self.port}: give a number from 0 to 65535")


@dataclass
class Site:
    """What stands at which path of the site. `answers` holds the ready pages, `files` the media by path."""

    folder: Path
    entries: list[CatalogueEntry]
    busy: set[str] = field(default_factory=set)  # paths that answer 429 once
    lock: Any = field(default_factory=threading.Lock)

    @cached_property
    def files(self) -> dict[str, Path]:
        media = (self.folder / "media").resolve()
        inside = (
            path for path in media.rglob("*") if path.is_file() and path.resolve().is_relative_to(media)
        )
        return {f"/media/{path.relative_to(media).as_posix()}": path for path in inside}

    @cached_property
    def pages(self) -> dict[str, str]:
        return {
            _page_path(entry): _page(entry, role)
            for entry, role in self.with_roles()
            if role not in ("direct", "still")
        }

    def with_roles(self) -> Iterator[tuple[CatalogueEntry, str]]:
        """Every entry with how it is offered: page, direct, busy, unlicensed, noai or still."""
        index = 0
        for entry in self.entries:
            role = "still" if entry["kind"] == "still" else "page"
            if entry["kind"] == "mp4":
                role = MP4_ROLES.get(index, "direct" if index % 10 == 1 else "page")
                index += 1
            yield entry, role

    def rows(self, url: str) -> list[dict[str, str]]:
        """The list file: only what no page can tell has its license in the list."""
        rows = []
        for entry, role in self.with_roles():
            links = [f"{url}{_media_path(name)}" for name in entry["files"]]
            row = {"id": entry["id"], "title": entry["title"], "url": f"{url}{_page_path(entry)}"}
            if role in ("direct", "still"):
                row |= {"url": links[0], "license": entry["license"]}
            if role == "still":
                row["sound_url"] = links[1]
            rows.append(row)
        for path in DEAD:
            stated = {"license": "CC0-1.0"} if path.startswith("/media/") else {}
            rows.append({"url": f"{url}{path}", "id": Path(path).stem, "title": "Gone", **stated})
        return rows

    def status_of(self, path: str) -> int:
        """404 or 410 for what is gone, 429 for the first look at a busy page, else 200."""
        with self.lock:
            if path in self.busy:
                self.busy.remove(path)
                return 429
        return DEAD.get(path, 200 if path in self.pages or path in self.files or path == "/" else 404)


def read_site(folder: Path) -> Site:
    """The site of a synth folder. `UserError` where there is none."""
    try:
        entries = json.loads((folder / "catalogue.json").read_text())
    except FileNotFoundError:
        raise UserError(
            f"{folder}: no catalogue.json there; render one with `python -m ingest synth {folder}`"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}/catalogue.json cannot be read: {error}") from None
    site = Site(folder, entries)
    site.busy = {_page_path(entry) for entry, role in site.with_roles() if role == "busy"}
    return site


def serve(config: ServeConfig) -> None:
    """Serves `config.path` until SIGTERM or SIGINT; writes the list file first.

    `UserError`: no such folder, port in use.
    """
    stop = threading.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda *_: stop.set())
    with running_site(Path(config.path), config.port) as site:
        listing = Path(config.path) / "urls.csv"
        print(
            f"serving {config.path} at {site.url}, listed in {listing}; Ctrl-C ends it",
            flush=True,
        )
        stop.wait()


@contextlib.contextmanager
def running_site(folder: Path, port: int = 0) -> Iterator["SiteServer"]:
    """The site of `folder` on a thread of this process, for as long as the block runs; yields `.port` and
    `.url`.
    """
    server = SiteServer(read_site(Path(folder)), port)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="site", daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class SiteServer(ThreadingHTTPServer):
    """Listens only once the list file is written, so that whoever finds the port open finds the list."""

    daemon_threads = True

    def __init__(self, site: Site, port: int):
        super().__init__((HOST, port), Handler, bind_and_activate=False)
        self.site = site
        try:
            self.server_bind()
            _write_list(site.folder / "urls.csv", site.rows(self.url))
            self.server_activate()
        except OSError as error:
            self.server_close()
            if error.errno == errno.EADDRINUSE:
                raise UserError(f"port={port} is in use; give another, or port=0 for any free one") from None
            raise UserError(f"cannot serve {site.folder} on port {port}: {error}") from None

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD of pages and media, with single byte ranges."""

    protocol_version = "HTTP/1.1"
    server_version = "stillsound-site"
    timeout: ClassVar[float] = 30.0
    server: SiteServer

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        site = self.server.site
        status = site.status_of(path)
        if status != 200:
            self._send_page(status, f"<title>{status}</title>", {"Retry-After": "1"} if status == 429 else {})
        elif path in site.files:
            self._send_file(site.files[path])
        else:
            self._send_page(200, site.pages.get(path) or _index(site))

    do_HEAD = do_GET

    def _send_page(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        body = text.encode()
        self._send_head(
            status,
            {"Content-Type": "text/html; charset=utf-8", "Content-Length": str(len(body)), **(headers or {})},
        )
        if self.command == "GET":
            self.wfile.write(body)

    def _send_file(self, path: Path) -> None:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            first, last = 0, size - 1
            headers = {
                "Content-Type": CONTENT_TYPES.get(path.suffix, "application/octet-stream"),
                "Accept-Ranges": "bytes",
            }
            requested = byte_range(self.headers.get("Range"), size)
            if requested == "unsatisfiable":
                return self._send_head(416, {"Content-Range": f"bytes */{size}", "Content-Length": "0"})
            status = 200
            if isinstance(requested, tuple):
                status = 206
                first, last = requested
                headers["Content-Range"] = f"bytes {first}-{last}/{size}"
            headers["Content-Length"] = str(last - first + 1)
            self._send_head(status, headers)
            if self.command == "GET":
                self._send_bytes(file, first, last)

    def _send_bytes(self, file: BinaryIO, first: int, last: int) -> None:
        file.seek(first)
        remaining = last - first + 1
        with contextlib.suppress(ConnectionError):  # the client has seen enough
            while remaining > 0:
                block = file.read(min(remaining, BLOCK_BYTES))
                if not block:
                    self.close_connection = True
                    return
                self.wfile.write(block)
                remaining -= len(block)

    def _send_head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Logs nothing: what matters is in the log of the scrape that runs beside it."""


def byte_range(header: str | None, size: int) -> tuple[int, int] | str | None:
    """(first, last) of a `Range` header on `size` bytes, "unsatisfiable", or None where all is to be sent."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", (header or "").strip())
    if not match or match[1] == match[2] == "":
        return None
    if match[1] == "":
        first = max(0, size - int(match[2]))
        last = size - 1
    else:
        first = int(match[1])
        last = min(int(match[2] or size - 1), size - 1)
        if match[2] and int(match[2]) < first:
            return None
    return (first, last) if first <= last else "unsatisfiable"


def _page_path(entry: CatalogueEntry) -> str:
    return f"/watch/{quote(entry['id'])}.html"


def _media_path(name: str) -> str:
    return f"/media/{quote(name)}"


def _page(entry: CatalogueEntry, role: str) -> str:
    """The HTML of one video."""
    name = entry["files"][0]
    title = html.escape(entry["title"])
    license_url = html.escape(LICENSE_URLS.get(entry["license"], ""))
    link = f'<a rel="license" href="{license_url}">{entry["license"]}</a>'
    stated = "" if role == "unlicensed" else f"<figcaption>License of this video: {link}</figcaption>"
    robots = '<meta name="robots" content="noai">' if role == "noai" else ""
    kind = CONTENT_TYPES[Path(name).suffix]
    head = f'<meta charset="utf-8"><title>{title}</title>{robots}'
    video = f'<video controls><source src="{_media_path(name)}" type="{kind}"></video>'
    body = f"<h1>{title}</h1><figure>{video}{stated}</figure>"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>'


def _index(site: Site) -> str:
    links = "".join(f'<li><a href="{path}">{Path(path).stem}</a></li>' for path in site.pages)
    body = f"<body><ul>{links}</ul></body>"
    return f'<!doctype html><html lang="en"><head><title>Scenes</title></head>{body}</html>'


def _write_list(path: Path, rows: list[dict[str, str]]) -> None:
    with replacing(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)
