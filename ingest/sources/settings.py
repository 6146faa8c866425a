"""The settings of sources: `source:` of a scrape, with a section for each site that has some.

They are apart from the sources, so that settings are read without importing any of them.
"""

from dataclasses import dataclass

from configs.load import UserError, at_least, operational, positive
from ingest.fetch.access import YoutubeConfig
from ingest.licenses import license_code

PHOTO_SIZES = ("original", "large", "medium", "small")  # longer side: up to 2048, 1024, 500, 240 px
MAX_PER_PAGE = 200  # the API gives no more, whatever is requested


@dataclass
class InaturalistConfig:
    """How often iNaturalist's API is called, and which size of its photos is taken."""

    photo_size: str = "large"  # original, large, medium or small
    max_observations: int = operational(1000)  # how many are taken from the API; 0 = all
    per_page: int = operational(200)  # observations of one call
    requests_per_min: float = operational(60.0)  # to the API
    requests_per_day: int = operational(10_000)  # to the API, for this output

    def __post_init__(self) -> None:
        if self.photo_size not in PHOTO_SIZES:
            sizes = ", ".join(PHOTO_SIZES)
            raise UserError(f"source.inaturalist.photo_size={self.photo_size}: give one of {sizes}")
        if not 1 <= self.per_page <= MAX_PER_PAGE:
            raise UserError(f"source.inaturalist.per_page={self.per_page}: give 1 to {MAX_PER_PAGE}")
        at_least(self, 0, "max_observations", section="source.inaturalist.", meaning="all")
        positive(self, "requests_per_min", "requests_per_day", section="source.inaturalist.")


@dataclass
class SourceConfig:
    """Where items come from.

    `path` is a folder, a list (.txt, .csv, .parquet, .jsonl), a folder or glob of .tar files; or what
    `ingest.sources.videos` and `ingest.sources.inaturalist` take. Of the two sections, only that of `kind`
    counts.
    """

    # a folder, list, archive, or what the kind takes; another path or a longer list only adds items
    path: str = operational()
    kind: str = "folder"  # which kind of source lists the items (docs/adding-a-source.md)
    license: str = ""  # your statement about all of it; a row's own license goes first
    youtube: YoutubeConfig = operational(YoutubeConfig)
    inaturalist: InaturalistConfig = operational(InaturalistConfig)

    def license_of(self, stated: str) -> str:
        """The code of the license that a row or sidecar states; where it states none, the operator's."""
        return license_code(stated) or self.license


def refuse_license(config: SourceConfig, advice: str) -> None:
    """`UserError` where the operator states a license of media that the site licenses one by one."""
    if config.license:
        raise UserError(f"source.license={config.license}: {advice}; remove source.license")
