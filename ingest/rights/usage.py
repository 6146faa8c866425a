"""What headers, meta tags and JSON-LD state against machine use: from a statement to its part that opts out.

    header_opt_out(["noai"], None)             # "X-Robots-Tag: noai"
    meta_opt_out("robots", "noindex")          # "meta robots: noindex"
    usage_opt_out("train-ai=n, search=y")      # "train-ai=n"

Covered: X-Robots-Tag and `<meta name="robots">` (for all, or for our agent by name), TDMRep
(`tdm-reservation`, and the rules of tdmrep.json), AIPREF's `Content-Usage` and Cloudflare's `Content-Signal`,
and `usageInfo` of JSON-LD.

Not covered: statements about search, snippets or other agents alone, which are none against us (what we do is
train generative models); statements that cannot be read, which state nothing.
"""

import datetime
import email.utils
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

AGENT = "stillsound"  # our product token; it never changes
MAX_CHARS = 4096  # of a header or directive list: it is hostile text
MAX_POLICY_CHARS = 300
LEARNING_DIRECTIVES = frozenset({"noai", "noimageai", "noml"})
INDEX_DIRECTIVES = frozenset({"noindex", "noimageindex", "none"})
# directives with a value: what is before their colon is no agent
VALUED = frozenset(
    {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview", "googlebot-news"}
)
TRAINING_KEYS = ("train-ai", "train-genai", "ai-train", "ai", "genai")  # of all versions of the vocabulary
GENERAL_KEYS = ("bots", "tdm", "all")  # hold where nothing is said of training
NO_VALUES = frozenset({"n", "no", "?0", "0", "false"})
YES_VALUES = frozenset({"y", "yes", "?1", "1", "true"})
RESERVATION_KEYS = frozenset(
    {"tdm-reservation", "tdm:reservation", "tdmrep:reservation", "http://www.w3.org/ns/tdmrep#reservation"}
)
USAGE_INFO_KEYS = frozenset(
    {"usageInfo", "schema:usageInfo", "https://schema.org/usageInfo", "http://schema.org/usageInfo"}
)
# PLUS' data-mining terms; DMI-PROHIBITED-SEECONSTRAINT and the like are restrictions, too
_PLUS_PROHIBITED = re.compile(r"\bDMI-PROHIBITED[A-Z-]*", re.I)


class TdmRule(NamedTuple):
    """A rule of tdmrep.json: which paths, whether rights are reserved, and the URL of the policy."""

    location: str
    is_reserved: bool
    policy: str


def usage_opt_out(text: str) -> str:
    """The member of an AIPREF or Content-Signal dictionary (`train-ai=n, search=y`) that forbids training; ""
    where none does.
    """
    preferences: dict[str, str] = {}
    for member in text[:MAX_CHARS].split(","):
        key, equals, value = member.partition(";")[0].partition("=")
        if equals:
            preferences[key.strip().lower()] = value.strip().strip('"').lower()
    forbidden = [key for key in TRAINING_KEYS if preferences.get(key) in NO_VALUES]
    if not forbidden and not any(preferences.get(key) in YES_VALUES for key in TRAINING_KEYS):
        forbidden = [key for key in GENERAL_KEYS if preferences.get(key) in NO_VALUES]
    return f"{forbidden[0]}={preferences[forbidden[0]]}" if forbidden else ""


def robots_opt_out(text: str, index: bool = True, now: datetime.datetime | None = None) -> str:
    """The directive of an X-Robots-Tag or robots meta tag that opts out, for all agents or for ours; "" where
    none does.

    `index`: directives against indexing count, too. A directive belongs to the agent named last before it.
    """
    agent = ""
    directives = [directive.strip() for directive in re.split(r"[,;]", text[:MAX_CHARS])]
    opt_outs = LEARNING_DIRECTIVES | INDEX_DIRECTIVES if index else LEARNING_DIRECTIVES
    for position, directive in enumerate(directives):
        name, colon, value = (piece.strip() for piece in directive.partition(":"))
        if colon and name.lower() not in VALUED and re.fullmatch(r"[\w.*-]+", name):
            agent = name.lower()
            directive = value
            name, colon, value = (piece.strip() for piece in directive.partition(":"))
        if agent not in ("", "*", "robots", AGENT):
            continue
        if colon and name.lower() in VALUED:
            # a date of RFC 850 or 1123 has a comma: it may go on in the next directive
            date = ", ".join([value, *directives[position + 1 : position + 2]])
            if index and name.lower() == "unavailable_after" and _is_past(date, value, now):
                return f"unavailable_after: {value}"
            continue
        matching = sorted(opt_outs & set(directive.lower().split()))
        if matching:
            return matching[0]
    return ""


def header_opt_out(
    robots_tags: Iterable[str], tdm_reservation: str | None, usage: Iterable[str] = (), index: bool = True
) -> str:
    """The header that opts out, with its value: of X-Robots-Tag, tdm-reservation, Content-Usage and
    Content-Signal; or "".
    """
    for tag in robots_tags:
        if robots_opt_out(tag, index):
            return f"X-Robots-Tag: {' '.join(tag.split())[:100]}"
    if is_reserved((tdm_reservation or "").partition(",")[0]):
        return "tdm-reservation: 1"
    member = usage_opt_out(", ".join(usage))
    return f"Content-Usage: {member}" if member else ""


def meta_opt_out(name: str, content: str, index: bool = True) -> str:
    """What a `<meta>` tag states against machine use, with its name; or ""."""
    name = name.strip().lower()
    if name in ("robots", AGENT) and robots_opt_out(content, index):
        return f"meta {name}: {' '.join(content.split())[:100]}"
    if name in RESERVATION_KEYS and is_reserved(content):
        return f"meta {name}: 1"
    if name in ("content-usage", "content-signal") and usage_opt_out(content):
        return f"meta {name}: {usage_opt_out(content)}"
    return ""


def json_ld_opt_out(scripts: Iterable[str]) -> str:
    """What the JSON-LD of a page states: `usageInfo` that names a prohibition (PLUS, AIPREF, noai), or
    TDMRep's reservation.

    A `usageInfo` that is only the address of a text for people states nothing that a machine could read.
    """
    for text in scripts:
        try:
            opt_out = _tree_opt_out(json.loads(text))
        except (ValueError, RecursionError):
            continue
        if opt_out:
            return f"JSON-LD {opt_out}"
    return ""


def _tree_opt_out(tree: Any) -> str:
    # stops at the first: what is nested too deep behind it must not hide it
    for key, value in _members(tree):
        opt_out = _member_opt_out(key, value)
        if opt_out:
            return opt_out
    return ""


def tdmrep_rules(data: bytes) -> list[TdmRule]:
    """The rules of a /.well-known/tdmrep.json, in its order; none of a file in another form."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return []
    rules = []
    for entry in tree if isinstance(tree, list) else [tree]:
        if not isinstance(entry, dict) or not isinstance(entry.get("location"), str):
            continue
        reservation = entry.get("tdm-reservation")
        if _is_flag(reservation):
            policy = str(entry.get("tdm-policy") or "")[:MAX_POLICY_CHARS]
            rules.append(TdmRule(entry["location"], is_reserved(reservation), policy))
    return rules


def is_reserved(value: Any) -> bool:
    """Whether TDMRep's value reserves the rights: 1.

    Any other value than 0 and 1 is an error and counts as not set.
    """
    return str(value).strip().lower() in ("1", "true")


def _is_flag(value: Any) -> bool:
    return str(value).strip().lower() in ("0", "1", "true", "false")


def _members(node: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value of a JSON tree."""
    if isinstance(node, list):
        for child in node:
            yield from _members(child)
    elif isinstance(node, dict):
        for key, value in node.items():
            yield key, value
            yield from _members(value)


def _member_opt_out(key: str, value: Any) -> str:
    if key in RESERVATION_KEYS:
        plain = value.get("@value") if isinstance(value, dict) else value
        return f"{key}: 1" if is_reserved(plain) else ""
    if key not in USAGE_INFO_KEYS:
        return ""
    for text in _texts(value):
        term = _PLUS_PROHIBITED.search(text)
        directives = set(re.split(r"[\s,;/#]+", text.lower())) & LEARNING_DIRECTIVES
        opt_out = term[0] if term else min(directives, default="") or usage_opt_out(text)
        if opt_out:
            return f"usageInfo: {opt_out}"
    return ""


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, list):
        for child in node:
            yield from _texts(child)
    elif isinstance(node, dict):
        for child in node.values():
            yield from _texts(child)


def _is_past(longer: str, shorter: str, now: datetime.datetime | None) -> bool:
    """Whether the date of `unavailable_after` is over; a comma within it has cut it in two.

    No date that can be read: no.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    date = _date(longer) or _date(shorter)
    return date is not None and date < now


def _date(text: str) -> datetime.datetime | None:
    """A date of RFC 850, RFC 1123 or ISO 8601, in UTC if it has no zone; None for another text."""
    for parse in (email.utils.parsedate_to_datetime, datetime.datetime.fromisoformat):
        try:
            date = parse(text.strip())
        except (ValueError, TypeError, IndexError):
            continue
        return date if date.tzinfo else date.replace(tzinfo=datetime.UTC)
    return None
