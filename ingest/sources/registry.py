"""What there is to fetch: a folder, a list of URLs or files, other people's WebDataset tars, YouTube,
iNaturalist -> items.

`enumerate_items(config, …)` yields plain `Item`s in a fixed order, a few at a time in memory; no media is
fetched or decoded here. An id stands for one place, and stays: the path below the folder, the URL or the
list's own id, the tar's name and the sample's key. What a source passes over is counted in one line of the
log. The license of an item is the row's own, else the operator's statement `source.license`; what
`ingest.licenses` does not understand becomes `unknown`. YouTube and iNaturalist have no such statement: their
media state it themselves.

A new source is one function `(SourceConfig, FetchConfig, output) -> Iterator[Item]`, registered in `SOURCES`.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.scratch import scratch_folder
from cluster.storage import open_store
from configs.load import UserError, operational
from ingest.fetch.fetcher import FetchConfig
from ingest.licenses import is_code, license_code, suggestion
from ingest.sample import Item
from ingest.sources.folder import folder_items
from ingest.sources.inaturalist import InaturalistConfig, enumerate_inaturalist
from ingest.sources.lists import SUFFIXES, checked, pair_items, read_rows, url_items
from ingest.sources.tars import find_tars, items_of_tars
from ingest.sources.video_lists import is_video_list, video_items
from ingest.sources.youtube import YoutubeConfig, check_session, enumerate_youtube

log = logging.getLogger(__name__)


@dataclass
class SourceConfig:
    """Where items come from. `path`: a folder, a list (.txt, .csv, .parquet, .jsonl), a folder or glob of
    .tar files; or what `ingest.sources.youtube` and `ingest.sources.inaturalist` take. Of the two sections,
    the one of the kind in use counts.
    """

    path: str = operational()  # another place or a longer list only adds items
    kind: str = "folder"
    license: str = ""  # your statement about all of it; a row's own license goes first
    youtube: YoutubeConfig = operational(YoutubeConfig)
    inaturalist: InaturalistConfig = operational(InaturalistConfig)


def enumerate_items(
    config: SourceConfig, network: FetchConfig | None = None, output: str = ""
) -> Iterator[Item]:
    """The items of a source. `UserError` at once for settings that cannot work, a path that is not there, a
    broken list.

    YouTube and iNaturalist are asked through `network`; pages of iNaturalist's API are kept in `output`,
    where there is one.
    """
    if config.kind not in SOURCES:
        raise UserError(f"source.kind={config.kind}: give one of {', '.join(SOURCES)}")
    if config.license == "unknown" or (config.license and not is_code(config.license)):
        raise UserError(f"source.license={config.license}: no license code{suggestion(config.license)}")
    return SOURCES[config.kind](config, network or FetchConfig(), output)


def _from_youtube(config: SourceConfig, network: FetchConfig, output: str) -> Iterator[Item]:
    if config.license:
        more = "vouch for channels with source.youtube.vouched_channels"
        raise UserError(
            f"source.license={config.license}: the media of youtube state their own; {more}; leave it out"
        )
    if is_video_list(config.path):
        check_session(config.youtube)
        return video_items(Path(config.path))
    return _listed(lambda spool: enumerate_youtube(config.path, config.youtube, network, spool))


def _from_inaturalist(config: SourceConfig, network: FetchConfig, output: str) -> Iterator[Item]:
    if config.license:
        raise UserError(
            f"source.license={config.license}: the media of inaturalist state their own; leave it out"
        )
    store = open_store(output) if output else None
    return _listed(
        lambda spool: enumerate_inaturalist(config.path, config.inaturalist, network, spool, store)
    )


def _listed(items_of: Callable[[Path], Iterator[Item]]) -> Iterator[Item]:
    """The items of a site, listed by a fetch process with a folder of its own that ends with the list."""
    with scratch_folder("list") as spool:
        yield from items_of(spool)


def _from_folder(config: SourceConfig, network: FetchConfig, output: str) -> Iterator[Item]:
    """Videos, and pictures with a sound of the same stem beside them; or what a list in a folder names."""
    path = Path(config.path)
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return _from_pairs(config, path)
    if not path.is_dir():
        raise UserError(
            f"source.path={config.path}: no such folder; give one, or a .csv, .parquet or .jsonl list of the files in it"
        )
    if not config.license:
        raise UserError(
            "source.license: say under which license the files of the folder are, such as own or CC-BY-4.0"
        )
    return folder_items(path, config.license, _license)


def _from_pairs(config: SourceConfig, path: Path) -> Iterator[Item]:
    first = next(read_rows(path), None)
    if not config.license and first and "license" not in first[1]:
        raise UserError(
            f"{path}: no column license; add one, or say source.license=own (or another) of all of it"
        )
    return checked(path, lambda: pair_items(path, lambda own: _license(own, config.license)))


def _from_list(config: SourceConfig, network: FetchConfig, output: str) -> Iterator[Item]:
    """A row per URL. Columns other than those of an item travel in its `meta`.

    The list is read twice: first for what is wrong.
    """
    path = Path(config.path)
    if not path.is_file():
        raise UserError(
            f"source.path={config.path}: no such file; give a .txt, .csv, .parquet or .jsonl list of URLs"
        )
    return checked(path, lambda: url_items(path, lambda own: _license(own, config.license)))


def _from_tars(config: SourceConfig, network: FetchConfig, output: str) -> Iterator[Item]:
    """Every sample of every tar that has a video, or a picture and a sound."""
    return items_of_tars(find_tars(config.path), lambda own: _license(own, config.license))


def _license(own: str, stated: str) -> str:
    """A row's own license if it names one, by code, name or URL, else the operator's statement."""
    return license_code(own) or stated


Source = Callable[[SourceConfig, FetchConfig, str], Iterator[Item]]
SOURCES: dict[str, Source] = {
    "folder": _from_folder,
    "urls": _from_list,
    "webdataset": _from_tars,
    "youtube": _from_youtube,
    "inaturalist": _from_inaturalist,
}
"""By `source.kind`. A source raises `UserError` before its first item for what cannot work."""
