"""Checks a machine or a cluster before money is spent on it.

    python -m cluster doctor                                  # every check on this machine
    python -m cluster doctor output=s3://bucket/data          # … and that this place can hold a dataset
    RAY_ADDRESS=host:6379 python -m cluster doctor checks=[ray,storage] output=s3://bucket/data

Each check is a plain function of the settings that returns what it found and, where that is not good enough,
the fix. Other rooms are checked by starting their commands as text, never by import. It repairs nothing and
leaves nothing behind.
"""

import contextlib
import datetime
import importlib.metadata
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cluster.storage import open_store
from configs.load import UserError, operational

log = logging.getLogger(__name__)
GIB = 2**30
OLDEST_YTDLP = datetime.date(2026, 7, 4)  # as in pyproject.toml
OLDEST_DENO = (2, 3, 0)  # that yt-dlp supports
STALE_DAYS = 90  # YouTube breaks older ones
CONNECT_S = 5.0  # a head that is up answers at once
MAX_LINE_CHARS = 200  # of a command's output in a finding


@dataclass
class DoctorConfig:
    """Which checks, and what they ask for. Nothing that is kept depends on any."""

    output: str = operational("out")  # a folder or URI that a run would write to
    min_free_gib: float = operational(5.0)  # how much room local scratch must have
    timeout_s: float = operational(120.0)  # of each command that a check starts
    # which ones, in this order
    checks: list[str] = field(default_factory=lambda: list(CHECKS), metadata={"operational": True})


@dataclass(frozen=True)
class Finding:
    """What one check found; `fix` is empty where all is well."""

    check: str
    found: str
    fix: str = ""

    @property
    def ok(self) -> bool:
        return not self.fix


