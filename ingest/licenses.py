"""The one home of license knowledge: the vocabulary, how the world spells it, what each license demands, what
is allowed.

    license_code("https://creativecommons.org/licenses/by-sa/3.0/de/")      # CC-BY-SA-3.0-DE
    properties("CC-BY-NC-4.0")                                              # {"attribution", "non-commercial"}
    allowed("CC-BY-2.0", ["attribution"])                                   # True

Codes are SPDX identifiers where SPDX has one; `own` is the operator's statement about own material,
`custom:<url>` a license that only its URL names, `all-rights-reserved` and `unknown` are what they say. A
text that is not understood to its last word is `unknown`, and no version is ever guessed: `CC BY` stays the
code `CC-BY`, `GPL` is unknown. Pure functions, without I/O; texts come from the web and may be hostile.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

CLASSES = ("public-domain", "attribution", "share-alike", "non-commercial", "no-derivatives")
"""What `license.allow` may name besides codes. All but `public-domain` are demands of a license."""

CC_KINDS = ("BY", "BY-SA", "BY-NC", "BY-NC-SA", "BY-ND", "BY-NC-ND")
OLD_KINDS = (
    "SA",
    "NC",
    "NC-SA",
    "ND",
    "NC-ND",
)  # version 1.0 alone (2.0 in Japan) had licenses without attribution
CC_VERSIONS = ("1.0", "2.0", "2.1", "2.5", "3.0", "4.0")
SAMPLING = {
    "sampling": "CC-Sampling-1.0",
    "sampling+": "CC-Sampling-Plus-1.0",
    "nc-sampling+": "CC-NC-Sampling-Plus-1.0",
}
PUBLIC_DOMAIN = ("CC0-1.0", "PDM-1.0", "CC-PDDC", "PDDL-1.0", "Unlicense", "public-domain")
NOTICE = (
    *(
        "MIT",
        "MIT-0",
        "ISC",
        "Zlib",
        "0BSD",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "Apache-1.1",
        "Apache-2.0",
        "Artistic-1.0",
        "Artistic-2.0",
    ),
    *("OGL-UK-1.0", "OGL-UK-2.0", "OGL-UK-3.0", "OGL-Canada-2.0", "etalab-2.0", "ODC-By-1.0"),
)
COPYLEFT = (
    *("LAL-1.2", "LAL-1.3", "ODbL-1.0"),
    *(f"GFDL-{version}{kind}" for version in ("1.1", "1.2", "1.3") for kind in ("-only", "-or-later")),
    *(f"GPL-{version}{kind}" for version in ("1.0", "2.0", "3.0") for kind in ("-only", "-or-later")),
    *(f"LGPL-{version}{kind}" for version in ("2.0", "2.1", "3.0") for kind in ("-only", "-or-later")),
    *(f"AGPL-{version}{kind}" for version in ("1.0", "3.0") for kind in ("-only", "-or-later")),
)
LICENSES = (
    *PUBLIC_DOMAIN,
    *(f"CC-{kind}-{version}" for version in reversed(CC_VERSIONS) for kind in CC_KINDS),
    *(f"CC-{kind}" for kind in CC_KINDS),
    *(f"CC-{kind}-{version}" for version in ("1.0", "2.0") for kind in OLD_KINDS),
    *SAMPLING.values(),
    *NOTICE,
    *COPYLEFT,
    "all-rights-reserved",
    "own",
    "unknown",
)
"""The vocabulary, but for ports such as CC-BY-SA-3.0-DE and for `custom:<url>`: `is_code` knows those too."""

PORTS = frozenset(
    "AE AM AR AT AU AZ BE BG BR CA CH CL CN CO CR CY CZ DE DK EC EE EG ES FI FR GE GR GT HK HR HU IE IGO IL IN IT JO JP KR LU MK MT MX"
    " MY NL NO NZ PE PH PL PR PT RO RS SCOTLAND SE SG SI TH TW UA UG UK US VE VN ZA".split()
)
COUNTRIES = {
    **{
        "austria": "AT",
        "australia": "AU",
        "belgium": "BE",
        "brazil": "BR",
        "canada": "CA",
        "chile": "CL",
        "china": "CN",
    },
    **{
        "denmark": "DK",
        "deutschland": "DE",
        "finland": "FI",
        "france": "FR",
        "germany": "DE",
        "greece": "GR",
        "india": "IN",
    },
    **{
        "ireland": "IE",
        "israel": "IL",
        "italy": "IT",
        "japan": "JP",
        "korea": "KR",
        "mexico": "MX",
        "netherlands": "NL",
    },
    **{
        "norway": "NO",
        "poland": "PL",
        "portugal": "PT",
        "spain": "ES",
        "sweden": "SE",
        "switzerland": "CH",
        "taiwan": "TW",
    },
}
SITE_LICENSES = {
    "custom:https://www.pexels.com/license/": r"(www\.)?pexels\.com/((photo|creative-commons)-)?license|pexels(?: license)?",
    "custom:https://pixabay.com/service/license-summary/": r"(www\.)?pixabay\.com/(\w\w/)?service/(license|terms)(-summary)?"
    r"|pixabay(?: content)?(?: license)?",
    "custom:https://unsplash.com/license": r"(www\.)?unsplash\.com/license|unsplash(?: license)?",
    "custom:https://mixkit.co/license/": r"(www\.)?mixkit\.co/license",
    "custom:https://coverr.co/license": r"(www\.)?coverr\.co/license",
    "custom:https://www.flickr.com/commons/usage/": r"(www\.)?flickr\.com/commons/usage|no known copyright restrictions",
    "custom:https://www.usa.gov/government-works": r"(www\.)?usa\.gov/(copyright\.shtml|government-works|government-copyright)"
    r"|united states government work",
}
"""Licenses of one site each, which only an exact entry of `license.allow` lets in: how they are spelt."""

YOUTUBE_MARKS = {
    "Creative Commons Attribution license (reuse allowed)": "CC-BY-3.0",
    "Standard YouTube License": "all-rights-reserved",
}
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
        **{
            str(n): f"CC-{kind}-2.0"
            for n, kind in enumerate(("BY-NC-SA", "BY-NC", "BY-NC-ND", "BY", "BY-SA", "BY-ND"), 1)
        },
        "7": "custom:https://www.flickr.com/commons/usage/",
        "8": "custom:https://www.usa.gov/government-works",
        "9": "CC0-1.0",
        "10": "PDM-1.0",
        **{
            str(n): f"CC-{kind}-4.0"
            for n, kind in enumerate(("BY", "BY-SA", "BY-ND", "BY-NC", "BY-NC-SA", "BY-NC-ND"), 11)
        },
    },
}
"""Codes that mean something on one site only: there, `cc-by` has a version, and 4 is a license."""

NAMES = {
    **dict.fromkeys(
        (
            "cc0",
            "cc 0",
            "cc zero",
            "creative commons cc0",
            "creative commons 0",
            "creative commons zero",
            "zero 1.0",
        ),
        "CC0-1.0",
    ),
    **dict.fromkeys(
        (
            "cc0 1.0",
            "cc0 1.0 universal",
            "cc zero 1.0",
            "creative commons cc0 1.0",
            "creative commons zero 1.0",
        ),
        "CC0-1.0",
    ),
    **dict.fromkeys(
        (
            "creative commons zero 1.0 universal",
            "cc0 1.0 universal public domain dedication",
            "creative commons cc0",
        ),
        "CC0-1.0",
    ),
    **dict.fromkeys(
        ("pdm", "pdm 1.0", "cc pdm 1.0", "cc pdm", "public domain mark", "public domain mark 1.0"), "PDM-1.0"
    ),
    **dict.fromkeys(
        ("creative commons public domain mark 1.0", "public domain mark 1.0 universal"), "PDM-1.0"
    ),
    **dict.fromkeys(("public domain", "pd", "pd self", "pd author", "pd user"), "public-domain"),
    **dict.fromkeys(("all rights reserved", "copyright", "copyrighted"), "all-rights-reserved"),
    **dict.fromkeys(("mit", "mit license", "the mit license", "expat"), "MIT"),
    **dict.fromkeys(
        ("apache 2.0", "apache 2", "apache license 2.0", "apache license version 2.0"), "Apache-2.0"
    ),
    **dict.fromkeys(("bsd 2 clause", "bsd 2 clause license", "simplified bsd license"), "BSD-2-Clause"),
    **dict.fromkeys(("bsd 3 clause", "bsd 3 clause license", "new bsd license"), "BSD-3-Clause"),
    **dict.fromkeys(("artistic license 2.0", "artistic 2"), "Artistic-2.0"),
    **dict.fromkeys(("free art license 1.3", "fal 1.3", "licence art libre 1.3"), "LAL-1.3"),
    **dict.fromkeys(
        ("lov2", "licence ouverte 2.0", "open licence 2.0", "licence ouverte open licence version 2.0"),
        "etalab-2.0",
    ),
    "the unlicense": "Unlicense",
    "sampling+ 1.0": "CC-Sampling-Plus-1.0",
}
PATHS = (
    (
        r"gnu\.org/(?:licenses|copyleft)/(?:old-licenses/)?(fdl|gpl|lgpl|agpl)-?v?(\d\.\d)",
        lambda m: _gnu(m[1].replace("fdl", "gfdl"), m[2], ""),
    ),
    (r"opensource\.org/licenses?/([\w.-]+)", lambda m: _spelled(m[1])),
    (r"spdx\.org/licenses/([\w.+-]+)", lambda m: _spelled(m[1])),
    (r"apache\.org/licenses/license-(\d\.\d)", lambda m: _spelled(f"apache-{m[1]}")),
    (r"nationalarchives\.gov\.uk/doc/open-government-licence/version/([123])", lambda m: f"OGL-UK-{m[1]}.0"),
    (r"open\.canada\.ca/en/open-government-licence-canada", lambda m: "OGL-Canada-2.0"),
    (r"artlibre\.org/licence/lal(?:/\w+)?", lambda m: "LAL-1.3"),
    (r"unlicense\.org", lambda m: "Unlicense"),
    (
        r"opendatacommons\.org/licenses/(odbl|by|pddl)(?:/1[.-]0|/summary)?",
        lambda m: _spelled({"by": "odc-by"}.get(m[1], m[1]) + "-1.0"),
    ),
)
"""URLs without scheme and `www.`, in small letters, and what they name."""

MAX_CHARS = 300
_BY_NAME = {code.lower(): code for code in LICENSES}
_URL = re.compile(
    r"(?:https?:)?(?://)?(?:www\.)?([a-z0-9-]+(?:\.[a-z0-9-]+)+(?:/[^\s?#]*)?)(?:[?#]\S*)?", re.IGNORECASE
)
_CC_PATH = re.compile(
    r"creativecommons\.org/licenses/([a-z+-]+)(?:/(\d\.\d)(?:/([a-z]+))?)?(?:/(?:deed|legalcode|rdf)(?:\.[\w-]+)*)?/?",
    re.IGNORECASE,
)
_PUBLIC_PATH = re.compile(
    r"creativecommons\.org/(?:publicdomain/(zero|mark)/1\.0|(licenses/publicdomain)|publicdomain/(certification)/1\.0/us)"
    r"(?:/(?:deed|legalcode|rdf)(?:\.[\w-]+)*)?/?",
    re.IGNORECASE,
)
_CC_CODE = re.compile(
    rf"CC-((?:BY|NC|ND|SA)(?:-(?:NC|ND|SA))*)(?:-(\d\.\d)(?:-({'|'.join(sorted(PORTS))}))?)?"
)
_GNU = re.compile(
    r"(?:gnu )?(gfdl|fdl|lgpl|agpl|gpl) ?(?:version )?v?(\d)(?:\.(\d))? ?(\+|or later|only|or any later version)?"
)
_OGL = re.compile(
    r"(?:ogl|open government licence|open government license)(?: uk)?(?: version)? v?([123])(?:\.0)?"
)
_WORDS = (
    (r"creative commons", "cc"),
    (r"no derivative works|no derivatives?|no derivs?|noderivatives?|noderivs?", "nd"),
    (r"non commercial|noncommercial", "nc"),
    (r"share ?alike", "sa"),
    (r"attribution", "by"),
    (r"(?:new )?(?:south|north)? ?(?:zealand)", "nz"),
    (r"united (?:states|kingdom)", lambda m: "us" if "states" in m[0] else "uk"),
)
_FILLERS = frozenset(
    "this work is licensed under a the license licence version public international intl unported generic".split()
)


@dataclass
class LicenseConfig:
    """Which licenses may enter: codes, and classes of what you accept to comply with. `unknown` never does.

    A license enters if its code is listed (a port of Creative Commons also by its version: CC-BY-3.0 lets in
    CC-BY-3.0-DE), or if classes are listed and all that it demands is among them: `[attribution,
    share-alike]` lets in CC-BY-SA of every version, CC-BY and the public domain, and neither NC nor ND.
    `custom:…`, `own` and `all-rights-reserved` enter by exact listing alone.
    """

    allow: list[str] = field(
        default_factory=lambda: [
            "CC0-1.0",
            "PDM-1.0",
            "CC-BY-4.0",
            "CC-BY-3.0",
            "CC-BY-SA-4.0",
            "CC-BY-SA-3.0",
            "own",
        ]
    )


def license_code(text: str, site: str = "") -> str:
    """The code of a license's URL, SPDX identifier or name; `unknown` for anything else, "" for nothing.

    `site`: one of `SITE_CODES`, whose own codes go first (there "" may mean something).
    """
    too_long = len(text) > MAX_CHARS  # before anything is cut off
    text = re.sub(r"^(?:©|\([cC]\))\s*|[\s.;]+$", "", text.strip())
    own = SITE_CODES.get(site, {}).get(text.lower()) or SITE_CODES.get(site, {}).get(text)
    if own or not text:
        return own or ""
    if too_long:
        return "unknown"
    if text.lower().startswith("custom:"):
        return _custom(text[len("custom:") :].strip())
    if text in YOUTUBE_MARKS:
        return YOUTUBE_MARKS[text]
    url = _URL.fullmatch(text)
    if url and ("/" in text or url[1].lower() == "unlicense.org"):
        return _of_url(url[1])
    return _spelled(text)


def _custom(url: str) -> str:
    if not re.fullmatch(
        r"https?://[\w.-]+(:\d+)?([/?#][\w.~:/?#@$&+,;=%-]*)?", url, re.IGNORECASE | re.ASCII
    ):
        return "unknown"
    known = _of_site(re.sub(r"^https?://|/+$", "", url, flags=re.IGNORECASE).lower())
    return known if known != "unknown" else f"custom:{url}"


def _of_url(address: str) -> str:
    """`address`: host and path."""
    public = _PUBLIC_PATH.fullmatch(address)
    if public:
        return {"zero": "CC0-1.0", "mark": "PDM-1.0"}.get((public[1] or "").lower(), "CC-PDDC")
    creative = _CC_PATH.fullmatch(address)
    if creative:
        kind, version, port = creative[1].lower(), creative[2] or "", (creative[3] or "").upper()
        if kind in SAMPLING:
            return SAMPLING[kind] if version == "1.0" and not port else "unknown"
        return _creative(set(kind.split("-")), version, port)
    plain = re.sub(
        r"(\.(?:html|txt|json|php)|-standalone\.html|\.en\.html)$", "", address.lower().rstrip("/")
    )
    for pattern, name in PATHS:
        found = re.fullmatch(pattern, plain)
        if found:
            return name(found)
    return _of_site(plain)


def _of_site(plain: str) -> str:
    return next((code for code, pattern in SITE_LICENSES.items() if re.fullmatch(pattern, plain)), "unknown")


def _spelled(text: str) -> str:
    """The code of a name, every word of which is understood."""
    if text.lower() in _BY_NAME:
        return _BY_NAME[text.lower()]
    named, both = re.fullmatch(r"([^()]+)\(([^()]+)\)", text), ""
    if named:
        text, both = named[1], _spelled(named[2])
    plain = " ".join(re.sub(r"[\s_,/:\u2010-\u2015\u2212-]+", " ", text.lower()).split())
    code = _by_words(plain)
    return code if not both or both == code else "unknown"


def _by_words(plain: str) -> str:
    if plain.replace(" ", "-") in _BY_NAME:
        return _BY_NAME[plain.replace(" ", "-")]
    if plain in NAMES:
        return NAMES[plain]
    gnu, ogl = _GNU.fullmatch(plain), _OGL.fullmatch(plain)
    if gnu:
        return _gnu(gnu[1], f"{gnu[2]}.{gnu[3] or 0}", gnu[4] or "")
    if ogl:
        return f"OGL-UK-{ogl[1]}.0"
    site = _of_site(plain)
    return site if site != "unknown" else _creative_words(plain)


def _gnu(family: str, version: str, more: str) -> str:
    family = "gfdl" if family == "fdl" else family
    later = "or-later" if more and more != "only" else "only"
    return _BY_NAME.get(f"{family}-{version}-{later}", "unknown")


def _creative_words(plain: str) -> str:
    """Creative Commons in words:

    `cc by sa 4.0 international`, `creative commons attribution 3.0 germany`, `by nc 2.0`.
    """
    for pattern, word in _WORDS:
        plain = re.sub(rf"\b(?:{pattern})\b", word, plain)
    elements: set[str] = set()
    versions: set[str] = set()
    ports: set[str] = set()
    named = False
    for word in plain.split():
        joined = re.fullmatch(r"(cc)?(by)?(nc)?(nd|sa)?(nc)?", word)
        version = re.fullmatch(r"v?([1-4])(?:\.(\d))?", word)
        if joined and word:
            named = named or bool(joined[1])
            elements |= {part for part in joined.groups() if part and part != "cc"}
        elif version:
            versions.add(f"{version[1]}.{version[2] or 0}")
        elif word.upper() in PORTS or word in COUNTRIES:
            ports.add(COUNTRIES.get(word, word.upper()))
        elif word not in _FILLERS:
            return "unknown"
    if len(versions) > 1 or len(ports) > 1 or (ports and not versions):
        return "unknown"
    if not (named or versions or len(elements) > 1):
        return "unknown"  # the word "by" alone
    return _creative(elements, "".join(versions), "".join(ports))


def _creative(elements: set[str], version: str, port: str) -> str:
    """The code of these elements (`by`, `nc`, `nd`, `sa`);

    `unknown` for what Creative Commons never published.
    """
    kind = "-".join(one for one in ("BY", "NC", "ND", "SA") if one.lower() in elements)
    code = "-".join(part for part in ("CC", kind, version, port) if part)
    return code if elements <= {"by", "nc", "nd", "sa"} and is_code(code) else "unknown"


def is_code(text: str) -> bool:
    """Whether `text` is a code of the vocabulary, exactly as written: ports and `custom:<url>` are."""
    if text in LICENSES:
        return True
    if text.startswith("custom:"):
        return license_code(text) == text
    return text != unported(text) and unported(text) in LICENSES


def unported(code: str) -> str:
    """CC-BY-SA-3.0 for CC-BY-SA-3.0-DE; any other code as it is. Version 4.0 has no ports."""
    found = _CC_CODE.fullmatch(code)
    return f"CC-{found[1]}-{found[2]}" if found and found[3] and found[2] != "4.0" else code


def properties(code: str) -> frozenset[str]:
    """What a license is or demands: names of `CLASSES`;

    `other-terms` where these do not say all, as for `own` or `custom:`.
    """
    creative = _CC_CODE.fullmatch(code)
    if code in PUBLIC_DOMAIN:
        return frozenset({"public-domain"})
    if creative and is_code(code):
        words = {"BY": "attribution", "SA": "share-alike", "NC": "non-commercial", "ND": "no-derivatives"}
        return frozenset(words[part] for part in creative[1].split("-"))
    if code in NOTICE:
        return frozenset({"attribution"})
    if code in COPYLEFT:
        return frozenset({"attribution", "share-alike"})
    return frozenset({"other-terms"})


def allowed(code: str, allow: Iterable[str]) -> bool:
    """Whether `allow` lets a license in: see `LicenseConfig`."""
    listed = set(allow)
    if code in ("", "unknown"):
        return False
    if code in listed or unported(code) in listed:
        return True
    accepted = listed & set(CLASSES)
    return bool(accepted) and properties(code) - {"public-domain"} <= accepted


def strictness(code: str) -> int:
    """By which the freest of several is found: the public domain is 0, `unknown` the most."""
    closed = {"unknown": 9, "all-rights-reserved": 8}
    demands = properties(code) - {"public-domain"}
    return closed.get(code, 7 if "other-terms" in demands else len(demands))


def first_allowed(codes: Sequence[str], allow: Iterable[str]) -> str:
    """Of licenses between which one may choose, the first that is allowed; else the first; "" of none."""
    listed = list(allow)
    return next((code for code in codes if allowed(code, listed)), codes[0] if codes else "")


def combined(one: str, other: str) -> str:
    """The license that demands what both demand: mostly one of the two.

    `unknown` where none of the vocabulary does.
    """
    for closed in ("unknown", "all-rights-reserved"):
        if closed in (one, other):
            return closed
    demands = (properties(one) | properties(other)) - {"public-domain"}
    for code in (one, other):
        if properties(code) - {"public-domain"} == demands:
            return code
    if "other-terms" in demands:
        return "unknown"
    words = {"non-commercial": "NC", "no-derivatives": "ND"}
    words |= {} if "no-derivatives" in demands else {"share-alike": "SA"}
    return "-".join(["CC-BY", *(short for demand, short in words.items() if demand in demands), "4.0"])


def check_allow(allow: Sequence[str]) -> None:
    """`ValueError` for an entry of `license.allow` that can let nothing in, with what may have been meant."""
    for entry in allow:
        if entry == "unknown":
            raise ValueError(
                "license.allow: 'unknown' cannot be allowed; state source.license where the material is yours"
            )
        if not is_code(entry) and entry not in CLASSES:
            raise ValueError(
                f"license.allow: {entry!r} is neither a license code nor a class{suggestion(entry)}"
            )


def suggestion(text: str) -> str:
    """What to give instead of a code that is none, as the end of a message."""
    code = license_code(text)
    versions = [one for one in LICENSES if one.lower().startswith(f"{text.lower()}-")]
    close = (
        [code]
        if code not in ("", "unknown")
        else versions[-1:] or difflib.get_close_matches(text, (*LICENSES, *CLASSES), 1)
    )
    meant = f"did you mean {close[0]}? Else " if close else ""
    return f"; {meant}give an SPDX code such as CC0-1.0 or CC-BY-4.0, custom:<url>, own, or (in license.allow) one of {', '.join(CLASSES)}"


def url_of(code: str) -> str:
    """Where the text of a license is; "" for codes without one."""
    creative = _CC_CODE.fullmatch(code)
    public = {"CC0-1.0": "zero", "PDM-1.0": "mark"}
    if code in public:
        return f"https://creativecommons.org/publicdomain/{public[code]}/1.0/"
    if code.startswith("custom:"):
        return code.removeprefix("custom:")
    if creative and creative[2]:
        port = f"{creative[3].lower()}/" if creative[3] else ""
        return f"https://creativecommons.org/licenses/{creative[1].lower()}/{creative[2]}/{port}"
    closed = (*SAMPLING.values(), "public-domain", "all-rights-reserved", "own", "unknown")
    if code in SAMPLING.values():
        return f"https://creativecommons.org/licenses/{next(name for name, one in SAMPLING.items() if one == code)}/1.0/"
    return (
        f"https://spdx.org/licenses/{code}.html"
        if code in LICENSES and code not in closed and not creative
        else ""
    )
