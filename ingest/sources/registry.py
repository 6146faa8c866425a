"""What there is to fetch: a folder, a list of URLs or files, WebDataset tars, YouTube, iNaturalist -> items.

    for item in enumerate_items(SourceConfig(path="media", kind="folder", license="own")): ...

`SOURCES` names a module for each `source.kind`; it is imported when that kind is used, so that a scrape of a
folder loads nothing of the sites. What a module must have is `Source`, which mypy checks. To add one, see
docs/adding-a-source.md.

Covered: `Item`s in a fixed order, a few at a time in memory, each with an id that stands for one medium and
stays. Not covered: no medium is fetched or decoded here.
"""

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from configs.load import UserError
from ingest.fetch.settings import FetchConfig
from ingest.licenses import is_code, suggestion
from ingest.sample import Item
from ingest.sources.settings import SourceConfig

SOURCES = {
    "folder": "ingest.sources.folder",
    "urls": "ingest.sources.lists",
    "webdataset": "ingest.sources.tars",
    "youtube": "ingest.sources.videos",
    "inaturalist": "ingest.sources.inaturalist",
}
"""By `source.kind`, the module that lists it. The order is that of the error message."""


class Source(Protocol):
    """A module that lists items."""

    def items(self, config: SourceConfig, network: FetchConfig, output: str) -> Iterator[Item]:
        """The items of `config.path`, always in the same order.

        `network`: how a site is reached. `output`: the dataset that is made, "" for none; pages of a listing
        may be kept there. `UserError` before the first item for settings that cannot work, a missing path or
        a broken list. Items that cannot be used are counted in one line of the log. An item's license is the
        row's own, else `source.license`: see `SourceConfig.license_of`.
        """
        ...


def enumerate_items(
    config: SourceConfig, network: FetchConfig | None = None, output: str = ""
) -> Iterator[Item]:
    """The items of a source, as its module lists them. Errors: see `Source.items`."""
    if config.kind not in SOURCES:
        raise UserError(f"source.kind={config.kind}: give one of {', '.join(SOURCES)}")
    license = config.license
    if license == "unknown" or (license and not is_code(license)):
        raise UserError(f"source.license={license}: no license code{suggestion(license)}")
    source = cast(Source, import_module(SOURCES[config.kind]))
    return source.items(config, network or FetchConfig(), output)


if TYPE_CHECKING:
    # modules are loaded by name, where mypy cannot see them; here it can
    from ingest.sources import folder, inaturalist, lists, tars, videos

    _CHECKED: tuple[Source, ...] = (folder, lists, tars, videos, inaturalist)
