"""iNaturalist: observations with photos and sounds, from an export file or from the API, as pairs of a photo
and a sound.

    source.path=observations.json                                             the API's answers, saved; or a list, or JSON lines
    source.path=observations.csv                                              the site's export
    source.path='https://api.inaturalist.org/v1/observations?taxon_id=3'      the API; the query is yours

Every photo and every sound has a license of its own (none means all rights reserved); a pair has what both
demand, and records both. A sound pairs with one photo of its observation, the freest one. What is flagged,
hidden or replaced by a placeholder is not listed, and counted. The API is asked within its limits, in
ascending order of ids; full pages are kept beside the output, so that another run goes on behind them: an
observation that got its sound later than that is found by a new output only. The site's CSV does not tell
licenses of photos and sounds: without columns `photo_license` and `sound_license` its pairs are refused.
"""

import csv
import datetime
import hashlib
import itertools
import json
import logging
import re
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.scratch import scratch_folder
from cluster.storage import Store, open_store
from configs.load import UserError
from ingest.fetch.fetcher import Fetcher
from ingest.fetch.settings import FetchConfig
from ingest.licenses import combined, license_code, strictness
from ingest.sample import Item, Reason, Refused, storable
from ingest.sources.settings import InaturalistConfig, SourceConfig

log = logging.getLogger(__name__)

PLACEHOLDER = re.compile(r"copyright[-_ ]?infring|media[-_ ]hidden|inaturalist\.org/assets/", re.IGNORECASE)
MAX_PER_MINUTE, MAX_PER_DAY = 60, 10_000  # what the site asks of its users
PAGES = "listing"
PAGING = frozenset(
    {"per_page", "page", "order", "order_by", "id_above", "photos", "sounds", "only_id"}
)  # ours, or of no use
PASSING = (Reason.SERVER_ERROR, Reason.TIMEOUT, Reason.NETWORK)


def items(config: SourceConfig, network: FetchConfig, output: str) -> Iterator[Item]:
    """The pairs of an export, or of the API; its pages are kept in `output`. See `ingest.sources.registry.Source`."""
    if config.license:
        raise UserError(
            f"source.license={config.license}: the media of inaturalist state their own; leave it out"
        )
    return _listed(config, network, open_store(output) if output else None)


def _listed(config: SourceConfig, network: FetchConfig, store: Store | None) -> Iterator[Item]:
    """Listed by a fetch process with a folder of its own that ends with the list."""
    with scratch_folder("list") as spool:
        yield from enumerate_inaturalist(config.path, config.inaturalist, network, spool, store)


def enumerate_inaturalist(
    path: str, config: InaturalistConfig, network: FetchConfig, spool: Path, store: Store | None
) -> Iterator[Item]:
    """Pairs of `path`, each once, in order. `store` is the output, where full pages and the day's requests
    are kept.

    Errors: `UserError` for a path, file or API that cannot be used; an API that fails on the way ends the
    list there, with a word in the log.
    """
    if path.startswith(("http://", "https://")):
        if not urllib.parse.urlsplit(path).path.endswith("/observations"):
            raise UserError(
                f"source.path={path}: give the API's observations, as https://api.inaturalist.org/v1/observations?taxon_id=3"
            )
        _within_limits(path, config, network)
        observations = _from_api(path, config, network, spool, store)
    else:
        observations = iter(read_export(Path(path)))
    return _items(observations, config.photo_size)


def _within_limits(url: str, config: InaturalistConfig, network: FetchConfig) -> None:
    """The site's limits hold for the site; a server of your own may be asked faster."""
    if urllib.parse.urlsplit(url).netloc in network.allow_private:
        return
    if config.requests_per_min > MAX_PER_MINUTE or config.requests_per_day > MAX_PER_DAY:
        raise UserError(
            f"source.inaturalist: the site asks for at most {MAX_PER_MINUTE} requests a minute and {MAX_PER_DAY} a day"
        )


def _items(observations: Iterator[dict[str, Any]], photo_size: str) -> Iterator[Item]:
    seen: set[str] = set()
    num_withdrawn = num_alone = 0
    for observation in observations:
        pairs = pairs_of(observation, photo_size)
        num_alone += not pairs
        num_withdrawn += sum(
            is_withdrawn(one) for kind in ("photo", "sound") for one in _stated_media(observation, kind)
        )
        for item in pairs:
            if item.id not in seen:
                seen.add(item.id)
                yield item
    if num_alone:
        log.info("%d observations have no pair of a photo and a sound that may be listed", num_alone)
    if num_withdrawn:
        log.warning(
            "%d photos and sounds are flagged, hidden or replaced by the site, and not listed", num_withdrawn
        )


