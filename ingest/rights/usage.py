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
from typing import Any

AGENT = "stillsound"  # our product token; it never changes
LEARNING_WORDS = frozenset({"noai", "noimageai", "noml"})
INDEX_WORDS = frozenset({"noindex", "noimageindex", "none"})
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


def usage_opt_out(text: str) -> str:
    """The member of an AIPREF or Content-Signal dictionary (`train-ai=n, search=y`) that forbids training; ""
    where none does.
    """
    said: dict[str, str] = {}
    for member in text[:4096].split(","):
        key, equals, value = member.partition(";")[0].partition("=")
        if equals:
            said[key.strip().lower()] = value.strip().strip('"').lower()
    forbidden = [key for key in TRAINING_KEYS if said.get(key) in NO_VALUES]
    if not forbidden and not any(said.get(key) in YES_VALUES for key in TRAINING_KEYS):
        forbidden = [key for key in GENERAL_KEYS if said.get(key) in NO_VALUES]
    return f"{forbidden[0]}={said[forbidden[0]]}" if forbidden else ""


def robots_opt_out(text: str, index: bool = True, now: datetime.datetime | None = None) -> str:
    """The directive of an X-Robots-Tag or robots meta tag that opts out, for all agents or for ours; "" where
    none does.

    `index`: directives against indexing count, too. A directive belongs to the agent named last before it.
    """
    agent = ""
    directives = [directive.strip() for directive in re.split(r"[,;]", text[:4096])]
    for index_here, directive in enumerate(directives):
        name, colon, after = (piece.strip() for piece in directive.partition(":"))
        if colon and name.lower() not in VALUED and re.fullmatch(r"[\w.*-]+", name):
            agent = name.lower()
            directive = after
            name, colon, after = (piece.strip() for piece in directive.partition(":"))
        if agent not in ("", "*", "robots", AGENT):
            continue
        if colon and name.lower() in VALUED:
            # a date of RFC 850 or 1123 holds a comma: it may go on in the next piece
            date = ", ".join([after, *directives[index_here + 1 : index_here + 2]])
            if index and name.lower() == "unavailable_after" and _is_past(date, after, now):
                return f"unavailable_after: {after}"
            continue
        opt_outs = LEARNING_WORDS | INDEX_WORDS if index else LEARNING_WORDS
        matching = sorted(opt_outs & set(directive.lower().split()))
        if matching:
            return str(matching[0])
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
    said = usage_opt_out(", ".join(usage))
    return f"Content-Usage: {said}" if said else ""


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


def tdmrep_rules(data: bytes) -> list[list[Any]]:
    """[[location, reserved, policy], …] of a /.well-known/tdmrep.json, in its order; none of one that is no
    such file.
    """
    try:
        read = json.loads(data)
    except (ValueError, RecursionError):
        return []
    rules = []
    for rule in read if isinstance(read, list) else [read]:
        if (
            isinstance(rule, dict)
            and isinstance(rule.get("location"), str)
            and _is_flag(rule.get("tdm-reservation"))
        ):
            rules.append(
                [
                    rule["location"],
                    is_reserved(rule["tdm-reservation"]),
                    str(rule.get("tdm-policy") or "")[:300],
                ]
            )
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
        words = set(re.split(r"[\s,;/#]+", text.lower())) & LEARNING_WORDS
        said = term[0] if term else next(iter(sorted(words)), "") or usage_opt_out(text)
        if said:
            return f"usageInfo: {said}"
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
    for text in (longer, shorter):
        for read in (email.utils.parsedate_to_datetime, datetime.datetime.fromisoformat):
            try:
                date = read(text.strip())
            except (ValueError, TypeError, IndexError):
                continue
            return (date if date.tzinfo else date.replace(tzinfo=datetime.UTC)) < now
    return False
