"""Lists that people keep (.txt, .csv, .parquet, .jsonl) -> items: URLs, files beside the list, videos of
YouTube.

    checked(path, items)                 the items twice read: first for what is wrong, then one by one
    url_items(path, stated)              a row per URL
    pair_items(path, stated)             a row per video, or picture and sound, by paths below the list's folder

`start_s` and `end_s` make a row a piece of its medium, with an id of its own. Columns that an item has no
place for travel in its `meta`. A list is untrusted: it names no file outside of its folder, and no id stands
for two places.
"""

import csv
import hashlib
import itertools
import json
import logging
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from configs.load import UserError
from ingest.fetch.settings import FetchConfig
from ingest.sample import Item, without_tokens
from ingest.sources.metadata import plain_facts, seconds_of, text_of
from ingest.sources.settings import SourceConfig, license_of
from ingest.sources.suffixes import VIDEO_SUFFIXES

log = logging.getLogger(__name__)

Row = dict[str, Any]
Numbered = tuple[int, Row]
Stated = Callable[[str], str]  # a row's own license -> the code that counts
COLUMNS = ("url", "id", "title", "license", "sound_url", "channel", "start_s", "end_s")
PAIR_COLUMNS = (*COLUMNS, "picture", "sound", "video")
SUFFIXES = (".txt", ".csv", ".parquet", ".jsonl", ".ndjson")
BATCH_ROWS = 1000


def items(config: SourceConfig, network: FetchConfig, output: str) -> Iterator[Item]:
    """A row per URL. See `ingest.sources.registry.Source`."""
    path = Path(config.path)
    if not path.is_file():
        fix = "give a .txt, .csv, .parquet or .jsonl list of URLs"
        raise UserError(f"source.path={config.path}: no such file; {fix}")
    return checked(path, lambda: url_items(path, lambda own: license_of(own, config.license)))


def read_rows(path: Path) -> Iterator[Numbered]:
    """(row number as a person counts, columns) of a list. `UserError` for one that cannot be read."""
    kind = path.suffix.lower()
    readers = {
        ".txt": _text_rows,
        ".csv": _csv_rows,
        ".parquet": _parquet_rows,
        ".jsonl": _json_rows,
        ".ndjson": _json_rows,
    }
    if kind not in readers:
        raise UserError(f"source.path={path}: give a .txt, .csv or .parquet list of URLs, or a .jsonl one")
    try:
        yield from readers[kind](path)
    except (pa.ArrowException, csv.Error, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: cannot be read as {kind[1:]}: {error}") from error


def _text_rows(path: Path) -> Iterator[Numbered]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip() and not line.strip().startswith("#"):
                yield number, {"url": line.strip()}


def _csv_rows(path: Path) -> Iterator[Numbered]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        twice = [name for name, count in Counter(reader.fieldnames or ()).items() if count > 1]
        if twice:
            raise UserError(f"{path}: more than one column {twice[0]}; leave one")
        for row in reader:
            yield reader.line_num, _named(path, reader.line_num, row)


def _named(path: Path, number: int, row: Row) -> Row:
    """`UserError` for a row with more cells than the header: an unquoted comma has cut one of them."""
    if None in row:
        raise UserError(
            f'{path}: row {number} has more cells than the header; put quotes (") around a cell with a comma'
        )
    return row


def _json_rows(path: Path) -> Iterator[Numbered]:
    with path.open(encoding="utf-8-sig") as file:  # a file's lines end at line feeds only, never at U+2028
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}: row {number} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}: row {number} is not a JSON object")
            yield number, row


def _parquet_rows(path: Path) -> Iterator[Numbered]:
    with pq.ParquetFile(path) as file:
        batches = file.iter_batches(BATCH_ROWS)
        yield from enumerate(itertools.chain.from_iterable(batch.to_pylist() for batch in batches), 1)


def cell(path: Path, number: int, row: Row, name: str) -> str:
    """A known column as text, "" where it is empty. `UserError` for bytes that are no text."""
    try:
        return text_of(row.get(name))
    except UnicodeDecodeError:
        raise UserError(f"{path}: row {number}: column {name} holds bytes that are not UTF-8") from None


def span(
    path: Path, number: int, row: Row, first: str = "start_s", last: str = "end_s"
) -> tuple[float, float]:
    """(start, end) in seconds, an end of 0 for the medium's own. `UserError` for times that are none."""
    times = []
    for name in (first, last):
        try:
            times.append(seconds_of(row.get(name)))
        except ValueError:
            raise UserError(
                f"{path}: row {number}: {name}={row.get(name)!r} is not a time in seconds"
            ) from None
    if times[1] and times[1] <= times[0]:
        raise UserError(f"{path}: row {number}: {last}={times[1]:g} is not after {first}={times[0]:g}")
    return times[0], times[1]


def piece(item: Item, start_s: float, end_s: float, medium: str) -> Item:
    """The item from `start_s` to `end_s`, under an id of its own; `medium` is the id of the whole."""
    if not start_s and not end_s:
        return replace(item, medium=medium)
    last = f"{round(end_s * 1000)}" if end_s else ""
    return replace(
        item, id=f"{item.id}_{round(start_s * 1000)}-{last}", start_s=start_s, end_s=end_s, medium=medium
    )


def others(row: Row, known: tuple[str, ...]) -> Row:
    """The columns that an item has no place for, as JSON can hold them; a caption as one line of text."""
    return plain_facts({name: value for name, value in row.items() if name and name not in known})


def url_items(path: Path, stated: Stated) -> Iterator[tuple[int, Item]]:
    """(row number, item) of a list of URLs. `UserError` for a row that cannot be one."""
    for number, row in read_rows(path):
        yield number, _url_item(path, number, row, stated)


