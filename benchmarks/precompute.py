"""How many clips per second a precompute worker encodes, beside a bare loop through the same two models.

    python -m benchmarks.precompute [clips=64] [rounds=3] [threads=1]

Measured:

- `clips_per_s`: the worker reads its unit's tar, checks and decodes FLAC and JPEG, encodes, casts, and writes
  tar and index of a real dataset.
- `bare_clips_per_s`, the baseline: the same batches from waveforms and pixels that are in memory already; the
  results are thrown away.
- `bf16_latent_error`, `bf16_embedding_error`: what bf16 changes, relative to the deviation of the values.

How: the two take turns, `rounds` times, on the same threads; medians count, and `over_bare` has the ratio of
each round. The models are AudioLDM's autoencoder at a quarter of its width, on clips of 10.24 s, and a tower
of CLIP B/32's shape, both with random weights.
"""

import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from benchmarks.command_line import parse_options
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
CHANNELS = (32, 64, 128)  # a quarter of AudioLDM's


# --- Models and clips ---------------------------------------------------------------------------------------


def make_models(folder: Path) -> tuple[str, str]:
    """The folders of an AudioLDM-shaped autoencoder and a CLIP-shaped tower, both with random weights."""
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=CHANNELS,
        layers_per_block=2,
        latent_channels=8,
        mid_block_add_attention=False,
    )
    autoencoder.save_pretrained(folder / "autoencoder")
    tower = CLIPVisionModelWithProjection(CLIPVisionConfig(projection_dim=512))
    tower.save_pretrained(folder / "tower")
    CLIPImageProcessor().save_pretrained(folder / "tower")
    return str(folder / "autoencoder"), str(folder / "tower")


def make_clips(folder: Path, clips: int) -> str:
    """A dataset of so many clips, four a video, all in one unit; returns its URI."""
    plain_videos_only = {"webm": 0, "hls": 0, "dash": 0, "stills": 0, "silent": 0}
    world = SynthConfig(
        path=str(folder / "world"),
        videos=clips // 4,
        scenes_per_video=4,
        scene_s=10.4,
        size_px=256,
        **plain_videos_only,
    )
    synth(world)
    config = ScrapeConfig(
        output=f"{folder}/clips",
        source=SourceConfig(path=f"{folder}/world/media", license="own"),
        clip=ClipConfig(duration_s=10.24),
        frame=FrameConfig(short_side_px=256),
        workers=0,
        unit_size=clips,
    )
    scrape(config, progress=False)
    return config.output


# --- Both sides ---------------------------------------------------------------------------------------------


def worker_s(stage: PrecomputeStage, output: Dataset, task: UnitTask) -> float:
    """Seconds of one unit, committed."""
    started_s = time.perf_counter()
    do_unit(output, stage, task, frozenset())
    return time.perf_counter() - started_s


def bare_loop_s(stage: PrecomputeStage, wavs: Tensor, pixels: Tensor) -> float:
    """Seconds of both models for all batches."""
    started_s = time.perf_counter()
    with torch.no_grad():
        for start in range(0, len(wavs), BATCH):
            encode_wav(stage.autoencoder, wavs[start : start + BATCH], stage.mel)
            embed_image(stage.image_encoder, pixels[start : start + BATCH])
    return time.perf_counter() - started_s


# --- What bf16 costs in exactness ---------------------------------------------------------------------------


def bf16_errors(stage: PrecomputeStage, wavs: Tensor, pixels: Tensor) -> dict[str, float]:
    with torch.no_grad():
        latents, _ = encode_wav(stage.autoencoder, wavs, stage.mel)
        embeddings = embed_image(stage.image_encoder, pixels)
        with torch.autocast("cpu", torch.bfloat16):
            rough_latents, _ = encode_wav(stage.autoencoder, wavs, stage.mel)
            rough_embeddings = embed_image(stage.image_encoder, pixels)
    return {
        "bf16_latent_error": round(relative_error(rough_latents, latents), 4),
        "bf16_embedding_error": round(relative_error(rough_embeddings, embeddings), 4),
    }


def relative_error(rough: Tensor, exact: Tensor) -> float:
    """Root mean square of the difference, over the deviation of the exact values."""
    return float((rough.float() - exact).square().mean().sqrt() / exact.std())


# --- Result -------------------------------------------------------------------------------------------------


def measure(clips: int, rounds: int, threads: int) -> dict[str, object]:
    ours = []
    bare = []
    with tempfile.TemporaryDirectory(prefix="stillsound-bench-") as name:
        data = make_clips(Path(name), clips)
        autoencoder, image_encoder = make_models(Path(name))
        config = PrecomputeConfig(
            data,
            output="",
            autoencoder=autoencoder,
            image_encoder=image_encoder,
            batch_size=BATCH,
            threads=threads,
        )
        parent = Dataset.open(data)
        rows = [row for row in parent.iter_rows() if row["status"] == "kept"]
        tars = {}
        for unit, commit in parent.commits().items():
            if commit.tar:
                tars[unit] = parent.store.read(commit.tar.name)
        for index in range(rounds):
            output, stage_factory = prepare(replace(config, output=f"{name}/latents-{index}"))
            stage = stage_factory()
            decoded = [read_clip(tars[row["unit"]], members_of(row), stage.image_config) for row in rows]
            wavs = torch.stack([wav for wav, _ in decoded])
            pixels = torch.stack([image for _, image in decoded])
            bare_loop_s(stage, wavs[:BATCH], pixels[:BATCH])  # the first batch of a process is slower
            seconds = sum(worker_s(stage, output, task) for task in output.worklist.units())
            ours.append(len(rows) / seconds)
            bare.append(len(rows) / bare_loop_s(stage, wavs, pixels))
            stage.close()
        errors = bf16_errors(stage, wavs[:BATCH], pixels[:BATCH])
    return {
        "benchmark": "precompute",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{machine('torch')}, {threads} threads",
        "clips": len(rows),
        "clips_per_s": round(statistics.median(ours), 3),
        "bare_clips_per_s": round(statistics.median(bare), 3),
        "over_bare": [round(our / their, 3) for our, their in zip(ours, bare, strict=True)],
        **errors,
    }


def main() -> None:
    options = parse_options()
    clips = int(options.get("clips", 64))
    rounds = int(options.get("rounds", 3))
    threads = int(options.get("threads", 1))
    print(json.dumps(measure(clips, rounds, threads), indent=1))


if __name__ == "__main__":
    main()
