"""`training evaluate`: scores of a model on held-out clips.

    world, clips = "out/world/truth", "out/clips"
    evaluate(EvaluateConfig(model="runs/diffusion", data=clips, truth=world, output="out/evaluation"))
    evaluate_real(EvaluateConfig(model="runs/diffusion", data=clips, judge="runs/other", output="out/judged"))

Of those whose true sound is known, by signal analysis: shares of clips whose timbre, fundamental (50 cents)
and onset rate (10 %) are right, for generated sounds, for real ones through the codec (the ceiling), by
chance, and for pictures of other clips (training.score). Writes scores.json (with 95 % intervals), what was
heard of each clip (training.heard), and a few examples into wavs/ and images/, instead of those of older
scores there. Of real media, by judges (training.real_scores). Sounds are those that `training generate` makes
of the same pictures with the same seed, steps and guidance.
"""

import json
import logging
import os
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
import soundfile
import torch

from cluster.dataset import Dataset
from cluster.files import replacing
from configs.load import UserError, at_least
from training.evaluation import EvaluateConfig, HeldOut, check_comparable, find_clips
from training.export import make_folder, open_pipeline
from training.generate import check_sampling, check_steps, choose_guidance, stopped_by_bad_mels
from training.heard import HEARD, HeardClip, heard_of, write_heard
from training.judge import Attributes, judge
from training.judging.page import MARK
from training.listening import check_page
from training.pipeline.pipeline import StillsoundPipeline
from training.progress import track
from training.real_scores import Judged, Judges, judge_clips, names_judges, open_judges
from training.score import Intervals, Scores, score
from training.sounds import lanes_of, pixel_sha256, sample_lanes, sound_seed, voice_of

log = logging.getLogger(__name__)
# pairs to listen to: enough to judge by ear in a minute or two
NUM_EXAMPLES = 12
GENERATED = ".generated.wav"
REAL = ".real.wav"


class StepScores(TypedDict):
    """What a model gives in a number of steps, and the wall time that it takes."""

    scores: Scores
    intervals: Intervals
    seconds_per_clip: float


class Evaluation(TypedDict):
    """scores.json. `examples`: keys of the clips whose sounds and pictures are beside it. `vocoder`: what
    made all sounds, real ones too, as `training.sounds.voice_of` names it.

    Of several numbers of steps, `by_steps` has each and the rest is of the greatest. `judged`: what judges
    say besides, which is in a file of its own.
    """

    scores: Scores
    intervals: Intervals
    num_clips: int
    num_media: int
    guidance: float | None
    steps: int
    seed: int
    vocoder: str
    examples: list[str]
    by_steps: NotRequired[dict[str, StepScores]]
    judged: NotRequired[Judged]


