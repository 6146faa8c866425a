"""Ships exactly the command that a person would type to a cluster, with this checkout.

    python -m cluster submit --address http://head:8265 -- python -m ingest scrape configs/ingest/urls.yaml output=s3://…

It builds and runs `ray job submit --working-dir .`; environments, data and caches stay at home. Nodes bring
the dependencies: the `python` first on the PATH where Ray was started must be the one of the environment.
"""

import json
import os
import re
import subprocess
import sys
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
ROOMS = ("cluster", "ingest", "training")


def submission(words: Sequence[str], address: str, wait: bool = True) -> list[str]:
    """The `ray job submit` command for `words` (`python -m ROOM VERB …`).

    UserError for what would only fail over there.
    """
    if list(words[:2]) != ["python", "-m"] or len(words) < 4 or words[2] not in ROOMS:
        raise UserError(
            f"cannot submit {' '.join(words)!r}: give the command after --, as in -- python -m ingest scrape CONFIG name=value"
        )
    if not address.startswith(("http://", "https://")):
        raise UserError(
            f"address {address!r} is not a Ray job server: give --address http://HOST:8265 or set RAY_ADDRESS to one"
        )
    for word in words[4:]:
        if re.search(r"://[^/\s]*@", word):
            raise UserError(
                f"{word.split('=', 1)[0]}: everybody who sees the cluster's jobs would read its password; put it into a file there"
            )
        if word.endswith((".yaml", ".yml")) and "=" not in word:
            _require_shipped(word)
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
    return [*command, "--runtime-env-json", environment, *([] if wait else ["--no-wait"]), "--", *words]


def submit(words: Sequence[str], address: str, wait: bool = True) -> int:
    """Run the submission from the checkout; the exit code of `ray job submit` (the job's outcome if it
    waits).
    """
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.run(submission(words, address, wait), cwd=ROOT, env=environment, check=False).returncode


def _require_shipped(config: str) -> None:
    path = (ROOT / config).resolve()
    if not path.is_relative_to(ROOT):
        raise UserError(f"config file {config} lies outside {ROOT}, which is what the job gets: copy it in")
    if not path.is_file():
        raise UserError(
            f"no such config file: {config} (paths are relative to {ROOT}, which is what the job gets)"
        )
