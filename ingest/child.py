"""A warm child process for hostile bytes or a hostile network: one protocol for both ends of the pipe.

The parent:

    launch = Launch(timed_out=Reason.DECODER_TIMEOUT, crashed=Reason.DECODER_CRASHED)
    with WarmChild("ingest.clip.process", settings, 300.0, 200, launch) as child:
        header, parts = child.ask({"picture": "/a.mp4"})    # a JSON object, and byte strings beside it

The child, which runs as `python -m ingest.clip.process`:

    replies, lines = take_stdout(), requests()
    settings = next(lines)
    confine(settings["max_memory_bytes"])
    reply(replies, {"ready": True})
    for request in lines:
        reply(replies, {"clips": []}, [b"bytes"])           # or {"refused": reason, "detail": text}

What is covered:

- it gets no environment of ours but the variables that `Launch` names, no open file but its three pipes;
- it ends with its parent, is killed when it overruns an item's time, and is replaced when it dies and after
  `recycle_items`;
- `confine`: no new rights, no core dump, bounded files, memory, open files and CPU time;
- its replies are bounded in size and checked for form.

What is not covered: code that took the child over. Files that this user may read stay readable to it, and
what it replies is untrusted beyond its form. No network is closed here: `ingest.fetch.guard` does that.
"""

import contextlib
import ctypes
import json
import math
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, TypedDict

from cluster.jsonl import JsonObject
from ingest.sample import Reason, Refused

CHECKOUT = Path(__file__).resolve().parent.parent
INHERITED = ("LANG", "TZ", "LD_LIBRARY_PATH")  # without them texts, times or shared libraries would differ

START_S = 60.0  # imports of av or yt-dlp on a cold, busy disk take up to 20 s
PIPE_BYTES = 1 << 20  # per read; larger than any kernel pipe buffer
STDERR_TAIL_BYTES = 300  # quoted where a child died: the last line of a traceback

# confine
MAX_WRITTEN_BYTES = 1 << 16  # of any file: enough for a traceback on stderr
MAX_OPEN_FILES = 64  # two media, their demuxers and the pipes need a dozen

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_NO_NEW_PRIVS = 38


class ChildStartError(RuntimeError):
    """The child ended before its first reply: the installation or the machine is at fault, no item."""


@dataclass(frozen=True)
class Launch:
    """How one kind of child is started, and how its failures are called."""

    timed_out: Reason
    crashed: Reason
    environment: Mapping[str, str] = field(default_factory=dict)
    inherited: tuple[str, ...] = INHERITED  # variables of ours that are passed on where they are set
    folder: Path = Path("/")  # where it runs
    stderr_folder: Path | None = None  # for the nameless file of its stderr; None: the system's
    bounds_cpu: bool = True  # as much CPU time per item as time by the clock
    max_header_bytes: int = 8 << 20  # a thousand clips of an hour
    max_parts_bytes: int = 1 << 30
    object_hook: Callable[[JsonObject], Any] | None = None  # of json.loads, for the reply's header


class RefusalHeader(TypedDict):
    """The header of a reply that refuses: a code of `Reason`, and what a person reads."""

    refused: str
    detail: str


class Reply(NamedTuple):
    """The JSON object, the byte strings that followed it, and what the child refused, if it did."""

    header: JsonObject
    parts: list[bytes]
    refusal: Refused | None


