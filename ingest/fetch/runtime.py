"""The JavaScript runtime (deno) that solves YouTube's challenges for yt-dlp, in a sandbox of its own.

    path = write_launcher(find_deno("deno"), folder)     # what yt-dlp gets as the path of its runtime

yt-dlp runs `PATH run [flags] -` with a script of YouTube's on stdin, and `PATH --version`. The launcher
starts this file instead, which starts deno with the flags below whatever it was given: all permissions
denied, no environment, an empty folder, limits of time, memory and output. Deno dies with this process, this
process with the fetch process. Code that breaks out of V8 meets the kernel, where that can be had: Landlock
(no files but deno's own libraries, no program, no TCP) and a network namespace with nothing in it. This file
runs isolated (`python -I -S`): it imports the standard library only.
"""

import contextlib
import ctypes
import json
import os
import resource
import shlex
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

MAX_S = 60.0  # of one script, by the clock and on the CPU
MAX_MEMORY_BYTES = 2 << 30  # of what deno writes to, and of what it holds at one time
# of V8's old generation: a script that is too large ends before the limit above crashes deno
MAX_HEAP_MB = 1024
MAX_SCRIPT_BYTES = 64 << 20
MAX_OUTPUT_BYTES = 64 << 20  # an answer holds the player's script again, some 3 MB
MAX_OPEN_FILES = 64
MAX_STDERR_BYTES = 2000  # of what deno writes to stderr
LOOK_EVERY_S = 0.05
FLAGS = (
    "--ext=js --quiet --no-code-cache --no-prompt --no-remote --no-npm --cached-only --no-lock"
    " --node-modules-dir=none --no-config"
    " --deny-read --deny-write --deny-net --deny-env --deny-run --deny-sys --deny-ffi --deny-import"
).split()
ENVIRONMENT = {
    "DENO_DIR": "/dev/null/none",  # no folder: deno then caches nothing
    "DENO_NO_UPDATE_CHECK": "1",
    "NO_COLOR": "1",
}

# linux/prctl.h, linux/sched.h
PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
# linux/landlock.h; the system calls have these numbers on every architecture
LANDLOCK_CREATE = 444
LANDLOCK_ADD = 445
LANDLOCK_RESTRICT = 446
LANDLOCK_VERSION = 1
LANDLOCK_BENEATH = 1
LANDLOCK_EXECUTE = 1
LANDLOCK_READ_FILE = 4
LANDLOCK_FILE_BITS = {1: 13, 2: 14, 3: 15, 4: 15}  # rights known to each version, 16 from the fifth on
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/nix/store", "/etc/ld.so.cache")


def find_deno(js_runtime: str) -> Path:
    """The program: its path, or `deno` for the one of the PyPI package.

    FileNotFoundError where there is none.
    """
    path = Path(js_runtime)
    if js_runtime == "deno":
        try:
            from deno import find_deno_bin
        except ImportError:
            raise FileNotFoundError("the package deno is not installed") from None
        path = Path(find_deno_bin())
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise FileNotFoundError(f"{path} is not a program")
    return path.resolve()


def write_launcher(deno: Path, folder: Path, max_s: float = MAX_S) -> Path:
    """Writes `folder`/deno, which starts `deno` in the sandbox, and an empty folder for it to run in.

    Returns the launcher.
    """
    empty = folder / "empty"
    empty.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-I",
        "-S",
        str(Path(__file__).resolve()),
        str(deno),
        str(empty.resolve()),
        str(max_s),
    ]
    text = f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n'
    beside = folder / "deno.new"
    beside.write_text(text, encoding="utf-8")
    beside.chmod(0o700)
    return beside.replace(folder / "deno").resolve()


def run(deno: str, empty: str, max_s: float, arguments: list[str]) -> int:
    """Runs deno on the script of stdin, or for its version; passes on what it wrote once it has ended.

    Returns the exit status.
    """
    command = (
        [deno, "--version"]
        if arguments == ["--version"]
        else [deno, "run", *FLAGS, _v8_flags(arguments), "-"]
    )
    with (
        tempfile.TemporaryFile() as script,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as errors,
    ):
        if arguments != ["--version"]:
            script.write(evaluated(sys.stdin.buffer.read(MAX_SCRIPT_BYTES)))
            script.seek(0)
        child = subprocess.Popen(
            command,
            stdin=script,
            stdout=out,
            stderr=errors,
            cwd=empty,
            env=ENVIRONMENT,
            preexec_fn=confinement(deno, os.getpid(), max_s),  # safe: this process has one thread
        )
        why = _watch(child, time.monotonic() + max_s)
        _pass_on(errors, sys.stderr.buffer, MAX_STDERR_BYTES)
        if why or child.returncode:
            print(why or f"deno ended with {child.returncode}", file=sys.stderr)
            return 1
        _pass_on(out, sys.stdout.buffer, MAX_OUTPUT_BYTES)
        return 0


