"""`training generate`: pictures -> wavs, with spectrograms and a page to listen to; run again = resume.

    generate(GenerateConfig(model="out/demo/export", images="photos/", output="sounds", takes=3))

    sounds/beach.wav, sounds/beach.take2.wav, …     as the folder of pictures is laid out
    sounds/beach.spectrogram.png                    of each
    sounds/sounds.jsonl                             a row per picture and take: path, seed, status, reason
    sounds/index.html                               the page
    sounds/.units/                                  what is done, and by which model and settings

A picture that cannot be used is a row, not the end. What workers do is training.sounds', the page
training.listening's; the work is cut, spread and resumed by cluster.units.
"""

import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NotRequired, TypedDict

import torch

from cluster.dataset import Dataset
from cluster.files import replacing
from cluster.jsonl import JsonObject
from cluster.progress import RunSummary
from cluster.shards import Status
from cluster.storage import absolute
from cluster.units import run_units
from configs.load import StoppedError, UserError, at_least, operational
from ingest.photos import find_photos
from ingest.pixels import PictureError, open_picture
from training.export import make_folder, open_pipeline
from training.listening import check_page, write_pages
from training.pipeline.codec import BadMelError
from training.pipeline.pipeline import StillsoundPipeline
from training.sounds import (
    COLUMNS,
    FINAL_REASONS,
    SPECTROGRAM,
    Made,
    Sampling,
    SoundStage,
    fingerprint,
    item_id_of,
    made_so_far,
    wav_name,
)

log = logging.getLogger(__name__)
NUM_LISTED = 5  # bad pictures that an error names
UNITS = ".units"
TABLE = "sounds.jsonl"
# each has a few files beside the sounds: a folder of a million sounds must not hold millions of them
MAX_UNITS = 10_000
SoundKey = tuple[str, int]
"""Name of a picture, number of a take."""


@dataclass
class GenerateConfig:
    """Which pictures, by which model, and how."""

    model: str  # a finished run, an exported folder or hub:owner/name
    images: str  # a file, a folder with all below it, or a glob
    output: str  # the folder to write to
    seed: int = 0  # from which each sound's own is made
    guidance: float | None = None  # 1 = none; by default 2, or 1 for a model without a null embedding
    steps: int = 25  # of the sampler
    takes: int = 1  # sounds of each picture
    strict: bool = False  # one picture that cannot be used is an error before any work
    skip_unreadable: bool | None = None  # the older name of strict's opposite
    vocoder: str = ""  # a finished run, a save_pretrained folder or hub:owner/name in place of the model's
    prior: str = ""  # a finished run or exported folder, for a model that attends to tokens of AudioMAE
    sampler: str = ""  # ddim, euler, dpmsolver or unipc in place of the model's
    page: bool = operational(True)  # also spectrograms and a page to listen to
    batch: int = operational(8)  # sounds that a worker makes at once
    workers: int = operational(0)  # processes, on Ray; 0 works in this process
    gpus_per_worker: float = operational(0.0)  # what each asks of Ray
    threads: int = operational(0)  # of torch, of each worker; 0 = the cores, shared among the workers

    @property
    def is_strict(self) -> bool:
        return self.strict or self.skip_unreadable is False


class Sounds(TypedDict):
    """What generate made. `wavs`: paths of all that are there now; `skipped`: path of a picture -> why not.

    `made`: how many in this run; `page`: its path, "" without one; `cpu_s`: of Ray's workers.
    """

    wavs: list[str]
    skipped: dict[str, str]
    made: int
    table: str
    page: str
    cpu_s: NotRequired[float]


