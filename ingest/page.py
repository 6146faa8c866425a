"""What a web page says about its license and about machine use: pure functions from headers and HTML text.

`read_page(html)` finds `rel=license` links and JSON-LD licenses, and opt-out marks; `ingest.licenses` maps a license's URL
or name to the vocabulary. Pages that state several different licenses state none: nobody can tell which is the video's.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any

from ingest.licenses import license_code
from ingest.sample import Reason, Refused
from ingest.usage import json_ld_opt_out, meta_opt_out

_RSL = "application/rsl+xml"
_MAX_PARSE_COST = 3e8  # about 6 s of html.parser, whose time is quadratic in tags that never end


@dataclass(frozen=True)
class PageFacts:
    """`licenses`: the distinct codes the page states, `unknown` for one it states in words we do not know."""

    licenses: tuple[str, ...]
    opt_out: str
    title: str
    rsl_links: tuple[str, ...] = ()  # addresses of machine-readable licenses that it links
    rsl_inline: tuple[str, ...] = ()
    sha256: str = ""

    @property
    def license(self) -> str:
        """The one license of the page, or "" where it states none or several."""
        return self.licenses[0] if len(self.licenses) == 1 else ""


def read_page(html: str) -> PageFacts:
    """License, opt-out and title of a page, whatever the text is. `Refused` (corrupt) where parsing it would take too long."""
    unclosed = html.find("<!--", html.rfind("-->") + 1)  # such a comment runs to the end, as in a browser
    html = html if unclosed < 0 else html[:unclosed]
    if sum(part.count("<") * len(part) for part in html.split(">")) > _MAX_PARSE_COST:
        raise Refused(Reason.CORRUPT, "a page of tags that never end")
    reader = _Reader()
    reader.feed(html)
    reader.close()
    found = [license_code(text) for text in (*reader.licenses, *_json_ld_licenses(reader.scripts))]
    opt_out = reader.opt_out or json_ld_opt_out(reader.scripts)
    codes, title = tuple(dict.fromkeys(code for code in found if code)), " ".join("".join(reader.title).split())[:300]
    digest = hashlib.sha256(html.encode("utf-8", "replace")).hexdigest()
    return PageFacts(codes, opt_out, title, tuple(reader.rsl_links), tuple(reader.rsl_scripts), digest)


class _Reader(HTMLParser):
    """Collects what `read_page` needs. `rel` is a list of words: rel="license noopener" states a license."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.licenses: list[str] = []
        self.scripts: list[str] = []
        self.rsl_links: list[str] = []
        self.rsl_scripts: list[str] = []
        self.title: list[str] = []
        self.opt_out = ""
        self._within = ""
        self._script = self.scripts

    def parse_marked_section(self, i: int, report: bool = True) -> int:
        return self.parse_bogus_comment(i)  # where older Pythons fail on an unknown <![word[

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        kind = values.get("type", "").partition(";")[0].strip().lower()
        if tag == "link" and kind == _RSL:
            self.rsl_links.append(values.get("href", ""))
        elif tag in ("a", "link", "area") and "license" in values.get("rel", "").lower().split():
            self.licenses.append(values.get("href", "") or "stated without a link")
        elif tag == "meta":
            name = values.get("name") or values.get("http-equiv") or values.get("property", "")
            self.opt_out = self.opt_out or meta_opt_out(name, values.get("content", ""))
        elif tag == "script" and kind in ("application/ld+json", _RSL):
            self._within = "script"
            self._script = self.rsl_scripts if kind == _RSL else self.scripts
            self._script.append("")
        elif tag == "title":
            self._within = "title"

    def handle_endtag(self, tag: str) -> None:
        if tag == self._within:
            self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within == "script":
            self._script[-1] += data
        elif self._within == "title":
            self.title.append(data)


def _json_ld_licenses(scripts: list[str]) -> Iterator[str]:
    for text in scripts:
        try:
            yield from _licenses_within(json.loads(text))
        except (ValueError, RecursionError):
            continue


def _licenses_within(node: Any) -> Iterator[str]:
    """Every `license` of a JSON-LD tree: a text, an object with @id or url, or a list of them."""
    if isinstance(node, list):
        for child in node:
            yield from _licenses_within(child)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in ("license", "schema:license", "https://schema.org/license"):
                yield from (_license_text(one) for one in (value if isinstance(value, list) else [value]))
            else:
                yield from _licenses_within(value)


def _license_text(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("@id") or value.get("url") or value.get("name")
    return value if isinstance(value, str) and value.strip() else "stated without a link"
