"""`ingest attribution DATASET output=…`: who made what, as the licenses ask to say it.

    attribute(AttributionConfig("out/clips", "ATTRIBUTION.md"))     # Markdown, a section per license
    attribute(AttributionConfig("out/clips", "credits.csv"))        # the list that report and export write
    attribute(AttributionConfig("out/clips", "credits"))            # a folder: both, and a CSV per license

The lines are those of `ingest.pages.card.credits_of`: a source once per unit, and nothing that was
taken down. Holds the lines in memory, no samples.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from cluster.dataset import Dataset
from cluster.files import replacing
from configs.load import UserError
from ingest.licenses import is_code, suggestion, url_of
from ingest.pages.card import credits_of, markdown, write_credits
from ingest.sample import safe_id

LICENSE = 3  # the column of a line of credits
Credit = list[str]


@dataclass
class AttributionConfig:
    """Where the list goes, and of which license."""

    dataset: str  # a folder or URI that scrape made
    output: str  # .md, .csv, or a folder for both and a CSV per license
    license: str = ""  # code; empty: all of them
    split: str = ""  # only sources of this split; empty: of all

    def __post_init__(self) -> None:
        if self.license and not is_code(self.license):
            raise UserError(f"license={self.license}: no license code{suggestion(self.license)}")


class AttributionSummary(TypedDict):
    """The files that were written, how many sources they name, and how many of each license."""

    dataset: str
    files: list[str]
    sources: int
    licenses: dict[str, int]


def attribute(config: AttributionConfig, dry_run: bool = False) -> AttributionSummary:
    """Writes the list. `UserError` where nothing is to be credited, or `output` cannot be written."""
    dataset = Dataset.open(config.dataset, "clips")
    splits = {config.split} - {""}
    by_license: dict[str, list[Credit]] = {}
    for credit in credits_of(dataset, dataset.iter_commits(), splits):
        if config.license in ("", credit[LICENSE]):
            by_license.setdefault(credit[LICENSE], []).append(credit)
    if not by_license:
        given = [f"{name}={value}" for name in ("license", "split") if (value := getattr(config, name))]
        raise UserError(f"{config.dataset}: no kept clip has {', '.join(given) or 'a source'} to be credited")
    by_license = dict(sorted(by_license.items()))
    files = dict(_files_of(Path(config.output), by_license))
    if not dry_run:
        for path, licenses in files.items():
            _write(path, {code: by_license[code] for code in licenses}, config)
    counts = {code: len(credits) for code, credits in by_license.items()}
    return {
        "dataset": config.dataset,
        "files": [str(path) for path in files],
        "sources": sum(counts.values()),
        "licenses": counts,
    }


def _files_of(output: Path, by_license: dict[str, list[Credit]]) -> Iterator[tuple[Path, list[str]]]:
    """Each file to be written, and the licenses in it."""
    everything = list(by_license)
    if output.suffix.lower() in (".md", ".csv"):
        yield output, everything
        return
    yield output / "ATTRIBUTION.md", everything
    yield output / "ATTRIBUTION.csv", everything
    for code in everything:
        # codes of operators may have a colon
        yield output / f"{safe_id(code.replace('.', '-') or 'none')}.csv", [code]


def _write(path: Path, by_license: dict[str, list[Credit]], config: AttributionConfig) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            if path.suffix.lower() == ".md":
                partial.write_text("\n".join(markdown_lines(config.dataset, by_license)), encoding="utf-8")
            else:
                write_credits((credit for credits in by_license.values() for credit in credits), partial)
    except OSError as error:
        raise UserError(f"output={path}: not writable ({error.strerror}); name another") from error


def markdown_lines(name: str, by_license: dict[str, list[Credit]]) -> Iterator[str]:
    """A section per license with a line per source: title, author, link. Texts of the web are inert."""
    yield f"# Sources of {markdown(name.rstrip('/').rpartition('/')[2])}"
    for code, credits in by_license.items():
        link = url_of(code)
        yield ""
        yield f"## {markdown(code or 'no license stated')}"
        yield ""
        yield f"{len(credits):,} sources, under <{link}>." if link else f"{len(credits):,} sources."
        yield f"Changes: {markdown(credits[0][-1])}."
        yield ""
        for title, author, address, *_ in credits:
            by = f" by {markdown(author)}" if author else ""
            yield f"- {markdown(title or 'untitled')}{by}: {markdown(address)}"
    yield ""
