"""Lists that people keep (.txt, .csv, .parquet, .jsonl) -> items: URLs, or files beside the list.

    for row in read_rows(path): row.cell("url")    rows, whatever the format, with a number for messages
    url_items(path, license_of)                    a row per URL
    pair_items(path, license_of)                   a row per video, or picture and sound, by their paths
    checked(path, items)                           the list read twice: first for what is wrong

`start_s` and `end_s` make a row a piece of its medium, with an id of its own. Columns that an item has no
field for travel in its `meta`.

A list is untrusted. Covered: it names no file outside of its folder, and one id stands for one medium. Not
covered: where its URLs lead, which is `ingest.fetch.guard`'s.
"""

import csv
import hashlib
import itertools
import json
import logging
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.jsonl import JsonObject
from configs.load import UserError
from ingest.fetch.settings import FetchConfig
from ingest.sample import Item, without_tokens
from ingest.sources.metadata import plain_fields, seconds_of, text_of
from ingest.sources.settings import SourceConfig
from ingest.sources.suffixes import VIDEO_SUFFIXES

log = logging.getLogger(__name__)

LicenseOf = Callable[[str], str]  # the license that a row states, "" for none -> the code of its item
Numbered = tuple[int, Item]  # with its row's number
Cells = dict[str, Any]  # by column, as the list's format has them: text, numbers, dates, lists, bytes
ITEM_COLUMNS = ("url", "id", "title", "license", "sound_url", "channel", "start_s", "end_s")
PAIR_COLUMNS = (*ITEM_COLUMNS, "picture", "sound", "video")
# of lists of YouTube's videos, given to the wrong source
ID_COLUMNS = {"ytid", "youtube_id", "video_id", "id"}
SUFFIXES = (".txt", ".csv", ".parquet", ".jsonl", ".ndjson")
BATCH_ROWS = 1000  # of parquet in memory


@dataclass(frozen=True)
class Row:
    """A row of the list at `path`. `number`: as a person counts, from 1; in a csv, the line in the file."""

    path: Path
    number: int
    columns: Cells

    def error(self, text: str) -> UserError:
        return UserError(f"{self.path}: row {self.number}{text}")

    def cell(self, name: str) -> str:
        """A known column as text, "" where it is empty. `UserError` for bytes that are not text."""
        try:
            return text_of(self.columns.get(name))
        except UnicodeDecodeError:
            raise self.error(f": column {name} holds bytes that are not UTF-8") from None

    def first_filled(self, *names: str) -> str:
        """The first of these columns that holds something; "" for none."""
        return next((name for name in names if self.cell(name)), "")

    def span(self, start: str = "start_s", end: str = "end_s") -> tuple[float, float]:
        """(start, end) in seconds by the columns of these names; an end of 0 is the medium's own.

        `UserError` for what is not a span.
        """
        start_s = self._seconds(start)
        end_s = self._seconds(end)
        if end_s and end_s <= start_s:
            raise self.error(f": {end}={end_s:g} is not after {start}={start_s:g}")
        return start_s, end_s

    def _seconds(self, name: str) -> float:
        value = self.columns.get(name)
        try:
            return seconds_of(value)
        except ValueError:
            raise self.error(f": {name}={value!r} is not a time in seconds") from None

    def extra(self, used: tuple[str, ...]) -> JsonObject:
        """The columns that are not `used` otherwise, as JSON can hold them."""
        return plain_fields({name: cell for name, cell in self.columns.items() if name and name not in used})


