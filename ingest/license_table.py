"""The vocabulary of licenses as tables: codes, groups, ports, and how the world spells them. Data only.

`ingest.licenses` has the rules that read them. Codes are SPDX identifiers where SPDX has one. A new license
gets a line in its group (PUBLIC_DOMAIN, NOTICE, COPYLEFT) and, where people spell it otherwise, in SPELLINGS.
"""

CLASSES = ("public-domain", "attribution", "share-alike", "non-commercial", "no-derivatives")
"""What `license.allow` may name besides codes. All but `public-domain` are demands of a license."""

CC_KINDS = ("BY", "BY-SA", "BY-NC", "BY-NC-SA", "BY-ND", "BY-NC-ND")
# version 1.0 alone (2.0 in Japan) had licenses without attribution
OLD_KINDS = ("SA", "NC", "NC-SA", "ND", "NC-ND")
CC_VERSIONS = ("1.0", "2.0", "2.1", "2.5", "3.0", "4.0")
SAMPLING = {
    "sampling": "CC-Sampling-1.0",
    "sampling+": "CC-Sampling-Plus-1.0",
    "nc-sampling+": "CC-NC-Sampling-Plus-1.0",
}
PUBLIC_DOMAIN = ("CC0-1.0", "PDM-1.0", "CC-PDDC", "PDDL-1.0", "Unlicense", "public-domain")
NOTICE = tuple(
    "MIT MIT-0 ISC Zlib 0BSD BSD-2-Clause BSD-3-Clause Apache-1.1 Apache-2.0 Artistic-1.0 Artistic-2.0"
    " OGL-UK-1.0 OGL-UK-2.0 OGL-UK-3.0 OGL-Canada-2.0 etalab-2.0 ODC-By-1.0".split()
)
"""Free licenses that ask for a notice and nothing else."""


def _gnu_codes(family: str, *versions: str) -> list[str]:
    codes = []
    for version in versions:
        codes += [f"{family}-{version}-only", f"{family}-{version}-or-later"]
    return codes


COPYLEFT = (
    *("LAL-1.2", "LAL-1.3", "ODbL-1.0"),
    *_gnu_codes("GFDL", "1.1", "1.2", "1.3"),
    *_gnu_codes("GPL", "1.0", "2.0", "3.0"),
    *_gnu_codes("LGPL", "2.0", "2.1", "3.0"),
    *_gnu_codes("AGPL", "1.0", "3.0"),
)
"""Free licenses under which what is derived must be shared alike."""


def _cc_codes(kinds: tuple[str, ...], versions: tuple[str, ...]) -> list[str]:
    codes = []
    for version in versions:
        codes += [f"CC-{kind}-{version}" for kind in kinds]
    return codes


LICENSES = (
    *PUBLIC_DOMAIN,
    # the newest versions first, as they are listed to people
    *_cc_codes(CC_KINDS, CC_VERSIONS[::-1]),
    *(f"CC-{kind}" for kind in CC_KINDS),
    *_cc_codes(OLD_KINDS, ("1.0", "2.0")),
    *SAMPLING.values(),
    *NOTICE,
    *COPYLEFT,
    "all-rights-reserved",
    "own",
    "unknown",
)
"""The vocabulary, but for ports such as CC-BY-SA-3.0-DE and for `custom:<url>`: `is_code` knows those too."""

PORTS = frozenset(
    "AE AM AR AT AU AZ BE BG BR CA CH CL CN CO CR CY CZ DE DK EC EE EG ES FI FR GE GR GT HK HR HU IE IGO IL"
    " IN IT JO JP KR LU MK MT MX MY NL NO NZ PE PH PL PR PT RO RS SCOTLAND SE SG SI TH TW UA UG UK US VE VN"
    " ZA".split()
)
"""Countries and bodies to whose law Creative Commons adapted versions before 4.0."""

COUNTRIES = dict(
    entry.split()
    for entry in (
        "austria AT; australia AU; belgium BE; brazil BR; canada CA; chile CL; china CN; denmark DK;"
        " deutschland DE; finland FI; france FR; germany DE; greece GR; india IN; ireland IE; israel IL;"
        " italy IT; japan JP; korea KR; mexico MX; netherlands NL; norway NO; poland PL; portugal PT;"
        " spain ES; sweden SE; switzerland CH; taiwan TW"
    ).split("; ")
)
"""Ports that are written as the name of a country."""

