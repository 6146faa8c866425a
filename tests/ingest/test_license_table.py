"""The vocabulary as data: no code twice, every group and every spelling is of codes that exist."""

import re

import pytest

from ingest.license_table import (
    CC_KINDS,
    COPYLEFT,
    COUNTRIES,
    FLICKR_2_KINDS,
    FLICKR_4_KINDS,
    LICENSES,
    NAMES,
    NOTICE,
    PORTS,
    PUBLIC_DOMAIN,
    SITE_CODES,
    SITE_LICENSES,
    SPELLINGS,
)


def test_every_code_exists_once() -> None:
    assert len(set(LICENSES)) == len(LICENSES)


def test_no_license_is_in_two_groups() -> None:
    grouped = (*PUBLIC_DOMAIN, *NOTICE, *COPYLEFT)
    assert len(set(grouped)) == len(grouped)
    assert set(grouped) <= set(LICENSES)


def test_a_name_stands_for_one_license() -> None:
    spellings = "; ".join(SPELLINGS.values()).split("; ")
    assert len(set(spellings)) == len(spellings) == len(NAMES)
    assert set(NAMES.values()) <= set(LICENSES)


@pytest.mark.parametrize("name", NAMES)
def test_names_are_spelt_as_they_are_looked_up(name: str) -> None:
    """In small letters, with single spaces for every separator: another spelling would never be found."""
    assert name == " ".join(re.sub(r"[\s_,/:-]+", " ", name.lower()).split())


@pytest.mark.parametrize("site", SITE_CODES)
def test_codes_of_a_site_are_in_the_vocabulary(site: str) -> None:
    assert set(SITE_CODES[site].values()) <= {*LICENSES, *SITE_LICENSES}


@pytest.mark.parametrize("kinds", [FLICKR_2_KINDS, FLICKR_4_KINDS])
def test_flickr_has_every_kind_of_creative_commons(kinds: tuple[str, ...]) -> None:
    assert sorted(kinds) == sorted(CC_KINDS)


@pytest.mark.parametrize("code", SITE_LICENSES)
def test_the_url_of_a_site_license_is_one_of_its_spellings(code: str) -> None:
    address = re.sub(r"^custom:https?://|/$", "", code)
    assert re.fullmatch(SITE_LICENSES[code], address)


def test_every_country_is_a_port() -> None:
    assert set(COUNTRIES.values()) <= PORTS
