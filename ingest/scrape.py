"""`ingest scrape`: source -> fetch -> clip -> filter -> shards, on Ray actors; run again = resume.

`scrape(config)` is the whole verb; `scrape_item` is what happens to one item, a plain function without Ray.
The work list is frozen before work starts; a failure of the world ends as a row. Near-duplicates and caps are
dataset-wide (curate).
"""

import contextlib
import hashlib
import itertools
import json
import logging
import shutil
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from cluster.dataset import Dataset
from cluster.jsonl import JsonObject
from cluster.pool import UnitOutput
from cluster.progress import RunSummary
from cluster.rebind import create_or_rebind
from cluster.scratch import scratch_folder
from cluster.shards import Row, write_shard
from cluster.units import run_units
from cluster.worklist import UnitTask
from configs.load import SettingsTree, UserError, at_least, operational, semantic_dict
from ingest.clip.clipper import AudioConfig, ClipConfig, Clipper, FrameConfig, MediaLimits
from ingest.clip.filter import FilterConfig, judge_clip
from ingest.fetch.fetcher import Fetcher
from ingest.fetch.settings import FetchConfig
from ingest.license_table import SITE_CODES
from ingest.licenses import LicenseConfig, allowed, check_allow
from ingest.rows import CLIP_COLUMNS
from ingest.sample import RETRYABLE, Item, Media, Reason, Refused, split_group, without_tokens
from ingest.shard import banned_row, clip_row, refused_row
from ingest.sources.registry import enumerate_items
from ingest.sources.settings import SourceConfig

log = logging.getLogger(__name__)
CLIPPING = 2  # raised whenever the same media and settings give other clips than before
# times what a unit's items may take to fetch and to decode: only a worker that hangs elsewhere exceeds it
UNIT_DEADLINE = 1.5


@dataclass
class SplitConfig:
    """Shares of what is held out. All clips of a video, all pairs of an iNaturalist observer fall together;
    with by=channel all media of a channel. The hash of their id decides.
    """

    validation: float = 0.0  # share that is held out for validation
    test: float = 0.0  # share that is held out for tests
    by: str = "media"  # media, or channel: what falls into one split as a whole


@dataclass
class ScrapeConfig:
    """Settings of a scrape; `unit_size` items make one shard.

    Transient failures are retried at the end of the run, `retry_after_s` later, and again by the next run.
    """

    # the dataset, a folder or URI; another name for the same place is the same dataset
    output: str = field(metadata={"operational": True})
    source: SourceConfig
    workers: int = operational(2)  # processes, on Ray; 0 works in this process
    unit_size: int = operational(8)  # items that make one shard
    retry_after_s: float = operational(60.0)  # how long transient failures rest before they are tried again
    license: LicenseConfig = field(default_factory=LicenseConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)
    frame: FrameConfig = field(default_factory=FrameConfig)
    limits: MediaLimits = field(default_factory=MediaLimits)
    filter: FilterConfig = field(default_factory=FilterConfig)
    network: FetchConfig = field(default_factory=FetchConfig)
    split: SplitConfig = field(default_factory=SplitConfig)


def scrape(config: ScrapeConfig, progress: bool = True) -> RunSummary:
    """Appends what the source lists to the work list, does every unit not yet committed, and returns the
    summary.

    Errors: `UserError` for settings that cannot work or differ from those the output was made with, before
    any work. An output that stores nothing yet takes other settings.
    """
    check(config)
    if config.source.kind in ("urls", "youtube", "inaturalist") and not config.network.contact:
        log.info("network.contact is not set: give an e-mail address or URL by which a site can reach you")
    items = enumerate_items(config.source, config.network, config.output)
    first = next(items, None)
    if first is None:
        raise UserError(
            f"source.path={config.source.path}: nothing found there for source.kind={config.source.kind}"
        )
    dataset = create_or_rebind(config.output, "clips", semantic(config))
    bans = frozenset(key for key in dataset.tombstones() if ":" in key)
    allowed_items = _without_banned(itertools.chain([first], items), bans)
    entries = ((_item_id(item), asdict(item)) for item in _warn_if_ids_moved(dataset, allowed_items))
    log.info("%d items are new", dataset.worklist.append(entries, config.unit_size))
    item_deadline_s = config.network.timeout_s + config.limits.timeout_s
    return run_units(
        dataset,
        partial(ScrapeStage, config, bans),
        config.workers,
        retryable_reasons=frozenset(str(reason) for reason in RETRYABLE),
        columns=CLIP_COLUMNS,
        retry_after_s=config.retry_after_s,
        unit_deadline_s=UNIT_DEADLINE * config.unit_size * item_deadline_s,
        progress=progress,
    )


