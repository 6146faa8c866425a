"""`training evaluate`: scores of a model on held-out clips whose true sound is known, by signal analysis.

    world, clips = "out/world/truth", "out/clips"
    evaluate(EvaluateConfig(model="runs/diffusion", data=clips, truth=world, output="out/evaluation"))

Shares of clips whose timbre, fundamental (50 cents) and onset rate (10 %) are right, for generated sounds,
for real ones through the codec (the ceiling), by chance, and for pictures of other clips (training.score).
Writes scores.json (with 95 % intervals), and a few examples into wavs/ and images/, instead of those of older
scores there.
"""

import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NotRequired, TypedDict
from urllib.parse import urlsplit

import numpy as np
import soundfile
import torch
from PIL import Image

from cluster.dataset import Commit, Dataset
from cluster.files import replacing
from cluster.shards import Status, members_of, read_member
from configs.load import UserError, at_least, operational
from ingest.pixels import PictureError, open_picture
from training.data.choice import choose, seed_of
from training.export import make_folder, open_pipeline
from training.generate import check_sampling, choose_guidance, stopped_by_bad_mels
from training.judge import Attributes, judge
from training.pipeline.mel import MelConfig
from training.pipeline.pipeline import StillsoundPipeline
from training.recipes.clips import decode_wav
from training.score import Intervals, Scores, score

log = logging.getLogger(__name__)
# pairs to listen to: enough to judge by ear in a minute or two
NUM_EXAMPLES = 12
GENERATED = ".generated.wav"
REAL = ".real.wav"
IndexRow = dict[str, Any]
"""A row of an index of clips, as `Dataset.iter_rows` gives it: the columns of a shard."""


class Scene(TypedDict):
    """An entry of a truth file: what sounds from `start_s` on."""

    start_s: float
    duration_s: float
    attributes: Attributes


class StepScores(TypedDict):
    """What a model gives in a number of steps, and the wall time that it takes."""

    scores: Scores
    intervals: Intervals
    seconds_per_clip: float


class Evaluation(TypedDict):
    """scores.json. `examples`: keys of the clips whose sounds and pictures are beside it.

    Of several numbers of steps, `by_steps` has each and the rest is of the greatest.
    """

    scores: Scores
    intervals: Intervals
    num_clips: int
    num_media: int
    guidance: float | None
    steps: int
    seed: int
    examples: list[str]
    by_steps: NotRequired[dict[str, StepScores]]


@dataclass
class EvaluateConfig:
    """`truth`: a folder of <media id>.json; `split`: which clips; at most `num_clips`, chosen by their keys;
    `guidance` by default 2, or 1 for a model without a null embedding; `vocoder` and `sampler` as in
    export; `threads` 0: all cores. `steps`: a number, or several with commas between, such as 1,2,4,8,25.
    """

    model: str
    data: str
    output: str
    truth: str = ""
    split: str = "validation"
    num_clips: int = 320
    seed: int = 0
    guidance: float | None = None
    steps: int | str = 25
    vocoder: str = ""
    sampler: str = ""
    batch: int = operational(32)
    threads: int = operational(0)


