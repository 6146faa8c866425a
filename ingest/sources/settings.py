"""The settings of sources: `source:` of a scrape, with a section for each site that has some.

They are apart from the sources, so that settings are read without importing any of them.
"""

from dataclasses import dataclass

from configs.load import UserError, operational
from ingest.fetch.access import YoutubeConfig
from ingest.licenses import license_code

PHOTO_SIZES = (
    "original",
    "large",
    "medium",
    "small",
)  # of a photo's longer side: up to 2048, 1024, 500, 240 px
MAX_PER_PAGE = 200


@dataclass
class InaturalistConfig:
    """How iNaturalist is asked, and which size of its photos is taken."""

    photo_size: str = "large"
    max_observations: int = operational(1000)  # from the API; 0 = all
    per_page: int = operational(200)
    requests_per_min: float = operational(60.0)
    requests_per_day: int = operational(10_000)  # to the API, for this output

    def __post_init__(self) -> None:
        if self.photo_size not in PHOTO_SIZES:
            raise UserError(
                f"source.inaturalist.photo_size={self.photo_size}: give one of {', '.join(PHOTO_SIZES)}"
            )
        if not 1 <= self.per_page <= MAX_PER_PAGE:
            raise UserError(f"source.inaturalist.per_page={self.per_page}: give 1 to {MAX_PER_PAGE}")
        if self.max_observations < 0 or self.requests_per_min <= 0 or self.requests_per_day < 1:
            raise UserError(
                "source.inaturalist: max_observations >= 0, requests_per_min > 0 and requests_per_day >= 1 are needed"
            )


@dataclass
class SourceConfig:
    """Where items come from. `path`: a folder, a list (.txt, .csv, .parquet, .jsonl), a folder or glob of
    .tar files; or what `ingest.sources.youtube` and `ingest.sources.inaturalist` take.

    Of the two sections, the one of the kind in use counts.
    """

    path: str = operational()  # another place or a longer list only adds items
    kind: str = "folder"
    license: str = ""  # your statement about all of it; a row's own license goes first
    youtube: YoutubeConfig = operational(YoutubeConfig)
    inaturalist: InaturalistConfig = operational(InaturalistConfig)


def license_of(own: str, stated: str) -> str:
    """A row's own license if it names one, by code, name or URL, else the operator's statement."""
    return license_code(own) or stated