@dataclass(frozen=True)
class Opened:
    """What an evaluation works with. `config`: with the guidance that the model takes; `judges`: None where
    answers are known and nobody else is asked.
    """

    folder: Path
    config: EvaluateConfig
    pipeline: StillsoundPipeline
    clips: list[HeldOut]
    judges: Judges | None


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Writes scores.json and examples; with `judge` or `classifier` what these say, too. `UserError` before
    any work.
    """
    _check(config)
    if not config.truth or not Path(config.truth).is_dir():
        raise UserError(
            f"truth={config.truth}: no such folder; give the truth folder of python -m ingest synth"
        )
    opened = _open(config)
    config = opened.config
    pipeline = opened.pipeline
    clips = opened.clips
    with stopped_by_bad_mels(config.model, "a clip through the codec alone"):
        real = reconstruct(pipeline, clips, config.batch)
    with stopped_by_bad_mels(config.model, "a generated clip"):
        by_steps, generated, heard = score_by_steps(pipeline, clips, real, config)
    most = steps_of(config.steps)[-1]
    evaluation: Evaluation = {
        "scores": by_steps[str(most)]["scores"],
        "intervals": by_steps[str(most)]["intervals"],
        "num_clips": len(clips),
        "num_media": len({clip.media_id for clip in clips}),
        "guidance": config.guidance,
        "steps": most,
        "seed": config.seed,
        "vocoder": voice_of(pipeline),
        "examples": [],
    }
    if len(by_steps) > 1:
        evaluation["by_steps"] = by_steps
    rate_hz = pipeline.sample_rate_hz
    clear_examples(opened.folder)
    write_heard(opened.folder / HEARD, heard)
    _write(opened.folder, evaluation, clips, generated, real, rate_hz)
    if opened.judges:
        # the sounds are of the most steps
        asked = replace(config, steps=most)
        judged = judge_clips(opened.folder, clips, generated, real, rate_hz, opened.judges, asked)
        evaluation["judged"] = judged
    return evaluation


def evaluate_real(config: EvaluateConfig) -> Judged:
    """Scores of clips whose true sound nobody knows, by `judge` and `classifier`. `UserError` before any
    work.
    """
    _check(config)
    if len(steps_of(config.steps)) > 1:
        raise UserError(f"steps={config.steps}: of several there are scores with truth= only; give one")
    opened = _open(config)
    config = opened.config
    pipeline = opened.pipeline
    clips = opened.clips
    assert opened.judges, "without a truth, somebody judges"
    with stopped_by_bad_mels(config.model, "a clip through the codec alone"):
        real = reconstruct(pipeline, clips, config.batch)
    with stopped_by_bad_mels(config.model, "a generated clip"):
        generated = synthesize(pipeline, clips, config)
    rate_hz = pipeline.sample_rate_hz
    return judge_clips(opened.folder, clips, generated, real, rate_hz, opened.judges, config)


def _open(config: EvaluateConfig) -> Opened:
    """`UserError` where they do not fit together, or there are less than two clips."""
    if names_judges(config):
        check_page(Path(config.output), MARK)
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    dataset = Dataset.open(config.data, "clips")
    pipeline = open_pipeline(config.model, vocoder=config.vocoder, sampler=config.sampler, prior=config.prior)
    check_comparable(dataset, pipeline.mel)
    config = replace(config, guidance=choose_guidance(pipeline, config.guidance))
    for steps in steps_of(config.steps):
        check_steps(pipeline, steps)
    judges = None if config.truth and not names_judges(config) else open_judges(config, pipeline, dataset)
    clips = find_clips(dataset, config, pipeline.mel.num_samples)
    if len(clips) < 2:  # chance is measured by exchanging the partners of two
        known = f" have a truth in {config.truth}" if config.truth else " are there"
        raise UserError(
            f"data={config.data}: {len(clips)} clips of split={config.split}{known}; need 2 or more"
        )
    # last: what is refused leaves no folder behind
    return Opened(make_folder(config.output), config, pipeline, clips, judges)


def score_by_steps(
    pipeline: StillsoundPipeline, clips: list[HeldOut], real: list[np.ndarray], config: EvaluateConfig
) -> tuple[dict[str, StepScores], list[np.ndarray], list[HeardClip]]:
    """The scores of each number of steps, fewest first; the sounds of the last one, and what was heard in
    them.

    The same noise for all, so that they differ by their steps alone.
    """
    rate_hz = pipeline.sample_rate_hz
    media = [clip.media_id for clip in clips]
    truths = [clip.truth for clip in clips if clip.truth]
    heard_real = [judge(wav, rate_hz) for wav in track(real, "real sounds judged")]
    by_steps: dict[str, StepScores] = {}
    generated: list[np.ndarray] = []
    heard: list[Attributes] = []
    for steps in steps_of(config.steps):
        begun = time.perf_counter()
        generated = synthesize(pipeline, clips, replace(config, steps=steps))
        seconds = (time.perf_counter() - begun) / len(clips)
        heard = [judge(wav, rate_hz) for wav in track(generated, "sounds judged")]
        scores, intervals = score(heard, heard_real, truths, media, config.seed)
        by_steps[str(steps)] = {
            "scores": scores,
            "intervals": intervals,
            "seconds_per_clip": round(seconds, 4),
        }
    return by_steps, generated, heard_of([clip.key for clip in clips], truths, heard, heard_real)


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
    for name in ("model", "data"):
        if not getattr(config, name):
            raise UserError(f"missing setting: {name}; add {name}=… to the command")
    check_sampling(config.guidance, steps_of(config.steps)[0])
    at_least(config, 2, "num_clips")
    at_least(config, 1, "batch")
    at_least(config, 0, "seed")


def synthesize(
    pipeline: StillsoundPipeline, clips: list[HeldOut], config: EvaluateConfig
) -> list[np.ndarray]:
    """A sound [n] for every clip's picture: what generate makes of that picture, whatever is beside it.

    Several clips of one picture are its takes, so that each has noise of its own.
    """
    lanes = lanes_of(pipeline, config.batch)
    steps = steps_of(config.steps)[-1]
    takes: Counter[str] = Counter()
    seeds: list[int] = []
    for clip in clips:
        picture = pixel_sha256(clip.picture)
        takes[picture] += 1
        seeds.append(sound_seed(config.seed, picture, takes[picture]))
    wavs: list[np.ndarray] = []
    for start in track(range(0, len(clips), lanes), "sounds made", len(clips)):
        pictures = [clip.picture for clip in clips[start : start + lanes]]
        some = seeds[start : start + lanes]
        wavs += list(sample_lanes(pipeline, pictures, some, lanes, steps, config.guidance))
    return wavs


def reconstruct(pipeline: StillsoundPipeline, clips: list[HeldOut], batch: int) -> list[np.ndarray]:
    """Every clip's own sound [n] through the codec."""
    wavs: list[np.ndarray] = []
    for start in track(range(0, len(clips), batch), "sounds through the codec", len(clips)):
        wavs += list(pipeline.reconstruct(np.stack([clip.wav for clip in clips[start : start + batch]])))
    return wavs


def _write(
    folder: Path,
    evaluation: Evaluation,
    clips: list[HeldOut],
    generated: list[np.ndarray],
    real: list[np.ndarray],
    rate_hz: int,
) -> None:
    """The examples, and scores.json last."""
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
    """Removes scores.json, heard.jsonl and their examples, and no file that evaluate did not write.

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
    (folder / HEARD).unlink(missing_ok=True)
    for key in keys:
        if "/" in key:  # scores.json is a file that anybody may have changed: delete nothing elsewhere
            continue
        for name in (f"images/{key}.jpg", f"wavs/{key}{GENERATED}", f"wavs/{key}{REAL}"):
            (folder / name).unlink(missing_ok=True)
