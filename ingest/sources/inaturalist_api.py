"""iNaturalist's API -> observations, page after page, within its limits.

    observations_of_api(url, config, network, spool, store)    the query of `url` is the user's own

Pages are requested in ascending order of ids: each asks for what comes after the last id of the one before,
so that new observations never shift a page. Full pages are kept in the dataset's store, and another run
resumes after them.

Not covered: an observation that got its sound after its page was kept; only a new output finds it. The
connection itself is the fetch child's, as for all media.
"""

import datetime
import hashlib
import itertools
import json
import logging
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.jsonl import JsonObject
from cluster.storage import Store
from configs.load import UserError
from ingest.fetch.fetcher import Fetcher
from ingest.fetch.settings import FetchConfig
from ingest.sample import Reason, Refused
from ingest.sources.settings import InaturalistConfig

log = logging.getLogger(__name__)

PAGES = "listing"  # folder in the store
PAGING = frozenset({"per_page", "page", "order", "order_by", "id_above"})  # set here
FIXED = frozenset({"photos", "sounds", "only_id"})  # of no use: only observations with both are requested
TRANSIENT = (Reason.SERVER_ERROR, Reason.TIMEOUT, Reason.NETWORK)
FIRST_RETRY_S = 0.5  # doubled for each further attempt


def observations_of_api(
    url: str, config: InaturalistConfig, network: FetchConfig, spool: Path, store: Store | None
) -> Iterator[JsonObject]:
    """Observations by ascending id: those of kept pages, then new ones, until the day's budget is spent.

    `spool`: a folder for the fetch child. `store`: where pages and the day's requests are kept, None for
    nowhere. `UserError` where the first page fails or has another form.
    """
    query, above = _split_query(url)
    # retries are made here, where each of them can be counted as a request of the day
    with Fetcher(replace(network, retries=0), spool) as fetcher:
        pages = _Pages(query, config, fetcher.read_text, store, network.retries, first_above=above)
        yield from _observations(pages, config, above)


def _observations(pages: "_Pages", config: InaturalistConfig, above: int) -> Iterator[JsonObject]:
    count = 0
    last_total: int | None = None
    while not config.max_observations or count < config.max_observations:
        page = pages.page(above)
        if page is None:
            return
        remaining = config.max_observations - count if config.max_observations else None
        yield from page.observations[:remaining]
        count += len(page.observations)
        # a total that does not shrink from page to page counts all of the query, not what is above the id
        counts_all = page.total is not None and page.total == last_total
        if page.is_last(config.per_page) or (counts_all and count >= (page.total or 0)):
            return
        if not page.observations:
            message = "the API counts %d more observations above id %d and lists none of them"
            log.warning(message, page.total, above)
            return
        above = max(int(observation["id"]) for observation in page.observations)
        last_total = page.total


def _split_query(url: str) -> tuple[str, int]:
    """The URL without the parameters that are set here, and the id above which its user wants to begin.

    Of a parameter given twice a server may take either: the user's own per_page, page and order would skip
    observations.
    """
    address = urllib.parse.urlsplit(url)
    parameters = urllib.parse.parse_qsl(address.query, keep_blank_values=True)
    replaced = [(_plain_name(name), name, value) for name, value in parameters]
    replaced = [row for row in replaced if row[0] in PAGING | FIXED]
    starts = [value for plain, _, value in replaced if plain == "id_above" and value]
    if not all(value.isascii() and value.isdecimal() for value in starts):
        raise UserError(f"source.path={url}: id_above={','.join(starts)} is not an id")
    if not replaced and not address.fragment:
        return url, 0  # as it was written: its hash names the kept pages
    # photos=true and sounds=true are what is requested anyway
    ignored = {name for plain, name, value in replaced if plain != "id_above" and value != "true"}
    if ignored:
        message = "source.path: %s of the query do not count: pages are requested in order of ids"
        log.info(message, ", ".join(sorted(ignored)))
    selecting = [(name, value) for name, value in parameters if _plain_name(name) not in PAGING | FIXED]
    query = urllib.parse.urlencode(selecting)
    plain_url = urllib.parse.urlunsplit(address._replace(query=query, fragment=""))
    return plain_url, max(map(int, starts), default=0)


def _plain_name(name: str) -> str:
    return name.strip().lower().removesuffix("[]")


@dataclass(frozen=True)
class _Page:
    """Observations. `total`: how many the API counts from the first on; None: unknown, as of a kept page."""

    observations: list[JsonObject]
    total: int | None = None
    is_kept: bool = False

    def is_last(self, per_page: int) -> bool:
        """Whether nothing comes after it."""
        if self.is_kept:  # only pages that were not the last are kept
            return False
        if self.total is not None:
            # a short page is not the last one where the API counts more: it lacks what was hidden after the
            # search
            return self.total <= len(self.observations)
        return len(self.observations) < per_page


