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
from typing import Any, NamedTuple

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
# pages are hostile: an address goes to every open scope, so their number has a bound
MAX_OPEN = 64  # scopes within each other; a page with more states nothing
MAX_STATEMENTS = 1000

JsonNode = dict[str, Any]
"""An object of a page's JSON-LD, in whatever shape its author gave it."""


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


class _ObjectStatement(NamedTuple):
    """What makes two objects of JSON-LD the same statement."""

    media: frozenset[str]
    codes: tuple[str, ...]
    name: str
    picture: bool


class MediaLicenses:
    """Collects statements while a page is read. `url` resolves the page's relative addresses."""

    def __init__(self, url: str = ""):
        self.url = url
        # the URLs of each video, audio, item or media object that has some
        self.media: set[frozenset[str]] = set()
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
        # RDFa goes first: it names its subject, whatever the element is
        if "about" in values or (values.get("resource") and "typeof" in values):
            subject = values.get("about") or values.get("resource", "")
            return Scope(tag, "about", media={self._absolute(subject)})
        if "itemscope" in values:
            types = {_local_name(item_type) for item_type in values.get("itemtype", "").split()}
            # `other` is a scope too: what an article or a person states is none of the medium around it
            return Scope(tag, "object" if types & MOVING else "picture" if types & PICTURES else "other")
        if tag in ("figure", "video", "audio", *FEED_ITEMS):
            return Scope(tag, tag)
        return None

    def _read_media(self, tag: str, values: dict[str, str]) -> None:
        """Addresses of media: to every scope that is open."""
        link = values.get("src", "") if tag in ("video", "audio", "source", "img") else ""
        if values.get("itemprop", "").lower() in ("contenturl", "embedurl"):
            link = values.get("href") or values.get("src") or values.get("content") or ""
        if tag in ("enclosure", "media:content"):
            link = values.get("url", "")
        address = self._absolute(link) if link and self._open else ""
        for scope in self._open:
            if address and scope.kind != "about" and len(scope.media) < MAX_STATEMENTS:
                scope.media.add(address)
            scope.num_media += tag in ("video", "audio")

    def _read_license(self, tag: str, values: dict[str, str], scope: Scope | None) -> None:
        """`rel=license`, or a property of microdata or RDFa: it is of the innermost scope there is."""
        names = f"{values.get('rel', '')} {values.get('property', '')}".lower().split()
        item_names = values.get("itemprop", "").lower().split()
        is_license = bool(LICENSE_NAMES.intersection(names)) or "license" in item_names
        if scope and is_license and len(scope.licenses) < MAX_STATEMENTS:
            link = values.get("href") or values.get("resource") or values.get("content") or values.get("src")
            scope.licenses.append(link or WITHOUT_LINK)

    def _start_text(self, tag: str, values: dict[str, str]) -> None:
        classes = values.get("class", "").split()
        if "licensetpl" in classes and len(self._templates) < MAX_STATEMENTS:
            self._templates.append({})
        meaning = next((name for name in ("licensetpl_link", "licensetpl_short") if name in classes), "")
        # a license of the channel, outside of any item, is that of the feed's text
        if tag in FEED_LICENSES and any(scope.kind in FEED_ITEMS for scope in self._open):
            meaning = "feed"
            link = values.get("href") or values.get("rdf:resource")
            if link:
                self._open[-1].licenses.append(link)
                return
        if meaning and tag not in NO_CONTENT:
            self._capture = (tag, meaning)
            self._text = []

    def data(self, text: str) -> None:
        """Text of the page."""
        if self._capture[0]:
            self._text.append(text)

    def end(self, tag: str) -> None:
        """An element closes, and with it every element within it that the page did not close."""
        if self._capture[0] == tag:
            self._end_text(self._capture[1], "".join(self._text).strip())
            self._capture = ("", "")
        innermost_first = range(len(self._open) - 1, -1, -1)
        level = next((level for level in innermost_first if self._open[level].tag == tag), None)
        if level is None:
            return
        self._open[level].depth -= 1
        if not self._open[level].depth:
            while len(self._open) > level:
                self._close(self._open.pop())

    def _end_text(self, meaning: str, text: str) -> None:
        if meaning == "feed":
            if self._open:
                self._open[-1].licenses.append(text or WITHOUT_LINK)
        elif text:
            # a second link or short name without a box of its own begins another license
            if not self._templates or meaning in self._templates[-1]:
                self._templates.append({})
            self._templates[-1][meaning] = text

    def _close(self, scope: Scope) -> None:
        media = frozenset(scope.media)
        if scope.kind in ("video", "audio", "object", *FEED_ITEMS):
            self._add_medium(media)
            self.num_nameless += not media and scope.kind in ("video", "audio")
            self.num_objects["microdata"] += scope.kind == "object"
        elif scope.kind == "figure" and not (scope.num_media or media):
            return  # a figure of text: its license is that of the text
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
        seen: set[_ObjectStatement] = set()
        for text in scripts:
            try:
                objects = list(_media_objects(json.loads(text)))
            except (ValueError, RecursionError):
                continue
            for node, picture in objects[:MAX_STATEMENTS]:
                self._read_object(node, picture, seen)

    def _read_object(self, node: JsonNode, picture: bool, seen: set[_ObjectStatement]) -> None:
        content_urls = _texts(node, "contentUrl")
        urls = content_urls or [*_texts(node, "embedUrl"), *_texts(node, "url")]
        page_urls = {self._absolute(""), self._absolute(self.url)}  # the page itself is none of its media
        media = frozenset(map(self._absolute, urls)) - page_urls
        media = media if content_urls or picture else frozenset()
        codes = [license_code(_license_text(value)) for value in _values(node, "license")]
        # pages repeat an object; counted twice, it would look like two media
        statement = _ObjectStatement(media, tuple(codes), str(node.get("name"))[:200], picture)
        if statement in seen:
            return
        seen.add(statement)
        if not picture:
            self.num_objects["json"] += 1
            self._add_medium(media)
        self._claim(media, codes, picture)

    def finish(self) -> None:
        """The page has ended, and with it every element that it did not close."""
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
        addresses = set(urls)
        merged = _merged(self.media)
        if not addresses and len(merged) > 1:
            answers = {self.of(medium) for medium in merged}
            return answers.pop() if len(answers) == 1 else ()
        claims = self._matching(addresses, merged)
        if not claims or len({frozenset(claim.licenses) for claim in claims}) > 1:
            return ()
        codes = [code for code in claims[0].licenses if code != "unknown"]
        return tuple(sorted(codes, key=strictness)) or ("unknown",)

    def stated(self) -> tuple[str, ...]:
        """Every code that the page states of a medium, whichever that is."""
        codes: dict[str, None] = {}  # a set in the order of its first entries
        for claim in sorted([*self.claims, *self.pictures], key=lambda claim: claim.licenses):
            codes |= dict.fromkeys(claim.licenses)
        return tuple(codes)

    def _matching(self, addresses: set[str], merged: list[set[str]]) -> list[Claim]:
        urls = {urllib.parse.urldefrag(url)[0] for url in addresses if url}
        is_alone = len(merged) <= 1 and self.num_nameless <= 1 and max(self.num_objects.values()) <= 1
        if is_alone and merged:
            urls |= merged[0]  # the only medium of the page, under whichever address it is fetched
        claims = [claim for claim in self.claims if claim.media & urls or (is_alone and not claim.media)]
        # a page of one picture and nothing that moves: the picture is its medium
        if not self.media and not self.num_nameless and len(self.pictures) == 1:
            claims += self.pictures
        return claims

    def _absolute(self, link: str) -> str:
        try:
            return urllib.parse.urldefrag(urllib.parse.urljoin(self.url, link.strip()))[0]
        except ValueError:
            return link


