"""robots.txt as RFC 9309 has it, with what others have added to it: pure functions from text to rules, and
from rules to an answer.

    rules = parse_robots(text, ("stillsound",))     # the groups of these agents, else those of *
    rules.decide("/media/a.mp4")                    # (allowed, the line that decides)

Besides Allow and Disallow it reads `Content-Usage` (IETF AIPREF), `Content-Signal` (contentsignals.org) and
`License` (RSL 1.0). `ai.txt` (Spawning) has the same form, with file extensions for paths: see
`parse_ai_txt`. Nothing is fetched here.
"""

import re
import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypedDict

from ingest.rights.usage import usage_opt_out

MAX_BYTES = 500 * 1024  # RFC 9309: a parser reads at least so much; what comes behind it is ignored
AGENT_KEYS = frozenset({"user-agent", "useragent", "user agent"})
# misspellings that Google reads too
DISALLOW_KEYS = frozenset({"disallow", "dissallow", "dissalow", "disalow", "diasllow", "disallaw"})
USAGE_KEYS = frozenset({"content-usage", "content-signal"})
MEDIA_EXTENSIONS = frozenset(
    "aac aif aiff amr avi avif bmp flac flv gif heic heif jpe jpeg jpg m2ts m3u8 m4a m4s m4v mka mkv mov mp3"
    " mp4 mpd mpeg mpg oga ogg ogv opus png qt tif tiff ts wav weba webm webp wma wmv 3gp 3g2".split()
)
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
# for lines before the first group, and License lines apart from groups; no agent's name has brackets
_GLOBAL = "(all)"


class RulesJson(TypedDict):
    """`Rules` as JSON, between processes."""

    allow: tuple[str, ...]
    disallow: tuple[str, ...]
    usage: tuple[tuple[str, str], ...]
    licenses: tuple[str, ...]


@dataclass(frozen=True)
class Rules:
    """What a file says to one agent: patterns of paths that are allowed and disallowed, usage per path, URLs
    of licenses.
    """

    allow: tuple[str, ...] = ()
    disallow: tuple[str, ...] = ()
    usage: tuple[tuple[str, str], ...] = ()  # (pattern, the whole line)
    licenses: tuple[str, ...] = ()

    def decide(self, path: str) -> tuple[bool, str]:
        """Whether `path` (with its query) may be fetched, and the line that says so; "" where no rule
        applies.

        The longest matching pattern decides; of an Allow and a Disallow of one length, the Allow.
        """
        path = normalise(path)
        disallow = longest_match(self.disallow, path)
        allow = longest_match(self.allow, path)
        if disallow is None or (allow is not None and len(allow) >= len(disallow)):
            return True, f"Allow: {allow}" if allow is not None else ""
        return False, f"Disallow: {disallow}"

    def usage_refusal(self, path: str) -> str:
        """The line that keeps what is at `path` from training, of those with the longest matching pattern;
        else "".
        """
        path = normalise(path)
        matching = [(len(pattern), line) for pattern, line in self.usage if matches(pattern, path)]
        longest = max((length for length, _ in matching), default=0)
        # lines of equal length may contradict each other: then the opt-out counts
        lines = (line for length, line in matching if length == longest)
        return next((line for line in lines if usage_opt_out(line.partition(":")[2])), "")

    def to_json(self) -> RulesJson:
        """Plain data, of which `from_json` makes the same rules, also once it was written as JSON."""
        return {
            "allow": self.allow,
            "disallow": self.disallow,
            "usage": self.usage,
            "licenses": self.licenses,
        }

    @staticmethod
    def from_json(data: RulesJson) -> "Rules":
        """The inverse of `to_json`; JSON has lists where rules have tuples."""
        usage = tuple((str(pattern), str(line)) for pattern, line in data["usage"])
        return Rules(tuple(data["allow"]), tuple(data["disallow"]), usage, tuple(data["licenses"]))


@dataclass
class _Group:
    allow: list[str] = field(default_factory=list)
    disallow: list[str] = field(default_factory=list)
    usage: list[tuple[str, str]] = field(default_factory=list)
    licenses: list[str] = field(default_factory=list)


