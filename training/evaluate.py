"""`training evaluate`: scores of a model on held-out clips whose true sound is known, by signal analysis
only.

    evaluate(EvaluateConfig(model="runs/diffusion", data="out/clips", truth="out/world/truth", output="out/evaluation"))

Shares of clips whose timbre, fundamental (50 cents) and onset rate (10 %) are right, for generated sounds,
for real ones through the codec (the ceiling), by chance, and for pictures of other clips (training.score).
Writes scores.json (with 95 % intervals), and a few examples into wavs/ and images/, instead of those of older
scores there.
"""

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import soundfile
import torch
from PIL import Image

from cluster.dataset import Commit, Dataset
from cluster.shards import Status, verify_member
from configs.load import UserError, operational
from ingest.pixels import PictureError, open_picture
from training.data.choice import choose, seed_of
from training.export import make_folder, open_pipeline
from training.generate import check_sampling, choose_guidance, stopped_by_bad_mels
from training.judge import judge
from training.pipeline.mel import MelConfig
from training.pipeline.pipeline import StillsoundPipeline
from training.recipes.clips import decode_wav
from training.score import score

log = logging.getLogger(__name__)
TRUTHS = ("timbre", "f0_hz", "rate_hz")
NUM_EXAMPLES = 12


@dataclass
class EvaluateConfig:
    """`truth`: a folder of <media id>.json; `split`: which clips; at most `num_clips`, chosen by their keys;
    `guidance` by default 2, or 1 for a model without a null embedding; `threads` 0: all cores."""

    model: str
    data: str
    output: str
    truth: str = ""
    split: str = "validation"
    num_clips: int = 320
    seed: int = 0
    guidance: float | None = None
    steps: int = 25
    batch: int = operational(32)
    threads: int = operational(0)


