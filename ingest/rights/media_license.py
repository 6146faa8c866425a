"""Which license a page states of the medium on it; a license of the page's text is none of the medium's.

    licenses = MediaLicenses("https://a.example/watch/1")   # fed by ingest.rights.page
    licenses.of({"https://a.example/x.mp4"})                # ("CC-BY-4.0",), several to choose from, or ()

What counts: JSON-LD or microdata of a media object, MediaWiki's license template of a file page, RSS and MRSS
licenses of an item, RDFa with `about` the medium, and `rel=license` within the figure, video or audio
element. A `rel=license` elsewhere (head, footer, article) is the text's. A statement that names no medium
counts where the page has no other medium. Statements that contradict each other are none. No I/O; pages are
hostile.
"""

import json
import urllib.parse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ingest.licenses import license_code, strictness

MOVING = frozenset(
    "VideoObject AudioObject MediaObject MusicVideoObject VideoObjectSnapshot AudioObjectSnapshot".split()
)
PICTURES = frozenset({"ImageObject", "ImageObjectSnapshot"})
LICENSE_NAMES = frozenset(
    f"{prefix}license" for prefix in ("", "cc:", "dc:", "dct:", "dcterms:", "schema:", "xhv:")
)
FEED_LICENSES = frozenset(
    "media:license dc:license dcterms:license cc:license creativecommons:license".split()
)
FEED_ITEMS = ("item", "entry")
NO_CONTENT = frozenset("area base br col embed hr img input link meta param source track wbr".split())
WITHOUT_LINK = "stated without a link"
MAX_OPEN = 64  # scopes within each other; a page with more states nothing
MAX_STATEMENTS = 1000


@dataclass(frozen=True)
class Claim:
    """`licenses`: codes between which one may choose.

    `media`: URLs; none: it is of the page's only medium.
    """

    media: frozenset[str]
    licenses: tuple[str, ...]


@dataclass
class Scope:
    """An open element that makes statements about media: a figure, a video, an item of a feed, an object of
    microdata, `about`.
    """

    tag: str
    kind: str
    depth: int = 1  # of elements of its tag, open within it
    media: set[str] = field(default_factory=set)
    num_media: int = 0
    licenses: list[str] = field(default_factory=list)


