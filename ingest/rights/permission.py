"""Whether a site lets its pages and media be taken for training: what it states, for how long that holds, and
the evidence.

    permission.begin(item.source)
    permission.check_url(url)                  # before each request, those of redirects and segments too
    permission.check_response(url, headers)    # before a body is read
    permission.check_page(page, url)           # before a medium of the page is requested
    permission.evidence()                      # what was requested for this item, when, and what it stated

Covered: each host (scheme, host, port) is requested for robots.txt, /.well-known/tdmrep.json and /ai.txt,
each at most once a day and process. Licenses in RSL that robots.txt, a header or a page names are read, and
so are headers, meta tags and JSON-LD. An opt-out is `Abort` (opt_out), final, with the signal, its value and
its URL. A transient failure over robots.txt or RSL is retryable: nothing is taken meanwhile.

Not covered: terms of use in prose, which no machine can judge; what media state within themselves
(`ingest.rights.embedded`); opt-outs that came after the fetch (`ingest refresh`). Hosts of the sources in
`EXEMPT`, whose terms are others, are not requested for these files: for them only statements about training
in headers count.
"""

import datetime
import hashlib
import json
import mimetypes
import re
import time
import urllib.parse
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypedDict

from ingest.fetch.guard import Abort, url_refusal
from ingest.rights.page import PageStatements
from ingest.rights.robots import (
    MEDIA_EXTENSIONS,
    Rules,
    matches,
    normalise,
    parse_ai_txt,
    parse_robots,
    path_of,
)
from ingest.rights.rsl import MEDIA_TYPE, ContentRefusals, UnreadableError, read_rsl, rsl_refusal
from ingest.rights.usage import AGENT, header_opt_out, tdmrep_rules
from ingest.sample import Reason, without_tokens

EXEMPT = {
    "youtube": "a video's license mark and YouTube's terms hold; its media hosts have no robots.txt for us",
    "inaturalist": "photos and sounds are licensed each, its API and open data are made for such use",
    "": "lists and API answers, which are not media",
}
"""By source: why robots.txt, tdmrep.json and ai.txt of its hosts are not requested."""
PATHS = {"robots": "/robots.txt", "tdmrep": "/.well-known/tdmrep.json", "ai": "/ai.txt"}
LIFE_S = 86_400.0  # RFC 9309: no robots.txt is used for longer than a day
MAX_LICENSES = 4  # RSL documents that one page, header or robots.txt may make us request
MAX_RECORDS = 1000  # hosts and licenses in memory; the oldest goes first
MAX_RECORD_BYTES = 16_384  # of a record; longer ones are requested again by the next process
MAX_SAYS_CHARS = 300  # of an evidence: it is in the metadata of each sample
MAX_HEADER_CHARS = 16_384

RecordMessage = dict[str, Any]
"""A `Record` as JSON, between the fetch process and its parent."""


@dataclass(frozen=True)
class Answer:
    """What a host answered: the HTTP status (300 and more: there is no such file), and its first bytes."""

    status: int
    body: bytes = b""


@dataclass(frozen=True)
class Record:
    """A file that was requested. `content` is plain JSON: rules, locations or licenses, by `kind`."""

    kind: str
    url: str
    requested_s: float  # since the epoch: it outlives the process
    status: int
    sha256: str
    content: Any


class Evidence(TypedDict):
    """What a file or page stated about an item, and when; `url` without tokens."""

    url: str
    date: str
    status: int
    sha256: str
    says: str


class ItemEvidence(TypedDict):
    """The evidence of an item, by URL; the sample keeps it as `permission`."""

    asked: list[Evidence]


class _PageTerms(NamedTuple):
    """An RSL document that a page, header or medium names, and the URL of what names it."""

    contents: ContentRefusals
    base: str


