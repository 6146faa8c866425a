"""From an item to media files on the local disk, through a guarded child that alone touches the network.

    with Fetcher(config, spool, allow=("CC0-1.0", "own")) as fetcher:
        media = fetcher.fetch(item, need_short_side_px=256)     # raises Refused

Local files pass through without a copy; members of other people's tars are copied out by offset. The child
(`ingest.fetch.process`, through `ingest.child`) gets no environment of ours, is killed when it overruns, and
replaced when it crashes or has served enough. Nothing is decoded here.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypedDict

from cluster.jsonl import JsonObject
from ingest.child import INHERITED, ChildStartError, Launch, WarmChild
from ingest.fetch.guard import url_refusal
from ingest.fetch.messages import ChildSettings, Fetched
from ingest.fetch.retries import Cooldowns
from ingest.fetch.settings import FetchConfig
from ingest.fetch.sniff import HEAD_BYTES, media_type
from ingest.licenses import allowed
from ingest.sample import Item, Media, Reason, Refused, storable

IMAGE_SUFFIXES = frozenset(".jpg .jpeg .png .webp .avif .gif .bmp .tif .tiff .heic .heif".split())
GRACE_S = 5.0  # the child ends an item at timeout_s itself; the parent kills it this much later
MAX_REPLY_BYTES = 1 << 20  # lists and texts go through a file
MAX_RECORDS = 1000  # of what hosts stated, the newest
COPY_BYTES = 1 << 20


class Member(TypedDict):
    """Where a member's bytes are in a tar, as `ingest.sources.tars` puts it into the work list."""

    offset: int
    size: int
    suffix: str


class Fetcher:
    """Owns the child and the spool folder, and outlives the child with what it learnt of hosts.

    Not for several threads at once.
    """

    def __init__(
        self,
        config: FetchConfig,
        spool: Path,
        allow: tuple[str, ...] = (),
        sites: Mapping[str, Any] | None = None,
    ):
        """`sites`: settings by `Item.source`, for sources that have some (`ingest.fetch.process.SITES`)."""
        self.config = config
        self.spool = Path(spool)
        self.allow = tuple(allow)
        self.sites = {name: asdict(site) for name, site in (sites or {}).items()}
        self.cooldowns = Cooldowns()
        self.child = WarmChild(
            "ingest.fetch.process",
            self._settings,
            config.timeout_s + GRACE_S,
            config.recycle_items,
            _launch(self.spool),
        )
        self._num_media = 0
        self._permission: dict[str, JsonObject] = {}  # what hosts stated of machine use, by URL

    def __enter__(self) -> "Fetcher":
        self.spool.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the child, if one runs."""
        self.child.close()

    def fetch(self, item: Item, need_short_side_px: int) -> Media:
        """The item's media on the local disk; `owned` files are in the spool, and the caller deletes them.

        Raises `Refused`. An item whose license is not among `allow` is refused before its media body is
        requested.
        """
        # `urls` apart: URL lists are untrusted, they must not name local files
        if item.url.startswith("/") and item.source != "urls":
            return self._from_archive(item) if "tar" in item.meta else _local(item)
        for url in filter(None, (item.url, item.sound_url)):
            why = url_refusal(url)
            if why:
                raise Refused(Reason.ADDRESS, why)
        request = {"item": _for_child(item), "need_short_side_px": need_short_side_px}
        with self._work() as work:
            return self._keep(item, work, self._ask(request, work)["media"])

    def check(self, item: Item) -> str:
        """The license of an item on the web, requested as by `fetch`, without the bodies of its media.

        Raises `Refused`.
        """
        request = {"item": _for_child(item), "need_short_side_px": 0, "looks_only": True}
        with self._work() as work:
            return str(self._ask(request, work)["media"]["license"])

    def list_site(self, site: str, target: str) -> list[dict[str, str]]:
        """{"id", "title", "channel_id"} of every video behind a search, channel or playlist of a site.

        Raises `Refused`.
        """
        with self._work() as work:
            self._ask({"list": target, "site": site}, work)
            lines = (work / "answer").read_text(encoding="utf-8").splitlines()
        return [json.loads(line, object_hook=_storable) for line in lines]

    def read_text(self, url: str) -> bytes:
        """The body at `url`, requested as politely as media, behind the same guard; up to `max_text_bytes`.

        Raises `Refused`.
        """
        with self._work() as work:
            self._ask({"read": url}, work)
            return (work / "answer").read_bytes()

    @contextlib.contextmanager
    def _work(self) -> Iterator[Path]:
        """An empty folder for the child to write in."""
        work = self.spool / "work"
        # before as well: a killed process leaves what its child had written
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _ask(self, request: Mapping[str, Any], work: Path) -> JsonObject:
        """The child's reply to one request. Raises `Refused`."""
        try:
            reply = self.child.exchange({**request, "folder": str(work.resolve())})
        except ChildStartError as error:
            raise Refused(Reason.WORKER_CRASHED, str(error)) from None
        # first what it learnt of hosts: a refusal is what most often brings a cooldown
        self.cooldowns.merge(reply.header["cooldowns"])
        self._permission |= {record["url"]: record for record in reply.header["permission"]}
        # the oldest go first: a scrape of a million hosts must not grow without bound
        self._permission = dict(list(self._permission.items())[-MAX_RECORDS:])
        if reply.refusal:
            raise reply.refusal
        return reply.header

    def _settings(self) -> ChildSettings:
        """A new child's first line."""
        return {
            "network": asdict(self.config),
            "allow": self.allow,
            "sites": self.sites,
            "cooldowns": self.cooldowns.to_message(),
            "permission": list(self._permission.values()),
        }

    def _from_archive(self, item: Item) -> Media:
        """Copies members out of a tar by offset and size; their names in the tar are never used as paths."""
        members: dict[str, Member] = item.meta["tar"]
        if not members:
            raise Refused(Reason.CORRUPT, f"{Path(item.url).name} {item.meta['damage']}")
        if not allowed(item.license, self.allow):
            stated = f"license {item.license} is not allowed" if item.license else "no license stated"
            raise Refused(Reason.LICENSE, stated)
        total = sum(member["size"] for member in members.values())
        if total > self.config.max_bytes:
            raise Refused(Reason.TOO_LARGE, f"{total} bytes, {self.config.max_bytes} allowed")
        self._num_media += 1
        paths = {}
        for role, member in members.items():
            paths[role] = self.spool / f"{self._num_media:06d}-{role}{member['suffix']}"
            _copy_member(Path(item.url), member["offset"], member["size"], paths[role])
        sound = paths.get("sound", paths["picture"])
        return _media(item, paths["picture"], sound, owned=True, license=item.license)

    def _keep(self, item: Item, work: Path, fetched: Fetched) -> Media:
        """Moves what the child wrote out of its folder, under names of ours."""
        self._num_media += 1
        paths = {}
        for name in {fetched["picture"], fetched["sound"]}:
            paths[name] = self.spool / f"{self._num_media:06d}-{name}"
            # a rename: the spool and the child's folder in it are on one file system
            os.replace(work / name, paths[name])
        picture = paths[fetched["picture"]]
        media = _media(item, picture, paths[fetched["sound"]], owned=True, license=fetched["license"])
        # what the list states of an item goes before what its page does
        return replace(
            media,
            title=item.title or fetched["title"],
            channel=item.channel or fetched["channel"],
            page_url=item.url,
            meta={"extractor": fetched["extractor"], **fetched.get("meta", {})},
        )