def parse_robots(data: bytes, agents: Iterable[str]) -> Rules:
    """The rules of all groups that name one of `agents`; where none does, those of `*`.

    Lines in a form that is not known are ignored.
    """
    groups: dict[str, _Group] = {_GLOBAL: _Group()}
    named: list[str] = []  # the agents of the group that the next line belongs to
    in_rules = after_blank = False
    text = data[:MAX_BYTES].decode("utf-8", "replace").removeprefix("\ufeff")
    # the line ends of RFC 9309; splitlines() knows more, such as U+2028
    for line in re.split(r"\r\n|\r|\n", text):
        key, colon, value = line.partition("#")[0].partition(":")
        key = key.strip().lower()
        value = value.strip()
        if not colon:
            after_blank = after_blank or not line.strip()
            continue
        if key in AGENT_KEYS:
            # several User-agent lines in a row share the rules below them
            named = [agent_name(value)] if in_rules else [*named, agent_name(value)]
            in_rules = False
        elif key == "license":
            # like Sitemap it stands apart from the groups, unless it is written right under one
            for agent in [_GLOBAL] if after_blank or not named else named:
                groups.setdefault(agent, _Group()).licenses.append(value)
        elif key in DISALLOW_KEYS | USAGE_KEYS | {"allow"}:
            in_rules = True
            for agent in named or ([_GLOBAL] if key in USAGE_KEYS else []):
                _add_rule(groups.setdefault(agent, _Group()), key, value)
        after_blank = False
    names = {name.lower() for name in agents}
    matching = [groups[name] for name in names if name in groups]
    return _merged([*(matching or [groups.get("*", _Group())]), groups[_GLOBAL]])


def parse_ai_txt(data: bytes, agents: Iterable[str]) -> Rules:
    """The rules of an ai.txt about media: those about the extensions of texts and programs concern nothing
    that is taken here.
    """
    rules = parse_robots(data, agents)
    return Rules(
        tuple(pattern for pattern in rules.allow if _is_about_media(pattern)),
        tuple(pattern for pattern in rules.disallow if _is_about_media(pattern)),
        rules.usage,
        rules.licenses,
    )


def path_of(url: str) -> str:
    """Path and query of a URL, as rules are matched with it."""
    split = urllib.parse.urlsplit(url)
    return (split.path or "/") + (f"?{split.query}" if split.query else "")


def agent_name(value: str) -> str:
    """The product token of a `User-agent` line, in lower case; `*` stays."""
    token = re.match(r"[A-Za-z_-]+", value)
    return "*" if value.startswith("*") else token[0].lower() if token else ""


def normalise(text: str) -> str:
    """Percent-encoding as RFC 9309 compares it: unreserved letters plain, all others that are encoded with
    capital digits.
    """

    def decoded(octet: re.Match[str]) -> str:
        letter = chr(int(octet[1], 16))
        return letter if letter in _UNRESERVED else octet[0].upper()

    quoted = urllib.parse.quote(text, safe="%/*$?&=:;@!'()+,~#[]", errors="replace")
    return re.sub(r"%([0-9A-Fa-f]{2})", decoded, quoted)


def matches(pattern: str, path: str) -> bool:
    """Whether `path` begins with `pattern`, where `*` is any text and `$` at the end is the end.

    Both normalised. Each piece between two `*` is taken where it comes first, which never loses a match; a
    regular expression would backtrack over hostile patterns of many `*`.
    """
    to_the_end = pattern.endswith("$")
    start, *pieces = pattern.removesuffix("$").split("*")
    if not path.startswith(start):
        return False
    position = len(start)
    for index, piece in enumerate(pieces, 1):
        if to_the_end and index == len(pieces):
            return path.endswith(piece) and len(path) - len(piece) >= position
        position = path.find(piece, position)
        if position < 0:
            return False
        position += len(piece)
    return not to_the_end or position == len(path)


def longest_match(patterns: Iterable[str], path: str) -> str | None:
    """The longest of the patterns that match, or None."""
    return max((pattern for pattern in patterns if matches(pattern, path)), key=len, default=None)


def _add_rule(group: _Group, key: str, value: str) -> None:
    if key in USAGE_KEYS:
        path, _, preference = value.partition(" ") if value.startswith("/") else ("/", "", value)
        group.usage.append((_pattern(path), f"{key}: {preference.strip()[:200]}"))
    elif value:  # an empty Disallow disallows nothing
        (group.allow if key == "allow" else group.disallow).append(_pattern(value))


def _pattern(text: str) -> str:
    """The pattern of a line; one that lacks its slash gets it, and of a whole URL the path counts."""
    if "://" in text:
        text = path_of(text)
    return normalise(text if text.startswith(("/", "*")) else f"/{text}")


def _is_about_media(pattern: str) -> bool:
    extension = re.fullmatch(r"/?\*\.(\w+)\$?", pattern)
    return not extension or extension[1].lower() in MEDIA_EXTENSIONS


def _merged(groups: list[_Group]) -> Rules:
    """The lines of all groups in their order, repeated ones once."""
    merged = _Group()
    for group in groups:
        merged.allow += group.allow
        merged.disallow += group.disallow
        merged.usage += group.usage
        merged.licenses += group.licenses
    return Rules(
        tuple(dict.fromkeys(merged.allow)),
        tuple(dict.fromkeys(merged.disallow)),
        tuple(dict.fromkeys(merged.usage)),
        tuple(dict.fromkeys(merged.licenses)),
    )
