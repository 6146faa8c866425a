"""The dataset card: README.md with the front matter that dataset hubs read, and ATTRIBUTION.csv beside it.

    write_card(dataset, survey(dataset), Path("README.md"), Path("ATTRIBUTION.csv"))

Licenses that ask for attribution get a line per source: title, author, link, license with its link, and what
was changed. What is removed is in neither. Texts from the web are made inert: no markup, no formulas, no
control characters.
"""

import csv
import json
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from rich.filesize import decimal

from cluster.dataset import Commit, Dataset
from cluster.shards import Status
from configs.terminal import printable
from ingest.licenses import url_of
from ingest.pages.survey import Survey

CHANGES = "cut into clips; sound resampled to mono, one frame kept per clip"
# the size categories of dataset hubs
SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)


def write_card(dataset: Dataset, numbers: Survey, card: Path, attribution: Path) -> None:
    """Writes both files."""
    sources = write_attribution(dataset, attribution)
    card.write_text(card_text(dataset, numbers, sources, attribution.name), encoding="utf-8")


def write_attribution(dataset: Dataset, path: Path) -> int:
    """A line per source that has a kept clip, in the order of the units; how many."""
    return write_credits(credits_of(dataset, dataset.iter_commits()), path)


def write_credits(credits: Iterable[list[str]], path: Path) -> int:
    """ATTRIBUTION.csv: a line for each of `credits_of`; how many."""
    count = 0
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["title", "author", "link", "license", "license_link", "changes"])
        for line in credits:
            writer.writerow(line)
            count += 1
    return count


def credits_of(
    dataset: Dataset, commits: Iterable[Commit], splits: Collection[str] = ()
) -> Iterator[list[str]]:
    """Title, author, link, license, its link and what was changed, of each source of a kept clip in these
    commits; `splits`: only of these, if any.
    """
    buried = dataset.tombstones()
    columns = ["key", "status", "media_id", "title", "channel", "url", "license", "split"]
    for commit in commits:
        credited: set[str] = set()
        for row in dataset.read_index(commit).select(columns).to_pylist():
            is_other = bool(splits) and row["split"] not in splits
            if row["status"] != Status.KEPT or row["key"] in buried or is_other:
                continue
            # once per unit: the clips of a medium are in one
            if row["media_id"] in credited:
                continue
            credited.add(row["media_id"])
            fields = [row[name] for name in ("title", "channel", "url", "license")]
            yield [plain(field) for field in (*fields, url_of(row["license"]), CHANGES)]


def plain(text: Any, most: int = 300) -> str:
    """One line without control, direction or unpaired characters, and never a formula."""
    short = " ".join(printable(str(text or "")).split())[:most]
    # spreadsheets run a cell that begins like this
    return f"'{short}" if re.match(r"[=+\-@]", short) else short


def markdown(text: Any) -> str:
    """One line that Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~])", r"\\\1", plain(text))


def card_text(dataset: Dataset, numbers: Survey, sources: int, attribution: str) -> str:
    """Markdown with YAML front matter."""
    name = dataset.uri.rstrip("/").split("/")[-1]
    sections = [
        *_front_matter(name, numbers),
        *_contents(name, numbers),
        *_licenses(numbers),
        f"{attribution} names the {sources:,} sources: title, author, link, license. Changes: {CHANGES}.",
        "",
        *_making(dataset, numbers),
        *LIMITS,
    ]
    return "\n".join(sections)


LIMITS = (
    "## Limits",
    "",
    "Licenses are those that the sources state; they were not checked further. Splits go by medium,"
    " never by clip. What was taken",
    "down is listed by key alone in `tombstones/`. Clips were filtered by signal measures only:"
    " speech, persons and places may occur.",
    "",
)


def _front_matter(name: str, numbers: Survey) -> list[str]:
    """What dataset hubs read. They know single licenses by SPDX code in small letters, and else `other`."""
    licenses = sorted(numbers.licenses)
    is_single = len(licenses) == 1 and licenses[0].startswith(("CC-BY", "CC0"))
    splits = [{"name": split, "num_examples": count} for split, count in sorted(numbers.splits.items())]
    front = {
        "pretty_name": name,
        "license": licenses[0].lower() if is_single else "other",
        "task_categories": ["text-to-audio", "image-feature-extraction"],
        "size_categories": [next((label for most, label in SIZES if numbers.kept < most), "n>10M")],
        "dataset_info": {"splits": splits},
    }
    return ["---", yaml.safe_dump(front, sort_keys=False).strip(), "---"]


def _contents(name: str, numbers: Survey) -> list[str]:
    is_short = numbers.seconds < 7200  # below two hours, minutes say more
    length = f"{numbers.seconds / 60:.1f} minutes" if is_short else f"{numbers.seconds / 3600:,.1f} hours"
    each = f", {numbers.seconds / numbers.kept:.4g} s each" if numbers.kept else ""
    return [
        f"# {markdown(name)}",
        "",
        f"{numbers.kept:,} pairs of a picture and the sound of its place{each}:",
        f"{length} of sound in all, {decimal(numbers.num_bytes)} of WebDataset tars.",
        "Each sample has `flac` (mono, 16 bit), `jpg` (the frame on screen at the clip's middle) and `json`"
        " (where it is from).",
        "",
    ]


def _licenses(numbers: Survey) -> list[str]:
    lines = ["## Licenses", "", "| license | samples | text |", "| --- | ---: | --- |"]
    for code, count in numbers.licenses.most_common():
        text = f"<{url_of(code)}>" if url_of(code) else "as stated by the operator"
        lines.append(f"| {markdown(code)} | {count:,} | {text} |")
    return [*lines, ""]


def _making(dataset: Dataset, numbers: Survey) -> list[str]:
    listed = f"Of {numbers.listed:,} items that were listed, {numbers.answered:,} were tried"
    return [
        "## How it was made",
        "",
        f"{listed} and {numbers.cut:,} gave {numbers.clips:,} clips;",
        f"{numbers.kept:,} clips of {numbers.used:,} items were kept.",
        "",
        *(["| refused as | rows |", "| --- | ---: |"] if numbers.reasons else []),
        *(f"| {markdown(reason)} | {count:,} |" for reason, count in numbers.reasons.most_common()),
        "",
        "<details><summary>Settings that decide the bytes</summary>",
        "",
        "```json",
        # a title within the settings must not end the block
        json.dumps(dataset.meta["config"], indent=1, sort_keys=True).replace("```", "'''"),
        "```",
        "",
        "</details>",
        "",
    ]