def _launch(spool: Path) -> Launch:
    """The child runs in the spool, which is also its home: yt-dlp writes its fragments there."""
    home = spool.resolve()
    return Launch(
        timed_out=Reason.TIMEOUT,
        crashed=Reason.WORKER_CRASHED,
        environment={"HOME": str(home), "TMPDIR": str(home), "YTDLP_NO_PLUGINS": "1"},
        inherited=("SSL_CERT_FILE", "SSL_CERT_DIR", *INHERITED),  # an operator's own certificates
        folder=home,
        stderr_folder=home,
        bounds_cpu=False,  # a slow download of a large file may parse and hash for long
        max_header_bytes=MAX_REPLY_BYTES,
        max_parts_bytes=0,
        object_hook=_storable,
    )


def _for_child(item: Item) -> JsonObject:
    """As it crosses the pipe, without `meta`: the child, which strangers may take over, has no use for it."""
    return {**asdict(item), "meta": {}}


def _local(item: Item) -> Media:
    paths = [Path(path) for path in (item.url, item.sound_url or item.url)]
    for path in paths:
        if not path.is_file():
            raise Refused(Reason.REMOVED, f"no such file: {path}")
    return _media(item, paths[0], paths[1], owned=False, license=item.license)


def _media(item: Item, picture: Path, sound: Path, owned: bool, license: str) -> Media:
    return Media(
        picture=picture,
        sound=sound,
        still=picture != sound and _is_image(picture),
        license=license,
        channel=item.channel,
        title=item.title,
        page_url=item.url,
        num_bytes=sum(path.stat().st_size for path in {picture, sound}),  # a set: one file counts once
        owned=owned,
        start_s=item.start_s,
        end_s=item.end_s,
    )


def _is_image(path: Path) -> bool:
    """By the first bytes, else by the suffix: an address on the web need not say."""
    with path.open("rb") as file:
        content_type = media_type(file.read(HEAD_BYTES))
    if content_type:
        return content_type.startswith("image/")
    return path.suffix.lower() in IMAGE_SUFFIXES


def _copy_member(tar: Path, offset: int, size: int, target: Path) -> None:
    try:
        with tar.open("rb") as source, target.open("wb") as out:
            source.seek(offset)
            remaining = size
            while remaining > 0:
                block = source.read(min(remaining, COPY_BYTES))
                if not block:
                    raise Refused(Reason.CORRUPT, f"{tar.name} ends {remaining} bytes early")
                out.write(block)
                remaining -= len(block)
    except FileNotFoundError:
        raise Refused(Reason.REMOVED, f"no such archive: {tar}") from None


def _storable(texts: JsonObject) -> JsonObject:
    """What a page states, in letters that an index can hold."""
    return {key: storable(value) if isinstance(value, str) else value for key, value in texts.items()}
