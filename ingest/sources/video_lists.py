"""Lists of videos by id, as VGGSound, AudioSet, AudioCaps and their kin publish them -> items of YouTube.

    id,start,label,split                                   VGGSound, with or without a header: pieces of 10 s
    # YTID, start_seconds, end_seconds, positive_labels    AudioSet
    {"youtube_id": "…", "start_s": 30, "end_s": 40}        JSON lines, or parquet

Other columns travel in `meta`. No request is made here. What a list states of licenses does not count:
YouTube's own mark does.
"""

import csv
import itertools
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from configs.load import UserError
from ingest.sample import Item
from ingest.sources.lists import Numbered, Row, checked, piece, read_rows
from ingest.sources.youtube import BARE_ID, video_id, watch_url

log = logging.getLogger(__name__)

ID_NAMES = ("youtube_id", "ytid", "video_id", "id", "url")
START_NAMES = ("start_s", "start", "start_seconds", "start_time")
END_NAMES = ("end_s", "end", "end_seconds", "end_time")
NUMBER = re.compile(r"\s*\d+(\.\d*)?\s*", re.ASCII)
PIECE_S = 10.0  # VGGSound gives starts only, and all these datasets have pieces of 10 s
MAX_COMMENTS = 1000  # lines before the header; what has more is no table
FEW_ARE_FREE = (
    "%s: YouTube states a free license for few videos; the others end as rows with the reason `license`. The"
    " supported route for such lists is your own copies with a license column: source.kind=folder"
    " source.path=LIST.csv"
)


def is_video_list(path: str) -> bool:
    """Whether `path` is a table of ids, rather than a file with a target of YouTube per line."""
    suffix = Path(path).suffix.lower()
    if suffix in (".parquet", ".jsonl", ".ndjson"):
        return Path(path).is_file()
    return suffix == ".csv" and Path(path).is_file() and _header(Path(path)) is not None


def video_items(path: Path) -> Iterator[Item]:
    """The videos and pieces of a list, each once, in order.

    `UserError`, before the first, for a row that cannot be one.
    """
    # before any work: most of such a list will be refused, and its user should learn that first
    log.warning(FEW_ARE_FREE, path)
    first = next(_rows(path), None)
    if first and _column(first.columns, START_NAMES[1:]) and not _column(first.columns, END_NAMES):
        log.info("%s: gives starts only: pieces of %g s are taken", path, PIECE_S)
    return checked(path, lambda: _numbered_items(path))


def _numbered_items(path: Path) -> Iterator[Numbered]:
    for row in _rows(path):
        yield row.number, _item(row)


def _item(row: Row) -> Item:
    id_column = _column(row.columns, ID_NAMES)
    if not id_column:
        names = ", ".join(map(str, row.columns))
        raise UserError(f"{row.path}: no column of ids ({', '.join(ID_NAMES)}); it has {names}")
    cell = row.cell(id_column)
    id = cell if BARE_ID.fullmatch(cell) else video_id(cell)
    if not id:
        raise row.error(f": {cell!r} is neither an id of YouTube (11 letters) nor the URL of a video")
    start = _column(row.columns, START_NAMES)
    end = _column(row.columns, END_NAMES)
    start_s, end_s = row.span(start or "start_s", end or "end_s")
    # a column of our own name, start_s without end_s, runs to the end of the video
    if start and start != "start_s" and not end and row.cell(start):
        end_s = start_s + PIECE_S
    titles = _spelled(row.columns, ("title",))
    # licenses are dropped: YouTube's own mark counts, whatever a list states
    used = (id_column, start, end, *titles, *_spelled(row.columns, ("license",)))
    meta = {**row.extra(tuple(filter(None, used))), "found_by": row.path.name}
    title = next((row.cell(name) for name in titles), "")
    return piece(Item("youtube", id, watch_url(id), title=title, meta=meta), start_s, end_s, medium=id)


def _spelled(columns: Iterable[str], names: tuple[str, ...]) -> list[str]:
    """The columns of these names, whatever their capitals, in the order of `names`."""
    by_name: dict[str, list[str]] = {}
    for column in columns:
        by_name.setdefault(str(column).strip().lower(), []).append(column)
    return list(itertools.chain.from_iterable(by_name.get(name, ()) for name in names))


def _column(columns: Iterable[str], names: tuple[str, ...]) -> str:
    """The column of the first of these names that there is; "" for none."""
    return next(iter(_spelled(columns, names)), "")


def _rows(path: Path) -> Iterator[Row]:
    if path.suffix.lower() != ".csv":
        yield from read_rows(path)
        return
    header = _header(path) or []
    for row_number, cells in _csv_cells(path):
        if cells == header:  # the header itself, where it is a row and no comment
            continue
        row = Row(path, row_number, dict(zip(header, cells)))
        if len(cells) > len(header):
            advice = 'put quotes (") around a cell with a comma'
            raise row.error(f" has {len(cells)} cells, not {len(header)}; {advice}")
        yield row


def _header(path: Path) -> list[str] | None:
    """The names of the columns: from a first row, from a comment before it, or by what the first row holds.

    None: it is no table of ids.
    """
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        comments = list(itertools.takewhile(_is_comment, itertools.islice(file, MAX_COMMENTS)))
    for comment in comments:
        names = [name.strip() for name in comment.lstrip("# ").split(",")]
        if _column(dict.fromkeys(names), ID_NAMES):
            return names
    first = next(_csv_cells(path), (0, []))[1]
    if _column(dict.fromkeys(first), ID_NAMES):
        return first
    if not first or not BARE_ID.fullmatch(first[0]):
        return None
    return _guessed_header(first)


def _guessed_header(cells: list[str]) -> list[str]:
    """VGGSound's file has no header: an id, up to two times, a label, a split."""
    num_times = sum(1 for _ in itertools.takewhile(NUMBER.fullmatch, cells[1:3]))
    names = ["id", *("start", "end")[:num_times], "label", "split"]
    names += [f"column_{index}" for index in range(len(names), len(cells))]
    return names[: len(cells)]


def _is_comment(line: str) -> bool:
    return line.startswith("#") or not line.strip()


def _csv_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of the rows behind the comments at the beginning."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            num_comments = 0
            first = ""
            for line in file:
                if not _is_comment(line):
                    first = line
                    break
                num_comments += 1
            # AudioSet has a blank before each cell, and one before a quote would hide the quote
            reader = csv.reader(itertools.chain([first] if first else [], file), skipinitialspace=True)
            for cells in reader:
                if cells:
                    yield num_comments + reader.line_num, [cell.strip() for cell in cells]
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: cannot be read as csv: {error}") from error
