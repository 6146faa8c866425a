"""Scratch folders that tell whose they are, so that those of dead processes can be swept away, and only
those.

    with scratch_folder("spool") as folder: ...    # <tmp>/stillsound-<machine>-<pid>-<start>-spool-…
    sweep()                                        # at the start of a worker

A worker that is killed takes nothing away; the next one that starts on the machine does. Processes of another
machine or container that shares the folder are not seen from here, and left alone.
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

NAME = re.compile(r"stillsound-(\d+)-(\d+)-(\d+)-")


def new_scratch(purpose: str) -> Path:
    """A new folder of this process in the system's place for such."""
    return Path(
        tempfile.mkdtemp(
            prefix=f"stillsound-{_machine()}-{os.getpid()}-{_own_start_ms(os.getpid())}-{purpose}-"
        )
    )


@contextlib.contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """The same for a block; it is removed at the end."""
    folder = new_scratch(purpose)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep() -> int:
    """Removes what processes of this machine left that are no more; how many folders."""
    swept = 0
    for path in Path(tempfile.gettempdir()).glob("stillsound-*"):
        found = NAME.match(path.name)
        if found and int(found[1]) == _machine() and not _alive(int(found[2]), int(found[3])):
            shutil.rmtree(path, ignore_errors=True)
            swept += 1
    return swept


def _alive(pid: int, started_ms: int) -> bool:
    try:
        return abs(_start_ms(pid) - started_ms) < 1000
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _start_ms(pid: int) -> int:
    return round(psutil.Process(pid).create_time() * 1000)


_own_start_ms = functools.cache(_start_ms)


@functools.cache
def _machine() -> int:
    """Where process ids mean the same.

    The namespace's number alone is the same on every machine without containers.
    """
    return zlib.crc32(f"{socket.gethostname()} {os.stat('/proc/self/ns/pid').st_ino}".encode())
