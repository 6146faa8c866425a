"""A warm child process for work on hostile bytes: small rights, a clock, a fresh child after every mishap.

    with Sandbox("ingest.clip.process", settings, timeout_s=300, recycle_items=200) as sandbox:
        facts, parts = sandbox.ask({"picture": "/a.mp4"})     # a JSON object and the byte strings that came with it

The child calls `confine` first, then answers each JSON line of `requests()` with `reply`. It gets no
environment of ours, dies with its parent, is killed when it overruns, and replaced when it dies. What it
answers is checked for form only. It is no jail against code that took the child over: files that this user
may read stay readable to it.
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from ingest.sample import Reason, Refused

CHECKOUT = Path(__file__).resolve().parent.parent
PASSED_ENVIRONMENT = ("LANG", "TZ", "LD_LIBRARY_PATH")
START_S = 60.0
MAX_HEADER_BYTES = 8 << 20
MAX_REPLY_BYTES = 1 << 30
MAX_WRITTEN_BYTES = 1 << 16  # of any file: enough for last words on stderr
MAX_OPEN_FILES = 64


class Sandbox:
    """Owns the child that runs `python -m module`. Not for several threads at once."""

    def __init__(self, module: str, settings: dict[str, Any], timeout_s: float, recycle_items: int):
        self.module = module
        self.settings = settings
        self.timeout_s = timeout_s
        self.recycle_items = recycle_items
        self.pid: int | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._served = 0

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        """The child's answer: a JSON object, and the byte strings that followed it.

        Raises `Refused`: what the child refused, decoder_timeout where it overran, decoder_crashed where it
        died.
        """
        child = self._warm_child()
        try:
            _send(child, request)
            header, parts = _receive(child, time.monotonic() + self.timeout_s)
            refusal = (
                Refused(Reason(header["refused"]), str(header["detail"])) if "refused" in header else None
            )
        except TimeoutError:
            self.close()
            raise Refused(Reason.DECODER_TIMEOUT, f"more than {self.timeout_s:g} s") from None
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            words = self._last_words()
            self.close()
            raise Refused(Reason.DECODER_CRASHED, f"{error}{words}") from None
        self._served += 1
        if refusal:
            raise refusal
        return header, parts

    def close(self) -> None:
        """Ends the child, if one runs."""
        child, self._child, self.pid = self._child, None, None
        if child:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe:
                    with contextlib.suppress(OSError):
                        pipe.close()
        if self._errors:
            self._errors.close()
            self._errors = None

    def _warm_child(self) -> subprocess.Popen[bytes]:
        if self._child and (self._child.poll() is not None or self._served >= self.recycle_items):
            self.close()
        if not self._child:
            self._child, self._served = self._start(), 0
            self.pid = self._child.pid
        return self._child

    def _start(self) -> subprocess.Popen[bytes]:
        kept = {name: os.environ[name] for name in PASSED_ENVIRONMENT if name in os.environ}
        own = {
            "PYTHONPATH": str(CHECKOUT),
            "PATH": "",
            "HOME": "/",
            "PYTHONUTF8": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        own |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "STILLSOUND_PARENT": str(os.getpid())}
        own["STILLSOUND_ITEM_S"] = str(self.timeout_s)
        self._errors = tempfile.TemporaryFile()
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", self.module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd="/",
            env={**kept, **own},
        )
        try:
            _send(child, self.settings)
            _receive(child, time.monotonic() + START_S)
        except (OSError, EOFError, ValueError) as error:
            self._child, words = child, self._last_words()
            self.close()
            raise RuntimeError(f"{self.module} did not start: {error}{words}") from None
        return child

    def _last_words(self) -> str:
        if not self._errors:
            return ""
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 300))
        text = " ".join(self._errors.read().decode("utf-8", "replace").split())
        return f": {text}" if text else ""


def confine(max_memory_bytes: int) -> None:
    """The child's first call: dies with the parent, gains no rights, dumps no core, writes no files, bounded
    memory.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        if os.getppid() != int(os.environ.get("STILLSOUND_PARENT", os.getppid())):
            sys.exit(1)
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, MAX_WRITTEN_BYTES),
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
        (resource.RLIMIT_AS, max_memory_bytes),
    ):
        resource.setrlimit(limit, (value, value))


def take_stdout() -> IO[bytes]:
    """The child's way to answer; whatever else prints, prints to stderr from now on."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return replies


def requests() -> Iterator[dict[str, Any]]:
    """The parent's lines, the settings first, until it closes its end.

    Each may take as long on the CPU as by the clock.
    """
    for line in sys.stdin.buffer:
        allow_cpu(float(os.environ.get("STILLSOUND_ITEM_S", START_S)))
        yield json.loads(line)


def allow_cpu(more_s: float) -> None:
    """CPU time from now on; past it the kernel ends the child, even if its parent has stopped watching the
    clock.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = math.ceil(used.ru_utime + used.ru_stime + more_s) + 1
    resource.setrlimit(
        resource.RLIMIT_CPU, (soft if most == resource.RLIM_INFINITY else min(soft, most), most)
    )


def reply(replies: IO[bytes], header: dict[str, Any], parts: Sequence[bytes] = ()) -> None:
    """Answers one request."""
    replies.write(json.dumps({**header, "parts": [len(part) for part in parts]}).encode() + b"\n")
    for part in parts:
        replies.write(part)
    replies.flush()


def _send(child: subprocess.Popen[bytes], message: dict[str, Any]) -> None:
    assert child.stdin
    child.stdin.write(json.dumps(message).encode() + b"\n")
    child.stdin.flush()


def _receive(child: subprocess.Popen[bytes], deadline_s: float) -> tuple[dict[str, Any], list[bytes]]:
    """One reply.

    TimeoutError past the deadline (monotonic), EOFError if the child ended, ValueError for bad form.
    """
    data = bytearray()
    while b"\n" not in data:
        if len(data) > MAX_HEADER_BYTES:
            raise ValueError("an endless answer")
        data += _read_some(child, deadline_s)
    line, _, rest = bytes(data).partition(b"\n")
    header = json.loads(line)
    sizes = header["parts"] if isinstance(header, dict) and isinstance(header.get("parts"), list) else None
    if (
        sizes is None
        or not all(isinstance(size, int) and size >= 0 for size in sizes)
        or sum(sizes) > MAX_REPLY_BYTES
    ):
        raise ValueError("an answer of the wrong form")
    body = bytearray(rest)
    while len(body) < sum(sizes):
        body += _read_some(child, deadline_s)
    if len(body) > sum(sizes):
        raise ValueError("an answer longer than it says")
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return header, [bytes(body[end - size : end]) for end, size in zip(ends, sizes, strict=True)]


def _read_some(child: subprocess.Popen[bytes], deadline_s: float) -> bytes:
    assert child.stdout
    ready, _, _ = select.select([child.stdout], [], [], max(0.0, deadline_s - time.monotonic()))
    if not ready:
        raise TimeoutError("no answer")
    block = os.read(child.stdout.fileno(), 1 << 20)
    if not block:
        raise EOFError(_how_it_ended(child))
    return block


def _how_it_ended(child: subprocess.Popen[bytes]) -> str:
    try:
        code = child.wait(timeout=5)
    except subprocess.TimeoutExpired:
        return "the process stopped answering"
    return f"the process ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"
