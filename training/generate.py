"""`training generate`: pictures -> one wav file each.

generate(GenerateConfig(model="out/demo/export", images="photos/", output="sounds", seed=0))
"""

import contextlib
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import soundfile
import torch

from configs.load import StoppedError, UserError, operational
from ingest.photos import find_photos
from ingest.pixels import PictureError, open_picture
from training.export import make_folder, open_pipeline
from training.pipeline.codec import BadMelError
from training.pipeline.pipeline import StillsoundPipeline

log = logging.getLogger(__name__)
NUM_LISTED = 5  # bad pictures that an error names


@dataclass
class GenerateConfig:
    """`images`: a file, a folder with all below it, or a glob. `guidance` 1 = none, by default 2, or 1 for a
    model without a null embedding; `steps` of the sampler; `threads` 0: all cores; `vocoder` and `sampler`
    as in export.

    `skip_unreadable`: pictures that cannot be used are named and left out; otherwise one such picture is an
    error before any work.
    """

    model: str
    images: str
    output: str
    seed: int = 0
    guidance: float | None = None
    steps: int = 25
    skip_unreadable: bool = False
    vocoder: str = ""
    sampler: str = ""
    threads: int = operational(0)


class Sounds(TypedDict):
    """What generate made. `wavs`: paths; `skipped`: path of a picture -> why it was left out."""

    wavs: list[str]
    skipped: dict[str, str]


def generate(config: GenerateConfig) -> Sounds:
    """Writes `<output>/<path below images>.wav`.

    Two pictures that would share a wav keep their suffix in its name (`x.jpg.wav`, `x.png.wav`). Every
    picture has its own noise, from the seed alone: its sound does not depend on its neighbours. `UserError`
    before any work, `StoppedError` where the model gives no sound.
    """
    check_sampling(config.guidance, config.steps)
    photos = find_photos(config.images)
    skipped = unreadable(photos)
    if skipped and (not config.skip_unreadable or len(skipped) == len(photos)):
        raise UserError(_describe(skipped, len(photos), config.skip_unreadable))
    for path, why in skipped.items():
        log.warning("%s is left out: %s", path, why)
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    pipeline = open_pipeline(config.model, vocoder=config.vocoder, sampler=config.sampler)
    guidance = choose_guidance(pipeline, config.guidance)
    folder = make_folder(config.output)
    wavs = []
    for name, photo in photos.items():
        if str(photo) in skipped:
            continue
        # one at a time: a sound must not depend on the pictures beside it, and a batch changes its rounding
        with stopped_by_bad_mels(config.model, photo.name):
            wav = pipeline(open_picture(photo), seed=config.seed, guidance=guidance, steps=config.steps)[0]
        target = folder / f"{name}.wav"
        make_folder(str(target.parent))
        soundfile.write(target, wav, pipeline.sample_rate_hz, subtype="PCM_16")
        wavs.append(str(target))
    return {"wavs": wavs, "skipped": skipped}


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


def _describe(skipped: dict[str, str], count: int, skip_unreadable: bool) -> str:
    listed = "; ".join(f"{path} ({why})" for path, why in list(skipped.items())[:NUM_LISTED])
    more = f" and {len(skipped) - NUM_LISTED} more" if len(skipped) > NUM_LISTED else ""
    fix = "mend or remove them, or give skip_unreadable=true"
    if skip_unreadable or len(skipped) == count:  # skipping all of them makes no sound
        fix = "give another"
    return f"images: {len(skipped)} of {count} cannot be used: {listed}{more}; {fix}"


def choose_guidance(pipeline: StillsoundPipeline, guidance: float | None) -> float:
    """What to sample with; a default other than the usual one is logged.

    `UserError` where the model cannot be guided.
    """
    try:
        chosen = pipeline.guidance_for(guidance)
    except ValueError as error:
        raise UserError(str(error)) from error
    if guidance is None and chosen == 1:
        log.warning(
            "this model was trained with condition_dropout=0 and has no null embedding: "
            "sampling without guidance"
        )
    return chosen


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
