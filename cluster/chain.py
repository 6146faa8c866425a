"""The way from media to a sound: its commands in order, and which of them are done.

    for step in chain_of("out/clips"): print(step.done, step.command)
    next_command("out/runs/contrastive")      # what a person types next; "" where nothing is known

Everything follows from one output: a run names its data, latents name their clips, and what else was made of
these lies beside them, in the same folder or in runs/ there. Of object storage only the usual names are
looked at. Commands are text, as a person types them: nothing is started, changed or judged.
"""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

from cluster.dataset import Dataset
from cluster.learnt import INDEX, PROVENANCE, read_provenance
from cluster.storage import Store, absolute, open_store
from configs.environment import typed
from configs.load import StoppedError

log = logging.getLogger(__name__)
RUNS = "runs"
RUN, FINISHED, SOUNDS = "run.json", "FINISHED.json", "sounds.jsonl"
USUAL = ("clips", "runs/contrastive", "runs/autoencoder", "latents", "runs/diffusion", "sounds", "export")
UNREADABLE = (OSError, ValueError, KeyError, TypeError, IndexError, StoppedError)
MAX_RECORD_BYTES = 32_000_000
# from here on, a step that is done makes those before it unnecessary: latents may come of published models
FIRST_WITHOUT_OTHERS = "latents"
# a person's own: nobody else knows where they are
MEDIA, PICTURES = "my-videos", "my-pictures"
NOTHING = "nothing"  # what no output was made of


class Step(NamedTuple):
    """A command of the chain, and whether what it makes is there."""

    name: str
    command: str
    done: bool


class Output(NamedTuple):
    """What a place holds: clips, latents, a run by its recipe, sounds or an export.

    `source`: what it was made of: an address, of an export the id of a snapshot. `snapshot`: that a run
    pinned.
    """

    kind: str
    uri: str
    source: str = ""
    snapshot: str = ""
    done: bool = True


def next_command(*places: str) -> str:
    """The first command of the chain that is not done yet and is needed; "" where there is none.

    `places`: outputs, the one just made first. Never fails: what cannot be read is not there.
    """
    try:
        steps = chain_of(*places)
    except UNREADABLE as error:
        log.debug("no next command after %s: %s", places, error)
        return ""
    if not steps or not steps[0].done:
        return ""
    names = [step.name for step in steps]
    first = names.index(FIRST_WITHOUT_OTHERS)
    begin = max((index for index in range(first, len(steps)) if steps[index].done), default=0)
    return next((step.command for step in steps[begin:] if not step.done), "")


def recipe_for(data: str) -> list[Step]:
    """The chain of clips, or of whatever was made of them; of a folder with anything else in it, that of
    clips of its media in out/clips.
    """
    is_media = (
        "://" not in data and os.path.isdir(data) and os.listdir(data) and not _identify(absolute(data))
    )
    return chain_of("out/clips", media=data) if is_media else chain_of(data)


def chain_of(*places: str, media: str = MEDIA) -> list[Step]:
    """All steps from the clips that the first of `places` is, or was made of; of a place that holds nothing
    yet, as if it were to hold clips.
    """
    clips = _clips_of(places[0])
    if not clips:
        return []
    root = _parent(clips)
    found = [output for place in _places(root, places) if (output := _identify(place))]

    def made(kind: str, usual: str, source: str) -> Output:
        alike = (each for each in found if each.kind == kind and each.done and each.source == source)
        return next(alike, Output(kind, f"{root}/{usual}", source, done=False))

    towers = made("contrastive", "runs/contrastive", clips)
    codec = made("autoencoder", "runs/autoencoder", clips)
    latents = made("latents", "latents", clips)
    network = made("diffusion", "runs/diffusion", latents.uri if latents.done else NOTHING)
    sounds = made("sounds", "sounds", network.uri if network.done else NOTHING)
    model = made("export", "export", network.snapshot or NOTHING)
    train = ("training", "train")
    return [
        _step(
            made("clips", "clips", "")._replace(uri=clips, done=_holds_samples(clips)),
            ("ingest", "scrape", "configs/ingest/laptop.yaml"),
            **{"source.path": media},
        ),
        _step(towers, (*train, "configs/training/small_contrastive.yaml"), data=clips),
        _step(codec, (*train, "configs/training/small_autoencoder.yaml"), data=clips),
        _step(
            latents,
            ("training", "precompute", "configs/training/small_latents.yaml"),
            data=clips,
            autoencoder=codec.uri,
            image_encoder=towers.uri,
        ),
        _step(network, (*train, "configs/training/small_diffusion.yaml"), data=latents.uri),
        _step(sounds, ("training", "generate"), model=network.uri, images=PICTURES),
        _step(model, ("training", "export"), model=network.uri),
    ]


