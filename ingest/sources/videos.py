"""`source.kind=youtube`: a table of ids, or whatever YouTube lists by itself, -> items.

source.path=vggsound.csv                         a table of ids and times: `ingest.sources.video_lists`
source.path=https://www.youtube.com/@channel     YouTube lists it: `ingest.sources.youtube`
"""

from collections.abc import Iterator
from pathlib import Path

from cluster.scratch import scratch_folder
from ingest.fetch.settings import FetchConfig
from ingest.sample import Item
from ingest.sources.settings import SourceConfig, refuse_license
from ingest.sources.video_lists import is_video_list, video_items
from ingest.sources.youtube import check_session, enumerate_youtube


def items(config: SourceConfig, network: FetchConfig, output: str) -> Iterator[Item]:
    """The videos that `source.path` names. `UserError` also for secrets that cannot be used."""
    refuse_license(
        config,
        "YouTube states a license per video; vouch for channels with source.youtube.vouched_channels",
    )
    if is_video_list(config.path):
        # the list needs no network, but the fetch will: a broken cookie file is reported before any work
        check_session(config.youtube)
        return video_items(Path(config.path))
    return _listed(config, network)


def _listed(config: SourceConfig, network: FetchConfig) -> Iterator[Item]:
    """Videos listed by a fetch child, whose folder is removed when the list ends."""
    with scratch_folder("list") as spool:
        yield from enumerate_youtube(config.path, config.youtube, network, spool)