class MediaLicenses:
    """Collects statements while a page is read. `url` resolves the page's relative addresses."""

    def __init__(self, url: str = ""):
        self.url = url
        self.media: set[frozenset[str]] = (
            set()
        )  # the URLs of each video, audio, item or media object that has some
        self.num_nameless = 0  # video and audio elements without a URL
        self.claims: set[Claim] = set()
        self.pictures: set[Claim] = set()
        self.num_objects = {"json": 0, "microdata": 0}
        self._open: list[Scope] = []
        self._templates: list[dict[str, str]] = []
        self._capture: tuple[str, str] = ("", "")  # the tag whose text is read, and as what
        self._text: list[str] = []
        self._too_deep = False

    def start(self, tag: str, values: dict[str, str]) -> None:
        """An element opens (or is one without content)."""
        if self._too_deep:
            return
        nearest = next((scope for scope in reversed(self._open) if scope.tag == tag), None)
        if nearest and tag not in NO_CONTENT:
            nearest.depth += 1
        scope = self._scope_of(tag, values)
        if scope and tag not in NO_CONTENT:
            self._too_deep = self._too_deep or len(self._open) >= MAX_OPEN
            if not self._too_deep:
                self._open.append(scope)
        inner = scope or (self._open[-1] if self._open else None)
        self._read_media(tag, values)
        self._read_license(tag, values, inner)
        self._start_text(tag, values)
        if scope and tag in NO_CONTENT:
            self._close(scope)

    def _scope_of(self, tag: str, values: dict[str, str]) -> Scope | None:
        if "about" in values or (values.get("resource") and "typeof" in values):
            return Scope(
                tag, "about", media={self._absolute(values.get("about") or values.get("resource", ""))}
            )
        if "itemscope" in values:
            types = {_local_name(one) for one in values.get("itemtype", "").split()}
            return Scope(tag, "object" if types & MOVING else "picture" if types & PICTURES else "other")
        if tag in ("figure", "video", "audio", *FEED_ITEMS):
            return Scope(tag, tag)
        return None

    def _read_media(self, tag: str, values: dict[str, str]) -> None:
        """Addresses of media: to every scope that is open."""
        place = values.get("src", "") if tag in ("video", "audio", "source", "img") else ""
        if values.get("itemprop", "").lower() in ("contenturl", "embedurl"):
            place = values.get("href") or values.get("src") or values.get("content") or ""
        if tag in ("enclosure", "media:content"):
            place = values.get("url", "")
        address = self._absolute(place) if place and self._open else ""
        for scope in self._open:
            if address and scope.kind != "about" and len(scope.media) < MAX_STATEMENTS:
                scope.media.add(address)
            scope.num_media += tag in ("video", "audio")

    def _read_license(self, tag: str, values: dict[str, str], scope: Scope | None) -> None:
        """`rel=license`, or a property of microdata or RDFa: it is of the innermost scope there is."""
        words = {
            *values.get("rel", "").lower().split(),
            *values.get("property", "").lower().split(),
        } & LICENSE_NAMES
        microdata = "license" in values.get("itemprop", "").lower().split()
        if scope and (words or microdata) and len(scope.licenses) < MAX_STATEMENTS:
            named = values.get("href") or values.get("resource") or values.get("content") or values.get("src")
            scope.licenses.append(named or WITHOUT_LINK)

    def _start_text(self, tag: str, values: dict[str, str]) -> None:
        classes = values.get("class", "").split()
        if "licensetpl" in classes and len(self._templates) < MAX_STATEMENTS:
            self._templates.append({})
        part = next((name for name in ("licensetpl_link", "licensetpl_short") if name in classes), "")
        if tag in FEED_LICENSES and any(scope.kind in FEED_ITEMS for scope in self._open):
            part = "feed"
            named = values.get("href") or values.get("rdf:resource")
            if named:
                self._open[-1].licenses.append(named)
                return
        if part and tag not in NO_CONTENT:
            self._capture, self._text = (tag, part), []

    def data(self, text: str) -> None:
        """Text of the page."""
        if self._capture[0]:
            self._text.append(text)

    def end(self, tag: str) -> None:
        """An element closes, and with it what was left open within it."""
        if self._capture[0] == tag:
            self._end_text(self._capture[1], "".join(self._text).strip())
            self._capture = ("", "")
        place = next((n for n in range(len(self._open) - 1, -1, -1) if self._open[n].tag == tag), None)
        if place is None:
            return
        self._open[place].depth -= 1
        if not self._open[place].depth:
            while len(self._open) > place:
                self._close(self._open.pop())

    def _end_text(self, part: str, text: str) -> None:
        if part == "feed":
            if self._open:
                self._open[-1].licenses.append(text or WITHOUT_LINK)
        elif text:
            if not self._templates or part in self._templates[-1]:
                self._templates.append({})
            self._templates[-1][part] = text

    def _close(self, scope: Scope) -> None:
        media = frozenset(scope.media)
        if scope.kind in ("video", "audio", "object", *FEED_ITEMS):
            self._add_medium(media)
            self.num_nameless += not media and scope.kind in ("video", "audio")
            self.num_objects["microdata"] += scope.kind == "object"
        elif scope.kind == "figure" and not (scope.num_media or media):
            return
        codes = tuple(dict.fromkeys(license_code(text) for text in scope.licenses))
        if scope.kind != "other" and codes:
            self._claim(media, codes, picture=scope.kind == "picture")

    def _add_medium(self, media: frozenset[str]) -> None:
        if media and len(self.media) < MAX_STATEMENTS:
            self.media.add(media)

    def _claim(self, media: frozenset[str], codes: Iterable[str], picture: bool = False) -> None:
        claims = self.pictures if picture else self.claims
        if len(claims) < MAX_STATEMENTS:
            claims.update(Claim(media, (code,)) for code in codes if code)

    def json_ld(self, scripts: Iterable[str]) -> None:
        """The media objects of a page's JSON-LD."""
        seen: set[tuple[Any, ...]] = set()
        for text in scripts:
            try:
                objects = list(_media_objects(json.loads(text)))
            except (ValueError, RecursionError):
                continue
            for node, picture in objects[:MAX_STATEMENTS]:
                self._read_object(node, picture, seen)

    def _read_object(self, node: dict[str, Any], picture: bool, seen: set[tuple[Any, ...]]) -> None:
        content_urls = _texts(node, "contentUrl")
        urls = content_urls or [*_texts(node, "embedUrl"), *_texts(node, "url")]
        own_urls = {self._absolute(""), self._absolute(self.url)}  # the page is no medium of its own
        media = frozenset(map(self._absolute, urls)) - own_urls
        media = media if content_urls or picture else frozenset()
        codes = [license_code(_license_text(value)) for value in _values(node, "license")]
        spelt = (media, tuple(codes), str(node.get("name"))[:200], picture)
        if spelt in seen:
            return
        seen.add(spelt)
        if not picture:
            self.num_objects["json"] += 1
            self._add_medium(media)
        self._claim(media, codes, picture)

    def finish(self) -> None:
        """The page has ended, and what was left open with it."""
        while self._open:
            self._close(self._open.pop())
        codes = tuple(dict.fromkeys(filter(None, map(_template_code, self._templates))))
        if codes:
            self.claims.add(Claim(frozenset(), codes))
        if self._too_deep:
            self.claims = set()
            self.pictures = set()

    def of(self, urls: Iterable[str] = ()) -> tuple[str, ...]:
        """The codes of the medium with one of these URLs, between which one may choose, the freest first; ()
        where the page states none, or contradicts itself. Without URLs: what is so of every medium on the
        page."""
        wanted = set(urls)
        merged = _merged(self.media)
        if not wanted and len(merged) > 1:
            answers = {self.of(medium) for medium in merged}
            return answers.pop() if len(answers) == 1 else ()
        claims = self._matching(wanted, merged)
        if not claims or len({frozenset(claim.licenses) for claim in claims}) > 1:
            return ()
        known = [code for code in claims[0].licenses if code != "unknown"]
        return tuple(sorted(known, key=strictness)) or ("unknown",)

    def stated(self) -> tuple[str, ...]:
        """Every code that the page states of a medium, whichever that is."""
        claims = sorted([*self.claims, *self.pictures], key=lambda claim: claim.licenses)
        return tuple(dict.fromkeys(code for claim in claims for code in claim.licenses))

    def _matching(self, wanted: set[str], merged: list[set[str]]) -> list[Claim]:
        named = {urllib.parse.urldefrag(url)[0] for url in wanted if url}
        alone = len(merged) <= 1 and self.num_nameless <= 1 and max(self.num_objects.values()) <= 1
        if alone and merged:
            named |= merged[0]  # the only medium of the page, under whichever address it is fetched
        found = [claim for claim in self.claims if claim.media & named or (alone and not claim.media)]
        if not self.media and not self.num_nameless and len(self.pictures) == 1:
            found += self.pictures
        return found

    def _absolute(self, place: str) -> str:
        try:
            return urllib.parse.urldefrag(urllib.parse.urljoin(self.url, place.strip()))[0]
        except ValueError:
            return place


