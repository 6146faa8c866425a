"""The one reader of JSON-lines files: metrics, validation and events of a run, whoever reads them.

    read_lines(path)            # every whole line of a file, [] where there is none
    parse_lines(data)           # the same of bytes, from any store
    last_line(path)             # the newest whole line; reads only the end
    newest_line(tail)           # the same of the last bytes, from any store

A crash or a full disk cuts the last line off, and a power failure may leave zeros in its place: such a line
is left out. A damaged line before others is left out with a warning. Lines end with a line feed alone, never
with U+2028.
"""

import json
import logging
from pathlib import Path
from typing import Any

# Any JSON object whose keys the code does not fix: what a file or a site happens to state. Where the keys are
# fixed, a TypedDict says which, and mypy checks them.
JsonObject = dict[str, Any]

log = logging.getLogger(__name__)
# more than any line of ours: metrics have about 300 bytes
TAIL_BYTES = 4096


def read_lines(path: Path) -> list[JsonObject]:
    """The whole lines of the file at `path`, oldest first."""
    return parse_lines(path.read_bytes(), str(path)) if path.exists() else []


def parse_lines(data: bytes, name: str = "") -> list[JsonObject]:
    """The JSON objects of `data`, one a line; `name` is for the warning about a damaged line."""
    lines = [_parse(line) for line in data.split(b"\n") if line.strip()]
    # the last one may be cut off by a crash at any time: that is no damage
    damaged = sum(line is None for line in lines[:-1])
    if damaged:
        log.warning("%s: %d damaged lines are left out", name or "JSON lines", damaged)
    return [line for line in lines if line is not None]


def last_line(path: Path) -> JsonObject | None:
    """The newest whole line of the file at `path`, or None; reads its end only, however long the file is."""
    if not path.exists():
        return None
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return newest_line(file.read())


def newest_line(tail: bytes) -> JsonObject | None:
    """The newest whole line of the last `TAIL_BYTES` of a file, or None."""
    lines = (_parse(line) for line in reversed(tail.split(b"\n")) if line.strip())
    return next((line for line in lines if line is not None), None)


def _parse(data: bytes) -> JsonObject | None:
    """The object of one line; None where the line is cut off or otherwise no JSON object."""
    try:
        line = json.loads(data)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None