class WarmChild:
    """Owns the child that runs `python -m module`. Not for several threads at once.

    `settings` is the first line that each child reads, or a function that makes it when a child starts.
    """

    def __init__(
        self,
        module: str,
        settings: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
        timeout_s: float,
        recycle_items: int,
        launch: Launch,
    ):
        self.module = module
        self.settings = settings
        self.timeout_s = timeout_s
        self.recycle_items = recycle_items
        self.launch = launch
        self.pid: int | None = None
        self.num_served = 0  # by the child that runs now
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: IO[bytes] | None = None

    def __enter__(self) -> "WarmChild":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, request: Mapping[str, Any]) -> tuple[JsonObject, list[bytes]]:
        """The child's reply: a JSON object, and the byte strings that followed it.

        Raises `Refused`: what the child refused, or as `exchange`.
        """
        reply = self.exchange(request)
        if reply.refusal:
            raise reply.refusal
        return reply.header, reply.parts

    def exchange(self, request: Mapping[str, Any]) -> Reply:
        """As `ask`, but what the child refused is returned, so that the reply's header can be read first.

        Raises `Refused` (`launch.timed_out`, `launch.crashed`), `ChildStartError`.
        """
        process = self._running()
        try:
            _send(process, request)
            header, parts = self._receive(process, time.monotonic() + self.timeout_s)
            reply = Reply(header, parts, _refusal(header))
        except TimeoutError:
            self.close()
            raise Refused(self.launch.timed_out, f"more than {self.timeout_s:g} s") from None
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            detail = f"{error}{self._stderr_tail()}"
            self.close()
            raise Refused(self.launch.crashed, detail) from None
        self.num_served += 1
        return reply

    def close(self) -> None:
        """Ends the child, if one runs."""
        process = self._process
        self._process = None
        self.pid = None
        if process:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    with contextlib.suppress(OSError):
                        pipe.close()
        if self._stderr:
            self._stderr.close()
            self._stderr = None

    def _running(self) -> subprocess.Popen[bytes]:
        """The child, started anew where it died or has served enough."""
        if self._process and (self._process.poll() is not None or self.num_served >= self.recycle_items):
            self.close()
        return self._process or self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self._stderr = tempfile.TemporaryFile(dir=self.launch.stderr_folder)
        # -P: its folder may hold what strangers named, and must not be searched for modules
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", self.module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            cwd=self.launch.folder,
            env=self._environment(),
            close_fds=True,
        )
        self._process = process
        self.pid = process.pid
        self.num_served = 0
        try:
            _send(process, self.settings() if callable(self.settings) else self.settings)
            self._receive(process, time.monotonic() + START_S)
        except (OSError, EOFError, ValueError) as error:
            detail = f"{self.module} did not start: {error}{self._stderr_tail()}"
            self.close()
            raise ChildStartError(detail) from None
        return process

    def _environment(self) -> dict[str, str]:
        environment = {name: os.environ[name] for name in self.launch.inherited if name in os.environ}
        # an empty PATH: nothing that the child imports finds a program to start
        environment |= {"PYTHONPATH": str(CHECKOUT), "PATH": "", "PYTHONUTF8": "1"}
        environment["STILLSOUND_PARENT"] = str(os.getpid())
        if self.launch.bounds_cpu:
            environment["STILLSOUND_ITEM_S"] = str(self.timeout_s)
        return environment | dict(self.launch.environment)

    def _receive(self, process: subprocess.Popen[bytes], deadline_s: float) -> tuple[JsonObject, list[bytes]]:
        """One reply: the header's line, then the byte strings whose sizes it names under "parts".

        TimeoutError past the deadline (monotonic), EOFError if the child ended, ValueError for bad form.
        """
        data = bytearray()
        while b"\n" not in data:
            if len(data) > self.launch.max_header_bytes:
                raise ValueError("an endless reply")
            data += _read_some(process, deadline_s)
        line, _, body = data.partition(b"\n")
        header = json.loads(line, object_hook=self.launch.object_hook)
        sizes = _part_sizes(header, self.launch.max_parts_bytes)
        while len(body) < sum(sizes):
            body += _read_some(process, deadline_s)
        if len(body) > sum(sizes):
            raise ValueError("a reply longer than its header states")
        return header, _cut(bytes(body), sizes)

    def _stderr_tail(self) -> str:
        """The end of the child's stderr as one line behind a colon; "" where it wrote nothing."""
        if not self._stderr:
            return ""
        end = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, end - STDERR_TAIL_BYTES))
        text = " ".join(self._stderr.read().decode("utf-8", "replace").split())
        return f": {text}" if text else ""


