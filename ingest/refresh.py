"""`ingest refresh DATASET`: asks again whether what is stored may be used, and buries what has been
withdrawn, down to latents.

    refresh(RefreshConfig("out/clips", derived=["out/latents"]))

Each item with a kept sample is asked for as by a scrape, as politely and behind the same guard, but without
the body of its media: permission (`ingest.rights.permission`), license, and whether it is still there.
Withdrawn is what its site now keeps from machine use (`opt_out`), what has no allowed license any more
(`license`), and what is gone (`removed`: 404, 410; of YouTube also private). These samples get a tombstone,
here and in `derived`, and their shards are written again as by `ingest remove`. A failure in passing changes
nothing, nor does a refusal that is none of these. DATASET/refresh notes what was asked and when, so that a
run that was cut off, or could not ask for everything, is completed by the next; after that, everything is
asked again.

Not covered are local files and tars, and pairs of iNaturalist whose observation is not known. Its API tells
their licenses.
"""

import contextlib
import datetime
import json
import logging
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

from cluster.dataset import Dataset
from cluster.scratch import scratch_folder
from cluster.shards import Status
from cluster.worklist import UnitTask
from configs.load import UserError
from ingest.fetch.access import YoutubeConfig
from ingest.fetch.fetcher import Fetcher
from ingest.fetch.settings import FetchConfig
from ingest.licenses import allowed
from ingest.remove import bury, find, open_derived, rewrite_all, seen_by
from ingest.sample import RETRYABLE, Item, Reason, Refused
from ingest.sources.inaturalist import pair_license

log = logging.getLogger(__name__)
WITHDRAWN = frozenset({Reason.OPT_OUT, Reason.LICENSE, Reason.REMOVED})
STANDS, LATER, NOT_COVERED, UNCLEAR = "stands", "later", "not covered", "unclear"
FOLDER = "refresh"
UNFINISHED = f"{FOLDER}/unfinished.json"  # when the run began that is not yet complete
API_PAUSE_S = 1.0  # iNaturalist asks for at most 60 requests a minute


@dataclass
class RefreshConfig:
    """`derived`: datasets of latents made of this one; `runs`: training runs to search for checkpoints.
    `rewrite=false` leaves it at the tombstones. An unfinished run goes on with what it has not asked, unless
    that is `resume_days` ago: 0 begins anew.
    """

    dataset: str
    derived: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    resume_days: float = 7.0
    rewrite: bool = True
    workers: int = 1
    network: FetchConfig = field(default_factory=FetchConfig)
    youtube: YoutubeConfig = field(default_factory=YoutubeConfig)
    inaturalist_api: str = "https://api.inaturalist.org/v1/observations"

    def __post_init__(self) -> None:
        if self.resume_days < 0:
            raise UserError(f"resume_days={self.resume_days}: give 0 or more")
        if self.workers < 1:
            raise UserError(f"workers={self.workers}: give 1 or more")


@dataclass(frozen=True)
class Work:
    """The items of a unit that are due, and their kept samples: item id -> keys."""

    unit: str
    items: dict[str, Item]
    keys: dict[str, list[str]]
    noted: dict[str, dict[str, str]]  # item id -> {"date", "said"}, from earlier runs


def refresh(config: RefreshConfig, dry_run: bool = False) -> dict[str, Any]:
    """Asks and buries; returns counts: `items`, `asked`, `withdrawn` by reason, `samples` buried, `later`,
    `unclear`, `not_covered`.

    `UserError` before anything is asked: no dataset of clips, or a derived dataset without parents. A dry run
    asks too, and writes nothing.
    """
    dataset = Dataset.open(config.dataset)
    if dataset.meta["kind"] != "clips":
        raise UserError(
            f"{config.dataset}: holds {dataset.meta['kind']}; name the dataset of clips, and this one as derived=[…]"
        )
    if not dataset.meta["config"].get("license", {}).get("allow"):
        raise UserError(
            f"{config.dataset}/dataset.json names no license.allow: what is allowed there is not known"
        )
    others = [open_derived(uri) for uri in config.derived]
    tally: Counter[str] = Counter()
    gone: dict[str, str] = {}
    since = _resumed_since(config, dataset, dry_run)
    for work, verdicts in _asked_units(config, dataset, since, tally):
        reasons = {
            key: verdicts[item] for item in verdicts for key in work.keys[item] if verdicts[item] in WITHDRAWN
        }
        gone |= reasons
        if not dry_run:
            _bury_all([dataset, *others], reasons)
            _note(dataset, work, verdicts)
    if not dry_run and not tally[LATER]:
        dataset.store.delete(UNFINISHED)
    summary = _summary(config, tally, gone)
    return {**summary, **_rewrite(config, [dataset, *others], dry_run)}


