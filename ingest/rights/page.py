"""What a web page states about its license and about machine use: pure functions from HTML text.

    page = read_page(html, url)
    page.license, page.opt_out, page.media.of({"https://a.example/x.mp4"})

Covered: the license of the page's medium (`ingest.rights.media_license` knows which statements those are),
opt-outs in meta tags and JSON-LD, and licenses in RSL that the page links or holds. A page that contradicts
itself states no license: nobody can know which is the video's.

Not covered: headers (`ingest.rights.usage`), text that scripts would write, and prose. Nothing is requested
here. Pages are untrusted, so their cost is bounded before they are parsed.
"""

import hashlib
from dataclasses import dataclass, field
from html.parser import HTMLParser

from ingest.licenses import license_code as license_code  # importable from here too
from ingest.rights.media_license import MediaLicenses
from ingest.rights.usage import json_ld_opt_out, meta_opt_out
from ingest.sample import Reason, Refused

_RSL = "application/rsl+xml"
_MAX_PARSE_COST = 3e8  # about 6 s of html.parser
_MAX_TITLE_CHARS = 300


@dataclass(frozen=True)
class PageStatements:
    """`licenses`: every code that the page states of a medium, `unknown` for one in a spelling that is not
    in our vocabulary. `media` knows which medium each of them is of.
    """

    licenses: tuple[str, ...]
    opt_out: str
    title: str
    rsl_links: tuple[str, ...] = ()  # addresses of machine-readable licenses that it links
    rsl_inline: tuple[str, ...] = ()
    sha256: str = ""
    media: MediaLicenses = field(default_factory=MediaLicenses, compare=False)

    @property
    def license(self) -> str:
        """The license of the page's medium, of alternatives the freest; "" where it states none, or
        contradicts itself.
        """
        return next(iter(self.media.of()), "")


def read_page(html: str, url: str = "") -> PageStatements:
    """Licenses, opt-out and title of a page, whatever the text is; `url` resolves its relative addresses.

    `Refused` (corrupt) where parsing it would take too long.
    """
    unclosed = html.find("<!--", html.rfind("-->") + 1)  # such a comment runs to the end, as in a browser
    html = html if unclosed < 0 else html[:unclosed]
    if _parse_cost(html) > _MAX_PARSE_COST:
        raise Refused(Reason.CORRUPT, "a page of tags that never end")
    reader = _Reader(url)
    reader.feed(html)
    reader.close()
    reader.media.finish()
    reader.media.json_ld(reader.scripts)
    opt_out = reader.opt_out or json_ld_opt_out(reader.scripts)
    return PageStatements(
        licenses=reader.media.stated(),
        opt_out=opt_out,
        title=" ".join("".join(reader.title).split())[:_MAX_TITLE_CHARS],
        rsl_links=tuple(reader.rsl_links),
        rsl_inline=tuple(reader.rsl_scripts),
        sha256=hashlib.sha256(html.encode("utf-8", "replace")).hexdigest(),
        media=reader.media,
    )


def _parse_cost(html: str) -> int:
    """Letters that html.parser may look at.

    At each `<` it searches for the `>` that ends the tag, and without one up to the end of the stretch: a
    stretch of n letters between two `>` with k of `<` costs up to k * n, so that "<<<<…" is quadratic.
    """
    return sum(stretch.count("<") * len(stretch) for stretch in html.split(">"))


class _Reader(HTMLParser):
    """Collects what `read_page` needs."""

    def __init__(self, url: str) -> None:
        super().__init__(convert_charrefs=True)
        self.media = MediaLicenses(url)
        self.scripts: list[str] = []
        self.rsl_links: list[str] = []
        self.rsl_scripts: list[str] = []
        self.title: list[str] = []
        self.opt_out = ""
        self._within = ""
        self._script = self.scripts

    def parse_marked_section(self, i: int, report: bool = True) -> int:
        return self.parse_bogus_comment(i)  # where older Pythons fail on an unknown <![name[

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.media.start(tag, values)
        kind = values.get("type", "").partition(";")[0].strip().lower()
        if tag == "link" and kind == _RSL:
            self.rsl_links.append(values.get("href", ""))
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
        self.media.end(tag)
        if tag == self._within:
            self._within = ""

    def handle_data(self, data: str) -> None:
        self.media.data(data)
        if self._within == "script":
            self._script[-1] += data
        elif self._within == "title":
            self.title.append(data)