def _item_id(item: Item) -> str:
    return f"{item.source}:{item.id}"


def _without_banned(items: Iterable[Item], bans: frozenset[str]) -> Iterator[Item]:
    """The items that no removal keeps out; logs how many it did."""
    kept_out = 0
    for item in items:
        if bans & item.bans():
            kept_out += 1
        else:
            yield item
    if kept_out:
        log.warning(
            "%d items were removed from this dataset (ingest remove) and are not listed again", kept_out
        )


def _warn_if_ids_moved(dataset: Dataset, items: Iterable[Item]) -> Iterator[Item]:
    """The items; logs one line where ids of the work list now mean other media. Those are not scraped again.

    Holds 16 bytes for each item of the list.
    """
    listed = _ListedPlaces(dataset)
    moved = 0
    first = None
    for item in items:
        if listed.moved(item):
            moved += 1
            first = first or item
        yield item
    if first:
        item_id = _item_id(first)
        example = f"{item_id} was {_listed_url(dataset, item_id)}, is {first.url}"
        log.warning(
            "%d ids already exist for another place (%s); these stay. Use another output for new media",
            moved,
            without_tokens(example),
        )


def _listed_url(dataset: Dataset, item_id: str) -> str | None:
    for task in dataset.worklist.iter_units():
        for work in task.items:
            if work.item_id == item_id:
                return work.payload.get("url")
    return ""


class _ListedPlaces:
    """The ids of a work list and where each was to be fetched, as hashes sorted by id.

    Two hashes of 8 bytes: a dictionary would take 40 times as much of a driver's memory.
    """

    def __init__(self, dataset: Dataset):
        ids = array("Q")
        places = array("Q")
        for task in dataset.worklist.iter_units():
            for work in task.items:
                ids.append(_hash(work.item_id))
                places.append(_hash(_place(work.payload)))
        # stable: of an id that is listed twice the first attempt counts
        order = np.argsort(np.asarray(ids), kind="stable")
        self.ids = np.asarray(ids)[order]
        self.places = np.asarray(places)[order]

    def moved(self, item: Item) -> bool:
        """Whether the list has this id for another place."""
        id_hash = np.uint64(_hash(_item_id(item)))
        index = int(np.searchsorted(self.ids, id_hash))
        if index >= len(self.ids) or self.ids[index] != id_hash:
            return False
        return bool(self.places[index] != np.uint64(_hash(_place(vars(item)))))


def _place(payload: JsonObject) -> str:
    """What makes two items of one id different media."""
    urls = [payload.get("url"), payload.get("sound_url")]
    return json.dumps([*urls, payload.get("start_s") or 0.0, payload.get("end_s") or 0.0])


def _hash(text: str) -> int:
    # surrogatepass: names of files and titles may hold lone surrogates
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def semantic(config: ScrapeConfig) -> SettingsTree:
    """The settings that decide the bytes, those of the source's own kind among them, and the decoder."""
    settings = {**semantic_dict(config), "decoder": f"av {version('av')}", "clipping": CLIPPING}
    source = getattr(config.source, config.source.kind, None)
    if source is not None:
        settings["source"] |= {config.source.kind: semantic_dict(source)}
    return settings


def check(config: ScrapeConfig) -> None:
    """Everything about the settings that can be wrong and needs no look at the world."""
    _check_licenses(config)
    if config.clip.duration_s <= 0:
        raise UserError(f"clip.duration_s={config.clip.duration_s}: give a positive number of seconds")
    at_least(config, 1, "unit_size")
    _check_split(config.split)
    _check_bandwidth(config)


def _check_split(split: SplitConfig) -> None:
    if min(split.validation, split.test) < 0 or split.validation + split.test > 1:
        shares = f"validation={split.validation} and test={split.test}"
        raise UserError(f"split: {shares} are not shares of one whole")
    if split.by not in ("media", "channel"):
        raise UserError(f"split.by={split.by}: give media or channel")


def _check_bandwidth(config: ScrapeConfig) -> None:
    """`UserError` where an item of the allowed size could never arrive before its timeout."""
    network = config.network
    num_bytes = network.share(config.workers).bytes_per_s * network.timeout_s
    if 0 < num_bytes < network.max_bytes:
        share = (
            f"a worker's share brings {num_bytes / 1e6:.0f} MB in network.timeout_s={network.timeout_s:.0f}"
        )
        fix = f"raise that, or lower workers={config.workers} or network.max_bytes={network.max_bytes}"
        prefix = f"network.bytes_per_s={network.bytes_per_s:.0f}"
        raise UserError(f"{prefix}: {share}, and larger items would never come; {fix}")