@dataclass(frozen=True)
class HeldOut:
    """A clip and what its sound is made of (`timbre`, `f0_hz`, `rate_hz`)."""

    key: str
    jpeg: bytes
    wav: np.ndarray
    truth: dict[str, Any]
    picture: Image.Image
    media_id: str


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Writes scores.json and examples; returns what scores.json holds. `UserError` before any work."""
    _check(config)
    folder = make_folder(config.output)
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    dataset = Dataset.open(config.data, "clips")
    pipeline = open_pipeline(config.model)
    check_comparable(dataset, pipeline.mel)
    config = replace(config, guidance=choose_guidance(pipeline, config.guidance))
    clips = find_clips(dataset, config, pipeline.mel.num_samples)
    if len(clips) < 2:
        raise UserError(
            f"data={config.data}: {len(clips)} clips of split={config.split} have a truth in {config.truth}; need 2 or more"
        )
    with stopped_by_bad_mels(config.model, "a clip through the codec alone"):
        real = reconstruct(pipeline, clips, config.batch)
    with stopped_by_bad_mels(config.model, "a generated clip"):
        generated = synthesize(pipeline, clips, config)
    rate_hz, media = pipeline.sample_rate_hz, [clip.media_id for clip in clips]
    heard, heard_real = ([judge(wav, rate_hz) for wav in wavs] for wavs in (generated, real))
    scores, intervals = score(heard, heard_real, [clip.truth for clip in clips], media, config.seed)
    result = {"scores": scores, "intervals": intervals, "num_clips": len(clips), "num_media": len(set(media))}
    result |= {"guidance": config.guidance, "steps": config.steps, "seed": config.seed, "examples": []}
    _write(folder, result, clips, generated, real, rate_hz)
    return result


def _check(config: EvaluateConfig) -> None:
    """`UserError` for settings that cannot work."""
    check_sampling(config.guidance, config.steps)
    if config.num_clips < 2:
        raise UserError(f"num_clips={config.num_clips}: give 2 or more")
    if config.batch < 1:
        raise UserError(f"batch={config.batch}: give 1 or more")
    if config.seed < 0:
        raise UserError(f"seed={config.seed}: give 0 or more")
    if not config.truth or not Path(config.truth).is_dir():
        raise UserError(
            f"truth={config.truth}: no such folder; give the truth folder of python -m ingest synth"
        )


def check_comparable(dataset: Dataset, mel: MelConfig) -> None:
    """`UserError` for clips of another sample rate or length than the model makes: their scores would say
    nothing of it.
    """
    audio, clip = dataset.meta["config"]["audio"], dataset.meta["config"]["clip"]
    rate_hz, duration_s = audio["sample_rate_hz"], clip["duration_s"]
    if rate_hz != mel.sample_rate_hz:
        asked = f"scrape clips with audio.sample_rate_hz={mel.sample_rate_hz}"
        raise UserError(
            f"data={dataset.uri}: has audio.sample_rate_hz={rate_hz}, the model makes {mel.sample_rate_hz}; {asked}"
        )
    if replace(mel, duration_s=duration_s).num_samples != mel.num_samples:
        asked = f"scrape clips with clip.duration_s={mel.duration_s:g}"
        raise UserError(
            f"data={dataset.uri}: has clip.duration_s={duration_s:g}, the model makes {mel.duration_s:g} s; {asked}"
        )


def synthesize(
    pipeline: StillsoundPipeline, clips: list[HeldOut], config: EvaluateConfig
) -> list[np.ndarray]:
    """A sound [n] for every clip's picture, from noise of its own:

    `batch` and the other clips change nothing.
    """
    wavs: list[np.ndarray] = []
    for start in range(0, len(clips), config.batch):
        batch = clips[start : start + config.batch]
        noise = [torch.Generator().manual_seed(seed_of(config.seed, clip.key)) for clip in batch]
        wavs += list(
            pipeline(
                [clip.picture for clip in batch],
                generator=noise,
                guidance=config.guidance,
                steps=config.steps,
            )
        )
    return wavs


def reconstruct(pipeline: StillsoundPipeline, clips: list[HeldOut], batch: int) -> list[np.ndarray]:
    """Every clip's own sound [n] through the codec."""
    wavs: list[np.ndarray] = []
    for start in range(0, len(clips), batch):
        wavs += list(pipeline.reconstruct(np.stack([clip.wav for clip in clips[start : start + batch]])))
    return wavs


def find_clips(dataset: Dataset, config: EvaluateConfig, num_samples: int) -> list[HeldOut]:
    """Up to `num_clips` kept clips of the split that have a truth, in the order of their keys.

    Which ones depends on keys alone (training.data.choice): what was removed keeps its place. Damaged ones
    are named and left out.
    """
    buried = dataset.tombstones()
    rows = {
        row["key"]: row
        for row in dataset.iter_rows()
        if row["status"] in (Status.KEPT, Status.REMOVED) and row["split"] == config.split
    }
    gone = {key for key, row in rows.items() if row["status"] == Status.REMOVED or key in buried}
    truths = {
        key: truth
        for key, row in rows.items()
        if key not in gone and (truth := find_truth(Path(config.truth), row))
    }
    if len(truths) < len(rows) - len(gone):
        log.warning(
            "%d of %d held-out clips have no truth and are left out",
            len(rows) - len(gone) - len(truths),
            len(rows) - len(gone),
        )
    keys = sorted(truths.keys() | gone)
    chosen = choose(keys, np.array([key in gone for key in keys], bool), config.num_clips, at_least=2)
    commits = dataset.commits()
    found = [
        _read_clip(dataset, commits, rows[keys[place]], truths, num_samples)
        for place in sorted(chosen)
        if keys[place] in truths
    ]
    return [clip for clip in found if clip]


