"""What a model learnt from: the record that travels with it, for rooms that load no model.

    record = learnt_from(snapshot, split, uri, kind)      # the pinned units, with the hashes of their indexes
    commits_of(record)                                    # to compare with a dataset, wherever it is now

`provenance.json` lies in the model of a run, beside latents (of the models that made them) and in an export,
with an entry for each part. `published` leaves out what is of this machine. Samples are counted by
training.provenance; ingest.remove looks for those that were taken down.
"""

import json
from typing import NotRequired, TypedDict, cast

from cluster.dataset import Commit, Part, Snapshot, part_name

PROVENANCE = "provenance.json"
INDEX = "model_index.json"  # diffusers' name; marks an exported folder
PinnedUnit = tuple[str, int, int, str]
"""A unit, its generation, and size and sha256 of its index."""


class LearntFrom(TypedDict):
    """A split of a pinned snapshot. `samples` and their `licenses`: missing where nobody could count them.

    `tombstones`: how many files of them there were when it was pinned; `uri` is of this machine.
    """

    name: str
    kind: str
    semantic_hash: str
    snapshot: str
    split: str
    units: list[PinnedUnit]
    samples: NotRequired[int]
    licenses: NotRequired[dict[str, int]]
    tombstones: NotRequired[int]
    uri: NotRequired[str]


class PartRecord(TypedDict):
    """A part of a model. `sources`: what its first weights were, and theirs before; none for random ones.

    `license`: of those weights, `own` for none, `unknown` where nobody stated it.
    """

    sources: list[str]
    license: str
    learnt_from: list[LearntFrom]


class Provenance(TypedDict):
    """provenance.json. `step`: of the run that trained the network or the only part."""

    parts: dict[str, PartRecord]
    step: NotRequired[int]


def read_provenance(data: bytes) -> Provenance:
    """The content of provenance.json. `ValueError` for something else."""
    content = json.loads(data)
    if not isinstance(content, dict) or not isinstance(content.get("parts"), dict):
        raise ValueError("has no parts")
    return cast(Provenance, content)


def learnt_from(snapshot: Snapshot, split: str, uri: str, kind: str) -> LearntFrom:
    """The record of a split of a snapshot, not yet counted."""
    units = [(c.unit, c.generation, c.index.size, c.index.sha256) for c in snapshot.commits]
    hashes = {commit.semantic_hash for commit in snapshot.commits}
    return {
        "name": last_name(uri),
        "kind": kind,
        "semantic_hash": min(hashes, default=""),
        "snapshot": snapshot.id,
        "split": split,
        "units": units,
        "uri": uri,
    }


def commits_of(record: LearntFrom) -> tuple[Commit, ...]:
    """The pinned units, as far as the record has them: without tars, counts and statistics."""
    commits: list[Commit] = []
    for unit, generation, size, sha256 in record["units"]:
        index = Part(part_name("index", unit, sha256, ".parquet"), size, sha256)
        commits.append(Commit(unit, generation, None, index, {}, record["semantic_hash"]))
    return tuple(commits)


def published(record: PartRecord) -> PartRecord:
    """The record without folders and addresses of this machine; what is on the hub keeps its name."""
    learnt = [cast(LearntFrom, {**each}) for each in record["learnt_from"]]
    for each in learnt:
        each.pop("uri", None)
    return {
        "sources": [public_source(source) for source in record["sources"]],
        "license": record["license"],
        "learnt_from": learnt,
    }


def public_source(source: str) -> str:
    """A name of the hub as it is; of a folder or an address its last name.

    >>> public_source("hub:cvssp/audioldm-s-full-v2/vae"), public_source("s3://secret/runs/codec/")
    ('hub:cvssp/audioldm-s-full-v2/vae', 'codec')
    """
    return source if source.startswith("hub:") else last_name(source)


def last_name(uri: str) -> str:
    """
    >>> last_name("/home/me/out/clips/")
    'clips'
    """
    return uri.rstrip("/").split("/")[-1]
