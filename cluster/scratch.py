"""Temporary folders named after their process, so that only those of dead ones are removed.

    with scratch_folder("spool") as folder: ...    # <tmp>/stillsound-<machine>-<pid>-<start>-spool-…
    sweep()                                        # at the start of a worker

A killed worker cannot remove its folders; the next one that starts on the machine does. Processes of another
machine or container that shares the temporary folder cannot be seen from here: theirs are left alone.
"""

import contextlib
import functools
import os
import re
import shutil
import socket
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import psutil

# the kernel's clock ticks and the boot time are rounded differently from call to call
START_TOLERANCE_MS = 1000
NAME = re.compile(r"stillsound-(\d+)-(\d+)-(\d+)-")


def new_scratch(purpose: str) -> Path:
    """A new folder of this process, below the system's temporary folder."""
    owner = f"{_machine()}-{os.getpid()}-{_own_start_ms(os.getpid())}"
    return Path(tempfile.mkdtemp(prefix=f"stillsound-{owner}-{purpose}-"))


@contextlib.contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """The same for a block; it is removed at the end."""
    folder = new_scratch(purpose)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep() -> int:
    """Removes the folders of this machine's dead processes; returns how many."""
    removed = 0
    for path in Path(tempfile.gettempdir()).glob("stillsound-*"):
        match = NAME.match(path.name)
        if not match:
            continue
        machine, pid, started_ms = map(int, match.groups())
        if machine == _machine() and not _alive(pid, started_ms):
            shutil.rmtree(path, ignore_errors=True)
            removed += 1
    return removed


def _alive(pid: int, started_ms: int) -> bool:
    try:
        # process ids are used again: only the start time tells two processes apart
        return abs(_start_ms(pid) - started_ms) < START_TOLERANCE_MS
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # it is another user's, so it exists
        return True


def _start_ms(pid: int) -> int:
    return int(round(psutil.Process(pid).create_time() * 1000))


_own_start_ms = functools.cache(_start_ms)


@functools.cache
def _machine() -> int:
    """A number for the host and its process-id namespace: within it, a process id means one process.

    The namespace's number alone is the same on every machine without containers.
    """
    return zlib.crc32(f"{socket.gethostname()} {os.stat('/proc/self/ns/pid').st_ino}".encode())
