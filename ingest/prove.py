"""`ingest prove-removed DATASET places=[…]`: searches for what was taken down, and writes a dated report.

    proof = prove(ProveConfig("out/clips", channel="Some Channel", places=["out"]))
    proof["verdict"], proof["found"], proof["not_searched"]

Which samples are meant is read from every index object that is left, old generations too; then ingest.search
looks for their keys, and for addresses that no kept sample shares. The report is sealed with a hash over
itself; `key_file=` signs it (ingest.proof).

Only the places that are named are searched; docs/take-down.md says what cannot be found. It changes nothing
but to add the report.
"""

import datetime
import hashlib
import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cluster.dataset import Dataset
from cluster.files import replacing
from cluster.jsonl import JsonObject
from cluster.shards import Status
from cluster.storage import absolute
from configs.load import UserError
from ingest.curate import REASONS as CURATED
from ingest.places import look_into
from ingest.proof import Proof, check_proof, read_key, sealed
from ingest.remove import RemoveConfig, bans_by, bans_of_listed, matches, read_ids
from ingest.rows import ClipRow
from ingest.sample import SELECTORS, bans_of
from ingest.search import Search, own_objects, rows_of, search_places
from ingest.seen import Match
from ingest.traces import Traces

NOTHING = "nothing found"
LIMITS = [
    "Only the places of `searched` were searched; copies elsewhere are not known.",
    "Pictures, sounds and arrays outside of datasets are known by their names, not by what is in them.",
    "The work list keeps the address of an item, and a hole its key, ids, channel, license and split.",
]


@dataclass
class ProveConfig:
    """At most one of `key`, `media`, `channel`, `license` and `ids`, as of ingest remove; none: all that was
    ever taken down here, and not what curation buried.
    """

    dataset: str  # a folder or URI that scrape made
    key: str = ""  # of the one clip that was removed
    media: str = ""  # id of the medium whose clips were, alone or as source:id
    channel: str = ""  # whose clips were
    license: str = ""  # code whose clips were
    ids: str = ""  # a file of keys or media ids, a line each
    # folders of latents, runs, exports, evaluations and reports; all below them is searched
    places: list[str] = field(default_factory=list)
    models: bool = True  # false: models that may have learnt from it are named, and are no failure
    output: str = ""  # the file of the report; empty: below removals/ of the dataset
    key_file: str = ""  # signs the report with an HMAC by the bytes of this file
    check: str = ""  # a report to be checked; nothing is searched

    def __post_init__(self) -> None:
        if self.selection:
            self.removal()  # refuses several selectors, and a license that is none

    @property
    def selection(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in SELECTORS if getattr(self, name)}

    def removal(self) -> RemoveConfig:
        """The removal that would select the same."""
        return RemoveConfig(self.dataset, self.key, self.media, self.channel, self.license, self.ids)


def prove(config: ProveConfig, dry_run: bool = False) -> Proof:
    """Searches, and writes the report unless it is a dry run.

    `UserError` where nothing was taken down, or nothing has the selection.
    """
    if config.check:
        return check_proof(config.check, config.key_file)
    key = read_key(config.key_file)
    dataset = Dataset.open(config.dataset)
    search = _selected(config, dataset)
    search_places(search, dataset)
    proof = _report(config, dataset, search)
    if not dry_run:
        _write(config, dataset, proof, key)
    return proof


def _write(config: ProveConfig, dataset: Dataset, proof: Proof, key: bytes) -> None:
    """`UserError` where `output` cannot be written."""
    stamp = proof["date"].replace("-", "").replace(":", "")
    # the process id tells apart two that are written within a second
    name = f"removals/{stamp}-proof-{os.getpid()}.json"
    proof["report"] = config.output or f"{dataset.uri}/{name}"
    data = sealed(proof, key)
    if not config.output:
        dataset.store.replace(name, data)
        return
    try:
        with replacing(Path(config.output)) as path:
            path.write_bytes(data)
    except OSError as error:
        raise UserError(f"output={config.output}: not writable ({error.strerror}); name another") from error


# --- What is looked for -------------------------------------------------------------------------------------