def _merged(media: set[frozenset[str]]) -> list[set[str]]:
    """Sets of URLs that share one are one medium."""
    merged: list[set[str]] = []
    for urls in sorted(media, key=sorted)[:MAX_STATEMENTS]:
        near = [other for other in merged if other & urls]
        merged = [other for other in merged if not other & urls]
        merged.append(set(urls).union(*near))
    return merged


def _template_code(parts: dict[str, str]) -> str:
    """The license of one box of a MediaWiki file page: its link, else its short name;

    `unknown` where they differ.
    """
    link, short = (license_code(parts.get(f"licensetpl_{name}", "")) for name in ("link", "short"))
    if link in ("", "unknown") or short in ("", "unknown"):
        return short if link in ("", "unknown") and short else link
    return link if link == short else "unknown"


def _media_objects(node: Any) -> Iterator[tuple[dict[str, Any], bool]]:
    """(object, whether it is a picture) of every media object within a JSON-LD tree."""
    if isinstance(node, list):
        for child in node:
            yield from _media_objects(child)
    elif isinstance(node, dict):
        types = {_local_name(str(one)) for name in ("@type", "type") for one in _values(node, name)}
        if types & (MOVING | PICTURES):
            yield node, not types & MOVING
        for child in node.values():
            yield from _media_objects(child)


def _texts(node: dict[str, Any], name: str) -> list[str]:
    return [value for value in _values(node, name) if isinstance(value, str)]


def _values(node: dict[str, Any], name: str) -> list[Any]:
    spellings = (name, f"schema:{name}", f"https://schema.org/{name}", f"http://schema.org/{name}")
    value = next((node[key] for key in spellings if key in node), None)
    return value if isinstance(value, list) else [] if value is None else [value]


def _license_text(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("@id") or value.get("url") or value.get("name")
    return value if isinstance(value, str) and value.strip() else WITHOUT_LINK


def _local_name(text: str) -> str:
    return text.replace(":", "/").rstrip("/").split("/")[-1]
