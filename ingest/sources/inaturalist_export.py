"""iNaturalist's observations in a file -> dicts in the shape of the API's answers.

    source.path=observations.json     the API's answers, saved; or a list of observations
    source.path=observations.jsonl    one answer or observation per line
    source.path=observations.csv      the site's export

Not covered: the site's CSV does not state licenses of photos and sounds. Without columns `photo_license` and
`sound_license` its pairs are `unknown`, and so refused.
"""

import csv
import json
import logging
import re
from pathlib import Path
from typing import Any

from cluster.jsonl import JsonObject
from configs.load import UserError

log = logging.getLogger(__name__)


def read_export(path: Path) -> list[JsonObject]:
    """Observations of a file. `UserError` for a missing file, or one of another form."""
    if not path.is_file():
        advice = "give an export (.json, .jsonl, .csv) or the API's observations URL"
        raise UserError(f"source.path={path}: no such file; {advice}")
    try:
        if path.suffix.lower() == ".csv":
            return _read_csv(path)
        pages = _read_json(path)
    except UserError:
        raise  # a ValueError, too, and worded already
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"source.path={path}: cannot be read: {error}") from None
    if not all(isinstance(page, dict) for page in pages):
        raise UserError(f"source.path={path}: not a list of observations")
    # saved answers hold pages of observations; a list may hold observations themselves
    observations: list[Any] = []
    for page in pages:
        results = page.get("results")
        observations += results if isinstance(results, list) else [page]
    return [observation for observation in observations if isinstance(observation, dict)]


def _read_json(path: Path) -> list[Any]:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        # not splitlines(), which also cuts at U+2028 within a string
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    read = json.loads(text)
    return read if isinstance(read, list) else [read]


def _read_csv(path: Path) -> list[JsonObject]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [_observation(path, row) for row in csv.DictReader(file)]
    observations = [row for row in rows if row]
    if len(observations) < len(rows):
        lacking = len(rows) - len(observations)
        log.info("%s: %d of %d rows lack a photo or a sound", path, lacking, len(rows))
    return observations


def _observation(path: Path, row: dict[str, str]) -> JsonObject | None:
    """A row of the site's export in the API's shape; None where it has no photo or no sound."""
    if "image_url" not in row or "sound_url" not in row:
        advice = "columns image_url and sound_url are needed; choose them when you export"
        raise UserError(f"source.path={path}: {advice}")
    # the export has no ids of media: they are in their addresses
    photo_id = re.search(r"/photos/(\d+)/", row["image_url"] or "")
    sound_id = re.search(r"/sounds/(\d+)", row["sound_url"] or "")
    if not (photo_id and sound_id):
        return None
    # "unknown", not None: a missing code would mean all rights reserved, and the export says neither
    photo = {"id": photo_id[1], "url": row["image_url"], "license_code": row.get("photo_license", "unknown")}
    sound_license = row.get("sound_license", "unknown")
    sound = {"id": sound_id[1], "file_url": row["sound_url"], "license_code": sound_license}
    taxon = {"name": row.get("scientific_name"), "preferred_common_name": row.get("common_name")}
    return {
        "id": row.get("id"),
        "photos": [photo],
        "sounds": [sound],
        "taxon": taxon,
        "user": {"login": row.get("user_login")},
    }