def _selected(config: ProveConfig, dataset: Dataset) -> Search:
    """Which samples, of every generation that is left, and the addresses that are nobody else's."""
    match, banned = _match_of(config, dataset)
    search = Search(look_into([config.dataset, *config.places]), match)
    named = _keys_down(config, dataset)
    items = set[str]()
    gone = set[str]()
    live = set[str]()
    for file in own_objects(search.places, dataset, "index"):
        for row in rows_of(file, search):
            if match(row):
                items.add(row["item_id"])
                gone.add(row.get("url") or "")
                named |= {row["key"]} if row["key"] else set()
    gone |= _listed_addresses(search, dataset, items, banned)
    # again, as an address may come before the row that makes it a trace: those of all would need memory
    for file in own_objects(search.places, dataset, "index"):
        kept = (row for row in rows_of(file, search) if row["status"] == Status.KEPT and not match(row))
        live |= {row.get("url") or "" for row in kept} & gone
    if not named and not items and not search.kept:
        stated = ", ".join(f"{name}={value}" for name, value in config.selection.items())
        raise UserError(f"{config.dataset}: nothing there has {stated}; ingest report shows what it holds")
    search.traces = Traces(named, gone - live)
    return search


def _match_of(config: ProveConfig, dataset: Dataset) -> tuple[Match, frozenset[str]]:
    """Which rows are meant, and by which bans items of the work list are. `UserError` where nothing is."""
    if config.selection:
        removal = config.removal()
        ids = read_ids(removal)
        return partial(matches, removal, ids), frozenset(bans_by(removal, ids))
    down = frozenset(key for key, reason in dataset.buried().items() if reason not in CURATED)
    if not down:
        fix = "select what you mean by key=…, media=…, channel=…, license=… or ids=…"
        raise UserError(f"{config.dataset}: nothing was taken down yet; {fix}")
    banned = frozenset(key for key in down if ":" in key)

    def match(row: ClipRow) -> bool:
        if row["key"] in down:
            return True
        source = row.get("source") or row["item_id"].partition(":")[0]
        texts = (row.get("media_id") or "", row.get("channel") or "", row.get("license") or "")
        return bool(banned & bans_of(source, *texts))

    return match, banned


def _keys_down(config: ProveConfig, dataset: Dataset) -> set[str]:
    """The keys that a tombstone names: their index may be damaged."""
    buried = dataset.buried()
    if config.key:
        return {config.key} & buried.keys()
    if config.selection:
        return set()
    return {key for key, reason in buried.items() if reason not in CURATED and ":" not in key}


def _listed_addresses(search: Search, dataset: Dataset, items: set[str], banned: frozenset[str]) -> set[str]:
    """The addresses that the work list keeps of what is meant; counted, as they stay by design."""
    addresses: set[str] = set()
    try:
        for task in dataset.worklist.iter_units():
            for item in task.items:
                if item.item_id in items or bans_of_listed(item.payload) & banned:
                    search.kept["items of the work list, with their addresses"] += 1
                    addresses.add(str(item.payload.get("url") or ""))
    except (OSError, ValueError) as error:
        search.places.unread[f"{absolute(dataset.uri)}/worklist"] = str(error)
    return addresses


# --- The report ---------------------------------------------------------------------------------------------


def _report(config: ProveConfig, dataset: Dataset, search: Search) -> Proof:
    keys = sorted(search.traces.keys)
    unread = sorted(search.places.unread.items())
    verdict = "not everything could be searched" if unread else NOTHING
    if search.found or (config.models and search.models):
        verdict = "found"
    searched: JsonObject = {
        "places": [absolute(place) for place in (config.dataset, *config.places)],
        "datasets": sorted(search.places.datasets),
        "models": sorted(search.places.models),
        "objects": dict(search.objects),
        "num_bytes": search.num_bytes,
    }
    return {
        "verb": "prove-removed",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "dataset": absolute(dataset.uri),
        "selection": config.selection or {"all": "that was taken down"},
        "samples": len(keys),
        "keys_sha256": hashlib.sha256("".join(f"{key}\n" for key in keys).encode()).hexdigest(),
        "verdict": verdict,
        "found": search.found,
        "models": search.models,
        "not_searched": [{"place": place, "why": why} for place, why in unread],
        "searched": searched,
        "kept": dict(search.kept),
        "limits": LIMITS,
    }


def lines_of(proof: Proof) -> list[str]:
    """The report for a terminal."""
    found = [*proof["found"], *proof["models"]]
    counts = ", ".join(f"{count} {name}" for name, count in proof["searched"]["objects"].items())
    return [
        *(f"{each['place']}: {each['samples']} ({each['detail']}); {each['fix']}" for each in found),
        *(f"not searched: {each['place']}: {each['why']}" for each in proof["not_searched"]),
        *(f"stays by design: {count} {name}" for name, count in proof["kept"].items()),
        f"searched for {proof['samples']} samples: {counts}",
        f"{proof['date']}: {proof['verdict']}",
    ]