def pairs_of(observation: dict[str, Any], photo_size: str) -> list[Item]:
    """A pair per sound that still stands: with the freest photo of the observation, the first of several."""
    photos = [photo for photo in _media(observation, "photo") if _photo_url(photo, photo_size)]
    if not photos:
        return []
    photo = min(photos, key=lambda one: strictness(_code(one)))
    items = []
    for sound in _media(observation, "sound"):
        if sound.get("file_url"):
            items.append(_pair(observation, photo, sound, _photo_url(photo, photo_size)))
    return items


def _pair(observation: dict[str, Any], photo: dict[str, Any], sound: dict[str, Any], photo_url: str) -> Item:
    taxon, user = observation.get("taxon") or {}, observation.get("user") or {}
    codes = _code(photo), _code(sound)
    facts = {
        "observation": observation.get("id"),
        "taxon": taxon.get("name"),
        "photo_license": codes[0],
        "sound_license": codes[1],
        "photo_attribution": photo.get("attribution"),
        "sound_attribution": sound.get("attribution"),
    }
    return Item(
        source="inaturalist",
        id=f"{photo['id']}_{sound['id']}",
        url=photo_url,
        license=combined(*codes),
        sound_url=str(sound["file_url"]),
        channel=storable(str(user.get("login") or "")),
        title=storable(
            str(
                taxon.get("preferred_common_name")
                or taxon.get("name")
                or observation.get("species_guess")
                or ""
            )
        ),
        meta={
            key: storable(value) if isinstance(value, str) else value for key, value in facts.items() if value
        },
    )


def pair_license(observation: dict[str, Any], pair_id: str) -> str:
    """What the photo and the sound of `pair_id` (as of `pairs_of`) demand together now; "" where one is no
    longer listed.
    """
    codes = []
    for kind, medium_id in zip(("photo", "sound"), pair_id.split("_"), strict=False):
        found = next((one for one in _media(observation, kind) if str(one["id"]) == medium_id), None)
        codes.append(_code(found) if found else "")
    return combined(*codes) if len(codes) == 2 and all(codes) else ""