def evaluated(script: bytes) -> bytes:
    """A module that does what `script` says.

    Deno reads the files of a module's own imports without asking for permission.
    """
    return f"(0, eval)({json.dumps(script.decode('utf-8', 'replace'))});\n".encode()


def _v8_flags(arguments: list[str]) -> str:
    """Ours, and `jitless` of yt-dlp's own (its option youtube-ejs:jitless).

    Its other flags grant permissions, or are among ours anyway.
    """
    jitless = ",--jitless" if "--v8-flags=--jitless" in arguments else ""
    return f"--v8-flags=--max-old-space-size={MAX_HEAP_MB}{jitless}"


def _watch(child: subprocess.Popen[bytes], deadline_s: float) -> str:
    """Waits for `child` until the deadline (monotonic); kills what overruns or grows, and returns why."""
    why = ""
    while child.poll() is None:
        if time.monotonic() > deadline_s:
            why = "deno took too long"
        elif _resident_bytes(child.pid) > MAX_MEMORY_BYTES:
            why = "deno took too much memory"
        if why:
            child.kill()
            child.wait()
            return why
        time.sleep(LOOK_EVERY_S)
    return ""


def _resident_bytes(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    return 0  # no Linux, or just ended


def _pass_on(source: IO[bytes], target: IO[bytes], max_bytes: int) -> None:
    source.seek(0)
    target.write(source.read(max_bytes))
    target.flush()


def confinement(program: str, parent: int, max_s: float) -> Callable[[], None]:
    """What the process that becomes `program` (deno) does to itself before.

    It ends when `parent`, a process id, does.
    """
    cpu_s = int(max_s) + 1

    def confine() -> None:
        for limit, value in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_FSIZE, MAX_OUTPUT_BYTES),
            (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
            (resource.RLIMIT_CPU, cpu_s),
            (resource.RLIMIT_DATA, MAX_MEMORY_BYTES),
        ):
            resource.setrlimit(limit, (value, value))
        most = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (most, most))  # V8 reserves far more addresses than it uses
        if sys.platform == "linux":
            leave_network()
            _die_with(parent)  # after what may change credentials, which would take it back
            leave_files(program)

    return confine


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)


def leave_network() -> bool:
    """Into a network namespace with nothing in it, as root or as a user of its own.

    False: deno's --deny-net has to do.
    """
    libc = ctypes.CDLL(None)
    return bool(libc.unshare(CLONE_NEWNET) == 0 or libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0)


def leave_files(program: str) -> bool:
    """Lets this process open and execute `program` and the system's libraries only.

    False: deno's --deny-read has to do.
    """
    syscall = ctypes.CDLL(None).syscall
    version = syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), LANDLOCK_VERSION)
    if version < 1:
        return False
    files = (1 << LANDLOCK_FILE_BITS.get(version, 16)) - 1
    rules = struct.pack("Q", files)
    rules += struct.pack("Q", 3) if version >= 4 else b""  # TCP: bind and connect
    rules += struct.pack("Q", 3) if version >= 6 else b""  # scopes: abstract sockets and signals of others
    ruleset = syscall(LANDLOCK_CREATE, rules, ctypes.c_size_t(len(rules)), 0)
    if ruleset < 0:
        return False
    for path in (program, *LIBRARIES):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            allowed = struct.pack("=Qi", LANDLOCK_EXECUTE | LANDLOCK_READ_FILE, descriptor)
            syscall(LANDLOCK_ADD, ruleset, LANDLOCK_BENEATH, allowed, 0)
            os.close(descriptor)
    is_restricted = bool(syscall(LANDLOCK_RESTRICT, ruleset, 0) == 0)
    os.close(ruleset)
    return is_restricted


def main(arguments: list[str]) -> int:
    """`runtime.py DENO EMPTY_FOLDER MAX_S ARGUMENTS…`, as the launcher calls it."""
    deno, empty, max_s, *theirs = arguments
    _die_with(os.getppid())
    return run(deno, empty, float(max_s), theirs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
