"""What there is to fetch: a folder, a list of URLs, other people's WebDataset tars, YouTube, iNaturalist -> items.

`enumerate_items(config, …)` yields plain `Item`s in a fixed order, a few at a time in memory; no media is fetched or decoded
here. Ids are stable: the path below the folder, the URL or the list's own id, the tar's name and the sample's key. The license
of an item is the row's own, else the operator's statement `source.license`; what `ingest.licenses` does not
understand becomes `unknown`. YouTube and iNaturalist have no such statement: their media say it themselves.

A new source is one function `(SourceConfig, FetchConfig, output) -> Iterator[Item]`, registered in `SOURCES`.
"""

import csv
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.scratch import scratch_folder
from cluster.storage import open_store
from configs.load import UserError, operational
from ingest.fetch import FetchConfig
from ingest.inaturalist import InaturalistConfig, enumerate_inaturalist
from ingest.licenses import is_code, license_code, suggestion
from ingest.sample import Item, without_tokens
from ingest.tars import Members, find_tars, tar_items, utf8_name
from ingest.youtube import YoutubeConfig, enumerate_youtube

log = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .qt .f4v .3gp .3g2 .mkv .webm .ogv .ogm .avi .divx .flv .wmv .asf .mpg .mpeg .mpe .m2p .vob .mod .ts .mts"
    " .m2ts .m2t .tod .mxf .dv".split()
)
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # of a pair, the first that is there
SOUND_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a")
COLUMNS = ("url", "id", "title", "license", "sound_url", "channel")
BATCH_ROWS = 1000


@dataclass
class SourceConfig:
    """Where items come from. `path`: a folder, a list (.txt, .csv, .parquet), a folder or glob of .tar files; or what
    `ingest.youtube` and `ingest.inaturalist` take. Of the two sections, the one of the kind in use counts.
    """

    path: str = operational()  # another place or a longer list only adds items
    kind: str = "folder"
    license: str = ""  # your statement about all of it; a row's own license goes first
    youtube: YoutubeConfig = operational(YoutubeConfig)
    inaturalist: InaturalistConfig = operational(InaturalistConfig)


def enumerate_items(config: SourceConfig, network: FetchConfig | None = None, output: str = "") -> Iterator[Item]:
    """The items of a source. `UserError` at once for settings that cannot work, a path that is not there, a broken list.

    YouTube and iNaturalist are asked through `network`; pages of iNaturalist's API are kept in `output`, where there is one.
    """
    if config.kind not in SOURCES:
        raise UserError(f"source.kind={config.kind}: give one of {', '.join(SOURCES)}")
    if config.license == "unknown" or (config.license and not is_code(config.license)):
        raise UserError(f"source.license={config.license}: no license code{suggestion(config.license)}")
    return SOURCES[config.kind](config, network or FetchConfig(), output)


def _from_youtube(config: SourceConfig, network: FetchConfig, output: str) -> Iterator[Item]:
    if config.license:
        more = "vouch for channels with source.youtube.vouched_channels"
        raise UserError(f"source.license={config.license}: the media of youtube state their own; {more}; leave it out")
    return _listed(lambda spool: enumerate_youtube(config.path, config.youtube, network, spool))


def _from_inaturalist(config: SourceConfig, network: FetchConfig, output: str) -> Iterator[Item]:
    if config.license:
        raise UserError(f"source.license={config.license}: the media of inaturalist state their own; leave it out")
    store = open_store(output) if output else None
    return _listed(lambda spool: enumerate_inaturalist(config.path, config.inaturalist, network, spool, store))


def _listed(items_of: Callable[[Path], Iterator[Item]]) -> Iterator[Item]:
    """The items of a site, listed by a fetch process with a folder of its own that ends with the list."""
    with scratch_folder("list") as spool:
        yield from items_of(spool)


def _from_folder(config: SourceConfig, network: FetchConfig, output: str) -> Iterator[Item]:
    """Videos, and pictures with a sound of the same stem beside them; hidden files are passed over, of others it says how many."""
    root = Path(config.path)
    if not root.is_dir():
        raise UserError(f"source.path={config.path}: no such folder")
    if not config.license:
        raise UserError("source.license: say under which license the files of the folder are, such as own or CC-BY-4.0")
    stems: dict[str, list[Path]] = {}
    for path in sorted(root.resolve().rglob("*")):
        name = path.relative_to(root.resolve())
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            stems.setdefault(utf8_name(name.with_suffix("")), []).append(path)
    return _folder_items(stems, config.license)