class Permission:
    """What one process knows of the hosts it met.

    `request(url)` fetches a text, and raises `Abort` on a transient failure.
    """

    def __init__(self, request: Callable[[str], Answer], agents: Iterable[str] = (AGENT,)):
        self._request = request
        self._agents = tuple(dict.fromkeys(name for name in agents if name))
        self._records: dict[str, Record] = {}
        self._rules: dict[str, Rules] = {}
        self._news: list[Record] = []
        self._is_requesting = False  # then `check_url` is for a statement, which needs no permission itself
        self.begin("")

    def begin(self, source: str) -> None:
        """Forgets the item before, but not what hosts answered."""
        self._applies = source not in EXEMPT
        self._evidence: dict[str, Evidence] = {}
        self._terms: dict[str, _PageTerms] = {}  # by the address of the RSL document

    def learn(self, records: Iterable[RecordMessage]) -> None:
        """Takes over what an earlier process learnt."""
        for record in records:
            self._keep(Record(**record))

    def take_news(self) -> list[RecordMessage]:
        """What was requested since the last call, for the parent."""
        records = [asdict(record) for record in self._news]
        self._news = []
        return [record for record in records if len(json.dumps(record)) <= MAX_RECORD_BYTES]

    def evidence(self) -> ItemEvidence:
        """What was requested for this item; nothing of an exempt source."""
        return {"asked": [self._evidence[url] for url in sorted(self._evidence)]}

    def check_url(self, url: str) -> None:
        """Requests the statements of the host of `url`, if it is new. `Abort` where they bar this path."""
        if not self._applies or self._is_requesting:
            return
        origin = _origin(url)
        path = path_of(url)
        if path == PATHS["robots"]:
            return  # RFC 9309: robots.txt itself is always allowed
        self._check_robots(origin, path)
        self._check_tdmrep(origin, path)
        self._check_ai_txt(origin, path)
        robots = self._record("robots", origin + PATHS["robots"])
        self._check_licenses(self._rules_of(robots).licenses, url, robots.url)
        for address, terms in self._terms.items():
            _refuse(rsl_refusal(terms.contents, url, terms.base), "RSL", address)

    def check_response(self, url: str, headers: Any) -> None:
        """Raises `Abort` where the headers of an answer (an email.message.Message) opt out, before its body
        is read.
        """
        reservation = headers.get("tdm-reservation")
        usage = [*(headers.get_all("Content-Usage") or []), *(headers.get_all("Content-Signal") or [])]
        robots_tags = headers.get_all("X-Robots-Tag") or []
        opt_out = header_opt_out(robots_tags, reservation, usage, index=self._applies)
        if opt_out.startswith("tdm") and headers.get("tdm-policy"):
            opt_out += f", tdm-policy: {headers['tdm-policy'][:200]}"
        _refuse(opt_out, "", url)
        if not self._applies:
            return
        self._check_licenses(_rsl_links(headers.get_all("Link") or []), url, url, keep=True)
        content_type = headers.get_content_type() if headers.get("Content-Type") else ""
        self._check_ai_txt_type(url, content_type)

    def check_page(self, page: PageStatements, url: str) -> None:
        """Raises `Abort` where a page, or a license in RSL that it holds or links, opts out; keeps what it
        says of its media.
        """
        _refuse(page.opt_out, "", url)
        if not self._applies:
            return
        says = "no statement against it"
        self._evidence[without_tokens(url)] = _evidence(url, time.time(), 200, page.sha256, says)
        for index, text in enumerate(page.rsl_inline[:MAX_LICENSES]):
            address = f"{url}#{index}" if index else url
            self._check_terms(_rsl_content(text.encode("utf-8", "replace")), url, url, address, keep=True)
        self._check_licenses(page.rsl_links, url, url, keep=True)

    def _check_robots(self, origin: str, path: str) -> None:
        robots = self._record("robots", origin + PATHS["robots"])
        rules = self._rules_of(robots)
        allowed, line = rules.decide(path)
        refusal = (line if not allowed else "") or rules.usage_refusal(path)
        self._note(robots, line)
        _refuse(refusal, "robots.txt", robots.url)

    def _check_tdmrep(self, origin: str, path: str) -> None:
        """The first location that matches decides, as the report has it; and the longest, as most people
        write it.
        """
        record = self._record("tdmrep", origin + PATHS["tdmrep"])
        self._note(record, "")
        normal = normalise(path)
        matching = [rule for rule in record.content if matches(rule[0], normal)]
        deciding = [*matching[:1], *sorted(matching, key=lambda rule: -len(rule[0]))[:1]]
        for location, is_reserved, policy in deciding:
            policy_text = f", tdm-policy {policy}" if policy else ""
            refusal = f"tdm-reservation 1 for {location}{policy_text}" if is_reserved else ""
            _refuse(refusal, "tdmrep.json", record.url)

    def _check_ai_txt(self, origin: str, path: str) -> None:
        record = self._record("ai", origin + PATHS["ai"])
        allowed, line = self._rules_of(record).decide(path)
        self._note(record, line)
        _refuse("" if allowed else line, "ai.txt", record.url)
        _refuse(self._rules_of(record).usage_refusal(path), "ai.txt", record.url)

    def _check_ai_txt_type(self, url: str, content_type: str) -> None:
        """ai.txt names file extensions: a medium whose URL has none has those of its Content-Type."""
        path = urllib.parse.urlsplit(url).path
        has_extension = path.rpartition(".")[2].lower() in MEDIA_EXTENSIONS
        if has_extension or not content_type.startswith(("video/", "audio/", "image/")):
            return
        record = self._record("ai", _origin(url) + PATHS["ai"])
        for extension in mimetypes.guess_all_extensions(content_type, strict=False):
            allowed, line = self._rules_of(record).decide(f"{path}{extension}")
            _refuse("" if allowed else f"{line} ({content_type})", "ai.txt", record.url)

    def _check_licenses(self, links: Iterable[str], url: str, base: str, keep: bool = False) -> None:
        """Reads the RSL documents that `base` (robots.txt, a page, a medium) names, and holds `url` against
        them.
        """
        for link in list(dict.fromkeys(links))[:MAX_LICENSES]:
            address = _absolute(base, link)
            if not address:
                continue
            record = self._record("rsl", address)
            self._note(record, "")
            self._check_terms(record.content, url, base, record.url, keep)

    def _check_terms(
        self, content: ContentRefusals | str, url: str, base: str, address: str, keep: bool
    ) -> None:
        """`content`: see `_rsl_content`. `keep`: it may also speak of media that are requested later."""
        if isinstance(content, str):
            _refuse(f"cannot be read ({content})", "RSL", address)
            return
        _refuse(rsl_refusal(content, url, base), "RSL", address)
        if keep:
            self._terms.setdefault(address, _PageTerms(content, base))

    def _rules_of(self, record: Record) -> Rules:
        if record.url not in self._rules:
            self._rules[record.url] = Rules.from_json(record.content)
        return self._rules[record.url]

    def _record(self, kind: str, url: str) -> Record:
        """What `url` stated: from memory, if that is not older than a day, else requested now."""
        remembered = self._records.get(url)
        if remembered and remembered.kind == kind and time.time() - remembered.requested_s < LIFE_S:
            return remembered
        answer = self._answer(kind, url)
        data = answer.body if 200 <= answer.status < 300 else b""
        digest = hashlib.sha256(data).hexdigest() if data else ""
        record = Record(kind, url, time.time(), answer.status, digest, _content(kind, data, self._agents))
        self._keep(record)
        self._news.append(record)
        return record

    def _answer(self, kind: str, url: str) -> Answer:
        """tdmrep.json and ai.txt are optional: a server that fails over them has none.

        Of the others a failure is retryable.
        """
        self._is_requesting = True
        try:
            return self._request(url)
        except Abort as failure:
            is_transient = failure.reason in (Reason.RATE_LIMITED, Reason.TIMEOUT, Reason.NETWORK)
            is_optional = kind in ("tdmrep", "ai") and not is_transient
            # a link to an address that the guard refuses leads to no license
            if is_optional or (kind == "rsl" and failure.reason == Reason.ADDRESS):
                return Answer(500)
            raise Abort(failure.reason, f"{without_tokens(url)}: {failure.detail}") from None
        finally:
            self._is_requesting = False

    def _keep(self, record: Record) -> None:
        self._records.pop(record.url, None)
        self._rules.pop(record.url, None)
        self._records[record.url] = record
        while len(self._records) > MAX_RECORDS:
            oldest = next(iter(self._records))
            del self._records[oldest]
            self._rules.pop(oldest, None)

    def _note(self, record: Record, line: str) -> None:
        """Adds to the evidence of the item what a file said of one of its addresses."""
        says = line or ("no rule applies" if record.status < 300 else "there is none")
        url = without_tokens(record.url)
        evidence = _evidence(url, record.requested_s, record.status, record.sha256, says)
        evidence = self._evidence.setdefault(url, evidence)
        if says not in evidence["says"] and len(evidence["says"]) < MAX_SAYS_CHARS:
            evidence["says"] += f"; {says}"


