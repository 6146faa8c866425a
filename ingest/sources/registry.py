"""The sources: which module lists the items of each `source.kind`.

    for item in enumerate_items(config, network, output): …      # plain items in a fixed order, a few in memory

A source is a module with one function `items`, as `Source` has it; it is imported when it is used. A new one is
a module, its line in `SOURCES`, a test and a phrase in docs/map.md: docs/adding-a-source.md. Nothing is fetched
or decoded here.
"""

from collections.abc import Iterator
from importlib import import_module
from typing import Protocol

from configs.load import UserError
from ingest.fetch.settings import FetchConfig
from ingest.licenses import is_code, suggestion
from ingest.sample import Item
from ingest.sources.settings import SourceConfig

SOURCES = {
    "folder": "ingest.sources.folder",
    "urls": "ingest.sources.lists",
    "webdataset": "ingest.sources.tars",
    "youtube": "ingest.sources.video_lists",
    "inaturalist": "ingest.sources.inaturalist",
}


class Source(Protocol):
    """A module that lists items."""

    def items(self, config: SourceConfig, network: FetchConfig, output: str) -> Iterator[Item]:
        """The items, in a fixed order. `UserError`, before the first one, for what cannot work.

        An id stands for one place, and stays when the list grows. What is passed over is counted in one line of
        the log. The license is the row's own, else `config.license`; "unknown" is refused later. A site is asked
        through `network` only; what is worth keeping between runs goes below `output`, where there is one.
        """


def enumerate_items(
    config: SourceConfig, network: FetchConfig | None = None, output: str = ""
) -> Iterator[Item]:
    """The items of a source. `UserError` at once for settings that cannot work, a path that does not exist, a
    broken list.
    """
    if config.kind not in SOURCES:
        raise UserError(f"source.kind={config.kind}: give one of {', '.join(SOURCES)}")
    if config.license == "unknown" or (config.license and not is_code(config.license)):
        raise UserError(f"source.license={config.license}: no license code{suggestion(config.license)}")
    source: Source = import_module(SOURCES[config.kind])  # type: ignore[assignment]
    return source.items(config, network or FetchConfig(), output)