def _resumed_since(config: RefreshConfig, dataset: Dataset, dry_run: bool) -> datetime.datetime:
    """When the run that this one completes began; now, where this is a new one."""
    now = datetime.datetime.now(datetime.UTC)
    try:
        began = _date(json.loads(dataset.store.read(UNFINISHED))["began"])
        if now - began < datetime.timedelta(days=config.resume_days):
            return began
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError) as error:
        log.warning("%s/%s is damaged: everything is asked again: %s", dataset.uri, UNFINISHED, error)
    if not dry_run:
        dataset.store.replace(UNFINISHED, json.dumps({"began": now.isoformat()}).encode())
    return now


def _asked_units(
    config: RefreshConfig, dataset: Dataset, since: datetime.datetime, tally: Counter[str]
) -> Iterator[tuple[Work, dict[str, str]]]:
    """Unit by unit, `workers` at a time: what was asked, and a verdict per item: a reason, or STANDS, LATER,
    UNCLEAR.
    """
    network = config.network.share(config.workers)
    allow = tuple(dataset.meta["config"]["license"]["allow"])
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(config.workers))
        fetchers = []
        for _ in range(config.workers):
            spool = stack.enter_context(scratch_folder("refresh"))
            fetchers.append(
                stack.enter_context(Fetcher(network, spool, allow, {"youtube": _youtube(config, dataset)}))
            )
        batch: list[Work] = []
        for work in _due(dataset, since, tally):
            batch.append(work)
            if len(batch) == config.workers:
                yield from _ask_batch(config, pool, fetchers, batch, tally)
                batch = []
        yield from _ask_batch(config, pool, fetchers, batch, tally)


def _ask_batch(
    config: RefreshConfig,
    pool: ThreadPoolExecutor,
    fetchers: list[Fetcher],
    batch: list[Work],
    tally: Counter[str],
) -> Iterator[tuple[Work, dict[str, str]]]:
    jobs = [
        pool.submit(_ask_unit, config, fetcher, work) for fetcher, work in zip(fetchers, batch, strict=False)
    ]
    for work, job in zip(batch, jobs, strict=True):
        verdicts = job.result()
        tally.update(verdicts.values())
        yield work, verdicts


def _due(dataset: Dataset, since: datetime.datetime, tally: Counter[str]) -> Iterator[Work]:
    """Units with kept samples that no tombstone names, and their items that were not asked `since` then."""
    commits, buried = dataset.commits(), dataset.tombstones()
    for task in dataset.worklist.iter_units():
        if task.unit not in commits:
            continue
        rows = dataset.read_index(commits[task.unit]).select(["item_id", "key", "status"]).to_pylist()
        keys: dict[str, list[str]] = {}
        for row in rows:
            if row["status"] == Status.KEPT and row["key"] not in buried:
                keys.setdefault(row["item_id"], []).append(row["key"])
        noted = _read_notes(dataset, task.unit) if keys else {}
        items = {item_id: item for item_id, item in _items(task) if item_id in keys}
        done = {item_id for item_id in items if item_id in noted and _date(noted[item_id]["date"]) >= since}
        tally["items"] += len(items)
        tally["before"] += len(done)
        due = {item_id: item for item_id, item in items.items() if item_id not in done}
        if due:
            yield Work(task.unit, due, keys, noted)


def _items(task: UnitTask) -> Iterator[tuple[str, Item]]:
    """The items of the work list; what a later version wrote beside their fields is left out."""
    known = {one.name for one in fields(Item)}
    for work in task.items:
        yield work.item_id, Item(**{name: value for name, value in work.payload.items() if name in known})


def _ask_unit(config: RefreshConfig, fetcher: Fetcher, work: Work) -> dict[str, str]:
    pairs = {item_id: item for item_id, item in work.items.items() if item.source == "inaturalist"}
    verdicts = ask_inaturalist(config, fetcher, pairs) if pairs else {}
    for item_id, item in work.items.items():
        if item_id not in pairs:
            verdicts[item_id] = _ask(fetcher, item)
    return verdicts


def _ask(fetcher: Fetcher, item: Item) -> str:
    if not item.url.startswith(("http://", "https://")):
        return NOT_COVERED
    try:
        fetcher.check(item)
    except Refused as refusal:
        return _verdict(item, refusal)
    return STANDS


def _verdict(item: Item, refusal: Refused) -> str:
    if refusal.reason in RETRYABLE:
        log.info("%s could not be asked for now: %s", item.id, refusal)
        return LATER
    if item.source == "youtube" and refusal.reason == Reason.PRIVATE:
        return str(Reason.REMOVED)
    if refusal.reason in WITHDRAWN:
        log.info("%s is withdrawn: %s", item.id, refusal)
        return str(refusal.reason)
    log.warning("%s stays, though it could not be fetched again: %s", item.id, refusal)
    return UNCLEAR


