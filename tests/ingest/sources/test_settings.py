"""The settings of sources: what is refused, and whose license counts."""

from typing import Any

import pytest

from configs.load import UserError
from ingest.sources.settings import InaturalistConfig, SourceConfig, refuse_license


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"photo_size": "huge"}, "photo_size=huge: give one of original, large, medium, small"),
        ({"per_page": 201}, "per_page=201: give 1 to 200"),
        ({"max_observations": -1}, "max_observations=-1: give 0 (all) or more"),
        ({"requests_per_min": 0}, "requests_per_min=0: give a positive number"),
    ],
)
def test_settings_of_inaturalist_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        InaturalistConfig(**settings)
    assert f"source.inaturalist.{message}" in str(caught.value)


@pytest.mark.parametrize(
    ("stated", "code"), [("", "own"), ("CC BY 4.0", "CC-BY-4.0"), ("see website", "unknown")]
)
def test_what_a_row_states_goes_before_the_operators_statement(stated: str, code: str) -> None:
    assert SourceConfig("a.csv", license="own").license_of(stated) == code


def test_a_site_with_licenses_of_its_own_takes_no_statement() -> None:
    refuse_license(SourceConfig("a"), "the site states them")
    with pytest.raises(UserError, match="license=own: the site states them; remove source.license"):
        refuse_license(SourceConfig("a", license="own"), "the site states them")
