"""Ships exactly the command that a person would type to a cluster, with this checkout.

    python -m cluster submit --address http://head:8265 -- python -m ingest scrape CONFIG output=s3://…

It builds and runs `ray job submit --working-dir .`; environments, data and caches stay at home. Nodes bring
the dependencies: the `python` first on the PATH where Ray was started must be the one of the environment.
"""

import http.client
import json
import os
import re
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from configs.load import UserError

ROOT = Path(__file__).parent.parent
EXCLUDES = (
    ".git",
    ".venv",
    ".venv-moto",
    "out",
    "*.egg-info",
    "**/__pycache__",
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
    ".hypothesis",
)
ANSWER_S = 10.0
ROOMS = ("cluster", "ingest", "training")


def submission(args: Sequence[str], address: str, wait: bool = True) -> list[str]:
    """The `ray job submit` command for `args` (`python -m ROOM VERB …`, or `stillsound ROOM VERB …`).

    UserError for what would only fail over there.
    """
    if args and args[0] == "stillsound":
        # what is shipped is a checkout, in which that command may not be installed
        args = ["python", "-m", *args[1:]]
    if list(args[:2]) != ["python", "-m"] or len(args) < 4 or args[2] not in ROOMS:
        fix = "give the command after --, as in -- python -m ingest scrape CONFIG name=value"
        raise UserError(f"cannot submit {' '.join(args)!r}: {fix}")
    if not address.startswith(("http://", "https://")):
        fix = "give --address http://HOST:8265 or set RAY_ADDRESS to one"
        raise UserError(f"address {address!r} is not a Ray job server: {fix}")
    for arg in args[4:]:
        if re.search(r"://[^/\s]*@", arg):
            setting = arg.split("=", 1)[0]
            problem = "everybody who sees the cluster's jobs would read its password"
            raise UserError(f"{setting}: {problem}; put it into a file there")
        if arg.endswith((".yaml", ".yml")) and "=" not in arg:
            _require_shipped(arg)
    environment = json.dumps({"excludes": list(EXCLUDES)})
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "job",
        "submit",
        "--address",
        address,
        "--working-dir",
        ".",
    ]
    return [*command, "--runtime-env-json", environment, *([] if wait else ["--no-wait"]), "--", *args]


def submit(args: Sequence[str], address: str, wait: bool = True) -> int:
    """Runs the submission from the checkout; returns the exit code of `ray job submit`.

    That is the job's outcome if it waits. `UserError` where nobody answers at the address.
    """
    command = submission(args, address, wait)
    check_answers(address)
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def check_answers(address: str) -> None:
    """`UserError` where no job server answers: Ray would print a traceback of sixty lines.

    An answer of any kind will do, such as that a token is missing: Ray says that in a line.
    """
    try:
        urllib.request.urlopen(f"{address.rstrip('/')}/api/version", timeout=ANSWER_S).close()
    except urllib.error.HTTPError:
        return
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):  # Ray may know the certificate
            return
        fix = "is the head up, and its port 8265 reachable from here, as by kubectl port-forward?"
        raise UserError(f"address {address}: no Ray job server answers ({reason}); {fix}") from None


def _require_shipped(config: str) -> None:
    path = (ROOT / config).resolve()
    if not path.is_relative_to(ROOT):
        raise UserError(f"config file {config} is outside {ROOT}, which is what the job gets: copy it in")
    if not path.is_file():
        raise UserError(
            f"no such config file: {config} (paths are relative to {ROOT}, which is what the job gets)"
        )