SITE_LICENSES = {
    "custom:https://www.pexels.com/license/": r"(www\.)?pexels\.com/((photo|creative-commons)-)?license"
    r"|pexels(?: license)?",
    "custom:https://pixabay.com/service/license-summary/": r"(www\.)?pixabay\.com/(\w\w/)?service/"
    r"(license|terms)(-summary)?|pixabay(?: content)?(?: license)?",
    "custom:https://unsplash.com/license": r"(www\.)?unsplash\.com/license|unsplash(?: license)?",
    "custom:https://mixkit.co/license/": r"(www\.)?mixkit\.co/license",
    "custom:https://coverr.co/license": r"(www\.)?coverr\.co/license",
    "custom:https://www.flickr.com/commons/usage/": r"(www\.)?flickr\.com/commons/usage"
    r"|no known copyright restrictions",
    "custom:https://www.usa.gov/government-works": r"(www\.)?usa\.gov/"
    r"(copyright\.shtml|government-works|government-copyright)|united states government work",
}
"""Licenses of one site each, which only an exact entry of `license.allow` lets in: how they are spelt."""

YOUTUBE_MARKS = {
    "Creative Commons Attribution license (reuse allowed)": "CC-BY-3.0",
    "Standard YouTube License": "all-rights-reserved",
}
# Flickr numbers its licenses: 1 to 6 are version 2.0, 11 to 16 version 4.0, in another order
FLICKR_2_KINDS = ("BY-NC-SA", "BY-NC", "BY-NC-ND", "BY", "BY-SA", "BY-ND")
FLICKR_4_KINDS = ("BY", "BY-SA", "BY-ND", "BY-NC", "BY-NC-SA", "BY-NC-ND")
SITE_CODES: dict[str, dict[str, str]] = {
    "youtube": YOUTUBE_MARKS,
    "inaturalist": {
        "": "all-rights-reserved",
        "cc0": "CC0-1.0",
        "pd": "PDM-1.0",
        **{f"cc-{kind.lower()}": f"CC-{kind}-4.0" for kind in CC_KINDS},
    },
    "flickr": {
        "0": "all-rights-reserved",
        **{str(flickr_id): f"CC-{kind}-2.0" for flickr_id, kind in enumerate(FLICKR_2_KINDS, 1)},
        "7": "custom:https://www.flickr.com/commons/usage/",
        "8": "custom:https://www.usa.gov/government-works",
        "9": "CC0-1.0",
        "10": "PDM-1.0",
        **{str(flickr_id): f"CC-{kind}-4.0" for flickr_id, kind in enumerate(FLICKR_4_KINDS, 11)},
    },
}
"""Codes that mean something on one site only: there, `cc-by` has a version, and 4 is a license."""

SPELLINGS = {
    "CC0-1.0": "cc0; cc 0; cc zero; creative commons cc0; creative commons 0; creative commons zero;"
    " zero 1.0; cc0 1.0; cc0 1.0 universal; cc zero 1.0; creative commons cc0 1.0; creative commons zero 1.0;"
    " creative commons zero 1.0 universal; cc0 1.0 universal public domain dedication",
    "PDM-1.0": "pdm; pdm 1.0; cc pdm 1.0; cc pdm; public domain mark; public domain mark 1.0;"
    " creative commons public domain mark 1.0; public domain mark 1.0 universal",
    "public-domain": "public domain; pd; pd self; pd author; pd user",
    "all-rights-reserved": "all rights reserved; copyright; copyrighted",
    "MIT": "mit; mit license; the mit license; expat",
    "Apache-2.0": "apache 2.0; apache 2; apache license 2.0; apache license version 2.0",
    "BSD-2-Clause": "bsd 2 clause; bsd 2 clause license; simplified bsd license",
    "BSD-3-Clause": "bsd 3 clause; bsd 3 clause license; new bsd license",
    "Artistic-2.0": "artistic license 2.0; artistic 2",
    "LAL-1.3": "free art license 1.3; fal 1.3; licence art libre 1.3",
    "etalab-2.0": "lov2; licence ouverte 2.0; open licence 2.0; licence ouverte open licence version 2.0",
    "Unlicense": "the unlicense",
    "CC-Sampling-Plus-1.0": "sampling+ 1.0",
}
"""Names besides the codes themselves, in small letters, with single spaces for every separator."""


def _by_name() -> dict[str, str]:
    names: dict[str, str] = {}
    for code, spellings in SPELLINGS.items():
        names |= dict.fromkeys(spellings.split("; "), code)
    return names


NAMES = _by_name()
