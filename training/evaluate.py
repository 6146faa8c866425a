"""`training evaluate`: scores of a model on held-out clips whose true sound is known, by signal analysis only.

    evaluate(EvaluateConfig(model="runs/diffusion", data="out/clips", truth="out/world/truth", output="out/evaluation"))

Shares of clips whose timbre, fundamental (50 cents) and onset rate (10 %) are right, for: `generated`; `real` clips through
the codec (the ceiling); `chance`, those judged by the truth of another clip; `shuffled`, sounds generated from the picture of
another clip. `closed` is the share of the gap from chance to ceiling that generated clips close, `shuffled_closed` likewise.
Writes scores.json, and a few examples into wavs/ and images/.
"""

import io
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

from cluster.dataset import Dataset
from cluster.shards import verify_member
from configs.load import UserError, operational
from training.export import make_folder, open_pipeline
from training.generate import check_sampling, choose_guidance, stopped_by_bad_mels
from training.judge import correct, judge
from training.pipeline import StillsoundPipeline
from training.recipes.clips import decode_wav

log = logging.getLogger(__name__)
ATTRIBUTES = ("timbre", "f0", "rate")
NUM_EXAMPLES = 12


@dataclass
class EvaluateConfig:
    """`truth`: a folder of <media id>.json; `split`: which clips; `num_clips` at most, spread over the media;
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


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Writes scores.json and examples; returns what scores.json holds. `UserError` before any work."""
    check_sampling(config.guidance, config.steps)
    if not Path(config.truth or ".").is_dir() or not config.truth:
        raise UserError(f"truth={config.truth}: no such folder; give the truth folder of python -m ingest synth")
    folder = make_folder(config.output)
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    dataset = Dataset.open(config.data, "clips")
    pipeline = open_pipeline(config.model)
    config = replace(config, guidance=choose_guidance(pipeline, config.guidance))
    clips = find_clips(dataset, config, pipeline.mel.num_samples)
    if len(clips) < 2:
        raise UserError(f"data={config.data}: {len(clips)} clips of split={config.split} have a truth in {config.truth}; need 2 or more")
    with stopped_by_bad_mels(config.model, "a clip through the codec alone"):
        real = reconstruct(pipeline, clips, config.batch)
    with stopped_by_bad_mels(config.model, "a generated clip"):
        generated = synthesize(pipeline, clips, config)
    rate_hz, truths = pipeline.sample_rate_hz, [clip.truth for clip in clips]
    scores = score(
        [judge(wav, rate_hz) for wav in generated], [judge(wav, rate_hz) for wav in real], truths, derangement(len(clips), config.seed)
    )
    result = {"scores": scores, "num_clips": len(clips), "guidance": config.guidance, "steps": config.steps, "seed": config.seed}
    _write(folder, result, clips, generated, real, rate_hz)
    return result


def score(
    generated: list[dict[str, Any]], real: list[dict[str, Any]], truths: list[dict[str, Any]], other: np.ndarray
) -> dict[str, dict[str, float]]:
    """Per attribute the four shares and the closed gaps; `other` is a derangement: clip i is judged as clip other[i]."""
    deranged = [truths[place] for place in other]
    pairs = {"generated": (generated, truths), "real": (real, truths), "chance": (real, deranged), "shuffled": (generated, deranged)}
    right = {name: [correct(judged, truth) for judged, truth in zip(*pair, strict=True)] for name, pair in pairs.items()}
    scores = {}
    for attribute in ATTRIBUTES:
        shares = {name: float(np.mean([one[attribute] for one in hits])) for name, hits in right.items()}
        gap = shares["real"] - shares["chance"]
        for name, part in (("closed", "generated"), ("shuffled_closed", "shuffled")):
            shares[name] = (shares[part] - shares["chance"]) / gap if gap > 0 else 0.0
        scores[attribute] = {name: round(share, 4) for name, share in shares.items()}
    return scores


def derangement(count: int, seed: int) -> np.ndarray:
    """A random permutation [count] without fixed points: one cycle through all."""
    order = np.random.default_rng(seed).permutation(count)
    other = np.empty(count, dtype=int)
    other[order] = np.roll(order, 1)
    return other


