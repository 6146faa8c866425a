"""From an item to media files on the local disk, through a warm, guarded child process that alone touches the
network.

    with Fetcher(config, spool, allow=("CC0-1.0", "own")) as fetcher:
        media = fetcher.fetch(item, need_short_side_px=256)     # raises Refused

Local files pass through without a copy; members of other people's tars are copied out by offset. The child
gets no environment of ours, is killed when it overruns, replaced when it crashes, and recycled. Nothing is
decoded here.
"""

import contextlib
import json
import logging
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from configs.load import UserError, operational
from ingest.fetch.guard import parse_allowed, url_refusal
from ingest.fetch.sniff import HEAD_BYTES, media_type
from ingest.licenses import allowed
from ingest.sample import Item, Media, Reason, Refused, storable

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(".jpg .jpeg .png .webp .avif .gif .bmp .tif .tiff .heic .heif".split())
PASSED_ENVIRONMENT = ("SSL_CERT_FILE", "SSL_CERT_DIR", "LANG", "TZ", "LD_LIBRARY_PATH")
CHECKOUT = Path(__file__).resolve().parents[2]
GRACE_S = 5.0  # the child ends an item at timeout_s itself; the parent kills it this much later
START_S = 60.0
MAX_REPLY_BYTES = 1 << 20
MAX_RECORDS = 1000  # of what hosts said, the newest


@dataclass
class FetchConfig:
    """What a fetch may cost and how it behaves.

    Sizes and durations decide what is kept; the rest never changes bytes.
    """

    allow_private: list[str] = operational([])  # host:port of your own servers on private addresses
    max_bytes: int = 500_000_000  # of one item, everything counted
    max_duration_s: float = 3600.0
    max_text_bytes: int = operational(16 << 20)  # of a page or a manifest
    timeout_s: float = operational(300.0)  # of one item, waits counted
    socket_timeout_s: float = operational(20.0)
    retries: int = operational(2)
    max_wait_s: float = operational(60.0)  # a longer Retry-After makes the item rate_limited
    requests_per_s: float = operational(
        4.0
    )  # per host, of all workers together; 0 = unpaced, as are hosts of allow_private
    burst_requests: float = operational(
        8.0
    )  # that a quiet host answers at once, of all workers together (one each at least)
    bytes_per_s: float = operational(0.0)  # per host, of all workers together; 0 = as fast as they come
    user_agent: str = operational("stillsound/0.1")  # robots.txt is read for this name and for stillsound
    contact: str = operational("")  # an e-mail address or URL of yours, which the user agent carries
    recycle_items: int = operational(500)  # items after which the child is replaced

    def share(self, workers: int) -> "FetchConfig":
        """What one of so many workers may do: an equal part of rates and burst, so that a host never meets
        more than the whole.
        """
        workers = max(1, workers)
        burst = max(1.0, self.burst_requests / workers)
        return replace(
            self,
            requests_per_s=self.requests_per_s / workers,
            burst_requests=burst,
            bytes_per_s=self.bytes_per_s / workers,
        )

    @property
    def full_user_agent(self) -> str:
        """As sent: the name, and in brackets how to reach the operator and what is obeyed."""
        contact = f"+{self.contact}; " if self.contact and self.contact not in self.user_agent else ""
        return f"{self.user_agent} ({contact}dataset builder; obeys robots.txt, opt-outs, licenses and Retry-After)"

    def __post_init__(self) -> None:
        try:
            parse_allowed(self.allow_private)
        except ValueError as error:
            raise UserError(f"network.allow_private: {error}") from None
        if self.contact and not re.fullmatch(r"[!-~]+@[!-~]+\.[!-~]+|https?://[!-~]+", self.contact):
            raise UserError(
                f"network.contact={self.contact}: give an e-mail address or a URL, such as https://example.org/bot"
            )
        if not re.fullmatch(r"[!-~][ -~]*", self.user_agent):
            raise UserError(
                f"network.user_agent={self.user_agent!r}: give a name in plain ASCII, such as stillsound/0.1"
            )
        for name in (
            "max_bytes",
            "max_duration_s",
            "max_text_bytes",
            "timeout_s",
            "socket_timeout_s",
            "recycle_items",
        ):
            if getattr(self, name) <= 0:
                raise UserError(f"network.{name}={getattr(self, name)}: give a positive number")
        for name in ("retries", "max_wait_s", "requests_per_s", "bytes_per_s"):
            if getattr(self, name) < 0:
                raise UserError(f"network.{name}={getattr(self, name)}: give 0 or more")
        if self.burst_requests < 1:
            raise UserError(f"network.burst_requests={self.burst_requests}: give 1 or more")


