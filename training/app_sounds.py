"""Sounds of pictures that came over a network: in memory, each as `generate` would have written it.

    maker = SoundMaker(open_pipeline("out/demo/export"), max_pixels=50_000_000)
    for sounds in maker.sounds_of(jpeg, Wish(steps=25, takes=2)):     # some takes at a time
        sounds[0].wav                                                 # the bytes of a WAV file

The bytes are those of `generate` with the same model, seed, steps, guidance, sampler and take: the seed of a
sound comes from its picture, and it is computed in the same lanes (training.sounds). It writes no file.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from configs.load import UserError
from ingest.pages.spectrogram import spectrogram_png
from ingest.pixels import MAX_PIXELS, open_picture
from training.app_limits import Wish
from training.generate import GenerateConfig
from training.pipeline.pipeline import StillsoundPipeline
from training.pipeline.sampling import SAMPLERS, objective_of
from training.pretrained import scheduler_of
from training.sounds import lanes_of, pixel_sha256, sample_lanes, sound_seed, wav_bytes

# how many a GPU computes together: as generate's default, for the same bytes
BATCH: int = GenerateConfig.batch


@dataclass(frozen=True)
class HeardTake:
    """`wav`, `spectrogram`: bytes of a WAV and of a PNG file; `seconds`: its share of the work."""

    take: int
    seed: int
    wav: bytes
    spectrogram: bytes
    seconds: float


class SoundMaker:
    """One model, for one request at a time: its sampler is set anew for each."""

    def __init__(self, pipeline: StillsoundPipeline, max_pixels: int = MAX_PIXELS):
        self.pipeline = pipeline
        self.max_pixels = max_pixels
        self.own_scheduler: Any = pipeline.scheduler
        self.lanes = lanes_of(pipeline, BATCH)
        self.samplers = samplers_of(pipeline)
        self.usual = Wish(steps=pipeline.usual_steps)

    def check(self, wish: Wish) -> Wish:
        """The wish, its guidance decided. `UserError` where the model cannot be sampled so."""
        try:
            self.pipeline.sizes_for(wish.steps)
            return replace(wish, guidance=self.pipeline.guidance_for(wish.guidance))
        except ValueError as error:
            raise UserError(str(error)) from error

    def sounds_of(self, picture: bytes, wish: Wish) -> Iterator[list[HeardTake]]:
        """The takes of a picture, as many at a time as are computed together.

        `PictureError` for a file that is no picture or too large, `BadMelError` where no sound comes out.
        """
        opened = open_picture(picture, self.max_pixels)
        identity = pixel_sha256(opened)
        guidance = self.check(wish).guidance
        for start in range(1, wish.takes + 1, self.lanes):
            started = time.monotonic()
            takes = list(range(start, min(start + self.lanes, wish.takes + 1)))
            seeds = [sound_seed(wish.seed, identity, take) for take in takes]
            # before each: between two batches another request may have used the model
            self.pipeline.scheduler = scheduler_of(wish.sampler, self.own_scheduler)
            pictures = [opened] * len(takes)
            wavs = sample_lanes(self.pipeline, pictures, seeds, self.lanes, wish.steps, guidance)
            seconds = (time.monotonic() - started) / len(takes)
            yield [
                HeardTake(
                    take, seed, wav_bytes(wav, self.pipeline.sample_rate_hz), spectrogram_png(wav), seconds
                )
                for take, seed, wav in zip(takes, seeds, wavs, strict=True)
            ]

    @property
    def can_guide(self) -> bool:
        """Whether any guidance but the usual one is of use."""
        return self.pipeline.has_null and not self.pipeline.shortcut

    @property
    def max_steps(self) -> float:
        """Of the model: a shortcut model knows a smallest step."""
        return 2 ** (self.pipeline.shortcut["sizes"] - 1) if self.pipeline.shortcut else math.inf


def samplers_of(pipeline: StillsoundPipeline) -> tuple[str, ...]:
    """Names of the samplers that fit what the model predicts."""
    if pipeline.shortcut:
        return ("euler",)
    objective = objective_of(pipeline.scheduler)
    return tuple(name for name, classes in SAMPLERS.items() if objective in classes)
