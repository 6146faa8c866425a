"""The dataset card: README.md with the front matter that dataset hubs read, and ATTRIBUTION.csv beside it.

    write_card(dataset, survey(dataset), Path("README.md"), Path("ATTRIBUTION.csv"))

Licenses that ask for attribution get a line per source: title, author, link, license with its link, and what
was changed. What is removed is in neither. Texts from the web are made inert: no markup, no formulas, no
control characters.
"""

import csv
import json
import re
from pathlib import Path
from typing import Any

import yaml
from rich.filesize import decimal

from cluster.dataset import Dataset
from cluster.shards import Status
from configs.terminal import printable
from ingest.licenses import url_of
from ingest.pages.survey import Survey

CHANGES = "cut into clips; sound resampled to mono, one frame kept per clip"
SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)


def write_card(dataset: Dataset, found: Survey, card: Path, attribution: Path) -> None:
    """Writes both files."""
    sources = write_attribution(dataset, attribution)
    card.write_text(card_text(dataset, found, sources, attribution.name), encoding="utf-8")


def write_attribution(dataset: Dataset, path: Path) -> int:
    """A line per source that has a kept clip, in the order of the units; how many."""
    buried, count = dataset.tombstones(), 0
    columns = ["key", "status", "media_id", "title", "channel", "url", "license"]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["title", "author", "link", "license", "license_link", "changes"])
        for commit in dataset.iter_commits():
            told: set[str] = set()
            for row in dataset.read_index(commit).select(columns).to_pylist():
                if row["status"] != Status.KEPT or row["key"] in buried or row["media_id"] in told:
                    continue
                told.add(row["media_id"])
                count += 1
                words = (
                    row["title"],
                    row["channel"],
                    row["url"],
                    row["license"],
                    url_of(row["license"]),
                    CHANGES,
                )
                writer.writerow([plain(word) for word in words])
    return count


def plain(text: Any, most: int = 300) -> str:
    """One line without control, direction or unpaired characters, and never a formula."""
    short = " ".join(printable(str(text or "")).split())[:most]
    return f"'{short}" if re.match(r"[=+\-@]", short) else short


def _markdown(text: Any) -> str:
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~])", r"\\\1", plain(text))


def card_text(dataset: Dataset, found: Survey, sources: int, attribution: str) -> str:
    """Markdown with YAML front matter."""
    config = dataset.meta["config"]
    name = dataset.uri.rstrip("/").split("/")[-1]
    licenses = sorted(found.licenses)
    front = {
        "pretty_name": name,
        "license": licenses[0].lower()
        if len(licenses) == 1 and licenses[0].startswith(("CC-BY", "CC0"))
        else "other",
        "task_categories": ["text-to-audio", "image-feature-extraction"],
        "size_categories": [next((label for most, label in SIZES if found.kept < most), "n>10M")],
        "dataset_info": {
            "splits": [
                {"name": split, "num_examples": count} for split, count in sorted(found.splits.items())
            ]
        },
    }
    length = (
        f"{found.seconds / 60:.1f} minutes" if found.seconds < 7200 else f"{found.seconds / 3600:,.1f} hours"
    )
    each = f", {found.seconds / found.kept:.4g} s each" if found.kept else ""
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).strip(),
        "---",
        f"# {_markdown(name)}",
        "",
        f"{found.kept:,} pairs of a picture and the sound of its place{each}:",
        f"{length} of sound in all, {decimal(found.num_bytes)} of WebDataset tars.",
        "Each sample has `flac` (mono, 16 bit), `jpg` (the frame on screen at the clip's middle) and `json` (where it is from).",
        "",
        "## Licenses",
        "",
        "| license | samples | text |",
        "| --- | ---: | --- |",
        *(
            f"| {_markdown(code)} | {count:,} | {f'<{url_of(code)}>' if url_of(code) else 'as stated by the operator'} |"
            for code, count in found.licenses.most_common()
        ),
        "",
        f"{attribution} names the {sources:,} sources: title, author, link, license. Changes: {CHANGES}.",
        "",
        "## How it was made",
        "",
        f"Of {found.listed:,} items that were listed, {found.answered:,} were tried and {found.cut:,} gave {found.clips:,} clips;",
        f"{found.kept:,} clips of {found.used:,} items were kept.",
        "",
        *(["| refused as | rows |", "| --- | ---: |"] if found.reasons else []),
        *(f"| {_markdown(reason)} | {count:,} |" for reason, count in found.reasons.most_common()),
        "",
        "<details><summary>Settings that decide the bytes</summary>",
        "",
        "```json",
        json.dumps(config, indent=1, sort_keys=True).replace("```", "'''"),
        "```",
        "",
        "</details>",
        "",
        "## Limits",
        "",
        "Licenses are those that the sources state; they were not checked further. Splits go by medium, never by clip. What was taken",
        "down is listed by key alone in `tombstones/`. Clips were filtered by signal measures only: speech, persons and places may occur.",
        "",
    ]
    return "\n".join(lines)
