"""`ingest report DATASET`: one self-contained HTML page one can look at and listen to.

It shows the way from what was found to what was kept, why the rest was refused, licenses, channels,
durations, loudness, the commands that would make it again, a gallery of frame, spectrogram and player. Where
runs (`run=`) and an evaluation (`scores=`, a folder) are named, a story comes before: what the scenes are,
whether sounds follow pictures, pairs to listen to, the stages of the chain, what was killed and resumed, and
losses. These are read as files by their documented form; nothing of `training` is imported. The page samples:
its size does not grow.
"""

import io
import itertools
import json
import logging
import random
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import jinja2
import yaml

from cluster.dataset import Dataset
from cluster.shards import DamagedMemberError, Status, members_of, read_member
from configs.load import SettingsTree, UserError
from ingest.pages.card import plain, write_card
from ingest.pages.charts import charts_of
from ingest.pages.croissant import croissant_text
from ingest.pages.curves import loss_curve, resumption_of
from ingest.pages.pairs import evaluation_of
from ingest.pages.player import Player, data_uri, player_of
from ingest.pages.scene_guide import scene_guide
from ingest.pages.stages import stages_of
from ingest.pages.survey import Survey, survey
from ingest.rows import ClipRow
from ingest.sample import SELECTORS

log = logging.getLogger(__name__)
MAX_SNAPSHOT = 1_000_000  # kept samples; beyond it hashing every commit takes longer than the page
MAX_DRAWN = 200  # shards looked at for the gallery, where most hold nothing
PER_SHARD = 3  # samples of a shard in a row: a shard is often one channel
T = TypeVar("T")
PAGES = Path(__file__).parent / "pages"


class GallerySample(TypedDict):
    """A sample of the gallery; `image` is a data URI."""

    key: str
    title: str | None
    license: str | None
    start_s: float | None
    url: str | None
    channel: str | None
    image: str
    player: Player


@dataclass
class ReportConfig:
    """The page, and what stands beside it: files of `card` are in the dataset, else under the page's name."""

    dataset: str  # of clips, a folder or URI
    output: str = ""  # the page; by default report.html inside a local dataset
    gallery: int = 24  # clips that are shown
    run: str = ""  # training runs whose curves are shown, with commas between
    scores: str = ""  # a folder that evaluate wrote
    title: str = ""  # of the page; by default the dataset's name
    card: bool = True  # also writes README.md, ATTRIBUTION.csv and croissant.json


def write_report(config: ReportConfig) -> str:
    """Writes the page and returns its path.

    `UserError` where the dataset, the run or the scores are not there.
    """
    dataset = Dataset.open(config.dataset, "clips")
    if not config.output and "://" in config.dataset:
        raise UserError(f"output: name a local file for the report of {config.dataset}")
    output = Path(config.output or f"{config.dataset}/report.html")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.open("a").close()
    except OSError as error:
        raise UserError(f"output={output}: not writable ({error.strerror}); name another file") from error
    numbers = survey(dataset)
    if config.card:
        _write_beside(dataset, numbers, output, inside=not config.output)
    output.write_text(_page(config, dataset, numbers))
    return str(output)


def _write_beside(dataset: Dataset, numbers: Survey, output: Path, inside: bool) -> None:
    """Card, attribution list and Croissant metadata. Outside the dataset under the page's own name: a
    README.md there may be somebody's.
    """
    prefix = "" if inside else f"{output.stem}."
    card = output.with_name("README.md" if inside else f"{prefix}card.md")
    attribution = output.with_name("ATTRIBUTION.csv" if inside else f"{prefix}attribution.csv")
    write_card(dataset, numbers, card, attribution)
    croissant = output.with_name(f"{prefix}croissant.json")
    croissant.write_text(croissant_text(dataset, numbers, inside=inside), encoding="utf-8")


def _page(config: ReportConfig, dataset: Dataset, numbers: Survey) -> str:
    # autoescape: titles and names come from the web
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=jinja2.FileSystemLoader(PAGES)
    )
    environment.filters["plain"] = plain
    runs = [Path(run.strip()) for run in config.run.split(",") if run.strip()]
    scores = Path(config.scores) if config.scores else None
    evaluation = evaluation_of(scores) if scores else None
    resumptions = [resumption for run in runs if (resumption := resumption_of(run))]
    return environment.get_template("report.html.j2").render(
        title=config.title or config.dataset.rstrip("/").split("/")[-1],
        uri=config.dataset,
        numbers=numbers,
        charts=charts_of(numbers),
        made_by=commands_of(dataset),
        settings=yaml.safe_dump(dataset.meta["config"], sort_keys=True),
        snapshot=dataset.snapshot().id[:16] if numbers.kept < MAX_SNAPSHOT else "",
        gallery=_gallery(dataset, config.gallery),
        curves=[loss_curve(run) for run in runs],
        resumptions=resumptions,
        evaluation=evaluation,
        guide=scene_guide() if evaluation else [],
        stages=stages_of(dataset, runs, scores),
    )


