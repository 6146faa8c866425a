"""Lists of videos by id, as VGGSound, AudioSet, AudioCaps and their kin publish them -> items of YouTube.

    id,start,label,split                                   VGGSound, with or without a header: pieces of 10 s
    # YTID, start_seconds, end_seconds, positive_labels    AudioSet
    {"youtube_id": "…", "start_s": 30, "end_s": 40}        JSON lines, or parquet

A csv, parquet or jsonl file; other columns travel in `meta`. Nothing is asked of YouTube here. A list's word
on licenses does not count: YouTube's own does.
"""

import csv
import itertools
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from cluster.scratch import scratch_folder
from configs.load import UserError
from ingest.fetch.settings import FetchConfig
from ingest.sample import Item
from ingest.sources.lists import Numbered, Row, cell, checked, others, piece, read_rows, span
from ingest.sources.settings import SourceConfig
from ingest.sources.youtube import BARE_ID, check_session, enumerate_youtube, video_id, watch_url

log = logging.getLogger(__name__)

ID_NAMES = ("youtube_id", "ytid", "video_id", "id", "url")
START_NAMES = ("start_s", "start", "start_seconds", "start_time")
END_NAMES = ("end_s", "end", "end_seconds", "end_time")
NUMBER = re.compile(r"\s*\d+(\.\d*)?\s*", re.ASCII)
PIECE_S = 10.0  # of lists that give starts only
FEW_ARE_FREE = (
    "%s: YouTube states a free license for few videos, and the others end as rows with the reason `license`; the supported way for such"
    " lists is your own copies with a license column: source.kind=folder source.path=LIST.csv"
)


def items(config: SourceConfig, network: FetchConfig, output: str) -> Iterator[Item]:
    """YouTube: a table of ids, or the searches, channels, playlists and videos that `ingest.sources.youtube` lists.

    See `ingest.sources.registry.Source`.
    """
    if config.license:
        fix = "vouch for channels with source.youtube.vouched_channels; leave it out"
        raise UserError(f"source.license={config.license}: the media of youtube state their own; {fix}")
    if is_video_list(config.path):
        check_session(config.youtube)
        return video_items(Path(config.path))
    return _listed(config, network)


def _listed(config: SourceConfig, network: FetchConfig) -> Iterator[Item]:
    """Listed by a fetch process with a folder of its own that ends with the list."""
    with scratch_folder("list") as spool:
        yield from enumerate_youtube(config.path, config.youtube, network, spool)


def is_video_list(path: str) -> bool:
    """Whether `path` is a table of ids rather than a file with a search, channel, playlist or video per line."""
    suffix = Path(path).suffix.lower()
    if suffix in (".parquet", ".jsonl", ".ndjson"):
        return Path(path).is_file()
    return suffix == ".csv" and Path(path).is_file() and _header(Path(path)) is not None


def video_items(path: Path) -> Iterator[Item]:
    """The videos and pieces of a list, each once, in order.

    `UserError`, before the first, for a row that cannot be one.
    """
    log.warning(FEW_ARE_FREE, path)
    first = next(_rows(path), None)
    if first and _name(first[1], START_NAMES[1:]) and not _name(first[1], END_NAMES):
        log.info("%s: gives starts only: pieces of %g s are taken", path, PIECE_S)
    return checked(path, lambda: _numbered_items(path))


def _numbered_items(path: Path) -> Iterator[tuple[int, Item]]:
    for number, row in _rows(path):
        yield number, _item(path, number, row)


def _item(path: Path, number: int, row: Row) -> Item:
    named = _name(row, ID_NAMES)
    if not named:
        raise UserError(
            f"{path}: no column of ids ({', '.join(ID_NAMES)}); it has {', '.join(map(str, row))}"
        )
    given = cell(path, number, row, named)
    id = given if BARE_ID.fullmatch(given) else video_id(given)
    if not id:
        raise UserError(
            f"{path}: row {number}: {given!r} is neither an id of YouTube (11 letters) nor the URL of a video"
        )
    first, last = _name(row, START_NAMES), _name(row, END_NAMES)
    start_s, end_s = span(path, number, row, first or "start_s", last or "end_s")
    if first and first != "start_s" and not last and cell(path, number, row, first):
        end_s = start_s + PIECE_S
    known = tuple(name for name in (named, first, last, *_spelled(row, ("title", "license"))) if name)
    title = next((cell(path, number, row, name) for name in _spelled(row, ("title",))), "")
    item = Item("youtube", id, watch_url(id), title=title, meta={**others(row, known), "found_by": path.name})
    return piece(item, start_s, end_s, medium=id)


def _spelled(row: Row, names: tuple[str, ...]) -> list[str]:
    """The columns of these names, whatever their capitals, in the order of `names`."""
    return [column for name in names for column in row if str(column).strip().lower() == name]


def _name(row: Row, names: tuple[str, ...]) -> str:
    return next(iter(_spelled(row, names)), "")


def _rows(path: Path) -> Iterator[Numbered]:
    if path.suffix.lower() != ".csv":
        yield from read_rows(path)
        return
    header = _header(path) or []
    for number, cells in _csv_cells(path):
        if cells == header:
            continue
        if len(cells) > len(header):
            raise UserError(
                f'{path}: row {number} has {len(cells)} cells, not {len(header)}; put quotes (") around a cell with a comma'
            )
        yield number, dict(zip(header, cells))


def _header(path: Path) -> list[str] | None:
    """The names of the columns: from a first row, from a comment before it, or by what the first row holds.

    None: no table of ids.
    """
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        comments = list(itertools.takewhile(_is_comment, itertools.islice(file, 1000)))
    for comment in comments:
        names = [name.strip() for name in comment.lstrip("# ").split(",")]
        if _name(dict.fromkeys(names), ID_NAMES):
            return names
    first = next(_csv_cells(path), (0, []))[1]
    if _name(dict.fromkeys(first), ID_NAMES):
        return first
    if not first or not BARE_ID.fullmatch(first[0]):
        return None
    times = sum(1 for _ in itertools.takewhile(NUMBER.fullmatch, first[1:3]))
    names = ["id", *("start", "end")[:times], "label", "split"]
    return (names + [f"column_{place}" for place in range(len(names), len(first))])[: len(first)]


def _is_comment(line: str) -> bool:
    return line.startswith("#") or not line.strip()


def _csv_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of the rows behind the comments at the beginning;

    AudioSet has a blank before each cell.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            before, begun = 0, False
            for line in file:
                if not _is_comment(line):
                    begun = True
                    break
                before += 1
            reader = csv.reader(itertools.chain([line] if begun else [], file), skipinitialspace=True)
            yield from (
                (before + reader.line_num, [one.strip() for one in cells]) for cells in reader if cells
            )
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: cannot be read as csv: {error}") from error
