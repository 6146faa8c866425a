"""Clips per second of a precompute worker beside a bare loop of batches through the same two models, and what
bf16 costs in exactness.

    python -m benchmarks.precompute [clips=64] [rounds=3] [threads=1]

The worker reads its unit's tar, checks and decodes FLAC and JPEG, encodes, casts, and writes tar and index of
a real dataset; the bare loop has waveforms and pixels in memory already and keeps nothing. AudioLDM's
autoencoder on clips of 10.24 s at a quarter of its width, and CLIP B/32's shape; random weights, whose error
in bf16 is told relative to the latent's deviation.
"""

import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from benchmarks.machine import machine
from cluster.dataset import Dataset
from cluster.pool import do_unit
from cluster.shards import members_of
from cluster.worklist import UnitTask
from ingest.clip.clipper import ClipConfig, FrameConfig
from ingest.scrape import ScrapeConfig, scrape
from ingest.sources.settings import SourceConfig
from ingest.synth import SynthConfig, synth
from training.pipeline.codec import embed_image, encode_wav
from training.precompute import PrecomputeConfig, PrecomputeStage, prepare, read_clip

BATCH = 8
CHANNELS = (32, 64, 128)


def make_models(folder: Path) -> dict[str, str]:
    """An AudioLDM-shaped autoencoder and a CLIP-shaped tower with random weights."""
    torch.manual_seed(0)
    down, up = ("DownEncoderBlock2D",) * 3, ("UpDecoderBlock2D",) * 3
    shape = {
        "block_out_channels": CHANNELS,
        "layers_per_block": 2,
        "latent_channels": 8,
        "mid_block_add_attention": False,
    }
    AutoencoderKL(
        in_channels=1, out_channels=1, down_block_types=down, up_block_types=up, **shape
    ).save_pretrained(folder / "autoencoder")
    CLIPVisionModelWithProjection(CLIPVisionConfig(projection_dim=512)).save_pretrained(folder / "tower")
    CLIPImageProcessor().save_pretrained(folder / "tower")
    return {"autoencoder": str(folder / "autoencoder"), "image_encoder": str(folder / "tower")}


def make_clips(folder: Path, clips: int) -> str:
    others = {"webm": 0, "hls": 0, "dash": 0, "stills": 0, "silent": 0}
    synth(
        SynthConfig(
            path=str(folder / "world"),
            videos=clips // 4,
            scenes_per_video=4,
            scene_s=10.4,
            size_px=256,
            **others,
        )
    )
    source, clip = SourceConfig(path=f"{folder}/world/media", license="own"), ClipConfig(duration_s=10.24)
    shape = {"clip": clip, "frame": FrameConfig(short_side_px=256)}
    config = ScrapeConfig(output=f"{folder}/clips", source=source, workers=0, unit_size=clips, **shape)
    scrape(config, progress=False)
    return config.output


def bare(stage: PrecomputeStage, wavs: torch.Tensor, pixels: torch.Tensor) -> float:
    """Seconds for all batches."""
    started = time.perf_counter()
    with torch.no_grad():
        for start in range(0, len(wavs), BATCH):
            encode_wav(stage.autoencoder, wavs[start : start + BATCH], stage.mel)
            embed_image(stage.image_encoder, pixels[start : start + BATCH])
    return time.perf_counter() - started


def whole(stage: PrecomputeStage, output: Dataset, task: UnitTask) -> float:
    """Seconds of one unit, committed."""
    started = time.perf_counter()
    do_unit(output, stage, task, frozenset())
    return time.perf_counter() - started


def bf16_errors(stage: PrecomputeStage, wavs: torch.Tensor, pixels: torch.Tensor) -> dict[str, float]:
    """Root mean square of what autocast changes, over the deviation of what it changes."""
    with torch.no_grad():
        exact = (encode_wav(stage.autoencoder, wavs, stage.mel)[0], embed_image(stage.image_encoder, pixels))
        with torch.autocast("cpu", torch.bfloat16):
            rough = (
                encode_wav(stage.autoencoder, wavs, stage.mel)[0],
                embed_image(stage.image_encoder, pixels),
            )
    errors = [
        float((one.float() - other).square().mean().sqrt() / other.std())
        for one, other in zip(rough, exact, strict=True)
    ]
    return {"bf16_latent_error": round(errors[0], 4), "bf16_embedding_error": round(errors[1], 4)}


def measure(clips: int, rounds: int, threads: int) -> dict[str, object]:
    """The figures of both, and their ratio."""
    with tempfile.TemporaryDirectory(prefix="stillsound-bench-") as name:
        config = PrecomputeConfig(
            make_clips(Path(name), clips), "", **make_models(Path(name)), batch_size=BATCH, threads=threads
        )
        parent, pairs = Dataset.open(config.data), []
        rows = [row for row in parent.iter_rows() if row["status"] == "kept"]
        tars = {
            unit: parent.store.read(commit.tar.name)
            for unit, commit in parent.commits().items()
            if commit.tar
        }
        for number in range(rounds):
            output, factory = prepare(replace(config, output=f"{name}/latents-{number}"))
            stage = factory()
            decoded = [read_clip(tars[row["unit"]], members_of(row), stage.image_config) for row in rows]
            wavs, pixels = (torch.stack(list(part)) for part in zip(*decoded, strict=True))
            bare(stage, wavs[:BATCH], pixels[:BATCH])  # warms up
            seconds = sum(whole(stage, output, task) for task in output.worklist.units())
            pairs.append((len(rows) / seconds, len(rows) / bare(stage, wavs, pixels)))
            stage.close()
        errors = bf16_errors(stage, wavs[:BATCH], pixels[:BATCH])
    return {
        "benchmark": "precompute",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{machine('torch')}, {threads} threads",
        "clips": len(rows),
        "clips_per_s": round(statistics.median(pair[0] for pair in pairs), 3),
        "bare_clips_per_s": round(statistics.median(pair[1] for pair in pairs), 3),
        "over_bare": [round(pair[0] / pair[1], 3) for pair in pairs],
        **errors,
    }


if __name__ == "__main__":
    words = dict(word.split("=", 1) for word in sys.argv[1:])
    numbers = (
        int(words.get(name, default)) for name, default in (("clips", 64), ("rounds", 3), ("threads", 1))
    )
    print(json.dumps(measure(*numbers), indent=1))