def ask_inaturalist(config: RefreshConfig, fetcher: Fetcher, items: dict[str, Item]) -> dict[str, str]:
    """One request to the API for all of a unit: a pair stands while both are listed under licenses that are
    allowed.
    """
    known = {
        item_id: str(item.meta["observation"])
        for item_id, item in items.items()
        if item.meta.get("observation")
    }
    verdicts = {item_id: NOT_COVERED for item_id in items if item_id not in known}
    if not known:
        return verdicts
    ids = sorted(set(known.values()))
    url = f"{config.inaturalist_api}?{urllib.parse.urlencode({'id': ','.join(ids), 'per_page': len(ids)})}"
    if urllib.parse.urlsplit(url).netloc not in config.network.allow_private:
        time.sleep(API_PAUSE_S)
    try:
        answer = json.loads(fetcher.read_text(url))
        found = {str(one["id"]): one for one in answer["results"]}
        if len(found) != answer["total_results"]:
            raise ValueError(f"{len(found)} of {answer['total_results']} observations in the answer")
    except (Refused, ValueError, KeyError, TypeError) as error:
        log.info("iNaturalist could not be asked for %d observations now: %s", len(ids), error)
        return verdicts | dict.fromkeys(known, LATER)
    for item_id, observation in known.items():
        license = pair_license(found.get(observation, {}), items[item_id].id)
        verdicts[item_id] = (
            STANDS
            if license and allowed(license, fetcher.allow)
            else str(Reason.LICENSE if license else Reason.REMOVED)
        )
    return verdicts


def _youtube(config: RefreshConfig, dataset: Dataset) -> YoutubeConfig:
    """With the channels that were vouched for when the dataset was made, unless others are now."""
    vouched = dataset.meta["config"].get("source", {}).get("youtube", {}).get("vouched_channels") or {}
    return (
        config.youtube
        if config.youtube.vouched_channels
        else replace(config.youtube, vouched_channels=vouched)
    )


def _bury_all(datasets: list[Dataset], reasons: dict[str, str]) -> None:
    for reason in sorted(set(reasons.values())):
        for dataset in datasets:
            bury(dataset, {key for key, own in reasons.items() if own == reason}, reason)


def _rewrite(config: RefreshConfig, datasets: list[Dataset], dry_run: bool) -> dict[str, Any]:
    """Writes again what holds a sample that this run or an earlier one has buried, and tells which
    checkpoints may have seen it.
    """
    units, failed = 0, dict[str, str]()
    checkpoints = list[dict[str, Any]]()
    for reason in sorted(str(one) for one in WITHDRAWN) if not dry_run else []:
        keys = {key for key, own in datasets[0].buried().items() if own == reason}
        found = [find(dataset, partial(_is_one_of, keys), reason) for dataset in datasets] if keys else []
        for other in datasets[1:]:
            bury(other, keys, reason)  # one that an earlier run was not told of
        checkpoints += [entry for uri in config.runs for entry in seen_by(uri, found)] if found else []
        if config.rewrite and found:
            broken = rewrite_all(found, reason, config.workers)
            units += sum(len(part.commits) for part in found) - len(broken)
            failed |= broken
    return {"units": units, "failed": failed, "checkpoints": checkpoints}


def _is_one_of(keys: set[str], row: dict[str, Any]) -> bool:
    return row["key"] in keys


def _summary(config: RefreshConfig, tally: Counter[str], gone: dict[str, str]) -> dict[str, Any]:
    withdrawn = {str(reason): tally[str(reason)] for reason in sorted(WITHDRAWN) if tally[str(reason)]}
    asked = tally[STANDS] + tally[UNCLEAR] + sum(withdrawn.values())
    counts = {
        "items": tally["items"],
        "asked": asked,
        "asked_before": tally["before"],
        "stand": tally[STANDS],
        "withdrawn": withdrawn,
    }
    left = {"later": tally[LATER], "unclear": tally[UNCLEAR], "not_covered": tally[NOT_COVERED]}
    return {"dataset": config.dataset, **counts, "samples": len(gone), **left}


def _note(dataset: Dataset, work: Work, verdicts: dict[str, str]) -> None:
    """Writes down what was asked, and when; what comes later is due again."""
    now = datetime.datetime.now(datetime.UTC).isoformat()
    fresh = {
        item: {"date": now, "said": verdict}
        for item, verdict in verdicts.items()
        if verdict not in (LATER, NOT_COVERED)
    }
    if fresh:
        dataset.store.replace(
            f"{FOLDER}/{work.unit}.json",
            json.dumps({**work.noted, **fresh}, indent=1, sort_keys=True).encode(),
        )


def _read_notes(dataset: Dataset, unit: str) -> dict[str, dict[str, str]]:
    """What earlier runs wrote down; damaged notes are as none."""
    try:
        notes = json.loads(dataset.store.read(f"{FOLDER}/{unit}.json"))
        return {
            item: {"date": _date(note["date"]).isoformat(), "said": str(note["said"])}
            for item, note in notes.items()
        }
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s/%s/%s.json is damaged and is written anew: %s", dataset.uri, FOLDER, unit, error)
        return {}


def _date(text: str) -> datetime.datetime:
    """`ValueError` for one without a time zone."""
    date = datetime.datetime.fromisoformat(text)
    if not date.tzinfo:
        raise ValueError(f"{text} has no time zone")
    return date