class Fetcher:
    """Owns the child and the spool folder, and knows which hosts and ways rest.

    Not for several threads at once.
    """

    def __init__(self, config: FetchConfig, spool: Path, allow: tuple[str, ...] = (), youtube: Any = None):
        """`youtube`: the `YoutubeConfig`, where there is YouTube to fetch or to list."""
        self.config = config
        self.youtube = asdict(youtube) if youtube else None
        self.spool = Path(spool)
        self.allow = tuple(allow)
        self._child: subprocess.Popen[bytes] | None = None
        self._served = 0
        self._count = 0
        self._rests: dict[
            str, float
        ] = {}  # what the children told, until when (monotonic): a new one has to know
        self._permission: dict[
            str, dict[str, Any]
        ] = {}  # likewise: what hosts said of robots and machine use, by URL

    def __enter__(self) -> "Fetcher":
        self.spool.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the child, if one runs."""
        child, self._child = self._child, None
        if child:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe:
                    with contextlib.suppress(OSError):
                        pipe.close()

    def fetch(self, item: Item, need_short_side_px: int) -> Media:
        """The item's media on the local disk; files with `owned` lie in the spool and are the caller's to
        delete.

        Raises `Refused`. An item whose license is not among `allow` is refused before its media body is asked
        for.
        """
        if item.url.startswith("/") and item.source != "urls":  # a list from elsewhere names no files of ours
            return self._from_archive(item) if "tar" in item.meta else _local(item)
        for url in filter(None, (item.url, item.sound_url)):
            why = url_refusal(url)
            if why:
                raise Refused(Reason.ADDRESS, why)
        # item.meta is the operator's and no business of the child
        question = {"item": {**asdict(item), "meta": {}}, "need_short_side_px": need_short_side_px}
        with self._work() as work:
            return self._keep(item, work, dict(self._ask(question, work)["media"]))

    def check(self, item: Item) -> str:
        """The license of an item on the web, which is asked for as by `fetch`, without the bodies of its
        media. Raises `Refused`.
        """
        question = {"item": {**asdict(item), "meta": {}}, "need_short_side_px": 0, "looks_only": True}
        with self._work() as work:
            return str(self._ask(question, work)["media"]["license"])

    def list_videos(self, target: str) -> list[dict[str, str]]:
        """{"id", "title", "channel_id"} of every video behind a YouTube search, channel or playlist.

        Raises `Refused`.
        """
        with self._work() as work:
            self._ask({"list": target}, work)
            return [
                _storable(json.loads(line))
                for line in (work / "answer").read_text(encoding="utf-8").splitlines()
            ]

    def read_text(self, url: str) -> bytes:
        """What stands at `url`, asked for as politely as media and behind the same guard; up to
        `max_text_bytes`. Raises `Refused`.
        """
        with self._work() as work:
            self._ask({"read": url}, work)
            return (work / "answer").read_bytes()

    @contextlib.contextmanager
    def _work(self) -> Iterator[Path]:
        """An empty folder for the child to write in."""
        work = self.spool / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _from_archive(self, item: Item) -> Media:
        """Copies members out of a tar by offset and size; their names in the tar are never used as paths."""
        members: dict[str, dict[str, Any]] = item.meta["tar"]
        if not members:
            raise Refused(Reason.CORRUPT, f"{Path(item.url).name} {item.meta['damage']}")
        if not allowed(item.license, self.allow):
            raise Refused(
                Reason.LICENSE,
                f"license {item.license} is not allowed" if item.license else "no license stated",
            )
        total = sum(member["size"] for member in members.values())
        if total > self.config.max_bytes:
            raise Refused(Reason.TOO_LARGE, f"{total} bytes, {self.config.max_bytes} allowed")
        self._count += 1
        paths = {}
        for role, member in members.items():
            paths[role] = self.spool / f"{self._count:06d}-{role}{member['suffix']}"
            _copy_member(Path(item.url), member["offset"], member["size"], paths[role])
        return _media(
            item, paths["picture"], paths.get("sound", paths["picture"]), owned=True, license=item.license
        )

    def _keep(self, item: Item, work: Path, found: dict[str, Any]) -> Media:
        """Moves what the child wrote out of its folder, under names of ours."""
        self._count += 1
        paths = {}
        for name in {found["picture"], found["sound"]}:
            paths[name] = self.spool / f"{self._count:06d}-{name}"
            os.replace(work / name, paths[name])
        media = _media(
            item, paths[found["picture"]], paths[found["sound"]], owned=True, license=found["license"]
        )
        told = {"title": item.title or found["title"], "channel": item.channel or found["channel"]}
        meta = {"extractor": found["extractor"], **found.get("meta", {})}
        return Media(**{**vars(media), **told, "page_url": item.url, "meta": meta})

    def _ask(self, question: dict[str, Any], work: Path) -> dict[str, Any]:
        """One question to the child, one answer back within the time; a child that dies or overruns is
        replaced.
        """
        child = self._warm_child()
        deadline_s = time.monotonic() + self.config.timeout_s + GRACE_S
        try:
            _send(child, {**question, "folder": str(work.resolve())})
            reply = _receive(child, deadline_s)
        except TimeoutError:
            self.close()
            raise Refused(
                Reason.TIMEOUT, f"the fetch process did not answer in {self.config.timeout_s + GRACE_S:.0f} s"
            ) from None
        except (OSError, EOFError, ValueError) as error:
            self.close()
            raise Refused(
                Reason.WORKER_CRASHED, f"the fetch process ended: {error}{self._last_words()}"
            ) from None
        self._served += 1
        now_s = time.monotonic()
        told = {name: now_s + float(seconds) for name, seconds in reply["rests"].items()}
        self._rests = {name: until_s for name, until_s in {**self._rests, **told}.items() if until_s > now_s}
        self._permission |= {record["url"]: record for record in reply["permission"]}
        self._permission = dict(list(self._permission.items())[-MAX_RECORDS:])
        if "refused" in reply:
            raise Refused(Reason(reply["refused"]), reply["detail"])
        return reply

    def _warm_child(self) -> subprocess.Popen[bytes]:
        if self._child and (self._child.poll() is not None or self._served >= self.config.recycle_items):
            self.close()
        if not self._child:
            self._child, self._served = self._start(), 0
        return self._child

    def _start(self) -> subprocess.Popen[bytes]:
        kept = {name: os.environ[name] for name in PASSED_ENVIRONMENT if name in os.environ}
        home = str(self.spool.resolve())
        own = {
            "PYTHONPATH": str(CHECKOUT),
            "HOME": home,
            "TMPDIR": home,
            "PATH": "",
            "YTDLP_NO_PLUGINS": "1",
            "PYTHONUTF8": "1",
        }
        own["STILLSOUND_PARENT"] = str(os.getpid())
        command = [sys.executable, "-m", "ingest.fetch.process"]
        with (self.spool / "fetch-stderr.txt").open("wb") as errors:
            child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=home,
                env={**kept, **own},
                close_fds=True,
            )
        limits = {
            key: value
            for key, value in asdict(self.config).items()
            if key not in ("recycle_items", "contact")
        }
        limits["user_agent"] = self.config.full_user_agent
        try:
            now_s = time.monotonic()
            rests = {name: until_s - now_s for name, until_s in self._rests.items() if until_s > now_s}
            told = {"rests": rests, "permission": list(self._permission.values())}
            _send(child, {"limits": limits, "allow": self.allow, "youtube": self.youtube, **told})
            _receive(child, time.monotonic() + START_S)
        except (OSError, EOFError, ValueError) as error:
            child.kill()
            child.wait()
            raise Refused(
                Reason.WORKER_CRASHED, f"the fetch process did not start: {error}{self._last_words()}"
            ) from None
        return child

    def _last_words(self) -> str:
        try:
            text = (self.spool / "fetch-stderr.txt").read_bytes()[-300:].decode("utf-8", "replace")
        except OSError:
            return ""
        return f": {' '.join(text.split())}" if text.strip() else ""


def _local(item: Item) -> Media:
    paths = [Path(path) for path in (item.url, item.sound_url or item.url)]
    for path in paths:
        if not path.is_file():
            raise Refused(Reason.REMOVED, f"no such file: {path}")
    return _media(item, paths[0], paths[1], owned=False, license=item.license)


def _media(item: Item, picture: Path, sound: Path, owned: bool, license: str) -> Media:
    num_bytes = sum(path.stat().st_size for path in {picture, sound})
    still = picture != sound and _is_image(picture)
    facts = (license, item.channel, item.title, item.url, num_bytes, owned)
    return Media(picture, sound, still, *facts, start_s=item.start_s, end_s=item.end_s)


def _is_image(path: Path) -> bool:
    """By the first bytes, else by the suffix: an address on the web need not say."""
    with path.open("rb") as file:
        known = media_type(file.read(HEAD_BYTES))
    if known:
        return known.startswith("image/")
    return path.suffix.lower() in IMAGE_SUFFIXES


def _copy_member(tar: Path, offset: int, size: int, target: Path) -> None:
    try:
        with tar.open("rb") as source, target.open("wb") as out:
            source.seek(offset)
            left = size
            while left > 0:
                block = source.read(min(left, 1 << 20))
                if not block:
                    raise Refused(Reason.CORRUPT, f"{tar.name} ends {left} bytes early")
                out.write(block)
                left -= len(block)
    except FileNotFoundError:
        raise Refused(Reason.REMOVED, f"no such archive: {tar}") from None


def _storable(facts: dict[str, Any]) -> dict[str, Any]:
    """What a page told, in letters that an index can hold."""
    return {key: storable(value) if isinstance(value, str) else value for key, value in facts.items()}


def _send(child: subprocess.Popen[bytes], message: dict[str, Any]) -> None:
    assert child.stdin
    child.stdin.write(json.dumps(message).encode() + b"\n")
    child.stdin.flush()


def _receive(child: subprocess.Popen[bytes], deadline_s: float) -> dict[str, Any]:
    """The next line of the child as JSON; TimeoutError past the deadline (monotonic), EOFError if it ended."""
    assert child.stdout
    data = b""
    while not data.endswith(b"\n"):
        ready, _, _ = select.select([child.stdout], [], [], max(0.0, deadline_s - time.monotonic()))
        if not ready:
            raise TimeoutError("no answer")
        block = os.read(child.stdout.fileno(), 65536)
        if not block or len(data) > MAX_REPLY_BYTES:
            raise EOFError(f"exit code {child.wait(timeout=5)}" if not block else "an endless answer")
        data += block
    reply = json.loads(data, object_hook=_storable)
    if not isinstance(reply, dict):
        raise ValueError("not an object")
    return reply