def _step(output: Output, words: tuple[str, ...], **settings: str) -> Step:
    """The command that makes `output`; paths of this machine as a person would type them from here."""
    given = [f"{name}={_short(value)}" for name, value in {**settings, "output": output.uri}.items()]
    return Step(output.kind, typed(*words, *given), output.done)


def _short(uri: str) -> str:
    """Relative where it lies below the current folder.

    >>> _short(os.path.abspath("out/clips")), _short("s3://bucket/clips")
    ('out/clips', 's3://bucket/clips')
    """
    if "://" in uri or not os.path.isabs(uri):
        return uri
    relative = os.path.relpath(uri)
    return uri if relative.startswith("..") else relative


def _clips_of(place: str) -> str:
    """The address of the clips at the beginning of the chain; "" for what is in no chain."""
    uri = absolute(place).rstrip("/")
    output = _identify(uri)
    if output is None:
        return uri
    # a run of latents leads to these, and they to their clips
    for _ in range(2):
        if output and output.kind != "clips":
            output = _identify(output.source) if output.source else None
    return output.uri if output and output.kind == "clips" else ""


def _identify(uri: str) -> Output | None:
    """What the place holds; None where that is nothing, nothing that is known here, or damaged."""
    if "://" not in uri and not os.path.isdir(uri):
        return None
    try:
        return _read(uri, open_store(uri))
    except UNREADABLE as error:
        log.debug("%s is left out of the chain: %s", uri, error)
        return None


def _read(uri: str, store: Store) -> Output | None:
    """The same of a place that is there."""
    if store.exists(RUN):
        # a run over millions of shards pins each: a hint is not worth reading them
        if store.size(RUN) > MAX_RECORD_BYTES:
            return None
        record = json.loads(store.read(RUN))
        data = record["snapshots"][0]
        finished = store.exists(FINISHED)
        return Output(record["config"]["recipe"], uri, absolute(data["uri"]), data["id"], finished)
    if store.exists("dataset.json"):
        dataset = Dataset.open(uri)
        parents = dataset.meta["parents"]
        source = absolute(parents[0]["uri"]) if parents else ""
        done = dataset.meta["kind"] != "latents" or _holds_samples(uri)
        return Output(dataset.meta["kind"], uri, source, done=done)
    if store.exists(SOUNDS):
        return Output("sounds", uri, _model_behind(store))
    if store.exists(INDEX) and store.exists(PROVENANCE):
        parts = read_provenance(store.read(PROVENANCE))["parts"].values()
        snapshots = [each["snapshot"] for part in parts for each in part["learnt_from"]]
        return Output("export", uri, snapshots[-1] if snapshots else "")
    return None


def _model_behind(sounds: Store) -> str:
    """The model that made the sounds, from the newest record of the verb; "" where there is none."""
    records = [name for name in sounds.list(RUNS) if "-generate-" in name and name.endswith("/config.yaml")]
    model = yaml.safe_load(sounds.read(records[-1])).get("model", "") if records else ""
    return absolute(str(model))


def _holds_samples(uri: str) -> bool:
    """Whether any commit of the dataset has kept a sample; False where there is no dataset.

    In object storage, where a listing may be long, a dataset is taken to hold some.
    """
    try:
        dataset = Dataset.open(uri)
    except ValueError:
        return False
    return "://" in uri or any(commit.counts.get("kept") for commit in dataset.iter_commits())


def _places(root: str, first: tuple[str, ...]) -> Iterator[str]:
    """`first`, then what lies in `root` and in its runs/: each once, in order."""
    beside = [f"{root}/{name}" for name in USUAL]
    if "://" not in root:
        folders = [folder for folder in (Path(root), Path(root, RUNS)) if folder.is_dir()]
        beside = [str(path) for folder in folders for path in sorted(folder.iterdir())]
    yield from dict.fromkeys([*(absolute(place).rstrip("/") for place in first), *beside])


def _parent(uri: str) -> str:
    return uri.rstrip("/").rpartition("/")[0] or "/"
