"""Judged sounds for people: a table in Markdown, and a page with players, from the best pair to the worst.

    write_markdown(folder, judged)             # judged.md
    write_pages(folder, judged, shown)         # index.html, page-2.html, …

Sounds and pictures are linked by relative paths: a page that names sounds elsewhere stays where it is. It
needs no network; names are escaped.
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import jinja2

from cluster.files import replacing
from configs.terminal import printable
from training.judging.figures import COLUMNS, Cell, Figure, Pair
from training.listening import INDEX, PICTURES_PER_PAGE, page_name, relative_url

JUDGED, MARKDOWN = "judged.json", "judged.md"
# by which a page of ours is told from somebody's own
MARK = '<meta name="generator" content="stillsound evaluate">'
TEMPLATE = Path(__file__).parent / "judged.html.j2"
MEANINGS = {
    "correspondence": "cosine of picture and sound",
    "image_to_sound_r1": "the own sound is the nearest to the picture",
    "image_to_sound_r10": "the own sound is among the ten nearest to the picture",
    "sound_to_image_r1": "the own picture is the nearest to the sound",
    "sound_to_image_r10": "the own picture is among the ten nearest to the sound",
    "clap_score": "cosine of caption and sound",
    "frechet": "Frechet distance of generated and real sounds",
    "kl": "KL divergence of the real sound's classes from the generated one's, in nats",
    "inception_score": "how sure and how varied the classes are",
    "onset_number": "as many onsets as the real sound",
    "onset_accuracy": "share of the real onsets with one within 0.1 s",
    "onset_ap": "average precision of the onsets, by their strength",
    "onset_offset_s": "seconds by which it lies early or late, at most 0.5",
}
HEADINGS = {
    "generated": "generated",
    "real": "real",
    "chance": "chance (other pairs)",
    "codec": "real through the codec",
}


class Shown(TypedDict):
    """A pair of the page. `players`: title -> relative URL; `image`: relative URL, or ""."""

    name: str
    order: str
    caption: str
    image: str
    players: dict[str, str]


def write_markdown(folder: Path, judged: Mapping[str, Any]) -> None:
    """judged.md, of what judged.json holds."""
    with replacing(folder / MARKDOWN) as partial:
        partial.write_text(markdown(judged), encoding="utf-8")


def markdown(judged: Mapping[str, Any]) -> str:
    """A table of the figures, who judged, and how to read it."""
    counts = f"{judged['num_pairs']:,} pairs of {judged['num_media']:,} media"
    lines = [
        f"# Scores of {plain(judged['generated'])}",
        "",
        f"{counts} against {plain(judged['reference'])}."
        f" In brackets 95 % intervals: {judged['resampled']:,} draws of media"
        f" ({judged['resampled_frechet']} for Frechet), seed {judged['seed']}.",
        "",
        *marked(judged),
        f"| figure | judge | better | {' | '.join(HEADINGS[column] for column in COLUMNS)} | n |",
        f"| --- | --- | --- | {'---: | ' * len(COLUMNS)}---: |",
    ]
    for figure in judged["figures"]:
        cells = " | ".join(shown(figure[column]) for column in COLUMNS)
        judge = f"{plain(figure['judge'])} | {figure['better']}"
        lines.append(f"| {figure['name']} | {judge} | {cells} | {figure['n']:,} |")
    lines += ["", "| figure | meaning |", "| --- | --- |"]
    names = dict.fromkeys(figure["name"] for figure in judged["figures"])
    lines += [f"| {name} | {MEANINGS[name]} |" for name in names]
    lines += ["", "| judge | kind | sha256 | did the model learn from it? |", "| --- | --- | --- | --- |"]
    for judge in judged["judges"]:
        known = judge["learnt_by_model"]
        lines.append(f"| {plain(judge['name'])} | {judge['kind']} | `{judge['sha256']}` | {known} |")
    versions = ", ".join(f"{name} {version}" for name, version in judged["versions"].items())
    return "\n".join([*lines, "", f"Computed with {versions}.", ""])


def marked(judged: Mapping[str, Any]) -> list[str]:
    """A warning for every judge that the model learnt from."""
    return [
        f"**{plain(judge['name'])} taught this model: its figures prove nothing.**\n"
        for judge in judged["judges"]
        if judge["learnt_by_model"].startswith("yes")
    ]


def shown(cell: Cell | None) -> str:
    """A cell as people read it; "" for none."""
    if cell is None:
        return ""
    bounds = cell["interval"]
    return f"{cell['value']:.3f}" + (f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else "")


def shown_pairs(
    pairs: Sequence[Pair], values: Mapping[str, Any], order: str, ranked: Sequence[int], folder: Path
) -> list[Shown]:
    """What the page shows of pairs, from the best to the worst; by name where nothing sorts them."""
    entries: list[Shown] = []
    for index in ranked or range(len(pairs)):
        pair = pairs[index]
        files = {"generated": pair.generated, "real": pair.reference, "real through the codec": pair.codec}
        entries.append(
            {
                "name": plain(pair.name),
                "order": f"{order} {values[order][index]:.3f}" if order else "",
                "caption": plain(pair.caption),
                "image": link(pair.picture, folder) if pair.picture else "",
                "players": {title: link(path, folder) for title, path in files.items() if path},
            }
        )
    return entries


def write_pages(folder: Path, judged: Mapping[str, Any], entries: Sequence[Shown]) -> str:
    """All pages; the name of the first."""
    # autoescape: names and captions come from the web
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text())
    count = max(1, -(-len(entries) // PICTURES_PER_PAGE))
    left = iter(entries)
    for number in range(1, count + 1):
        page = template.render(
            mark=MARK,
            judged=judged,
            rows=[_row(figure) for figure in judged["figures"]],
            headings=[HEADINGS[column] for column in COLUMNS],
            entries=list(itertools.islice(left, PICTURES_PER_PAGE)),
            warnings=[warning.strip("*\n") for warning in marked(judged)],
            number=number,
            pages=[page_name(each) for each in range(1, count + 1)],
        )
        with replacing(folder / page_name(number)) as partial:
            partial.write_text(page, encoding="utf-8")
    return INDEX


def link(path: Path, folder: Path) -> str:
    """A file as a relative URL, from the folder of the page."""
    return relative_url(os.path.relpath(path, folder))


def plain(text: str) -> str:
    """A name or caption on one line, without what would end a cell of a table."""
    return printable(text).replace("\n", " ").replace("|", "\\|")


def _row(figure: Figure) -> dict[str, Any]:
    named: Mapping[str, Any] = figure
    return {
        "name": figure["name"],
        "meaning": MEANINGS[figure["name"]],
        "judge": plain(figure["judge"]),
        "better": figure["better"],
        "cells": [shown(named[column]) for column in COLUMNS],
        "n": figure["n"],
    }