@dataclass(frozen=True)
class HeldOut:
    """A clip and what its sound is made of, where that is known."""

    key: str
    jpeg: bytes
    wav: np.ndarray
    truth: Attributes | None
    picture: Image.Image
    media_id: str


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Writes scores.json and examples. `UserError` before any work."""
    _check(config)
    folder = make_folder(config.output)
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    dataset = Dataset.open(config.data, "clips")
    pipeline = open_pipeline(config.model, vocoder=config.vocoder, sampler=config.sampler)
    check_comparable(dataset, pipeline.mel)
    config = replace(config, guidance=choose_guidance(pipeline, config.guidance))
    clips = find_clips(dataset, config, pipeline.mel.num_samples)
    if len(clips) < 2:  # chance is measured by exchanging the truths of two
        raise UserError(
            f"data={config.data}: {len(clips)} clips of split={config.split} have a truth in {config.truth}; "
            "need 2 or more"
        )
    with stopped_by_bad_mels(config.model, "a clip through the codec alone"):
        real = reconstruct(pipeline, clips, config.batch)
    with stopped_by_bad_mels(config.model, "a generated clip"):
        by_steps, generated = score_by_steps(pipeline, clips, real, config)
    most = steps_of(config.steps)[-1]
    evaluation: Evaluation = {
        "scores": by_steps[str(most)]["scores"],
        "intervals": by_steps[str(most)]["intervals"],
        "num_clips": len(clips),
        "num_media": len({clip.media_id for clip in clips}),
        "guidance": config.guidance,
        "steps": most,
        "seed": config.seed,
        "examples": [],
    }
    if len(by_steps) > 1:
        evaluation["by_steps"] = by_steps
    _write(folder, evaluation, clips, generated, real, pipeline.sample_rate_hz)
    return evaluation


def score_by_steps(
    pipeline: StillsoundPipeline, clips: list[HeldOut], real: list[np.ndarray], config: EvaluateConfig
) -> tuple[dict[str, StepScores], list[np.ndarray]]:
    """The scores of each number of steps, fewest first, and the sounds of the last one.

    The same noise for all, so that they differ by their steps alone.
    """
    rate_hz = pipeline.sample_rate_hz
    media = [clip.media_id for clip in clips]
    truths = [clip.truth for clip in clips if clip.truth]
    heard_real = [judge(wav, rate_hz) for wav in real]
    by_steps: dict[str, StepScores] = {}
    generated: list[np.ndarray] = []
    for steps in steps_of(config.steps):
        begun = time.perf_counter()
        generated = synthesize(pipeline, clips, replace(config, steps=steps))
        seconds = (time.perf_counter() - begun) / len(clips)
        heard = [judge(wav, rate_hz) for wav in generated]
        scores, intervals = score(heard, heard_real, truths, media, config.seed)
        by_steps[str(steps)] = {
            "scores": scores,
            "intervals": intervals,
            "seconds_per_clip": round(seconds, 4),
        }
    return by_steps, generated


def steps_of(steps: int | str) -> list[int]:
    """Each number of steps that was asked for, once, fewest first. `UserError` for what is none.

    >>> steps_of("25,1,4")
    [1, 4, 25]
    """
    try:
        numbers = sorted({int(number) for number in str(steps).split(",")})
    except ValueError:
        numbers = [0]
    if numbers[0] < 1:
        raise UserError(f"steps={steps}: give 1 or more, or several as 1,2,4,8,25")
    return numbers


def _check(config: EvaluateConfig) -> None:
    """`UserError` for settings that cannot work."""
    check_sampling(config.guidance, steps_of(config.steps)[0])
    at_least(config, 2, "num_clips")
    at_least(config, 1, "batch")
    at_least(config, 0, "seed")
    if not config.truth or not Path(config.truth).is_dir():
        raise UserError(
            f"truth={config.truth}: no such folder; give the truth folder of python -m ingest synth"
        )


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


def synthesize(
    pipeline: StillsoundPipeline, clips: list[HeldOut], config: EvaluateConfig
) -> list[np.ndarray]:
    """A sound [n] for every clip's picture, from noise of its own, whatever is beside it in a batch."""
    wavs: list[np.ndarray] = []
    for start in range(0, len(clips), config.batch):
        batch = clips[start : start + config.batch]
        pictures = [clip.picture for clip in batch]
        noise = [torch.Generator().manual_seed(seed_of(config.seed, clip.key)) for clip in batch]
        steps = steps_of(config.steps)[-1]
        wavs += list(pipeline(pictures, generator=noise, guidance=config.guidance, steps=steps))
    return wavs


def reconstruct(pipeline: StillsoundPipeline, clips: list[HeldOut], batch: int) -> list[np.ndarray]:
    """Every clip's own sound [n] through the codec."""
    wavs: list[np.ndarray] = []
    for start in range(0, len(clips), batch):
        wavs += list(pipeline.reconstruct(np.stack([clip.wav for clip in clips[start : start + batch]])))
    return wavs


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
            if member.ext in ("flac", "jpg"):
                members[member.ext] = read_member(dataset.store, commit.tar.name, member)
        wav = decode_wav(members["flac"])[:num_samples]
        picture = open_picture(members["jpg"])
    except (OSError, KeyError, PictureError, soundfile.LibsndfileError) as error:
        hint = f"run python -m ingest verify {dataset.uri}"
        log.warning("%s of %s is left out: %s; %s", row["key"], dataset.uri, error, hint)
        return None
    padded = np.pad(wav, (0, num_samples - len(wav)))
    return HeldOut(row["key"], members["jpg"], padded, truth, picture, row["media_id"])


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


def _write(
    folder: Path,
    evaluation: Evaluation,
    clips: list[HeldOut],
    generated: list[np.ndarray],
    real: list[np.ndarray],
    rate_hz: int,
) -> None:
    """The examples, instead of those of older scores, and scores.json last."""
    clear_examples(folder)
    for name in ("wavs", "images"):
        (folder / name).mkdir(exist_ok=True)
    for index in range(0, len(clips), max(1, len(clips) // NUM_EXAMPLES)):
        key = clips[index].key
        (folder / "images" / f"{key}.jpg").write_bytes(clips[index].jpeg)
        for suffix, wav in ((GENERATED, generated[index]), (REAL, real[index])):
            soundfile.write(folder / "wavs" / f"{key}{suffix}", wav, rate_hz, subtype="PCM_16")
        evaluation["examples"].append(key)
    with replacing(folder / "scores.json") as partial:
        partial.write_text(json.dumps(evaluation, indent=1))


def clear_examples(folder: Path) -> None:
    """Removes scores.json and the examples that belong to it, and no file that evaluate did not write.

    Older scores do not name their examples, and a run that was stopped left none: there, examples are pairs
    of wavs by name.
    """
    scores = folder / "scores.json"
    try:
        keys = list(json.loads(scores.read_text())["examples"])
    except (OSError, ValueError, TypeError, KeyError):
        generated = {path.name.removesuffix(GENERATED) for path in folder.glob(f"wavs/*{GENERATED}")}
        real = {path.name.removesuffix(REAL) for path in folder.glob(f"wavs/*{REAL}")}
        keys = sorted(generated & real)
    # first the scores: without them, the next clearing finds the examples that are left
    scores.unlink(missing_ok=True)
    for key in keys:
        if "/" in key:  # scores.json is a file that anybody may have changed: delete nothing elsewhere
            continue
        for name in (f"images/{key}.jpg", f"wavs/{key}{GENERATED}", f"wavs/{key}{REAL}"):
            (folder / name).unlink(missing_ok=True)
