"""The one home of license knowledge: reads a license, says what it demands and whether it is allowed.

    license_code("https://creativecommons.org/licenses/by-sa/3.0/de/") # CC-BY-SA-3.0-DE
    properties("CC-BY-NC-4.0")                                         # {"attribution", "non-commercial"}
    allowed("CC-BY-2.0", ["attribution"])                              # True

Codes are SPDX identifiers where SPDX has one; `own` is the operator's statement about own material,
`custom:<url>` a license that only its URL names, `all-rights-reserved` and `unknown` are what they say. A
text that is not understood to its last word is `unknown`, and no version is ever guessed: `CC BY` stays the
code `CC-BY`, `GPL` is unknown. Pure functions, without I/O; texts come from the web and may be hostile. The
vocabulary itself is in `ingest.license_table`.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ingest.license_table import (
    CLASSES,
    COPYLEFT,
    COUNTRIES,
    LICENSES,
    NAMES,
    NOTICE,
    PORTS,
    PUBLIC_DOMAIN,
    SAMPLING,
    SITE_CODES,
    SITE_LICENSES,
    YOUTUBE_MARKS,
)

# URLs without scheme and `www.`, in small letters, and what they name
_URLS: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
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
MAX_CHARS = 300  # a longer text is prose that quotes a license, not its name; and regexes stay fast
_BY_NAME = {code.lower(): code for code in LICENSES}
_URL = re.compile(
    r"(?:https?:)?(?://)?(?:www\.)?([a-z0-9-]+(?:\.[a-z0-9-]+)+(?:/[^\s?#]*)?)(?:[?#]\S*)?", re.IGNORECASE
)
# no quotes, brackets or spaces: it ends up in pages, cards and lists
_PLAIN_URL = re.compile(r"https?://[\w.-]+(:\d+)?([/?#][\w.~:/?#@$&+,;=%-]*)?", re.IGNORECASE | re.ASCII)
# a path is matched to its end: creativecommons.org/licenses/by/4.0/except is no license
_CC_PATH = re.compile(
    r"creativecommons\.org/licenses/([a-z+-]+)(?:/(\d\.\d)(?:/([a-z]+))?)?"
    r"(?:/(?:deed|legalcode|rdf)(?:\.[\w-]+)*)?/?",
    re.IGNORECASE,
)
_PUBLIC_PATH = re.compile(
    r"creativecommons\.org/(?:publicdomain/(zero|mark)/1\.0|(licenses/publicdomain)"
    r"|publicdomain/(certification)/1\.0/us)"
    r"(?:/(?:deed|legalcode|rdf)(?:\.[\w-]+)*)?/?",
    re.IGNORECASE,
)
# only ports that exist, so that no word behind a version is taken for one
_CC_CODE = re.compile(
    rf"CC-((?:BY|NC|ND|SA)(?:-(?:NC|ND|SA))*)(?:-(\d\.\d)(?:-({'|'.join(sorted(PORTS))}))?)?"
)
_GNU = re.compile(
    r"(?:gnu )?(gfdl|fdl|lgpl|agpl|gpl) ?(?:version )?v?(\d)(?:\.(\d))?"
    r" ?(\+|or later|only|or any later version)?"
)
_OGL = re.compile(
    r"(?:ogl|open government licence|open government license)(?: uk)?(?: version)? v?([123])(?:\.0)?"
)
# long forms of the elements and of countries of two words, as the words of a short name
_SHORT_FORMS = (
    (r"creative commons", "cc"),
    (r"no derivative works|no derivatives?|no derivs?|noderivatives?|noderivs?", "nd"),
    (r"non commercial|noncommercial", "nc"),
    (r"share ?alike", "sa"),
    (r"attribution", "by"),
    (r"(?:new )?(?:south|north)? ?(?:zealand)", "nz"),
    (r"united (?:states|kingdom)", lambda m: "us" if "states" in m[0] else "uk"),
)
# words that change nothing in a name; any other word that is not understood makes it `unknown`
_FILLERS = frozenset(
    "this work is licensed under a the license licence version public international intl unported"
    " generic".split()
)


# what lets a model be published: neither non-commercial nor no-derivatives
DEFAULT_ALLOW = ("CC0-1.0", "PDM-1.0", "CC-BY-4.0", "CC-BY-3.0", "CC-BY-SA-4.0", "CC-BY-SA-3.0", "own")


@dataclass
class LicenseConfig:
    """Which licenses may enter: codes, and classes of what you accept to comply with. `unknown` never does.

    A license enters if its code is listed (a port of Creative Commons also by its version: CC-BY-3.0 lets in
    CC-BY-3.0-DE), or if classes are listed and all that it demands is among them: `[attribution,
    share-alike]` lets in CC-BY-SA of every version, CC-BY and the public domain, and neither NC nor ND.
    `custom:…`, `own` and `all-rights-reserved` enter by exact listing alone.
    """

    # codes, and classes of what you accept, such as [attribution,share-alike]; the others stay out
    allow: list[str] = field(default_factory=lambda: list(DEFAULT_ALLOW))


def license_code(text: str, site: str = "") -> str:
    """The code of a license's URL, SPDX identifier or name; `unknown` for anything else, "" for nothing.

    `site`: one of `SITE_CODES`, whose own codes go first (there "" may mean something).
    """
    is_too_long = len(text) > MAX_CHARS  # before anything is cut off
    text = re.sub(r"^(?:©|\([cC]\))\s*|[\s.;]+$", "", text.strip())
    site_codes = SITE_CODES.get(site, {})
    site_code = site_codes.get(text.lower()) or site_codes.get(text)
    if site_code or not text:
        return site_code or ""
    if is_too_long:
        return "unknown"
    if text.lower().startswith("custom:"):
        return _custom(text[len("custom:") :].strip())
    if text in YOUTUBE_MARKS:
        return YOUTUBE_MARKS[text]
    url = _URL.fullmatch(text)
    # a dot alone makes no URL, or "GPL-3.0" would be one
    if url and ("/" in text or url[1].lower() == "unlicense.org"):
        return _of_url(url[1])
    return _spelled(text)


def _custom(url: str) -> str:
    """The code of `custom:<url>`; that of the site, where it is known, so that each license has one code."""
    if not _PLAIN_URL.fullmatch(url):
        return "unknown"
    address = re.sub(r"^https?://|/+$", "", url, flags=re.IGNORECASE)
    site_license = _of_site(address.lower())
    return site_license if site_license != "unknown" else f"custom:{url}"


def _of_url(address: str) -> str:
    """`address`: host and path."""
    public = _PUBLIC_PATH.fullmatch(address)
    if public:
        return {"zero": "CC0-1.0", "mark": "PDM-1.0"}.get((public[1] or "").lower(), "CC-PDDC")
    creative = _CC_PATH.fullmatch(address)
    if creative:
        kind = creative[1].lower()
        version = creative[2] or ""
        port = (creative[3] or "").upper()
        if kind in SAMPLING:
            return SAMPLING[kind] if version == "1.0" and not port else "unknown"
        return _creative(set(kind.split("-")), version, port)
    plain = re.sub(
        r"(\.(?:html|txt|json|php)|-standalone\.html|\.en\.html)$", "", address.lower().rstrip("/")
    )
    for pattern, name in _URLS:
        match = re.fullmatch(pattern, plain)
        if match:
            return name(match)
    return _of_site(plain)


def _of_site(plain: str) -> str:
    return next((code for code, pattern in SITE_LICENSES.items() if re.fullmatch(pattern, plain)), "unknown")


def _spelled(text: str) -> str:
    """The code of a name; `unknown` unless every word of it is understood."""
    if text.lower() in _BY_NAME:
        return _BY_NAME[text.lower()]
    # "Attribution 4.0 (CC BY 4.0)": both have to say the same
    twice = re.fullmatch(r"([^()]+)\(([^()]+)\)", text)
    if twice:
        code = _by_words(_plain_words(twice[1]))
        return code if code == _spelled(twice[2]) else "unknown"
    return _by_words(_plain_words(text))


def _plain_words(text: str) -> str:
    """Small letters, with a single space for every separator; U+2010 to 2015 and 2212 are dashes."""
    return " ".join(re.sub(r"[\s_,/:\u2010-\u2015\u2212-]+", " ", text.lower()).split())


def _by_words(plain: str) -> str:
    if plain.replace(" ", "-") in _BY_NAME:
        return _BY_NAME[plain.replace(" ", "-")]
    if plain in NAMES:
        return NAMES[plain]
    gnu = _GNU.fullmatch(plain)
    if gnu:
        return _gnu(gnu[1], f"{gnu[2]}.{gnu[3] or 0}", gnu[4] or "")
    ogl = _OGL.fullmatch(plain)
    if ogl:
        return f"OGL-UK-{ogl[1]}.0"
    site = _of_site(plain)
    return site if site != "unknown" else _creative_words(plain)


def _gnu(family: str, version: str, more: str) -> str:
    family = "gfdl" if family == "fdl" else family
    later = "or-later" if more and more != "only" else "only"
    return _BY_NAME.get(f"{family}-{version}-{later}", "unknown")


def _creative_words(plain: str) -> str:
    """Creative Commons in words, such as `cc by sa 4.0 international` and `attribution 3.0 germany`."""
    for pattern, short in _SHORT_FORMS:
        plain = re.sub(rf"\b(?:{pattern})\b", short, plain)
    name = _CreativeName()
    if not all(name.add(word) for word in plain.split()):
        return "unknown"
    # several versions or ports contradict each other, and a port is always one of a version
    if len(name.versions) > 1 or len(name.ports) > 1 or (name.ports and not name.versions):
        return "unknown"
    if not (name.has_cc or name.versions or len(name.elements) > 1):
        return "unknown"  # the word "by" alone
    return _creative(name.elements, "".join(name.versions), "".join(name.ports))


@dataclass
class _CreativeName:
    """What the words of a name state of a Creative Commons license."""

    elements: set[str] = field(default_factory=set)
    versions: set[str] = field(default_factory=set)
    ports: set[str] = field(default_factory=set)
    has_cc: bool = False

    def add(self, word: str) -> bool:
        """Adds what one word states; False for a word that is not understood."""
        joined = re.fullmatch(r"(cc)?(by)?(nc)?(nd|sa)?(nc)?", word)
        version = re.fullmatch(r"v?([1-4])(?:\.(\d))?", word)
        if joined and word:
            self.has_cc = self.has_cc or bool(joined[1])
            self.elements |= {element for element in joined.groups() if element and element != "cc"}
        elif version:
            self.versions.add(f"{version[1]}.{version[2] or 0}")
        elif word.upper() in PORTS or word in COUNTRIES:
            self.ports.add(COUNTRIES.get(word, word.upper()))
        else:
            return word in _FILLERS
        return True


def _creative(elements: set[str], version: str, port: str) -> str:
    """The code of these elements (`by`, `nc`, `nd`, `sa`); `unknown` for one that was never published."""
    kind = "-".join(element for element in ("BY", "NC", "ND", "SA") if element.lower() in elements)
    code = "-".join(filter(None, ("CC", kind, version, port)))
    return code if elements <= {"by", "nc", "nd", "sa"} and is_code(code) else "unknown"


def is_code(text: str) -> bool:
    """Whether `text` is a code of the vocabulary, exactly as written; ports and `custom:<url>` count too."""
    if text in LICENSES:
        return True
    if text.startswith("custom:"):
        return license_code(text) == text
    return text != unported(text) and unported(text) in LICENSES


def unported(code: str) -> str:
    """CC-BY-SA-3.0 for CC-BY-SA-3.0-DE; any other code as it is. Version 4.0 has no ports."""
    match = _CC_CODE.fullmatch(code)
    return f"CC-{match[1]}-{match[2]}" if match and match[3] and match[2] != "4.0" else code


DEMANDS = {"BY": "attribution", "SA": "share-alike", "NC": "non-commercial", "ND": "no-derivatives"}


def properties(code: str) -> frozenset[str]:
    """What a license is or demands, of `CLASSES`; `other-terms` where these do not say all, as of `own`."""
    creative = _CC_CODE.fullmatch(code)
    if code in PUBLIC_DOMAIN:
        return frozenset({"public-domain"})
    if creative and is_code(code):
        return frozenset(DEMANDS[element] for element in creative[1].split("-"))
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
    """Orders licenses, the freest first: the public domain is 0, `unknown` the most."""
    # above any number of demands, of which there are four
    fixed = {"unknown": 9, "all-rights-reserved": 8}
    demands = properties(code) - {"public-domain"}
    return fixed.get(code, 7 if "other-terms" in demands else len(demands))


def first_allowed(codes: Sequence[str], allow: Iterable[str]) -> str:
    """Of licenses between which one may choose, the first that is allowed; else the first; "" of none."""
    listed = list(allow)
    return next((code for code in codes if allowed(code, listed)), codes[0] if codes else "")


def combined(first: str, second: str) -> str:
    """The license that demands what both demand, mostly one of the two; `unknown` where there is none."""
    for closed in ("unknown", "all-rights-reserved"):
        if closed in (first, second):
            return closed
    demands = (properties(first) | properties(second)) - {"public-domain"}
    for code in (first, second):
        if properties(code) - {"public-domain"} == demands:
            return code
    if "other-terms" in demands:
        return "unknown"
    # what may not be changed cannot be shared alike: there is no CC-BY-ND-SA
    elements = ("NC", "ND") if "no-derivatives" in demands else ("NC", "SA")
    return "-".join(["CC-BY", *(element for element in elements if DEMANDS[element] in demands), "4.0"])


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
    """What to give instead of a code that does not exist, as the end of a message."""
    meant = _meant(text)
    did_you_mean = f"did you mean {meant}? Else " if meant else ""
    forms = "an SPDX code such as CC0-1.0 or CC-BY-4.0, custom:<url>, own"
    return f"; {did_you_mean}give {forms}, or (in license.allow) one of {', '.join(CLASSES)}"


def _meant(text: str) -> str:
    """The code or class that a person may have meant; "" where none is close."""
    code = license_code(text)
    if code not in ("", "unknown"):
        return code
    versions = [code for code in LICENSES if code.lower().startswith(f"{text.lower()}-")]
    if versions:
        return versions[-1]
    close = difflib.get_close_matches(text, (*LICENSES, *CLASSES), 1)
    return close[0] if close else ""


def url_of(code: str) -> str:
    """Where the text of a license is; "" for codes without one."""
    if code.startswith("custom:"):
        return code.removeprefix("custom:")
    if code in _CC_URLS:
        return f"https://creativecommons.org/{_CC_URLS[code]}/1.0/"
    creative = _CC_CODE.fullmatch(code)
    if creative and creative[2]:
        port = f"{creative[3].lower()}/" if creative[3] else ""
        return f"https://creativecommons.org/licenses/{creative[1].lower()}/{creative[2]}/{port}"
    has_text = code in LICENSES and code not in _WITHOUT_TEXT and not creative
    return f"https://spdx.org/licenses/{code}.html" if has_text else ""


_WITHOUT_TEXT = ("public-domain", "all-rights-reserved", "own", "unknown")
_CC_URLS = {
    "CC0-1.0": "publicdomain/zero",
    "PDM-1.0": "publicdomain/mark",
    **{code: f"licenses/{name}" for name, code in SAMPLING.items()},
}