def _media(observation: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """The photos or sounds that may be listed."""
    return [one for one in _stated_media(observation, kind) if not is_withdrawn(one)]


def _stated_media(observation: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """Photos or sounds of an observation, in the API's shape or in that of the site (`observation_photos`),
    those with an id.
    """
    plain = observation.get(f"{kind}s") or []
    wrapped = [
        (one or {}).get(kind)
        for one in observation.get(f"observation_{kind}s") or []
        if isinstance(one, dict)
    ]
    return [
        one for one in (plain or wrapped) if isinstance(one, dict) and str(one.get("id") or "").isdecimal()
    ]


def is_withdrawn(medium: dict[str, Any]) -> bool:
    """Whether the site hides a photo or a sound, its users dispute it, or a placeholder stands in its place.

    A flag for copyright counts even when it is resolved: the site does not say in whose favour.
    """
    flags = [
        flag if isinstance(flag, dict) else {"flag": str(flag)} for flag in _as_list(medium.get("flags"))
    ]
    disputed = [
        flag
        for flag in flags
        if flag.get("resolved") is not True or "copyright" in str(flag.get("flag")).lower()
    ]
    texts = [str(value) for name, value in medium.items() if name.endswith("url") or name == "attribution"]
    return bool(
        disputed
        or medium.get("hidden")
        or medium.get("moderator_actions")
        or any(map(PLACEHOLDER.search, texts))
    )


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value else []


def _license(medium: dict[str, Any]) -> str | None:
    """The code as stated;

    None where the medium states none. An export of ours that lacks the fact says "unknown".
    """
    stated = medium.get("license_code")
    return None if stated is None else str(stated)


def _code(medium: dict[str, Any]) -> str:
    """The license of a photo or a sound; nothing stated is all rights reserved, and what nobody knows is
    `unknown`.
    """
    return license_code(_license(medium) or "", site="inaturalist")


def _photo_url(photo: dict[str, Any], size: str) -> str:
    """The photo's address at `size`; the site names one size and keeps the others beside it."""
    url = str(
        photo.get("url")
        or photo.get("original_url")
        or photo.get("large_url")
        or photo.get("medium_url")
        or ""
    )
    return re.sub(r"/(square|thumb|small|medium|large|original)\.(\w+)(\?.*)?$", rf"/{size}.\2", url)


def read_export(path: Path) -> list[dict[str, Any]]:
    """Observations of a file. `UserError` where there is none, or it has another form."""
    if not path.is_file():
        raise UserError(
            f"source.path={path}: no such file; give an export (.json, .jsonl, .csv) or the API's observations URL"
        )
    try:
        if path.suffix.lower() == ".csv":
            with path.open(newline="", encoding="utf-8-sig") as file:
                rows = [_from_csv_row(path, row) for row in csv.DictReader(file)]
            if None in rows:
                log.info("%s: %d of %d rows lack a photo or a sound", path, rows.count(None), len(rows))
            return [row for row in rows if row]
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() in (".jsonl", ".ndjson"):
            read: Any = [json.loads(line) for line in text.split("\n") if line.strip()]  # not at U+2028
        else:
            read = json.loads(text)
    except (OSError, ValueError, csv.Error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"source.path={path}: cannot be read: {error}") from None
    pages = read if isinstance(read, list) else [read]
    if not all(isinstance(page, dict) for page in pages):
        raise UserError(f"source.path={path}: not a list of observations")
    found = [
        one
        for page in pages
        for one in (page["results"] if isinstance(page.get("results"), list) else [page])
    ]
    return [one for one in found if isinstance(one, dict)]


def _from_csv_row(path: Path, row: dict[str, str]) -> dict[str, Any] | None:
    """A row of the site's export in the API's shape; None where it has no photo or no sound."""
    if "image_url" not in row or "sound_url" not in row:
        raise UserError(
            f"source.path={path}: columns image_url and sound_url are needed; choose them when you export"
        )
    photo_id = re.search(r"/photos/(\d+)/", row["image_url"] or "")
    sound_id = re.search(r"/sounds/(\d+)", row["sound_url"] or "")
    if not (photo_id and sound_id):
        return None
    photo = {"id": photo_id[1], "url": row["image_url"], "license_code": row.get("photo_license", "unknown")}
    sound = {
        "id": sound_id[1],
        "file_url": row["sound_url"],
        "license_code": row.get("sound_license", "unknown"),
    }
    taxon = {"name": row.get("scientific_name"), "preferred_common_name": row.get("common_name")}
    return {
        "id": row.get("id"),
        "photos": [photo],
        "sounds": [sound],
        "taxon": taxon,
        "user": {"login": row.get("user_login")},
    }


def _own_query(url: str) -> tuple[str, int]:
    """The URL without what pages are asked with, and the id above which its user wants to begin.

    Of a parameter given twice a server may take either: the user's own per_page, page and order would skip
    observations.
    """
    parts = urllib.parse.urlsplit(url)
    given = urllib.parse.parse_qsl(parts.query, keep_blank_values=True)
    ours = [(name, value) for name, value in given if _plain_name(name) in PAGING]
    starts = [value for name, value in ours if _plain_name(name) == "id_above" and value]
    if not all(value.isascii() and value.isdecimal() for value in starts):
        raise UserError(f"source.path={url}: id_above={','.join(starts)} is not an id")
    if not ours and not parts.fragment:
        return url, 0
    dropped = sorted({name for name, value in ours if _plain_name(name) != "id_above" and value != "true"})
    if dropped:
        log.info(
            "source.path: %s of the query do not count: pages are asked for in order of ids",
            ", ".join(dropped),
        )
    kept = urllib.parse.urlencode([(name, value) for name, value in given if _plain_name(name) not in PAGING])
    return urllib.parse.urlunsplit(parts._replace(query=kept, fragment="")), max(map(int, starts), default=0)


def _plain_name(name: str) -> str:
    return name.strip().lower().removesuffix("[]")


def _from_api(
    url: str, config: InaturalistConfig, network: FetchConfig, spool: Path, store: Store | None
) -> Iterator[dict[str, Any]]:
    """Observations by ascending id: first those of kept pages, then new ones, as far as the day's budget
    goes.

    A short page is not the last one where the API counts more: it lacks what was hidden after the search.
    """
    query, above = _own_query(url)
    with Fetcher(replace(network, retries=0), spool) as fetcher:
        asker = _Asker(query, config, fetcher.read_text, store, network.retries, start=above)
        count, last_total = 0, None
        while not config.max_observations or count < config.max_observations:
            page = asker.page(above)
            if page is None:
                return
            yield from page.observations[
                : config.max_observations - count if config.max_observations else None
            ]
            count += len(page.observations)
            counts_all = (
                page.total is not None and page.total == last_total
            )  # without regard to what pages begin with
            if page.is_last(config.per_page) or (counts_all and count >= (page.total or 0)):
                return
            if not page.observations:
                log.warning(
                    "the API counts %d more observations above id %d and lists none of them",
                    page.total,
                    above,
                )
                return
            above, last_total = max(int(one["id"]) for one in page.observations), page.total


@dataclass(frozen=True)
class _Page:
    """Observations, and how many the API counts from the page's first on;

    None where that is not known, as of a kept page.
    """

    observations: list[dict[str, Any]]
    total: int | None = None
    kept: bool = False

    def is_last(self, per_page: int) -> bool:
        """Whether nothing comes behind it."""
        if self.kept:
            return False
        return (
            self.total <= len(self.observations)
            if self.total is not None
            else len(self.observations) < per_page
        )


class _Asker:
    """Pages of the API, at the rate it allows.

    `spent` counts the requests of each day, kept in the output with full pages.
    """

    def __init__(
        self,
        url: str,
        config: InaturalistConfig,
        read: Callable[[str], bytes],
        store: Store | None,
        retries: int,
        start: int = 0,
    ):
        self.start = start
        self.url, self.config, self.read, self.store, self.retries = url, config, read, store, retries
        query = f"{url} {config.per_page}"  # names of kept pages, and so never changed
        self.folder = f"{PAGES}/{hashlib.sha256(query.encode()).hexdigest()[:12]}"
        self.budget = f"{PAGES}/inaturalist-requests.json"
        self.kept = set(store.list(self.folder)) if store else set()
        self.spent: dict[str, int] = (
            json.loads(store.read(self.budget)) if store and store.exists(self.budget) else {}
        )
        self._last_s = -float("inf")

    def page(self, above: int) -> _Page | None:
        """The observations with ids above `above`, at most a page;

        None where the budget is spent, or the API fails on the way.
        """
        name = f"{self.folder}/{above:015d}.json"
        if self.store and name in self.kept:
            return _Page(list(json.loads(self.store.read(name))), kept=True)
        if not self._left_today():
            log.warning(
                "%d requests today are all that requests_per_day allows; run again tomorrow to go on",
                self.config.requests_per_day,
            )
            return None
        try:
            found = self._ask(above)
        except Refused as refusal:
            if above == self.start:
                raise UserError(
                    f"source.path={self.url}: cannot be listed: {refusal}; try again later"
                ) from None
            log.warning("the API stopped above id %d: %s; run again to go on", above, refusal)
            return None
        if self.store and found.observations and not found.is_last(self.config.per_page):
            self.store.replace(name, json.dumps(found.observations).encode())
        return found

    def _left_today(self) -> int:
        return self.config.requests_per_day - self.spent.get(datetime.date.today().isoformat(), 0)

    def _ask(self, above: int) -> _Page:
        """A page, asked for again where the API failed in passing; every request keeps the distance and
        counts.
        """
        order = {
            "photos": "true",
            "sounds": "true",
            "order_by": "id",
            "order": "asc",
            "per_page": self.config.per_page,
            "id_above": above,
        }
        url = f"{self.url}{'&' if '?' in self.url else '?'}{urllib.parse.urlencode(order)}"
        for attempt in itertools.count():
            self._take_turn()
            try:
                return self._results(self.read(url), above)
            except Refused as refusal:
                passing = (
                    refusal.reason in PASSING or "Retry-After" in refusal.detail
                )  # ingest.fetch.web waits that long before the next
                if not passing or attempt == self.retries or not self._left_today():
                    raise
                time.sleep(0.5 * 2**attempt)
            finally:
                self._last_s = (
                    time.monotonic()
                )  # the distance is kept from the end of one to the start of the next
        raise AssertionError("the last attempt returns or raises")

    def _take_turn(self) -> None:
        time.sleep(max(0.0, self._last_s + 60 / self.config.requests_per_min - time.monotonic()))
        today = datetime.date.today().isoformat()
        self.spent = {today: self.spent.get(today, 0) + 1}
        if self.store:
            self.store.replace(self.budget, json.dumps(self.spent).encode())

    def _results(self, answer: bytes, above: int) -> _Page:
        try:
            read = json.loads(answer)
            total = read.get("total_results")
            observations = [_kept(one) for one in read["results"] if int(one["id"]) > above]
            return _Page(observations, total if isinstance(total, int) else None)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"source.path={self.url}: answers in no form that is known: {type(error).__name__}: {error}"
            ) from None


def _kept(observation: dict[str, Any]) -> dict[str, Any]:
    """What of an observation is used: its place, its comments and the rest stay there."""
    taxon, user = observation.get("taxon") or {}, observation.get("user") or {}
    media = {
        kind: observation.get(kind)
        for kind in ("photos", "sounds", "observation_photos", "observation_sounds")
    }
    names = {"name": taxon.get("name"), "preferred_common_name": taxon.get("preferred_common_name")}
    return {"id": observation["id"], "taxon": names, "user": {"login": user.get("login")}, **media}