def synthesize(pipeline: StillsoundPipeline, clips: list[HeldOut], config: EvaluateConfig) -> list[np.ndarray]:
    """A sound [n] for every clip's picture."""
    generator = torch.Generator().manual_seed(config.seed)
    wavs: list[np.ndarray] = []
    for start in range(0, len(clips), config.batch):
        pictures = [Image.open(io.BytesIO(clip.jpeg)) for clip in clips[start : start + config.batch]]
        wavs += list(pipeline(pictures, generator=generator, guidance=config.guidance, steps=config.steps))
    return wavs


def reconstruct(pipeline: StillsoundPipeline, clips: list[HeldOut], batch: int) -> list[np.ndarray]:
    """Every clip's own sound [n] through the codec."""
    wavs: list[np.ndarray] = []
    for start in range(0, len(clips), batch):
        wavs += list(pipeline.reconstruct(np.stack([clip.wav for clip in clips[start : start + batch]])))
    return wavs


def find_clips(dataset: Dataset, config: EvaluateConfig, num_samples: int) -> list[HeldOut]:
    """Up to `num_clips` kept clips of the split that have a truth, taken evenly from the sorted list."""
    buried = dataset.tombstones()
    rows = [row for row in dataset.iter_rows() if row["status"] == "kept" and row["split"] == config.split and row["key"] not in buried]
    known = [(row, truth) for row in sorted(rows, key=lambda row: row["key"]) if (truth := find_truth(Path(config.truth), row))]
    if len(known) < len(rows):
        log.warning("%d of %d held-out clips have no truth and are left out", len(rows) - len(known), len(rows))
    places: Any = np.unique(np.linspace(0, len(known) - 1, min(config.num_clips, len(known))).round().astype(int)) if known else []
    chosen = [known[place] for place in places]
    commits = dataset.commits()
    clips = []
    for row, truth in chosen:
        tar = commits[row["unit"]].tar
        assert tar is not None, "a kept row has a tar"
        members = {member["ext"]: _read(dataset, tar.name, member) for member in row["members"] if member["ext"] in ("flac", "jpg")}
        wav = decode_wav(members["flac"])[:num_samples]
        clips.append(HeldOut(row["key"], members["jpg"], np.pad(wav, (0, num_samples - len(wav))), truth))
    return clips


def find_truth(folder: Path, row: dict[str, Any]) -> dict[str, Any] | None:
    """The attributes of the scene that plays at the clip's middle, or None."""
    middle_s = row["start_s"] + row["duration_s"] / 2
    for name in _truth_names(row):
        path = folder / f"{name}.json"
        if path.is_file():
            scenes = json.loads(path.read_text())
            return next((s["attributes"] for s in scenes if s["start_s"] <= middle_s < s["start_s"] + s["duration_s"]), None)
    return None


def _truth_names(row: dict[str, Any]) -> Iterator[str]:
    """A medium is named by its id, or by a part of the path of its URL (pages and manifests lie in folders of that name)."""
    yield row["media_id"]
    for part in reversed(PurePosixPath(urlsplit(row["url"] or "").path).parts):
        yield PurePosixPath(part).stem
    yield from (row["item_id"] or "").split(":")[::-1]


def _read(dataset: Dataset, tar: str, member: dict[str, Any]) -> bytes:
    data = dataset.store.read_range(tar, member["offset"], member["offset"] + member["size"])
    if not verify_member(data, member["crc32"]):
        raise OSError(f"{dataset.uri}/{tar}: a {member['ext']} is damaged; run python -m ingest verify {dataset.uri}")
    return data


def _write(
    folder: Path, result: dict[str, Any], clips: list[HeldOut], generated: list[np.ndarray], real: list[np.ndarray], rate_hz: int
) -> None:
    for name in ("wavs", "images"):
        (folder / name).mkdir(exist_ok=True)
    for place in range(0, len(clips), max(1, len(clips) // NUM_EXAMPLES)):
        clip = clips[place]
        (folder / "images" / f"{clip.key}.jpg").write_bytes(clip.jpeg)
        for name, wav in (("generated", generated[place]), ("real", real[place])):
            soundfile.write(folder / "wavs" / f"{clip.key}.{name}.wav", wav, rate_hz, subtype="PCM_16")
    (folder / "scores.json").write_text(json.dumps(result, indent=1))