def _folder_items(stems: dict[str, list[Path]], license: str) -> Iterator[Item]:
    passed_over: Counter[str] = Counter()
    for stem, paths in sorted(stems.items()):
        found = [(path, "") for path in paths if path.suffix.lower() in VIDEO_SUFFIXES]
        picture, sound = _first(paths, PICTURE_SUFFIXES), _first(paths, SOUND_SUFFIXES)
        if picture and sound:
            found.append((picture, str(sound)))
        for path, sound_url in found:
            # always with its suffix: a file's id must not depend on which others are there
            yield Item("folder", stem + path.suffix, str(path), license, sound_url, title=PurePosixPath(stem).name)
        used = {path for path, _ in found} | ({sound} if picture and sound else set())
        passed_over.update(path.suffix.lower() or "no suffix" for path in paths if path not in used)
    if passed_over:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in passed_over.most_common(10))
        log.info("%d files are neither videos nor pairs of a picture and a sound: %s", passed_over.total(), kinds)


def _first(paths: list[Path], suffixes: tuple[str, ...]) -> Path | None:
    ranked = [path for suffix in suffixes for path in paths if path.suffix.lower() == suffix]
    return ranked[0] if ranked else None


def _from_list(config: SourceConfig, network: FetchConfig, output: str) -> Iterator[Item]:
    """A row per URL. Columns other than those of an item travel in its `meta`. The list is read twice: first for what is wrong."""
    path = Path(config.path)
    if not path.is_file():
        raise UserError(f"source.path={config.path}: no such file; give a .txt, .csv or .parquet list of URLs")
    for number, row in _rows(path):
        if "url" not in row:
            raise UserError(f"{path}: no column url; it has {', '.join(map(str, row))}")
        if not _told(row, "url"):
            raise UserError(f"{config.path}: row {number} has no url")
    return (_list_item(row, config.license) for _, row in _rows(path))


def _list_item(row: dict[str, Any], stated: str) -> Item:
    url, id, title, license, sound_url, channel = (_told(row, name) for name in COLUMNS)
    meta = {str(name): _plain(value) for name, value in row.items() if name and name not in COLUMNS and value not in (None, "")}
    return Item("urls", id or without_tokens(url, apart=True), url, _license(license, stated), sound_url, channel, title, meta)


def _told(row: dict[str, Any], name: str) -> str:
    return str(row.get(name) or "").strip()


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number as a person counts, columns) of a list. `UserError` for one that cannot be read."""
    kind = path.suffix.lower()
    if kind not in (".txt", ".csv", ".parquet"):
        raise UserError(f"source.path={path}: give a .txt, .csv or .parquet list of URLs")
    try:
        yield from {".txt": _text_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}[kind](path)
    except (pa.ArrowException, csv.Error, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: cannot be read as {kind[1:]}: {error}") from error


def _text_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip() and not line.strip().startswith("#"):
                yield number, {"url": line.strip()}


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        for row in reader:
            yield reader.line_num, row


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with pq.ParquetFile(path) as file:
        batches = file.iter_batches(BATCH_ROWS)
        yield from enumerate(itertools.chain.from_iterable(batch.to_pylist() for batch in batches), 1)


def _from_tars(config: SourceConfig, network: FetchConfig, output: str) -> Iterator[Item]:
    """Every sample of every tar that has a video, or a picture and a sound."""
    found = find_tars(config.path)
    return (item for name, path in found for item in tar_items(name, path, _roles, lambda own: _license(own, config.license)))


def _roles(members: Members) -> Members:
    """{"picture": member} for a video, {"picture", "sound"} for a pair, else {}."""
    video = next((suffix for suffix in sorted(members) if suffix in VIDEO_SUFFIXES), None)
    if video:
        return {"picture": members[video]}
    picture = next((suffix for suffix in PICTURE_SUFFIXES if suffix in members), None)
    sound = next((suffix for suffix in SOUND_SUFFIXES if suffix in members), None)
    return {"picture": members[picture], "sound": members[sound]} if picture and sound else {}


def _license(own: str, stated: str) -> str:
    """A row's own license if it names one, by code, name or URL, else the operator's statement."""
    return license_code(own) or stated


def _plain(value: Any) -> Any:
    """A value that JSON can hold."""
    return value if isinstance(value, (bool, int, str)) or (isinstance(value, float) and value == value) else str(value)


Source = Callable[[SourceConfig, FetchConfig, str], Iterator[Item]]
SOURCES: dict[str, Source] = {
    "folder": _from_folder,
    "urls": _from_list,
    "webdataset": _from_tars,
    "youtube": _from_youtube,
    "inaturalist": _from_inaturalist,
}
"""By `source.kind`. A source raises `UserError` before its first item for what cannot work."""
