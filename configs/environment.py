"""What our code needs of its environment, wherever it is typed; only what nobody has set.

    set_defaults()             # in a command, before torch and Ray are loaded: they read some of it then
    with defaults():           # in somebody's own process: for the block
        scrape(config)

`make` exports the same for pytest and the benchmarks. DS_ACCELERATOR is not among them: cpu would leave a GPU
unused, and training.run.engine chooses it by the process group.
"""

import contextlib
import os
import secrets
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
# what the checkout has that Python imports
ROOMS = ("configs", "cluster", "ingest", "training")
FIXED = {
    # contended OpenMP threads are ten times slower; a setting called threads comes before it
    "OMP_NUM_THREADS": "1",
    # Waiting threads sleep, after a little spinning. Without it, two threads alone took 1.37 times as long;
    # with libgomp's own, processes side by side took 290 s for what takes 16 s (LOG.md, 2026-11-26).
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "10000",
    "RAY_USAGE_STATS_ENABLED": "0",
    # else Ray hides the GPU from actors that request none, and says so in a warning
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "PYTHONWARNINGS": "ignore::FutureWarning:torch.distributed.c10d_logger",
}


def set_defaults() -> None:
    """For this process and what it starts."""
    os.environ.update(_lacking())


@contextlib.contextmanager
def defaults(**more: str) -> Iterator[None]:
    """For the block, with `more` where that is not set; afterwards the environment is what it was."""
    lacking = _lacking() | {name: value for name, value in more.items() if name not in os.environ}
    before = {name: os.environ.get(name) for name in lacking}
    os.environ.update(lacking)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def typed(*words: str) -> str:
    """A command to copy, room first: it works in the folder where this one was typed.

    >>> typed("ingest", "verify", "my clips")
    "python -m ingest verify 'my clips'"
    """
    # stillsound's main says so
    by_name = sys.argv[0].startswith("stillsound ")
    return shlex.join(["stillsound", *words] if by_name else ["python", "-m", *words])


def _lacking() -> dict[str, str]:
    """What is not set, and the checkout in front of PYTHONPATH: children and Ray's workers import from it."""
    lacking = {name: value for name, value in FIXED.items() if name not in os.environ}
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if str(CHECKOUT) not in paths:
        lacking["PYTHONPATH"] = os.pathsep.join([str(CHECKOUT), *paths])
    return lacking | _authentication()


def _authentication() -> dict[str, str]:
    """A token for the Ray that starts here: without one, anyone who reaches its ports can run code.

    None for a cluster that is joined: only its owner knows whether it has one.
    """
    if os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return {}
    mode = {"RAY_AUTH_MODE": "token"}
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return mode
    # of another user's environment it cannot be read: then one's own
    for path in (Path(sys.prefix) / "ray-token", Path.home() / ".ray" / "auth_token"):
        with contextlib.suppress(OSError):
            ensure_token(path)
            return {**mode, "RAY_AUTH_TOKEN_PATH": str(path)}
    return {**mode, "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def ensure_token(path: Path) -> None:
    """A secret in a file that only its owner reads, made if it is missing.

    `OSError` where it can neither be read nor made.
    """
    with contextlib.suppress(FileNotFoundError):
        if path.read_text().strip():
            return
        path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    # beside, then linked: of two commands that start at once, both read the first one's
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with open(descriptor, "w") as file:
            file.write(f"{secrets.token_hex(32)}\n")
        with contextlib.suppress(FileExistsError):
            os.link(beside, path)
    finally:
        beside.unlink(missing_ok=True)
