"""`ingest refresh DATASET`: checks again whether what is stored may be used; buries what was withdrawn.

    refresh(RefreshConfig("out/clips", derived=["out/latents"]))

Each item with a kept sample is requested as by a scrape, as politely and behind the same guard, but without
the body of its media: permission (`ingest.rights.permission`), license, and whether it still exists.
Withdrawn is what its site now keeps from machine use (`opt_out`), what has no allowed license any more
(`license`), and what is deleted (`removed`: 404, 410; of YouTube also private). They get a tombstone,
here and in `derived`, and their shards are rewritten as by `ingest remove`. A transient failure changes
nothing, nor does a refusal that is none of these. DATASET/refresh records what was checked and when, so that
a run that was cut off, or could not check everything, is completed by the next; after that, everything is
checked again. docs/take-down.md draws the whole.

Not covered are local files and tars, and pairs of iNaturalist whose observation is not known: their licenses
come from its API.
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
from typing import TypedDict

from cluster.dataset import Dataset
from cluster.scratch import scratch_folder
from cluster.shards import Status
from cluster.worklist import UnitTask
from configs.load import UserError, at_least, operational
from ingest.fetch.access import YoutubeConfig
from ingest.fetch.fetcher import Fetcher
from ingest.fetch.settings import FetchConfig
from ingest.licenses import allowed
from ingest.remove import bury, find, open_derived, rewrite_all
from ingest.rows import ClipRow
from ingest.sample import RETRYABLE, Item, Reason, Refused
from ingest.seen import SeenBy, seen_by
from ingest.sources.inaturalist import pair_license

log = logging.getLogger(__name__)
WITHDRAWN = frozenset({Reason.OPT_OUT, Reason.LICENSE, Reason.REMOVED})
# verdicts besides the reasons in WITHDRAWN; stored in DATASET/refresh, so the texts must not change
STANDS = "stands"
LATER = "later"
NOT_COVERED = "not covered"
UNCLEAR = "unclear"
FOLDER = "refresh"
UNFINISHED = f"{FOLDER}/unfinished.json"  # when the run began that is not yet complete
API_PAUSE_S = 1.0  # iNaturalist asks for at most 60 requests a minute


@dataclass
class RefreshConfig:
    """What is asked again, and where else its samples may be."""

    dataset: str  # a folder or URI that scrape made
    derived: list[str] = field(default_factory=list)  # datasets of latents made of this one
    runs: list[str] = field(default_factory=list)  # training runs to search for checkpoints
    resume_days: float = 7.0  # for so long an unfinished run is resumed; 0 begins anew
    rewrite: bool = True  # false leaves it at the tombstones
    workers: int = operational(1)  # items asked for, and units rewritten, at once
    network: FetchConfig = field(default_factory=FetchConfig)
    youtube: YoutubeConfig = field(default_factory=YoutubeConfig)
    inaturalist_api: str = "https://api.inaturalist.org/v1/observations"  # where observations are asked for

    def __post_init__(self) -> None:
        at_least(self, 0, "resume_days")
        at_least(self, 1, "workers")


class Note(TypedDict):
    """When an item was checked, and the verdict: a reason, or STANDS or UNCLEAR."""

    date: str
    said: str


class Rewritten(TypedDict):
    """`units` rewritten, `failed`: unit -> its error, and the checkpoints that may have seen the samples."""

    units: int
    failed: dict[str, str]
    checkpoints: list[SeenBy]


class RefreshSummary(Rewritten):
    """Counts of items, but for `withdrawn` (reason -> items) and `samples`, which were buried.

    `asked_before`: by the unfinished run that this one completes; `later`: could not be checked now.
    """

    dataset: str
    items: int
    asked: int
    asked_before: int
    stand: int
    withdrawn: dict[str, int]
    samples: int
    later: int
    unclear: int
    not_covered: int


@dataclass(frozen=True)
class Work:
    """The items of a unit that are due, and their kept samples: item id -> keys."""

    unit: str
    items: dict[str, Item]
    keys: dict[str, list[str]]
    noted: dict[str, Note]  # by item id, from earlier runs


def refresh(config: RefreshConfig, dry_run: bool = False) -> RefreshSummary:
    """Checks and buries.

    `UserError` before any request: no dataset of clips, or a derived dataset without parents. A dry run sends
    the requests too, and writes nothing.
    """
    dataset = Dataset.open(config.dataset)
    if dataset.meta["kind"] != "clips":
        fix = "name the dataset of clips, and this one as derived=[…]"
        raise UserError(f"{config.dataset}: holds {dataset.meta['kind']}; {fix}")
    if not dataset.meta["config"].get("license", {}).get("allow"):
        raise UserError(
            f"{config.dataset}/dataset.json names no license.allow: what is allowed there is not known"
        )
    datasets = [dataset, *(open_derived(uri) for uri in config.derived)]
    tally: Counter[str] = Counter()
    withdrawn: dict[str, str] = {}
    since = _resumed_since(config, dataset, dry_run)
    for work, verdicts in _asked_units(config, dataset, since, tally):
        reasons: dict[str, str] = {}
        for item_id, verdict in verdicts.items():
            if verdict in WITHDRAWN:
                reasons |= dict.fromkeys(work.keys[item_id], verdict)
        withdrawn |= reasons
        if not dry_run:
            # unit by unit: what is withdrawn is unreadable at once, however long the run takes
            _bury_all(datasets, reasons)
            _note(dataset, work, verdicts)
    if not dry_run and not tally[LATER]:
        dataset.store.delete(UNFINISHED)
    rewritten = _rewrite(config, datasets, dry_run)
    return _summary(config, tally, withdrawn, rewritten)


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
        log.warning("%s/%s is damaged: everything is checked again: %s", dataset.uri, UNFINISHED, error)
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
    commits = dataset.commits()
    buried = dataset.tombstones()
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
    names = {field.name for field in fields(Item)}
    for work in task.items:
        yield work.item_id, Item(**{name: value for name, value in work.payload.items() if name in names})


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
        log.info("%s could not be checked now: %s", item.id, refusal)
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
    observation_of = {
        item_id: str(item.meta["observation"])
        for item_id, item in items.items()
        if item.meta.get("observation")
    }
    verdicts = {item_id: NOT_COVERED for item_id in items if item_id not in observation_of}
    if not observation_of:
        return verdicts
    ids = sorted(set(observation_of.values()))
    url = f"{config.inaturalist_api}?{urllib.parse.urlencode({'id': ','.join(ids), 'per_page': len(ids)})}"
    if urllib.parse.urlsplit(url).netloc not in config.network.allow_private:
        time.sleep(API_PAUSE_S)
    try:
        answer = json.loads(fetcher.read_text(url))
        observations = {str(observation["id"]): observation for observation in answer["results"]}
        if len(observations) != answer["total_results"]:
            raise ValueError(f"{len(observations)} of {answer['total_results']} observations in the answer")
    except (Refused, ValueError, KeyError, TypeError) as error:
        log.info("iNaturalist could not be queried for %d observations now: %s", len(ids), error)
        return verdicts | dict.fromkeys(observation_of, LATER)
    for item_id, observation_id in observation_of.items():
        license = pair_license(observations.get(observation_id, {}), items[item_id].id)
        if not license:
            verdicts[item_id] = str(Reason.REMOVED)
        else:
            verdicts[item_id] = STANDS if allowed(license, fetcher.allow) else str(Reason.LICENSE)
    return verdicts


def _youtube(config: RefreshConfig, dataset: Dataset) -> YoutubeConfig:
    """With the channels that were vouched for when the dataset was made, unless others are now."""
    vouched = dataset.meta["config"].get("source", {}).get("youtube", {}).get("vouched_channels") or {}
    if config.youtube.vouched_channels:
        return config.youtube
    return replace(config.youtube, vouched_channels=vouched)


def _bury_all(datasets: list[Dataset], reasons: dict[str, str]) -> None:
    for reason in sorted(set(reasons.values())):
        for dataset in datasets:
            bury(dataset, {key for key, why in reasons.items() if why == reason}, reason)


def _rewrite(config: RefreshConfig, datasets: list[Dataset], dry_run: bool) -> Rewritten:
    """Rewrites what holds a sample that this run or an earlier one has buried; lists the checkpoints that may
    have seen it.
    """
    units = 0
    failed: dict[str, str] = {}
    checkpoints: list[SeenBy] = []
    for reason in sorted(map(str, WITHDRAWN)) if not dry_run else []:
        keys = {key for key, why in datasets[0].buried().items() if why == reason}
        if not keys:
            continue
        selections = [find(dataset, partial(_is_one_of, keys), reason) for dataset in datasets]
        for derived in datasets[1:]:
            bury(derived, keys, reason)  # one that an earlier run did not name
        for uri in config.runs:
            checkpoints += seen_by(uri, selections)
        if config.rewrite:
            broken = rewrite_all(selections, reason, config.workers)
            units += sum(len(selection.commits) for selection in selections) - len(broken)
            failed |= broken
    return {"units": units, "failed": failed, "checkpoints": checkpoints}


def _is_one_of(keys: set[str], row: ClipRow) -> bool:
    return row["key"] in keys


def _summary(
    config: RefreshConfig, tally: Counter[str], buried: dict[str, str], rewritten: Rewritten
) -> RefreshSummary:
    withdrawn = {str(reason): tally[str(reason)] for reason in sorted(WITHDRAWN) if tally[str(reason)]}
    checked = tally[STANDS] + tally[UNCLEAR] + sum(withdrawn.values())
    return {
        "dataset": config.dataset,
        "items": tally["items"],
        "asked": checked,
        "asked_before": tally["before"],
        "stand": tally[STANDS],
        "withdrawn": withdrawn,
        "samples": len(buried),
        "later": tally[LATER],
        "unclear": tally[UNCLEAR],
        "not_covered": tally[NOT_COVERED],
        **rewritten,
    }


def _note(dataset: Dataset, work: Work, verdicts: dict[str, str]) -> None:
    """Records what was checked, and when; what could not be checked is due again."""
    now = datetime.datetime.now(datetime.UTC).isoformat()
    fresh: dict[str, Note] = {
        item: {"date": now, "said": verdict}
        for item, verdict in verdicts.items()
        if verdict not in (LATER, NOT_COVERED)
    }
    if fresh:
        dataset.store.replace(
            f"{FOLDER}/{work.unit}.json",
            json.dumps({**work.noted, **fresh}, indent=1, sort_keys=True).encode(),
        )


def _read_notes(dataset: Dataset, unit: str) -> dict[str, Note]:
    """What earlier runs recorded; damaged notes count as none."""
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