def _merged(media: set[frozenset[str]]) -> list[set[str]]:
    """Sets of URLs that share one are one medium."""
    merged: list[set[str]] = []
    for urls in sorted(media, key=sorted)[:MAX_STATEMENTS]:
        sharing = [medium for medium in merged if medium & urls]
        merged = [medium for medium in merged if not medium & urls]
        merged.append(set(urls).union(*sharing))
    return merged


def _template_code(template: dict[str, str]) -> str:
    """The license of one box of a MediaWiki file page: its link, else its short name; `unknown` where they
    differ.
    """
    link = license_code(template.get("licensetpl_link", ""))
    short = license_code(template.get("licensetpl_short", ""))
    if link in ("", "unknown") or short in ("", "unknown"):
        return short if link in ("", "unknown") and short else link
    return link if link == short else "unknown"


def _media_objects(node: Any) -> Iterator[tuple[JsonNode, bool]]:
    """(object, whether it is a picture) of every media object within a JSON-LD tree."""
    if isinstance(node, list):
        for child in node:
            yield from _media_objects(child)
    elif isinstance(node, dict):
        types = {_local_name(str(value)) for value in [*_values(node, "@type"), *_values(node, "type")]}
        if types & (MOVING | PICTURES):
            yield node, not types & MOVING
        for child in node.values():
            yield from _media_objects(child)


def _texts(node: JsonNode, name: str) -> list[str]:
    return [value for value in _values(node, name) if isinstance(value, str)]


def _values(node: JsonNode, name: str) -> list[Any]:
    """The values of a property, however its name is spelt; a single value is a list of one."""
    spellings = (name, f"schema:{name}", f"https://schema.org/{name}", f"http://schema.org/{name}")
    value = next((node[key] for key in spellings if key in node), None)
    return value if isinstance(value, list) else [] if value is None else [value]


def _license_text(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("@id") or value.get("url") or value.get("name")
    return value if isinstance(value, str) and value.strip() else WITHOUT_LINK


def _local_name(text: str) -> str:
    return text.replace(":", "/").rstrip("/").split("/")[-1]