# The child's end


def take_stdout() -> IO[bytes]:
    """Where replies go; whatever else prints, prints to stderr from now on."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return replies


def requests() -> Iterator[JsonObject]:
    """The parent's lines, the settings first, until it closes its end.

    Where `Launch.bounds_cpu` is set, a line may take as much CPU time as time by the clock.
    """
    item_s = os.environ.get("STILLSOUND_ITEM_S")
    for line in sys.stdin.buffer:
        if item_s:
            allow_cpu(float(item_s))
        yield json.loads(line)


def reply(replies: IO[bytes], header: Mapping[str, Any], parts: Sequence[bytes] = ()) -> None:
    """Answers one request."""
    sizes = [len(part) for part in parts]
    replies.write(json.dumps({**header, "parts": sizes}).encode() + b"\n")
    for part in parts:
        replies.write(part)
    replies.flush()


def die_with_parent() -> None:
    """Linux kills this process when the thread that started it ends; elsewhere the end of stdin must do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        # The parent may have ended before prctl. An orphan's new parent is process 1 or any subreaper (a
        # container's init, systemd --user), so only the id that the parent left decides.
        if os.getppid() != int(os.environ.get("STILLSOUND_PARENT", os.getppid())):
            sys.exit(1)


def confine(max_memory_bytes: int) -> None:
    """The child's first call: it ends with its parent, gains no rights, and has small limits.

    No core dump, bounded files, open files and address space; each for good (hard limits).
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    die_with_parent()
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: MAX_WRITTEN_BYTES,
        resource.RLIMIT_NOFILE: MAX_OPEN_FILES,
        resource.RLIMIT_AS: max_memory_bytes,
    }
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))


def allow_cpu(more_s: float) -> None:
    """CPU time from now on; past it the kernel ends the child, even if no parent watches the clock."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(used.ru_utime + used.ru_stime + more_s) + 1  # the limit counts whole seconds
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


# The parent's end of the pipe


def _send(process: subprocess.Popen[bytes], message: Mapping[str, Any]) -> None:
    assert process.stdin
    process.stdin.write(json.dumps(message).encode() + b"\n")
    process.stdin.flush()


def _read_some(process: subprocess.Popen[bytes], deadline_s: float) -> bytes:
    assert process.stdout
    remaining_s = max(0.0, deadline_s - time.monotonic())
    ready, _, _ = select.select([process.stdout], [], [], remaining_s)
    if not ready:
        raise TimeoutError("no reply")
    block = os.read(process.stdout.fileno(), PIPE_BYTES)
    if not block:
        raise EOFError(_how_it_ended(process))
    return block


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(timeout=5)  # the pipe closes a moment before the process is gone
    except subprocess.TimeoutExpired:
        return "the process closed its pipe"
    return f"the process ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"


def _part_sizes(header: Any, max_bytes: int) -> list[int]:
    """The sizes that a reply's header states. ValueError where it is no header or states too much."""
    sizes = header.get("parts") if isinstance(header, dict) else None
    if not isinstance(sizes, list) or not all(isinstance(size, int) and size >= 0 for size in sizes):
        raise ValueError("a reply of the wrong form")
    if sum(sizes) > max_bytes:
        raise ValueError("a reply of too many bytes")
    return sizes


def _cut(body: bytes, sizes: Sequence[int]) -> list[bytes]:
    blobs = []
    start = 0
    for size in sizes:
        blobs.append(body[start : start + size])
        start += size
    return blobs


def _refusal(header: JsonObject) -> Refused | None:
    """ValueError for a reason that is not of the closed list, KeyError without a detail."""
    if "refused" not in header:
        return None
    return Refused(Reason(header["refused"]), str(header["detail"]))