def _origin(url: str) -> str:
    """Scheme, host and port."""
    split = urllib.parse.urlsplit(url)
    return f"{split.scheme}://{split.netloc}".lower()


def _absolute(base: str, link: str) -> str:
    """The address that `link` means on the page `base`; "" for one that may not be requested."""
    try:
        address = urllib.parse.urljoin(base, link)
    except ValueError:
        return ""
    return "" if url_refusal(address) else address


def _refuse(refusal: str, signal: str, url: str) -> None:
    """Raises `Abort` (opt_out) that names the signal, what it says and where, unless it says nothing."""
    if refusal:
        prefix = f"{signal}: " if signal else ""
        raise Abort(Reason.OPT_OUT, f"{prefix}{refusal} ({without_tokens(url)})")


def _evidence(url: str, requested_s: float, status: int, sha256: str, says: str) -> Evidence:
    date = datetime.datetime.fromtimestamp(requested_s, datetime.UTC).date().isoformat()
    return {"url": without_tokens(url), "date": date, "status": status, "sha256": sha256, "says": says}


def _content(kind: str, data: bytes, agents: tuple[str, ...]) -> Any:
    """A file as plain JSON."""
    if kind == "robots":
        return parse_robots(data, agents).to_json()
    if kind == "ai":
        return parse_ai_txt(data, agents).to_json()
    if kind == "tdmrep":
        rules = tdmrep_rules(data)
        return [[_location(rule.location), rule.is_reserved, rule.policy] for rule in rules]
    return _rsl_content(data)


def _rsl_content(data: bytes) -> ContentRefusals | str:
    """What `read_rsl` gives; for a document whose terms cannot be read, the reason."""
    try:
        return read_rsl(data)
    except UnreadableError as error:
        return str(error)


def _location(pattern: str) -> str:
    """A location of tdmrep.json as a pattern of robots.txt."""
    if "://" in pattern:
        return normalise(path_of(pattern))
    return normalise(pattern if pattern.startswith(("/", "*")) else f"/{pattern}")


def _rsl_links(values: Iterable[str]) -> list[str]:
    """Addresses of `Link: <…>; rel="license"; type="application/rsl+xml"` headers."""
    links = []
    for target, parameters in re.findall(r"<([^<>]*)>([^<]*)", ", ".join(values)[:MAX_HEADER_CHARS]):
        relation = re.search(r";\s*rel\s*=\s*(\"[^\"]*\"|[^;,\s]*)", parameters, re.I)
        relations = relation[1].strip('"').lower().split() if relation else []
        if "license" in relations and MEDIA_TYPE in parameters.lower():
            links.append(target.strip())
    return links
