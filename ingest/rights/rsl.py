"""RSL 1.0 (Really Simple Licensing): what a license document grants to somebody who trains a model and pays
nobody.

    contents = read_rsl(data)                       # of each <content>: its URL, and why not, or ""
    rsl_refusal(contents, url, base)                # of the content that matches best

A license is taken only if it grants training without a condition that no machine can judge: a payment other
than none or attribution, a license server, users or countries. Several licenses of a content are a choice.
The document is hostile text: no document type, no entities, bounded size, depth and number of elements.
Nothing is fetched here.
"""

import urllib.parse
import xml.parsers.expat
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ingest.rights.robots import matches, normalise, path_of

# the document is hostile text: what it may cost has bounds
MAX_BYTES = 256 * 1024
MAX_DEPTH = 20
MAX_ELEMENTS = 20_000
MEDIA_TYPE = "application/rsl+xml"
# uses that are or include training: the names of RSL, and those of other vocabularies
TRAINING = frozenset({"all", "ai-all", "ai-train", "train-ai", "train-genai", "ai-training"})
FREE = frozenset({"", "free", "attribution"})
ContentRefusals = list[list[str]]
"""[[url, refusal], …] of the contents of a document: plain JSON, since it goes between processes."""


class UnreadableError(ValueError):
    """An RSL document that cannot be read: its terms are unknown, which is not the same as none."""


class _Clause(NamedTuple):
    """A <permits> or <prohibits>: what kind of thing it is about (usage, user, geo), and its text."""

    kind: str
    text: str


@dataclass
class _License:
    permits: list[_Clause] = field(default_factory=list)
    prohibits: list[_Clause] = field(default_factory=list)
    payments: list[str] = field(default_factory=list)


@dataclass
class _Content:
    url: str
    server: str
    licenses: list[_License] = field(default_factory=list)


def read_rsl(data: bytes) -> ContentRefusals:
    """The URL and the refusal of each <content>; none for what is no RSL document (a page, another XML).

    `UnreadableError` for an RSL document that cannot be read.
    """
    plain = data[:MAX_BYTES].replace(b"\0", b"").lower()  # UTF-16 too
    if b"rsl" not in plain or b"<html" in plain or b"<!doctype html" in plain:
        return []
    if len(data) > MAX_BYTES:
        raise UnreadableError(f"more than {MAX_BYTES} bytes")
    reader = _Reader()
    parser = xml.parsers.expat.ParserCreate(namespace_separator=" ")
    parser.StartDoctypeDeclHandler = _no_doctype
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text
    try:
        parser.Parse(data, True)
    except (xml.parsers.expat.ExpatError, ValueError, LookupError) as error:
        raise UnreadableError(str(error)) from None
    return [[content.url, _refusal(content)] for content in reader.contents] if reader.is_rsl else []


def rsl_refusal(contents: ContentRefusals, url: str, base: str) -> str:
    """Why what is at `url` may not be used, by the content whose `url` (a path of the host of `base`, or a
    whole URL) is longest.
    """
    matching = [(len(pattern), refusal) for pattern, refusal in contents if _is_about(pattern, url, base)]
    longest = max((length for length, _ in matching), default=0)
    return next((refusal for length, refusal in matching if length == longest and refusal), "")


def _is_about(pattern: str, url: str, base: str) -> bool:
    """By scheme-less host and by path, with the wildcards of robots.txt.

    A content without a URL is about everything.
    """
    split = urllib.parse.urlsplit(pattern)
    host = split.netloc or urllib.parse.urlsplit(base).netloc
    if pattern and host.lower() != urllib.parse.urlsplit(url).netloc.lower():
        return False
    path = path_of(pattern) if split.netloc else pattern or "/"
    return matches(normalise(path if path.startswith(("/", "*")) else f"/{path}"), normalise(path_of(url)))


def _refusal(content: _Content) -> str:
    """ "" if one of the licenses grants training, else the first license's reason."""
    reasons = [_license_refusal(license, content.server) for license in content.licenses]
    return "" if not reasons or "" in reasons else reasons[0]


def _license_refusal(license: _License, server: str) -> str:
    prohibited = _uses(license.prohibits) & TRAINING
    permitted = _uses(license.permits)
    if prohibited:
        return f"prohibits {sorted(prohibited)[0]}"
    if permitted and not permitted & TRAINING:
        return f"permits only {', '.join(sorted(permitted))[:80]}"
    for clause in (*license.permits, *license.prohibits):
        if clause.kind in ("user", "geo"):
            return f"depends on {clause.kind}: {' '.join(clause.text.split())[:80]}"
    payment = next((kind for kind in license.payments if kind not in FREE), "")
    if payment:
        return f"asks for payment: {payment[:40]}"
    if server and "free" not in license.payments:
        return f"is granted by a license server: {server[:100]}"
    return ""


def _uses(clauses: list[_Clause]) -> set[str]:
    text = " ".join(clause.text for clause in clauses if clause.kind == "usage")
    return set(text.lower().replace(",", " ").split())


def _no_doctype(*_: Any) -> None:
    raise UnreadableError("it has a document type")


class _Reader:
    """Collects contents and licenses; element names without their namespace."""

    def __init__(self) -> None:
        self.contents: list[_Content] = []
        self.is_rsl = False
        self._path: list[str] = []
        self._kind = ""
        self._text = ""
        self._count = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        name = name.rpartition(" ")[2].lower()
        self._enter(name)
        if len(self._path) == 1:
            self.is_rsl = name == "rsl"
        elif name == "content":
            url = attributes.get("url", "").strip()
            self.contents.append(_Content(url, attributes.get("server", "").strip()))
        elif name == "license" and self.contents:
            self.contents[-1].licenses.append(_License())
        elif name in ("standard", "custom", "amount"):
            self._name_payment(name)
        elif name == "payment":
            self._kind = attributes.get("type", "").strip().lower()
            self._text = ""
            if license := self._license():
                license.payments.append(self._kind)
        elif name in ("permits", "prohibits"):
            self._kind = attributes.get("type", "usage").strip().lower()
            self._text = ""

    def _enter(self, name: str) -> None:
        self._count += 1
        self._path.append(name)
        if len(self._path) > MAX_DEPTH or self._count > MAX_ELEMENTS:
            raise UnreadableError("too many elements")

    def _name_payment(self, name: str) -> None:
        """A payment without a type is free, unless an element within it states a price or terms."""
        license = self._license()
        if license and license.payments[-1:] == [""]:
            license.payments[-1] = f"as its <{name}> says"

    def end(self, name: str) -> None:
        name = self._path.pop()
        if license := self._license():
            if name == "permits":
                license.permits.append(_Clause(self._kind, self._text))
            elif name == "prohibits":
                license.prohibits.append(_Clause(self._kind, self._text))

    def text(self, data: str) -> None:
        self._text += data

    def _license(self) -> _License | None:
        """The license that is open, or was last."""
        return self.contents[-1].licenses[-1] if self.contents and self.contents[-1].licenses else None