def generate(config: GenerateConfig, progress: bool = True) -> Sounds:
    """Writes `<output>/<path below images>.wav`, and `….take2.wav` and so on.

    Two pictures that would share a wav keep their suffix in its name (`x.jpg.wav`, `x.png.wav`). `UserError`
    before any work, `StoppedError` where no picture gives a sound, or a sound could not be made or stored.
    """
    photos = _check(config)
    threads = config.threads or max(1, (os.cpu_count() or 1) // max(1, config.workers))
    torch.set_num_threads(threads)
    pipeline = pipeline_of(config)
    guidance = choose_guidance(pipeline, config.guidance)
    check_steps(pipeline, config.steps)
    sampling = Sampling(guidance, config.steps, config.seed, config.batch, config.page)
    folder = make_folder(absolute(config.output))
    units = Dataset.create_or_open(str(folder / UNITS), "sounds", _semantic(pipeline, sampling), [])
    list_sounds(units, folder, photos, config)
    factory: Callable[[], SoundStage] = partial(SoundStage, pipeline, sampling, folder)
    if config.workers:
        del pipeline  # each worker opens its own
        factory = partial(open_stage, config, threads, sampling, folder)
    try:
        summary = run_units(
            units,
            factory,
            config.workers,
            columns=COLUMNS,
            max_attempts=_next_attempt(units) + 2,
            num_gpus=config.gpus_per_worker,
            progress=progress,
        )
    finally:
        # also after Ctrl-C: what is made by then can be listened to
        made = made_so_far(units)
        write_table(folder / TABLE, made)
        page = write_pages(folder, units, made, _heading(config, guidance)) if config.page else ""
    return _report(config, photos, made, summary, page)


def _check(config: GenerateConfig) -> dict[str, Path]:
    """The pictures by name. `UserError` for settings that cannot work."""
    check_sampling(config.guidance, config.steps)
    at_least(config, 1, "takes", "batch")
    at_least(config, 0, "workers", "threads", "gpus_per_worker")
    if config.strict and config.skip_unreadable:
        raise UserError("strict=true and skip_unreadable=true are opposites: give one")
    if config.page:
        check_page(Path(config.output))
    photos = _without_spectrograms(find_photos(config.images), Path(config.output))
    if not photos:
        raise UserError(f"images={config.images}: only spectrograms of generate there; give pictures")
    _check_names(photos, config.takes)
    if config.is_strict and (skipped := unreadable(photos)):
        raise UserError(_describe(skipped, len(photos)))
    return photos


def _without_spectrograms(photos: dict[str, Path], output: Path) -> dict[str, Path]:
    """Without what generate wrote itself, where its output lies below the pictures."""
    written = os.path.abspath(output)
    return {
        name: photo
        for name, photo in photos.items()
        if not (photo.name.endswith(SPECTROGRAM) and os.path.abspath(photo).startswith(f"{written}/"))
    }


def _check_names(photos: dict[str, Path], takes: int) -> None:
    """`UserError` where a picture is called as a take of another."""
    for name, photo in photos.items():
        base, mark, number = name.rpartition(".take")
        if mark and base in photos and number.isdecimal() and wav_name(base, int(number)) == name:
            if 2 <= int(number) <= takes:
                shared = f"would share {name}.wav with take {number} of {photos[base]}"
                raise UserError(f"images: {photo} {shared}; rename one of them")


def unreadable(photos: dict[str, Path]) -> dict[str, str]:
    """Path -> why, of the pictures that cannot be used.

    Each is decoded fully, because a file may be cut at its end.
    """
    reasons = {}
    for path in photos.values():
        try:
            open_picture(path)
        except PictureError as error:
            reasons[str(path)] = str(error)
    return reasons


def _describe(skipped: dict[str, str], count: int) -> str:
    listed = "; ".join(f"{path} ({why})" for path, why in list(skipped.items())[:NUM_LISTED])
    more = f" and {len(skipped) - NUM_LISTED} more" if len(skipped) > NUM_LISTED else ""
    fix = "give others" if len(skipped) == count else "mend or remove them, or do not ask for strict=true"
    return f"images: {len(skipped)} of {count} cannot be used: {listed}{more}; {fix}"


def _semantic(pipeline: StillsoundPipeline, sampling: Sampling) -> JsonObject:
    """What makes sounds different: the content of the model, and how it is sampled."""
    settings = {"guidance": sampling.guidance, "steps": sampling.steps, "seed": sampling.seed}
    return {"model": fingerprint(pipeline), **settings}


def open_stage(config: GenerateConfig, threads: int, sampling: Sampling, folder: Path) -> SoundStage:
    """The stage of a worker elsewhere, which opens the model once."""
    torch.set_num_threads(threads)
    return SoundStage(pipeline_of(config), sampling, folder)


def pipeline_of(config: GenerateConfig) -> StillsoundPipeline:
    """The model that is named, with the parts given beside it."""
    return open_pipeline(config.model, vocoder=config.vocoder, sampler=config.sampler, prior=config.prior)


def list_sounds(units: Dataset, folder: Path, photos: dict[str, Path], config: GenerateConfig) -> None:
    """Puts what is missing into the work list: what was never listed, and what is not there any more.

    What an earlier run into this folder left undone is in the list, and is done too.
    """
    made = made_so_far(units)
    total = len(photos) * config.takes
    unit_size = config.batch * math.ceil(total / (config.batch * MAX_UNITS))
    units.worklist.append(_items(photos, config.takes), unit_size)
    again = (
        (item_id, payload)
        for item_id, payload in _items(photos, config.takes)
        if _is_gone(made.get((payload["name"], payload["take"])), item_id, folder)
    )
    units.worklist.append(again, unit_size, _next_attempt(units))


def _items(photos: dict[str, Path], takes: int) -> Iterator[tuple[str, JsonObject]]:
    for name, photo in photos.items():
        for take in range(1, takes + 1):
            payload = {"name": name, "picture": os.path.abspath(photo), "take": take}
            yield item_id_of(name, take, photo), payload


def _is_gone(made: Made | None, item_id: str, folder: Path) -> bool:
    """Whether a sound was made before and has to be made again: its wav was deleted, or its picture is
    again what it was before a change. Pictures that could not be read are tried again.
    """
    if made is None:
        return False
    if made.item_id != item_id:
        return item_id in made.earlier
    sound = made.sound
    if sound["path"] is None:
        return sound["reason"] not in FINAL_REASONS
    return not (folder / sound["path"]).exists()


def _next_attempt(units: Dataset) -> int:
    """More than any in the work list, so that what is listed before can be listed again."""
    return 1 + max((attempt for _, attempt in units.worklist.unit_attempts()), default=0)


def write_table(path: Path, made: dict[SoundKey, Made]) -> None:
    """sounds.jsonl: what is in the folder, by name and take."""
    with replacing(path) as partial, open(partial, "w", encoding="ascii") as file:
        file.writelines(f"{made[key].text}\n" for key in sorted(made))


def _heading(config: GenerateConfig, guidance: float) -> dict[str, str]:
    """What the page says of how its sounds were made."""
    settings = {"model": config.model, "steps": config.steps, "guidance": guidance, "seed": config.seed}
    chosen = {"vocoder": config.vocoder, "prior": config.prior, "sampler": config.sampler}
    named = {**settings, **{name: value for name, value in chosen.items() if value}}
    return {name: str(value) for name, value in named.items()}


def _report(
    config: GenerateConfig,
    photos: dict[str, Path],
    made: dict[SoundKey, Made],
    summary: RunSummary,
    page: str,
) -> Sounds:
    """The summary. `StoppedError` where units failed, or nothing came out."""
    if summary.failed:
        error = next(iter(summary.failed.values()))
        count = f"{len(summary.failed)} of {len(summary.failed) + summary.units_done} shards failed"
        raise StoppedError(f"output={config.output}: {count}, the first with {error}; run it again")
    wavs: list[str] = []
    skipped: dict[str, str] = {}
    for name, photo in photos.items():
        for take in range(1, config.takes + 1):
            sound = made[name, take].sound
            if sound["path"]:
                wavs.append(str(Path(config.output) / sound["path"]))
            else:
                skipped[str(photo)] = sound["detail"] or str(sound["reason"])
    for path in list(skipped)[:NUM_LISTED]:
        log.warning("%s is left out: %s", path, skipped[path])
    if not wavs:
        path, why = next(iter(skipped.items()))
        raise StoppedError(
            f"model={config.model}: none of {len(skipped)} pictures gave a sound; {path}: {why}"
        )
    sounds: Sounds = {
        "wavs": wavs,
        "skipped": skipped,
        "made": summary.counts.get(Status.KEPT, 0),
        "table": str(Path(config.output) / TABLE),
        "page": page and str(Path(config.output) / page),
    }
    # in this process, whoever measures it measures its work too
    return {**sounds, "cpu_s": summary.cpu_s} if config.workers else sounds


def choose_guidance(pipeline: StillsoundPipeline, guidance: float | None) -> float:
    """What to sample with; a default other than the usual one is logged.

    `UserError` where the model cannot be guided.
    """
    try:
        chosen = pipeline.guidance_for(guidance)
    except ValueError as error:
        raise UserError(str(error)) from error
    if guidance is None and not pipeline.has_null:
        log.warning(
            "this model was trained with condition_dropout=0 and has no null embedding: "
            "sampling without guidance"
        )
    return chosen


def check_steps(pipeline: StillsoundPipeline, steps: int) -> None:
    """`UserError` where the model cannot take so many steps."""
    try:
        pipeline.sizes_for(steps)
    except ValueError as error:
        raise UserError(str(error)) from error


@contextlib.contextmanager
def stopped_by_bad_mels(model: str, where: str) -> Iterator[None]:
    """`StoppedError`, naming the model and `where`, instead of `BadMelError`."""
    try:
        yield
    except BadMelError as error:
        raise StoppedError(f"model={model}: {where}: {error}") from error


def check_sampling(guidance: float | None, steps: int) -> None:
    """`UserError` for settings no sampler can work with."""
    if steps < 1:
        raise UserError(f"steps={steps}: give 1 or more")
    if guidance is not None and not 0 <= guidance < math.inf:
        raise UserError(f"guidance={guidance}: give 0 or more (1 = none)")