def _check_licenses(config: ScrapeConfig) -> None:
    """`UserError` where `license.allow` is wrong, or could let in nothing of the source."""
    allow = config.license.allow
    source = config.source
    try:
        check_allow(allow)
    except ValueError as error:
        raise UserError(str(error)) from None
    # only for a folder does the statement hold for every item: lists and tars have columns of their own
    is_folder = source.kind == "folder" and Path(source.path).is_dir()
    if is_folder and source.license and not allowed(source.license, allow):
        fix = f"add {source.license} there, or state another license"
        problem = f"license.allow={','.join(allow)} lets nothing of it in"
        raise UserError(f"source.license={source.license}: {problem}; {fix}")
    possible = set(SITE_CODES.get(source.kind, {}).values())
    if source.kind == "youtube":
        possible |= set(source.youtube.vouched_channels.values())
    if possible and not any(allowed(code, allow) for code in possible):
        codes = ", ".join(sorted(possible))
        raise UserError(
            f"license.allow={','.join(allow)} lets in nothing of {source.kind}, where there is {codes}"
        )


class ScrapeStage:
    """A unit of items -> a shard; holds the warm fetch process and decoder children of one worker.

    `bans`: see ingest.sample.
    """

    def __init__(self, config: ScrapeConfig, bans: frozenset[str] = frozenset()):
        self.config = config
        self.bans = bans
        self.stack = contextlib.ExitStack()
        self.spool = self.stack.enter_context(scratch_folder("spool"))
        network = config.network.share(config.workers)
        self.fetcher = self.stack.enter_context(
            Fetcher(network, self.spool, tuple(config.license.allow), {"youtube": config.source.youtube})
        )
        self.clipper = self.stack.enter_context(
            Clipper(config.clip, config.audio, config.frame, config.limits)
        )

    def __call__(self, task: UnitTask, scratch: Path) -> UnitOutput:
        rows: list[Row] = []
        for work in task.items:
            item = Item(**work.payload)
            rows += scrape_item(item, work.item_id, self.fetcher, self.clipper, self.config, self.bans)
        retryable = {row.item_id for row in rows if row.reason in RETRYABLE}
        return UnitOutput(write_shard(scratch, rows, CLIP_COLUMNS), retryable=len(retryable))

    def close(self) -> None:
        self.stack.close()


def scrape_item(
    item: Item,
    item_id: str,
    fetcher: Fetcher,
    clipper: Clipper,
    config: ScrapeConfig,
    bans: frozenset[str] = frozenset(),
) -> list[Row]:
    """Rows of one item: a row per clip, kept or refused, and per segment that gave none; or one refused row
    where the whole gave none.
    """
    media: Media | None = None
    try:
        if bans & item.bans():
            return [banned_row(item, item_id)]
        if item.license and not allowed(item.license, config.license.allow):
            # before anything of it is read
            raise Refused(Reason.LICENSE, f"license {item.license} is not allowed")
        media = fetcher.fetch(item, config.frame.short_side_px)
        if bans & item.bans(media.channel, media.license):
            return [banned_row(item, item_id)]
        if not allowed(media.license, config.license.allow):
            raise Refused(Reason.LICENSE, f"license {media.license or 'not stated'}")
        clips = clipper.cut(media)
        if not clips:
            raise Refused(Reason.TOO_SHORT, f"no window of {config.clip.duration_s} s fits")
        media = replace(media, meta=_with_embedded(media, clipper.embedded))
        lost = [refused_row(item, item_id, refusal, media.license, media.channel) for refusal in clipper.lost]
    except Refused as refusal:
        return [refused_row(item, item_id, refusal, *((media.license, media.channel) if media else ()))]
    finally:
        if media and media.owned:
            _discard(media)
    channel = media.channel or item.channel
    split = split_of(split_group(item.source, item.media_id, channel, config.split.by), config.split)
    rows = [clip_row(item, item_id, media, clip, split, *judge_clip(clip, config.filter)) for clip in clips]
    return rows + lost


def _with_embedded(media: Media, embedded: str) -> JsonObject:
    """The metadata of `media`, and with its permission what it says of machine use within itself."""
    return {**media.meta, "permission": {**media.meta.get("permission", {}), "embedded": embedded}}


def split_of(group: str, config: SplitConfig) -> str:
    """`train`, `validation` or `test`, by a hash of the `split_group`: the same on every machine and in every
    run.
    """
    position = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
    if position < config.test:
        return "test"
    return "validation" if position < config.test + config.validation else "train"


def _discard(media: Media) -> None:
    for path in {media.picture, media.sound}:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