class _Pages:
    """Pages of the API, at the rate it allows.

    `read`: fetches a URL. `first_above`: the id that the listing begins above. `spent` counts the requests of
    the day, kept in the store beside the pages.
    """

    def __init__(
        self,
        url: str,
        config: InaturalistConfig,
        read: Callable[[str], bytes],
        store: Store | None,
        retries: int,
        first_above: int = 0,
    ):
        self.url = url
        self.config = config
        self.read = read
        self.store = store
        self.retries = retries
        self.first_above = first_above
        # names kept pages: what is hashed never changes, or another run would request them all again
        digest = hashlib.sha256(f"{url} {config.per_page}".encode()).hexdigest()
        self.folder = f"{PAGES}/{digest[:12]}"
        self.budget = f"{PAGES}/inaturalist-requests.json"
        self.kept = set(store.list(self.folder)) if store else set()
        self.spent: dict[str, int] = {}  # by date
        if store and store.exists(self.budget):
            self.spent = json.loads(store.read(self.budget))
        self._last_s = -float("inf")  # monotonic: when the last request ended

    def page(self, above: int) -> _Page | None:
        """The observations with ids above `above`, at most a page.

        None where the day's budget is spent, or the API fails after the first page.
        """
        name = f"{self.folder}/{above:015d}.json"
        if self.store and name in self.kept:
            return _Page(list(json.loads(self.store.read(name))), is_kept=True)
        if not self._left_today():
            message = "%d requests today are all that requests_per_day allows; run again tomorrow to resume"
            log.warning(message, self.config.requests_per_day)
            return None
        try:
            page = self._request(above)
        except Refused as refusal:
            if above == self.first_above:
                message = f"source.path={self.url}: cannot be listed: {refusal}; try again later"
                raise UserError(message) from None
            log.warning("the API stopped above id %d: %s; run again to resume", above, refusal)
            return None
        if self.store and page.observations and not page.is_last(self.config.per_page):
            self.store.replace(name, json.dumps(page.observations).encode())
        return page

    def _left_today(self) -> int:
        return self.config.requests_per_day - self.spent.get(datetime.date.today().isoformat(), 0)

    def _request(self, above: int) -> _Page:
        """A page, with retries of transient failures; every request keeps the distance and counts."""
        query = {
            "photos": "true",
            "sounds": "true",
            "order_by": "id",
            "order": "asc",
            "per_page": self.config.per_page,
            "id_above": above,
        }
        url = f"{self.url}{'&' if '?' in self.url else '?'}{urllib.parse.urlencode(query)}"
        for attempt in itertools.count():
            self._take_turn()
            try:
                return self._parse(self.read(url), above)
            except Refused as refusal:
                # with a Retry-After, ingest.fetch.web waits that long before the next request
                is_transient = refusal.reason in TRANSIENT or "Retry-After" in refusal.detail
                if not is_transient or attempt == self.retries or not self._left_today():
                    raise
                time.sleep(FIRST_RETRY_S * 2**attempt)
            finally:
                # the distance is kept from the end of one request to the start of the next
                self._last_s = time.monotonic()
        raise AssertionError("the last attempt returns or raises")

    def _take_turn(self) -> None:
        distance_s = 60 / self.config.requests_per_min
        time.sleep(max(0.0, self._last_s + distance_s - time.monotonic()))
        today = datetime.date.today().isoformat()
        self.spent = {today: self.spent.get(today, 0) + 1}
        if self.store:  # before the request: a killed run has spent it, too
            self.store.replace(self.budget, json.dumps(self.spent).encode())

    def _parse(self, answer: bytes, above: int) -> _Page:
        try:
            read = json.loads(answer)
            total = read.get("total_results")
            observations = [_trimmed(result) for result in read["results"] if int(result["id"]) > above]
            return _Page(observations, total if isinstance(total, int) else None)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            cause = f"{type(error).__name__}: {error}"
            raise UserError(f"source.path={self.url}: the answer has an unknown form: {cause}") from None


def _trimmed(observation: JsonObject) -> JsonObject:
    """What of an observation is used and so kept; its location and its comments are not stored."""
    taxon = observation.get("taxon") or {}
    user = observation.get("user") or {}
    kinds = ("photos", "sounds", "observation_photos", "observation_sounds")
    return {
        "id": observation["id"],
        "taxon": {"name": taxon.get("name"), "preferred_common_name": taxon.get("preferred_common_name")},
        "user": {"login": user.get("login")},
        **{kind: observation.get(kind) for kind in kinds},
    }