def _url_item(path: Path, number: int, row: Row, stated: Stated) -> Item:
    if "url" not in row:
        named = {str(name).lower() for name in row}
        ids = (
            "; for ids of YouTube give source.kind=youtube"
            if named & {"ytid", "youtube_id", "video_id", "id"}
            else ""
        )
        pairs = (
            "; for files beside the list give source.kind=folder"
            if named & {"picture", "sound", "video"}
            else ""
        )
        raise UserError(f"{path}: no column url; it has {', '.join(map(str, row))}{ids}{pairs}")
    url = cell(path, number, row, "url")
    sound_url = cell(path, number, row, "sound_url")
    if not url:
        raise UserError(f"{path}: row {number} has no url")
    for place in filter(None, (url, sound_url)):
        if "://" not in place and _is_beside(path, place):
            raise UserError(
                f"{path}: row {number}: {place} is a file, not a URL; for files beside a list give source.kind=folder"
            )
    return _item(
        path, number, row, Item("urls", without_tokens(url, apart=True), url, "", sound_url), stated, COLUMNS
    )


def _is_beside(path: Path, name: str) -> bool:
    try:
        return (path.parent / name).is_file()
    except (OSError, ValueError):
        return False


def _item(path: Path, number: int, row: Row, plain: Item, stated: Stated, known: tuple[str, ...]) -> Item:
    """`plain`, which has its places and the id that follows from them, with what its row states."""
    item = replace(
        plain,
        id=cell(path, number, row, "id") or plain.id,
        license=stated(cell(path, number, row, "license")),
        channel=cell(path, number, row, "channel"),
        title=cell(path, number, row, "title") or plain.title,
        meta=others(row, known),
    )
    ranged = "start_s" in row or "end_s" in row
    # pieces of one medium share its id, whatever their own ids: they belong into one split, and are removed
    # together
    return piece(item, *span(path, number, row), medium=plain.id) if ranged else item


def pair_items(path: Path, stated: Stated) -> Iterator[tuple[int, Item]]:
    """(row number, item) of a list of files below its own folder.

    `UserError` for a row that cannot be one.
    """
    root = path.parent.resolve()
    for number, row in read_rows(path):
        yield number, _pair_item(path, root, number, row, stated)


def _pair_item(path: Path, root: Path, number: int, row: Row, stated: Stated) -> Item:
    first = next((name for name in ("video", "picture", "url") if cell(path, number, row, name)), "")
    second = next((name for name in ("sound", "sound_url") if cell(path, number, row, name)), "")
    if not first:
        raise UserError(f"{path}: row {number} names no file; give columns picture and sound, or video")
    picture = _below(path, root, number, cell(path, number, row, first))
    if not second and first != "video" and picture.suffix.lower() not in VIDEO_SUFFIXES:
        raise UserError(f"{path}: row {number} names a picture and no sound")
    sound = _below(path, root, number, cell(path, number, row, second)) if second else None
    name = picture.relative_to(root).as_posix()
    if sound and sound.with_suffix("") != picture.with_suffix(""):
        name += f"+{sound.relative_to(root).as_posix()}"  # all ids of the pair
    plain = Item("folder", name, str(picture), "", str(sound or ""), title=picture.stem)
    return _item(path, number, row, plain, stated, PAIR_COLUMNS)


def _below(path: Path, root: Path, number: int, name: str) -> Path:
    """The file `name` below the list's folder; also one that is missing.

    `UserError` for one that is outside.
    """
    try:
        whole = (root / name).resolve()
        inside = whole.is_relative_to(root) and not Path(name).is_absolute()
    except (OSError, ValueError, RuntimeError):  # a NUL, or a link to itself
        inside = False
    if not inside or "://" in name:
        raise UserError(f"{path}: row {number}: {name!r} is not a path below the list's folder {root}")
    return root / Path(name)


def checked(path: Path, items: Callable[[], Iterator[tuple[int, Item]]]) -> Iterator[Item]:
    """The items of a list, once nothing of it is wrong: `items` is called twice. The same row twice is one
    item.

    `UserError`, before the first item, also where one id stands for two places: a list of any length takes 24
    bytes a row here.
    """
    ids, places, numbers = array("Q"), array("Q"), array("Q")
    for number, item in items():
        ids.append(_hash(item.id))
        places.append(_hash(repr(place_of(item))))
        numbers.append(number)
    repeated = _repeated(path, np.asarray(ids), np.asarray(places), np.asarray(numbers))
    if repeated:
        log.info("%s: %d rows name what an earlier row names; the first counts", path, len(repeated))
    return (item for number, item in items() if number not in repeated)


def place_of(item: Item) -> tuple[Any, ...]:
    """What an id stands for."""
    return item.url, item.sound_url, round(item.start_s * 1000), round(item.end_s * 1000), item.license


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _repeated(path: Path, ids: np.ndarray, places: np.ndarray, numbers: np.ndarray) -> set[int]:
    """Numbers of the rows that an earlier one equals. `UserError` for an id with two places."""
    order = np.argsort(ids, kind="stable")
    same = np.flatnonzero(ids[order][1:] == ids[order][:-1])
    if not len(same):
        return set()
    differ = same[places[order][same] != places[order][same + 1]]
    if len(differ):
        rows = sorted((int(numbers[order[differ[0]]]), int(numbers[order[differ[0] + 1]])))
        what = "have the same id and name different media, times or licenses"
        raise UserError(
            f"{path}: rows {rows[0]} and {rows[1]} {what} ({len(differ)} such pairs); make the ids unique, or leave them out"
        )
    return {int(number) for number in numbers[order[same + 1]]}