def diagnose(config: DoctorConfig, show: Callable[[Finding], None] = lambda _: None) -> list[Finding]:
    """Every wanted check, in order; each is shown as soon as it is done, because some take seconds.

    UserError for a check that does not exist.
    """
    unknown = [name for name in config.checks if name not in CHECKS]
    if unknown:
        raise UserError(f"no such check: {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    findings = []
    for name in config.checks:
        findings.append(CHECKS[name](config))
        show(findings[-1])
    return findings


def check_python(_: DoctorConfig) -> Finding:
    """The version that the pins were made for, or newer."""
    fix = "" if sys.version_info >= (3, 11) else "install Python 3.11 or newer and run make setup again"
    return Finding("python", sys.version.split()[0], fix)


def check_disk(config: DoctorConfig) -> Finding:
    """Free space where shards are built before they are uploaded."""
    scratch = tempfile.gettempdir()
    free_gib = shutil.disk_usage(scratch).free / GIB
    enough = free_gib >= config.min_free_gib
    return Finding(
        "disk",
        f"{free_gib:.1f} GiB free in {scratch}",
        "" if enough else f"free {config.min_free_gib:g} GiB or set TMPDIR to a larger disk",
    )


def check_ray(config: DoctorConfig) -> Finding:
    """A task really runs: on the cluster of RAY_ADDRESS, else on a local Ray that ends with the check."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith("http"):
        return Finding(
            "ray",
            f"RAY_ADDRESS={address}",
            "that is the job server: set RAY_ADDRESS=host:6379 here, or use it with cluster submit",
        )
    if address and (problem := _unreachable(address)):
        fix = "is the head running, is RAY_ADDRESS its host and port (6379), is the port open from here?"
        return Finding("ray", f"the cluster at {address}: {problem}", fix)
    options = (
        {"address": "auto"} if address else {"address": "local", "num_cpus": 1, "include_dashboard": False}
    )
    program = (
        f"import ray; ray.init(log_to_driver=False, logging_level='ERROR', **{options!r});"
        "answer = ray.get(ray.remote(lambda: 'ran a task on').remote());"
        "print(answer, int(ray.cluster_resources().get('CPU', 0)), 'CPUs')"
    )
    environment = {"RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "disabled")}
    ok, message = _run([sys.executable, "-c", program], config.timeout_s, environment)
    where = f"the cluster at {address}" if address else "a local Ray"
    return Finding(
        "ray",
        f"{where}: {message}",
        "" if ok else "is it running, is its port open, do RAY_AUTH_MODE and the token agree?",
    )


def _unreachable(address: str) -> str:
    """Why nobody answers at host:port; "" where somebody does, or the address is of another form, as auto.

    Ray itself would try for minutes.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        return ""
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OSError as error:
        return f"nobody answers ({_one_line(error)})"
    return ""


def check_ffmpeg(config: DoctorConfig) -> Finding:
    """The decoder that ingest would use: imageio-ffmpeg's own, or IMAGEIO_FFMPEG_EXE."""
    program = (
        "import imageio_ffmpeg, subprocess, sys;"
        "sys.exit(subprocess.call([imageio_ffmpeg.get_ffmpeg_exe(), '-version']))"
    )
    ok, message = _run([sys.executable, "-c", program], config.timeout_s, keep="first")
    return Finding(
        "ffmpeg",
        message,
        "" if ok else "install the ingest extra (make setup), or point IMAGEIO_FFMPEG_EXE at an ffmpeg",
    )


def check_ytdlp(config: DoctorConfig) -> Finding:
    """yt-dlp, and the JavaScript runtime that YouTube's media need with cookies: present, and not too old."""
    versions = {name: _version_of(name) for name in ("yt-dlp", "yt-dlp-ejs", "deno")}
    installed = ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
    if not versions["yt-dlp"]:
        return Finding("ytdlp", installed, "install the ingest extra (make setup)")
    if not (versions["deno"] and versions["yt-dlp-ejs"]):
        installed += " (only source.youtube.js_runtime needs the latter two: the youtube extra)"
    day = _day_of(versions["yt-dlp"])
    if day < OLDEST_YTDLP:
        return Finding(
            "ytdlp",
            installed,
            f"older than {OLDEST_YTDLP:%Y.%m.%d} has known security faults: pip install --upgrade yt-dlp",
        )
    age_days = (datetime.date.today() - day).days
    if age_days > STALE_DAYS:
        installed += (
            f"; yt-dlp is {age_days} days old and sites change: pip install --upgrade yt-dlp yt-dlp-ejs"
        )
    if versions["deno"] and _numbers(versions["deno"]) < OLDEST_DENO:
        return Finding("ytdlp", installed, "yt-dlp takes deno 2.3.0 or newer: pip install --upgrade deno")
    return Finding("ytdlp", installed)


def _version_of(package: str) -> str:
    """The installed version; "" where the package is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _day_of(version: str) -> datetime.date:
    """The day of a yt-dlp version such as 2026.10.26 or 2026.7.4.232815; of another form, today."""
    numbers = _numbers(version)
    try:
        return datetime.date(*numbers[:3])
    except (TypeError, ValueError):
        return datetime.date.today()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in version.split(".") if digits.isdigit())


def check_storage(config: DoctorConfig) -> Finding:
    """Create-only writes: the second writer of a name is refused, and the bytes of the first stay."""
    name = f"doctor/{uuid.uuid4().hex}"
    missing = _missing_folders(Path(config.output) / "doctor") if "://" not in config.output else []
    try:
        store = open_store(config.output, writable=True)
        store.put(name, b"first")
        try:
            fix = _second_writer_wins(store.put, name)
            intact = store.read(name) == b"first"
        finally:
            store.delete(name)
    except (UserError, OSError) as error:
        return _refused_storage(config.output, _one_line(error))
    finally:
        _remove_empty(missing)
    if fix or not intact:
        return Finding(
            "storage",
            f"{config.output}: a second writer overwrote the first",
            "use a store with conditional writes (If-None-Match)",
        )
    return Finding("storage", f"{config.output}: the second writer of a name is refused")


def _refused_storage(output: str, problem: str) -> Finding:
    """A mistake of users names its fix itself, behind the last semicolon; all is said once."""
    said, _, fix = problem.rpartition("; ")
    found = said or problem
    place = "" if found.startswith(output) else f"{output}: "
    default = "give an output that can be written, with credentials where it needs them"
    return Finding("storage", f"{place}{found}", fix if said else default)


def _missing_folders(folder: Path) -> list[Path]:
    """`folder` and those above it that are not there, the deepest first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _remove_empty(folders: list[Path]) -> None:
    """Those that the check made, and nothing that somebody has put a file into since."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def check_training(config: DoctorConfig) -> Finding:
    """The numerics and the all-reduce of this node, by the training room's own command."""
    ok, message = _run([sys.executable, "-m", "training", "probe"], config.timeout_s)
    fix = "" if ok else "run python -m training probe by hand (needs the training extra)"
    return Finding("training", message, fix)


def _second_writer_wins(put: Callable[[str, bytes], None], name: str) -> bool:
    try:
        put(name, b"second")
    except FileExistsError:
        return False
    return True


def _run(
    command: list[str], timeout_s: float, environment: dict[str, str] | None = None, keep: str = "last"
) -> tuple[bool, str]:
    """(whether it ended well, its first or last line). A command that hangs is ended after `timeout_s`."""
    root = str(Path(__file__).parent.parent)
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **(environment or {})},
            cwd=root,
            timeout=timeout_s,
            capture_output=True,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer within {timeout_s:g} s"
    ok = done.returncode == 0
    output = done.stdout if ok else done.stderr or done.stdout
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    log.debug("%s ended with %d: %s", command, done.returncode, json.dumps(lines[-20:]))
    if not lines:
        return ok, f"ended with code {done.returncode}"
    # an error is in the last line of a traceback, whatever is kept of a success
    line = lines[0] if keep == "first" and ok else lines[-1]
    return ok, line[:MAX_LINE_CHARS]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


CHECKS: dict[str, Callable[[DoctorConfig], Finding]] = {
    "python": check_python,
    "disk": check_disk,
    "storage": check_storage,
    "ffmpeg": check_ffmpeg,
    "ytdlp": check_ytdlp,
    "ray": check_ray,
    "training": check_training,
}
