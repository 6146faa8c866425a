"""Licenses: how the world spells them, what they demand, and what `license.allow` lets in."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.license_table import CC_KINDS, CC_VERSIONS, CLASSES, LICENSES
from ingest.licenses import (
    LicenseConfig,
    allowed,
    check_allow,
    combined,
    first_allowed,
    is_code,
    license_code,
    properties,
    strictness,
    unported,
    url_of,
)
from ingest.rights.page import license_code as license_code_of_pages
from ingest.synth import LICENSE_URLS

CC = "https://creativecommons.org"
SPELLINGS = {
    "CC-BY-4.0": (
        f"{CC}/licenses/by/4.0/",
        "creativecommons.org/licenses/by/4.0/",
        "http://www.creativecommons.org/licenses/by/4.0",
        f"{CC}/licenses/by/4.0/legalcode.de",
        f"{CC}/licenses/by/4.0/?ref=chooser-v1",
        "https://spdx.org/licenses/CC-BY-4.0.html",
        "cc-by-4.0",
        " CC BY 4.0 ",
        "CC-BY 4.0 International",
        "ccby 4.0",
        "by 4.0",
        "Attribution 4.0 International (CC BY 4.0)",
        "This work is licensed under a Creative Commons Attribution 4.0 International License.",
    ),
    "CC-BY-2.0": (f"{CC}/licenses/by/2.0/", "CC BY 2.0"),
    "CC-BY-3.0": (
        "Creative Commons Attribution 3.0",
        "CC BY 3.0 Unported",
        "Creative Commons Attribution license (reuse allowed)",
    ),
    "CC-BY-SA-2.5": (f"{CC}/licenses/by-sa/2.5/", "cc-by-sa-2.5"),
    "CC-BY-SA-3.0": (
        "http://www.creativecommons.org/licenses/by-sa/3.0",
        "Creative Commons Attribution-Share Alike 3.0 Unported license",
    ),
    "CC-BY-SA-3.0-DE": (
        f"{CC}/licenses/by-sa/3.0/de/deed.de",
        "CC-BY-SA-3.0-DE",
        "Cc-by-sa-3.0-de",
        "CC BY-SA 3.0 Germany",
    ),
    "CC-BY-NC-3.0": (f"{CC}/licenses/by-nc/3.0/",),
    "CC-BY-NC-SA-3.0-US": ("http://creativecommons.org/licenses/by-nc-sa/3.0/us/",),
    "CC-BY-NC-ND-4.0": (
        "//creativecommons.org/licenses/by-nc-nd/4.0/deed.de",
        "Attribution-NonCommercial-NoDerivatives 4.0 International",
    ),
    "CC-BY-NC-ND-1.0": (f"{CC}/licenses/by-nd-nc/1.0/",),
    "CC-BY-SA-4.0": ("by-sa 4.0", "CC BY-SA 4.0"),
    "CC-BY-NC": ("cc by-nc", "by-nc", "Creative Commons Attribution-NonCommercial"),
    "CC-SA-1.0": (f"{CC}/licenses/sa/1.0/",),
    "CC-Sampling-Plus-1.0": ("http://creativecommons.org/licenses/sampling+/1.0/",),
    "CC0-1.0": (
        "CC0",
        "cc0 1.0",
        "cc-zero",
        "Creative Commons 0",
        f"{CC}/publicdomain/zero/1.0/legalcode",
        "CC0 1.0 Universal",
    ),
    "PDM-1.0": ("PDM", "pdm 1.0", "Public Domain Mark 1.0", f"{CC}/publicdomain/mark/1.0/"),
    "CC-PDDC": (f"{CC}/licenses/publicdomain/",),
    "public-domain": ("Public domain", "PD-self"),
    "GFDL-1.2-only": ("https://www.gnu.org/licenses/old-licenses/fdl-1.2.html",),
    "GFDL-1.3-or-later": ("GFDL 1.3 or later", "GFDL-1.3+"),
    "GPL-2.0-or-later": ("GPL-2+", "GPL-2.0+", "GPLv2+", "GPL-2.0-or-later"),
    "GPL-3.0-only": ("GPL-3.0", "GPLv3", "https://www.gnu.org/licenses/gpl-3.0.en.html", "GNU GPL v3"),
    "LGPL-2.1-or-later": ("LGPL-2.1+",),
    "MIT": ("mit", "MIT License", "Expat", "https://opensource.org/licenses/MIT"),
    "Apache-2.0": ("Apache License 2.0", "https://www.apache.org/licenses/LICENSE-2.0.txt"),
    "LAL-1.3": ("https://artlibre.org/licence/lal/en/", "Free Art License 1.3"),
    "OGL-UK-3.0": (
        "https://www.nationalarchives.gov.uk/doc/open-government-licence/version/3/",
        "Open Government Licence v3.0",
        "OGL 3",
    ),
    "etalab-2.0": ("etalab-2.0", "Licence Ouverte 2.0", "lov2"),
    "all-rights-reserved": ("all rights reserved", "© All rights reserved.", "Standard YouTube License"),
    "custom:https://www.pexels.com/license/": (
        "https://www.pexels.com/license/",
        "Pexels License",
        "custom:http://pexels.com/license",
    ),
    "custom:https://unsplash.com/license": ("https://unsplash.com/license",),
    "custom:https://example.org/terms?id=1": ("custom:https://example.org/terms?id=1",),
    "": ("", "  "),
    "unknown": (
        "free for all",
        "by",
        "Attribution",
        "Creative Commons",
        "4",
        "GFDL",  # no version
        "https://www.gnu.org/copyleft/fdl.html",
        "GPL",
        "BSD",
        "CC BY 9.0",
        "CC BY-SA-ND 4.0",
        "CC-BY-SA-4.0-DE",  # version 4.0 has no ports
        "CC BY 4.0, not for AI",
        "not CC BY 4.0",
        "CC BY 4.0 or CC BY-NC 4.0",
        "CC BY 4.0 (CC BY-NC 4.0)",
        f"{CC}/licenses/by/4.0x",
        f"{CC}/licenses/by/4.0/except/",
        "https://creativecommons.org.example.com/licenses/by/4.0/",
        "https://creativecommons.org@example.com/licenses/by/4.0/",
        "https://example.com/?creativecommons.org/licenses/by/4.0/",
        "https://example.com/license",
        "custom:mine",
        "custom:https://example.org/<script>",
        "CC BY 4.0" + " " * 300 + "NC",
    ),
}


@pytest.mark.parametrize(
    ("code", "text"), [(code, text) for code, texts in SPELLINGS.items() for text in texts]
)
def test_real_spellings_of_a_license(code: str, text: str) -> None:
    assert license_code(text) == code


@pytest.mark.parametrize(
    "code", [*LICENSES, "CC-BY-SA-3.0-DE", "CC-BY-SA-2.1-JP", "custom:https://example.org/terms"]
)
def test_a_code_is_its_own_code_and_that_of_its_url(code: str) -> None:
    assert license_code(code) == code and is_code(code)
    if url_of(code):
        assert license_code(url_of(code)) in (
            code,
            f"{code}-only",
            "unknown" if code.startswith("custom:") else code,
        )


@given(st.text() | st.text("ccby-ncnd-sa 1234.0/+()deusor", max_size=30))
@settings(max_examples=300)
def test_whatever_is_understood_is_a_code_and_stays_it(text: str) -> None:
    code = license_code(text)
    assert code == "" or (is_code(code) and license_code(code) == code)


@given(
    st.sampled_from(CC_KINDS),
    st.sampled_from((*CC_VERSIONS, "")),
    st.sampled_from((" ", "-", "_")),
    st.booleans(),
    st.sampled_from(("", " International", " license", " unported")),
)
def test_no_spelling_of_creative_commons_loses_a_demand_or_gains_a_version(
    kind: str, version: str, joint: str, long: bool, tail: str
) -> None:
    long_names = {"BY": "Attribution", "NC": "NonCommercial", "ND": "NoDerivs", "SA": "ShareAlike"}
    elements = [long_names[element] if long else element for element in kind.split("-")]
    code = license_code(
        joint.join(["Creative Commons" if long else "CC", *elements, *([version] if version else [])]) + tail
    )
    assert properties(code) == properties(f"CC-{kind}-4.0") or code == "unknown"
    assert version in code if version and code != "unknown" else code[-1] not in "0125"


def test_every_license_url_of_the_site_is_understood() -> None:
    assert all(license_code(url) == code for code, url in LICENSE_URLS.items())
    assert license_code_of_pages is license_code


@pytest.mark.parametrize(
    ("site", "text", "code"),
    [
        ("flickr", "0", "all-rights-reserved"),
        ("flickr", "1", "CC-BY-NC-SA-2.0"),
        ("flickr", "4", "CC-BY-2.0"),
        ("flickr", "6", "CC-BY-ND-2.0"),
        ("flickr", "7", "custom:https://www.flickr.com/commons/usage/"),
        ("flickr", "9", "CC0-1.0"),
        ("flickr", "10", "PDM-1.0"),
        ("inaturalist", "cc-by", "CC-BY-4.0"),
        ("inaturalist", "", "all-rights-reserved"),
        ("", "cc-by", "CC-BY"),
    ],
)
def test_a_code_of_a_site_means_something_there_alone(site: str, text: str, code: str) -> None:
    assert license_code(text, site) == code


@pytest.mark.parametrize(
    ("code", "demands"),
    [
        ("CC0-1.0", {"public-domain"}),
        ("CC-BY-2.5", {"attribution"}),
        ("CC-BY-NC-SA-3.0-US", {"attribution", "non-commercial", "share-alike"}),
        ("CC-BY-ND", {"attribution", "no-derivatives"}),
        ("CC-NC-1.0", {"non-commercial"}),
        ("GPL-3.0-or-later", {"attribution", "share-alike"}),
        ("MIT", {"attribution"}),
        ("CC-Sampling-Plus-1.0", {"other-terms"}),
        ("custom:https://a.example/x", {"other-terms"}),
        ("own", {"other-terms"}),
        ("unknown", {"other-terms"}),
    ],
)
def test_what_a_license_demands(code: str, demands: set[str]) -> None:
    assert properties(code) == demands


@pytest.mark.parametrize(
    ("allow", "yes", "no"),
    [
        (
            ["CC-BY-3.0"],
            ["CC-BY-3.0", "CC-BY-3.0-DE"],
            ["CC-BY", "CC-BY-4.0", "CC-BY-SA-3.0", "CC0-1.0", "unknown", ""],
        ),
        (["CC-BY-3.0-DE"], ["CC-BY-3.0-DE"], ["CC-BY-3.0"]),
        (
            ["attribution"],
            ["CC-BY-2.0", "CC-BY", "MIT", "CC0-1.0"],
            ["CC-BY-SA-4.0", "CC-BY-NC-4.0", "CC-BY-ND-4.0", "own", "unknown"],
        ),
        (
            ["attribution", "share-alike"],
            ["CC-BY-SA-2.5", "GFDL-1.2-or-later"],
            ["CC-BY-NC-SA-4.0", "custom:https://a.example/x"],
        ),
        (["share-alike"], ["CC-SA-1.0"], ["CC-BY-SA-4.0"]),
        (["public-domain"], ["CC0-1.0", "PDM-1.0", "public-domain"], ["CC-BY-4.0", "own"]),
        (["attribution", "own"], ["own", "CC-BY-1.0"], []),
        (
            ["custom:https://a.example/x"],
            ["custom:https://a.example/x"],
            ["custom:https://a.example/y", "CC0-1.0"],
        ),
        (list(CLASSES), ["CC-BY-NC-ND-4.0"], ["all-rights-reserved", "CC-Sampling-1.0", "unknown", ""]),
        ([], [], ["CC0-1.0", ""]),
    ],
)
def test_allow_names_codes_and_classes(allow: list[str], yes: list[str], no: list[str]) -> None:
    assert [code for code in yes if not allowed(code, allow)] == []
    assert [code for code in no if allowed(code, allow)] == []


@pytest.mark.parametrize(
    ("entry", "hint"),
    [
        ("GPL", "did you mean GPL-3.0-or-later?"),
        ("cc by 4.0", "did you mean CC-BY-4.0?"),
        ("unknown", "cannot be allowed"),
        ("noncommercial", "non-commercial"),
    ],
)
def test_an_entry_of_allow_that_lets_nothing_in_is_one_clear_line(entry: str, hint: str) -> None:
    with pytest.raises(ValueError, match="license.allow") as error:
        check_allow(["CC0-1.0", entry])
    assert hint in str(error.value)
    check_allow([*LicenseConfig().allow, *CLASSES, "CC-BY-SA-3.0-DE", "custom:https://a.example/x"])


def test_what_two_demand_together_is_no_freer_than_either() -> None:
    lasting = {"attribution", "non-commercial", "no-derivatives"}
    for a, b in itertools.product(LICENSES, repeat=2):
        both = combined(a, b)
        assert is_code(both)
        assert strictness(both) >= max(strictness(a), strictness(b))
        demands = lasting & (properties(a) | properties(b))
        assert demands <= properties(both) or both in ("unknown", "all-rights-reserved"), (a, b)


def test_of_alternatives_an_allowed_one_is_taken() -> None:
    assert first_allowed(["GFDL-1.2-or-later", "CC-BY-SA-3.0"], LicenseConfig().allow) == "CC-BY-SA-3.0"
    assert first_allowed(["GFDL-1.2-or-later", "CC-BY-NC-3.0"], LicenseConfig().allow) == "GFDL-1.2-or-later"
    assert first_allowed([], LicenseConfig().allow) == "" and unported("CC-BY-3.0-AT") == "CC-BY-3.0"
