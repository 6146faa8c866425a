"""What evaluate is asked for, and the held-out clips that it scores.

    clips = find_clips(Dataset.open("out/clips"), config, num_samples)     # chosen by their keys alone

A clip may have a truth: what its sound is made of, as `ingest synth` wrote it. Nothing is judged here
(training.evaluate, training.real_scores, training.roundtrip).
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict
from urllib.parse import urlsplit

import numpy as np
import soundfile
from PIL import Image

from cluster.dataset import Commit, Dataset
from cluster.shards import Status, members_of, read_member
from configs.load import UserError, operational
from ingest.pixels import PictureError, open_picture
from training.data.choice import choose
from training.judge import Attributes
from training.pipeline.mel import MelConfig
from training.recipes.clips import decode_wav

log = logging.getLogger(__name__)
IndexRow = dict[str, Any]
"""A row of an index of clips, as `Dataset.iter_rows` gives it: the columns of a shard."""


@dataclass
class EvaluateConfig:
    """What is scored, on which clips, by whom, and how."""

    output: str  # the folder to write to
    model: str = ""  # a finished run, an exported folder or hub:owner/name
    data: str = ""  # the clips to score on: a dataset, a folder or URI
    truth: str = ""  # a folder of <media id>.json that says what sounds when; not for an autoencoder
    split: str = "validation"  # which clips
    num_clips: int = 320  # at most so many, chosen by their keys
    seed: int = 0  # of the noise, of exchanged pairs and of intervals
    guidance: float | None = None  # 1 = none; by default 2, or 1 for a model without a null embedding
    steps: int | str = 25  # of the sampler; several with commas between, such as 1,2,4,8,25
    vocoder: str = ""  # a finished run, a save_pretrained folder or hub:owner/name in place of the model's
    prior: str = ""  # a finished run or exported folder, for a model that attends to tokens of AudioMAE
    sampler: str = ""  # ddim, euler, dpmsolver or unipc in place of the model's
    judge: str = ""  # contrastive models that the model did not learn from, with commas between
    classifier: str = ""  # audio classifiers of transformers, with commas between
    embedder: str = ""  # audio models of transformers for Frechet distances, with commas between
    onsets: bool = False  # also whether sounds begin when the real ones do, for models of videos
    caption: str = "caption"  # the column of clips that texts are in, for judges that read
    own_judge: bool = False  # also a judge that the model learnt from, marked
    generated: str = ""  # a folder of sounds of any system, in place of data
    reference: str = ""  # a folder of real sounds of the same names
    pictures: str = ""  # a folder of pictures of the same names
    pairs: str = ""  # JSON of their media and captions, as evaluate writes it
    av_benchmark: bool = False  # also the layout that av-benchmark reads, in <output>/av-benchmark
    videos: str = ""  # a folder of .mp4 of the same names, for that layout
    against: str = ""  # an older evaluation; alone with output=, both are only compared
    batch: int = operational(32)  # sounds made, or judged, at once
    threads: int = operational(0)  # of torch; 0 = all cores


class Scene(TypedDict):
    """An entry of a truth file: what sounds from `start_s` on."""

    start_s: float
    duration_s: float
    attributes: Attributes


@dataclass(frozen=True)
class HeldOut:
    """A clip and what its sound is made of, where that is known. `metadata`: its JSON."""

    key: str
    jpeg: bytes
    wav: np.ndarray
    truth: Attributes | None
    picture: Image.Image
    media_id: str
    metadata: bytes = b"{}"


def check_comparable(dataset: Dataset, mel: MelConfig) -> None:
    """`UserError` for clips of another sample rate or length than the model makes: their scores would say
    nothing of it.
    """
    settings = dataset.meta["config"]
    rate_hz = settings["audio"]["sample_rate_hz"]
    duration_s = settings["clip"]["duration_s"]
    if rate_hz != mel.sample_rate_hz:
        raise UserError(
            f"data={dataset.uri}: has audio.sample_rate_hz={rate_hz}, the model makes {mel.sample_rate_hz}; "
            f"scrape clips with audio.sample_rate_hz={mel.sample_rate_hz}"
        )
    if replace(mel, duration_s=duration_s).num_samples != mel.num_samples:
        raise UserError(
            f"data={dataset.uri}: has clip.duration_s={duration_s:g}, the model makes {mel.duration_s:g} s; "
            f"scrape clips with clip.duration_s={mel.duration_s:g}"
        )


def find_clips(dataset: Dataset, config: EvaluateConfig, num_samples: int) -> list[HeldOut]:
    """Up to `num_clips` kept clips of the split that have a truth, in the order of their keys; of all clips
    where no folder of truths is given.

    Which ones depends on keys alone (training.data.choice): what was removed keeps its place. Damaged ones
    are named and left out.
    """
    rows: dict[str, IndexRow] = {}
    for row in dataset.iter_rows():
        if row["status"] in (Status.KEPT, Status.REMOVED) and row["split"] == config.split:
            rows[row["key"]] = row
    tombstones = dataset.tombstones()
    removed = {key for key, row in rows.items() if row["status"] == Status.REMOVED or key in tombstones}
    truths: dict[str, Attributes | None] = dict.fromkeys(rows.keys() - removed)
    if config.truth:
        truths = {**_truths_of(rows, removed, Path(config.truth))}
    keys = sorted(truths.keys() | removed)
    is_hole = np.array([key in removed for key in keys], bool)
    chosen = choose(keys, is_hole, config.num_clips, at_least=2)
    commits = dataset.commits()
    clips: list[HeldOut] = []
    for index in sorted(chosen):
        key = keys[index]
        if key in truths:
            clip = _read_clip(dataset, commits[rows[key]["unit"]], rows[key], truths[key], num_samples)
            clips += [clip] if clip else []
    return clips


def _truths_of(rows: dict[str, IndexRow], removed: set[str], folder: Path) -> dict[str, Attributes]:
    """Truths by key, of the rows that are not removed and have one; how many have none is logged."""
    truths: dict[str, Attributes] = {}
    for key, row in rows.items():
        truth = None if key in removed else find_truth(folder, row)
        if truth:
            truths[key] = truth
    present = len(rows) - len(removed)
    if len(truths) < present:
        log.warning("%d of %d held-out clips have no truth and are left out", present - len(truths), present)
    return truths


def _read_clip(
    dataset: Dataset, commit: Commit, row: IndexRow, truth: Attributes | None, num_samples: int
) -> HeldOut | None:
    """None where its bytes are damaged, which is logged."""
    assert commit.tar is not None, "a kept row has a tar"
    members: dict[str, bytes] = {}
    try:
        for member in members_of(row):
            if member.ext in ("flac", "jpg", "json"):
                members[member.ext] = read_member(dataset.store, commit.tar.name, member)
        wav = decode_wav(members["flac"])[:num_samples]
        picture = open_picture(members["jpg"])
    except (OSError, KeyError, PictureError, soundfile.LibsndfileError) as error:
        hint = f"run python -m ingest verify {dataset.uri}"
        log.warning("%s of %s is left out: %s; %s", row["key"], dataset.uri, error, hint)
        return None
    padded = np.pad(wav, (0, num_samples - len(wav)))
    metadata = members.get("json", b"{}")
    return HeldOut(row["key"], members["jpg"], padded, truth, picture, row["media_id"], metadata)


def find_truth(folder: Path, row: IndexRow) -> Attributes | None:
    """The attributes of the scene that plays at the clip's middle, or None.

    `UserError` for a file of another form.
    """
    paths = (folder / f"{name}.json" for name in _truth_names(row))
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None
    try:
        # a clip may reach into a neighbouring scene; most of it is of the one at its middle
        attributes = _attributes_at(row["start_s"] + row["duration_s"] / 2, json.loads(path.read_text()))
        if not attributes:
            return None
        return Attributes(
            timbre=attributes["timbre"], f0_hz=attributes["f0_hz"], rate_hz=attributes["rate_hz"]
        )
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"truth={path}: is no truth file of python -m ingest synth ({type(error).__name__}: {error})"
        ) from None


def _attributes_at(time_s: float, scenes: list[Scene]) -> Attributes | None:
    """Of the first scene that plays at `time_s`, or None."""
    for scene in scenes:
        if scene["start_s"] <= time_s < scene["start_s"] + scene["duration_s"]:
            return scene["attributes"]
    return None


def _truth_names(row: IndexRow) -> Iterator[str]:
    """What a medium's truth file may be called, the likeliest first.

    Media of a folder are named by their id. Of those of a site, the path of the URL names the medium: as its
    file, or as the folder of a page or manifest. Ids of a listing end in the medium's name.
    """
    yield row["media_id"]
    for segment in reversed(PurePosixPath(urlsplit(row["url"] or "").path).parts):
        yield PurePosixPath(segment).stem
    yield from reversed((row["item_id"] or "").split(":"))