def _read_clip(
    dataset: Dataset,
    commits: dict[str, Commit],
    row: dict[str, Any],
    truths: dict[str, dict[str, Any]],
    num_samples: int,
) -> HeldOut | None:
    """None where its bytes are damaged, which is logged."""
    key, tar = row["key"], commits[row["unit"]].tar
    assert tar is not None, "a kept row has a tar"
    try:
        members = {
            member["ext"]: _read(dataset, tar.name, member)
            for member in row["members"]
            if member["ext"] in ("flac", "jpg")
        }
        wav, picture = decode_wav(members["flac"])[:num_samples], open_picture(members["jpg"])
    except (OSError, KeyError, PictureError, soundfile.LibsndfileError) as error:
        log.warning(
            "%s of %s is left out: %s; run python -m ingest verify %s", key, dataset.uri, error, dataset.uri
        )
        return None
    return HeldOut(
        key, members["jpg"], np.pad(wav, (0, num_samples - len(wav))), truths[key], picture, row["media_id"]
    )


def find_truth(folder: Path, row: dict[str, Any]) -> dict[str, Any] | None:
    """The attributes of the scene that plays at the clip's middle, or None.

    `UserError` for a file of another form.
    """
    middle_s = row["start_s"] + row["duration_s"] / 2
    for name in _truth_names(row):
        path = folder / f"{name}.json"
        if not path.is_file():
            continue
        try:
            scenes = json.loads(path.read_text())
            found = next(
                (
                    s["attributes"]
                    for s in scenes
                    if s["start_s"] <= middle_s < s["start_s"] + s["duration_s"]
                ),
                None,
            )
            return {name: found[name] for name in TRUTHS} if found else None
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"truth={path}: is no truth file of python -m ingest synth ({type(error).__name__}: {error})"
            ) from None
    return None


def _truth_names(row: dict[str, Any]) -> Iterator[str]:
    """A medium is named by its id, or by a part of the path of its URL (pages and manifests lie in folders of
    that name).
    """
    yield row["media_id"]
    for part in reversed(PurePosixPath(urlsplit(row["url"] or "").path).parts):
        yield PurePosixPath(part).stem
    yield from (row["item_id"] or "").split(":")[::-1]


def _read(dataset: Dataset, tar: str, member: dict[str, Any]) -> bytes:
    data = dataset.store.read_range(tar, member["offset"], member["offset"] + member["size"])
    if not verify_member(data, member["crc32"]):
        raise OSError(f"its {member['ext']} in {tar} is damaged")
    return data


def _write(
    folder: Path,
    result: dict[str, Any],
    clips: list[HeldOut],
    generated: list[np.ndarray],
    real: list[np.ndarray],
    rate_hz: int,
) -> None:
    """The examples, instead of those of older scores, and scores.json last."""
    clear_examples(folder)
    for name in ("wavs", "images"):
        (folder / name).mkdir(exist_ok=True)
    for place in range(0, len(clips), max(1, len(clips) // NUM_EXAMPLES)):
        clip = clips[place]
        (folder / "images" / f"{clip.key}.jpg").write_bytes(clip.jpeg)
        for name, wav in (("generated", generated[place]), ("real", real[place])):
            soundfile.write(folder / "wavs" / f"{clip.key}.{name}.wav", wav, rate_hz, subtype="PCM_16")
        result["examples"].append(clip.key)
    beside = folder / ".scores.json.partial"
    beside.write_text(json.dumps(result, indent=1))
    beside.replace(folder / "scores.json")


def clear_examples(folder: Path) -> None:
    """Removes scores.json and the examples that belong to it, and no file that evaluate did not write.

    Older scores do not name their examples, and a run that was stopped left none: there, examples are pairs
    of wavs by name.
    """
    scores, ends = folder / "scores.json", (".generated.wav", ".real.wav")
    try:
        keys = list(json.loads(scores.read_text())["examples"])
    except (OSError, ValueError, TypeError, KeyError):
        stems = [{path.name.removesuffix(end) for path in folder.glob(f"wavs/*{end}")} for end in ends]
        keys = sorted(stems[0] & stems[1])
    scores.unlink(missing_ok=True)
    for key in keys:
        for name in (f"images/{key}.jpg", *(f"wavs/{key}{end}" for end in ends)):
            if "/" not in key:
                (folder / name).unlink(missing_ok=True)