def items(config: SourceConfig, network: FetchConfig, output: str) -> Iterator[Item]:
    """A row per URL: see `ingest.sources.registry`."""
    path = Path(config.path)
    if not path.is_file():
        advice = "give a .txt, .csv, .parquet or .jsonl list of URLs"
        raise UserError(f"source.path={config.path}: no such file; {advice}")
    return checked(path, lambda: url_items(path, config.license_of))


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a list. `UserError` for one that cannot be read."""
    readers = {
        ".txt": _text_rows,
        ".csv": _csv_rows,
        ".parquet": _parquet_rows,
        ".jsonl": _json_rows,
        ".ndjson": _json_rows,
    }
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise UserError(f"source.path={path}: give a .txt, .csv or .parquet list of URLs, or a .jsonl one")
    try:
        yield from readers[suffix](path)
    except (pa.ArrowException, csv.Error, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: cannot be read as {suffix[1:]}: {error}") from error


def _text_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for row_number, line in enumerate(file, 1):
            if line.strip() and not line.strip().startswith("#"):
                yield Row(path, row_number, {"url": line.strip()})


def _csv_rows(path: Path) -> Iterator[Row]:
    with path.open(newline="", encoding="utf-8-sig") as file:  # Excel writes a byte order mark
        reader = csv.DictReader(file)
        repeated = [name for name, count in Counter(reader.fieldnames or ()).items() if count > 1]
        if repeated:
            raise UserError(f"{path}: more than one column {repeated[0]}; leave one")
        for columns in reader:
            row = Row(path, reader.line_num, columns)
            if None in columns:  # csv's name for surplus cells: an unquoted comma has cut one of them
                raise row.error(' has more cells than the header; put quotes (") around a cell with a comma')
            yield row


def _json_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:  # a file's lines end at line feeds only, never at U+2028
        for row_number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                columns = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}: row {row_number} is not JSON: {error}") from None
            if not isinstance(columns, dict):
                raise UserError(f"{path}: row {row_number} is not a JSON object")
            yield Row(path, row_number, columns)


def _parquet_rows(path: Path) -> Iterator[Row]:
    with pq.ParquetFile(path) as file:
        batches = file.iter_batches(BATCH_ROWS)
        rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
        for row_number, columns in enumerate(rows, 1):
            yield Row(path, row_number, columns)


def piece(item: Item, start_s: float, end_s: float, medium: str) -> Item:
    """The item from `start_s` to `end_s` (0: to its end), under an id of its own; `medium`: that of all."""
    if not start_s and not end_s:  # all of it: the id that a row without times has, too
        return replace(item, medium=medium)
    # in milliseconds: as text, 0.1 + 0.2 and 0.3 would be two ids
    first_ms = round(start_s * 1000)
    last_ms = f"{round(end_s * 1000)}" if end_s else ""
    return replace(item, id=f"{item.id}_{first_ms}-{last_ms}", start_s=start_s, end_s=end_s, medium=medium)


def url_items(path: Path, license_of: LicenseOf) -> Iterator[Numbered]:
    """(row number, item) of a list of URLs. `UserError` for a row that cannot be one."""
    for row in read_rows(path):
        yield row.number, _url_item(row, license_of)


def _url_item(row: Row, license_of: LicenseOf) -> Item:
    if "url" not in row.columns:
        raise _no_url_column(row)
    url = row.cell("url")
    sound_url = row.cell("sound_url")
    if not url:
        raise row.error(" has no url")
    for address in filter(None, (url, sound_url)):
        if "://" not in address and _is_beside(row.path, address):
            advice = "for files beside a list give source.kind=folder"
            raise row.error(f": {address} is a file, not a URL; {advice}")
    # a URL's tokens expire: with them in it, the same medium would be another item in the next run
    item = Item("urls", without_tokens(url, apart=True), url, "", sound_url)
    return _with_columns(item, row, license_of, ITEM_COLUMNS)


def _no_url_column(row: Row) -> UserError:
    columns = {str(name).lower() for name in row.columns}
    advice = ""
    if columns & ID_COLUMNS:
        advice += "; for ids of YouTube give source.kind=youtube"
    if columns & {"picture", "sound", "video"}:
        advice += "; for files beside the list give source.kind=folder"
    return UserError(f"{row.path}: no column url; it has {', '.join(map(str, row.columns))}{advice}")


def _is_beside(path: Path, name: str) -> bool:
    try:
        return (path.parent / name).is_file()
    except (OSError, ValueError):
        return False


def _with_columns(item: Item, row: Row, license_of: LicenseOf, used: tuple[str, ...]) -> Item:
    """`item`, which has its media and the id that follows from them, with what else its row states."""
    medium = item.id
    item = replace(
        item,
        id=row.cell("id") or medium,
        license=license_of(row.cell("license")),
        channel=row.cell("channel"),
        title=row.cell("title") or item.title,
        meta=row.extra(used),
    )
    if "start_s" not in row.columns and "end_s" not in row.columns:
        return item
    # pieces of one medium share its id, whatever their own: they belong into one split, and are removed
    # together
    return piece(item, *row.span(), medium=medium)


def pair_items(path: Path, license_of: LicenseOf) -> Iterator[Numbered]:
    """(row number, item) of a list of files below its folder. `UserError` for a row that cannot be one."""
    root = path.parent.resolve()
    for row in read_rows(path):
        yield row.number, _pair_item(row, root, license_of)


def _pair_item(row: Row, root: Path, license_of: LicenseOf) -> Item:
    picture_column = row.first_filled("video", "picture", "url")
    sound_column = row.first_filled("sound", "sound_url")
    if not picture_column:
        raise row.error(" names no file; give columns picture and sound, or video")
    picture = _below(root, row, picture_column)
    # a column url may name either: then its suffix decides
    if not sound_column and picture_column != "video" and picture.suffix.lower() not in VIDEO_SUFFIXES:
        raise row.error(" names a picture and no sound")
    sound = _below(root, row, sound_column) if sound_column else None
    id = picture.relative_to(root).as_posix()
    if sound and sound.with_suffix("") != picture.with_suffix(""):
        # one picture may have several sounds; of one stem, as in a folder, the picture alone is the id
        id += f"+{sound.relative_to(root).as_posix()}"
    item = Item("folder", id, str(picture), "", str(sound or ""), title=picture.stem)
    return _with_columns(item, row, license_of, PAIR_COLUMNS)


def _below(root: Path, row: Row, column: str) -> Path:
    """The file that a cell names, below the list's folder `root`; it may be missing, as a row will say.

    `UserError` for one that is outside.
    """
    name = row.cell(column)
    try:
        inside = (root / name).resolve().is_relative_to(root) and not Path(name).is_absolute()
    except (OSError, ValueError, RuntimeError):  # a NUL, or a link to itself
        inside = False
    if not inside or "://" in name:
        raise row.error(f": {name!r} is not a path below the list's folder {root}")
    return root / Path(name)


def checked(path: Path, numbered_items: Callable[[], Iterator[Numbered]]) -> Iterator[Item]:
    """The items of a list, once nothing of it is wrong; `numbered_items` is called twice for that.

    Rows that are equal give one item. `UserError`, before the first item, also where one id stands for two
    media. A list of any length takes 24 bytes a row: hashes, not items.
    """
    # a list is read twice rather than held: items are far larger than their hashes
    ids = array("Q")
    media = array("Q")
    numbers = array("Q")
    for row_number, item in numbered_items():
        ids.append(_hash(item.id))
        media.append(_hash(repr(medium_of(item))))
        numbers.append(row_number)
    repeated = _repeated(path, np.asarray(ids), np.asarray(media), np.asarray(numbers))
    if repeated:
        log.info("%s: %d rows repeat an earlier row; the first counts", path, len(repeated))
    return (item for row_number, item in numbered_items() if row_number not in repeated)


def medium_of(item: Item) -> tuple[str, str, int, int, str]:
    """What an id stands for. Two rows with one id must agree in all of it."""
    return item.url, item.sound_url, round(item.start_s * 1000), round(item.end_s * 1000), item.license


def _hash(text: str) -> int:
    # 64 bits: in a list of 10^8 rows, two share a hash with a chance of 1 in 3,700
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _repeated(path: Path, ids: np.ndarray, media: np.ndarray, numbers: np.ndarray) -> set[int]:
    """Numbers of rows that equal an earlier one. `UserError` for an id with two media. Arrays: `[rows]`."""
    # sorted, not in a dict: 24 bytes a row, whatever the length of the list
    order = np.argsort(ids, kind="stable")  # stable: of equal ids the earlier row stays in front
    same = np.flatnonzero(ids[order][1:] == ids[order][:-1])
    if not len(same):
        return set()
    differ = same[media[order][same] != media[order][same + 1]]
    if len(differ):
        pair = order[differ[0] : differ[0] + 2]
        first, second = sorted(map(int, numbers[pair]))
        what = "have the same id and name different media, times or licenses"
        advice = "make the ids unique, or leave them out"
        raise UserError(f"{path}: rows {first} and {second} {what} ({len(differ)} such pairs); {advice}")
    return set(map(int, numbers[order[same + 1]]))