def commands_of(dataset: Dataset) -> list[str]:
    """What was typed to make the dataset, oldest first, from the records of its runs.

    Typed again, it makes it again. Whom a removal names is left out: only the records have it.
    """
    commands = []
    for name in dataset.store.list("runs"):
        record = re.fullmatch(r"runs/\d{8}T\d{6}-(\w+)-[\d-]+/config\.yaml", name)
        settings = _settings_of(dataset, name) if record else None
        if record is None or settings is None:
            continue
        verb = record[1]
        if verb == "remove":
            settings |= {selector: "…" for selector in SELECTORS if selector in settings}
        target = [str(settings.pop("dataset"))] if "dataset" in settings else []
        commands.append(shlex.join(["python", "-m", "ingest", verb, *target, *_flat(settings)]))
    # a resumed run was typed several times
    return list(dict.fromkeys(commands))


def _settings_of(dataset: Dataset, name: str) -> SettingsTree | None:
    """The settings in the record of a run; None, with a warning, where the record is damaged."""
    try:
        settings = yaml.safe_load(dataset.store.read(name)) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        log.warning(
            "%s/%s: damaged and left out of the report: %s",
            dataset.uri,
            name,
            " ".join(str(error).split())[:200],
        )
        return None
    return settings if isinstance(settings, dict) else None


def _flat(settings: SettingsTree, prefix: str = "") -> list[str]:
    """`a.b=c` of every leaf.

    What is null was typed as nothing (`a.b=`), and is read so again by settings of text and others alike.
    """
    args = []
    for name, value in settings.items():
        if isinstance(value, dict):
            args += _flat(value, f"{prefix}{name}.")
        else:
            args.append(f"{prefix}{name}={_typed(value)}")
    return args


def _typed(value: Any) -> str:
    """A setting as a person types it."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _gallery(dataset: Dataset, most: int) -> list[GallerySample]:
    """Up to `most` samples, drawn the same way every time: three of each of some shards, then three more of
    each, and so on.
    """
    samples = (
        _sample(dataset, tar, row) for tar, row in round_robin(_drawn_shards(dataset, most), PER_SHARD)
    )
    return list(itertools.islice((sample for sample in samples if sample), most))


def _drawn_shards(dataset: Dataset, most: int) -> list[list[tuple[str, ClipRow]]]:
    """Kept rows with their tar, shard by shard, of as many shards as a first round of the gallery needs."""
    rng = random.Random(0)
    buried = dataset.tombstones()
    names = dataset.commit_names()
    shards: list[list[tuple[str, ClipRow]]] = []
    enough = 0
    for name in rng.sample(names, min(len(names), MAX_DRAWN)):
        if enough >= most:
            break
        commit = dataset.read_commit(name)
        if commit.tar is None:
            continue
        rows = dataset.read_index(commit).to_pylist()
        samples = [row for row in rows if row["status"] == Status.KEPT and row["key"] not in buried]
        shards.append([(commit.tar.name, row) for row in rng.sample(samples, len(samples))])
        enough += min(len(samples), PER_SHARD)
    return shards


def round_robin(lists: list[list[T]], count: int) -> Iterator[T]:
    """`count` of each list, then the next `count` of each, to the end of the longest.

    >>> "".join(round_robin([list("aaaa"), list("b")], 3))
    'aaaba'
    """
    for start in range(0, max(map(len, lists), default=0), count):
        for items in lists:
            yield from items[start : start + count]


def _sample(dataset: Dataset, tar: str, row: ClipRow) -> GallerySample | None:
    """What the page shows of a sample; None, with a warning, where its bytes are missing or damaged."""
    try:
        data = {member.ext: read_member(dataset.store, tar, member) for member in members_of(row)}
    except DamagedMemberError as error:
        log.warning("%s: %s left out of the report: %s; run ingest verify", dataset.uri, row["key"], error)
        return None
    return {
        "key": row["key"] or "",
        "title": row["title"],
        "license": row["license"],
        "start_s": row["start_s"],
        "url": row["url"],
        "channel": row["channel"],
        "image": data_uri("image/jpeg", data["jpg"]),
        "player": player_of(io.BytesIO(data["flac"])),
    }
