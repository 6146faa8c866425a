"""How long a training step of UNet-S takes, beside a plain PyTorch loop and one that encodes as it goes.

    python -m benchmarks.training [steps=4] [rounds=2] [batch=2] [threads=2]

Measured: seconds per step, medians, on the same threads and batch:

- `ours`: the real verb on latents of a folder: checked, shuffled, resampled, clipped, averaged, logged, under
  DeepSpeed ZeRO 0.
- `plain`, the baseline: forward, backward, clipping and AdamW on one batch in memory, no average.
- `online_b32`, `online_l14`, the baselines of precomputed latents: waveforms -> mel -> AudioLDM's
  autoencoder, pictures -> CLIP of that shape, then UNet-S, AdamW and an average, as audioldm_train does it:
  torch's AdamW with its defaults, no clipping, its formula of the average in a loop over the parameters, its
  batch of 2. In favour of that loop, nothing is read or decoded.

and `stall_steps`: how many steps' time a save costs, once more at ZeRO 2.

How: the sides take turns, `rounds` times; the first step of each round is left out, because it warms up.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from benchmarks.command_line import parse_options
from benchmarks.loader import IMAGE_DIM, make_random_latents
from benchmarks.machine import machine
from cluster.dataset import Dataset
from cluster.jsonl import read_lines
from training.data.catalogue import Catalogue
from training.data.randomness import SampleKey
from training.pipeline.codec import embed_image, encode_wav
from training.pipeline.mel import MelConfig
from training.recipes import diffusion
from training.recipes.recipe import Geometry
from training.run import loop
from training.settings import TrainConfig
from training.train import train

SAMPLES = 256
SAVE_AT_STEP = 6  # of twice as many: as many steps before the save as after it
TOWERS = {
    "b32": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "patch_size": 32,
    },
    "l14": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
    },
}
Step = Callable[[], None]


# --- Baselines ----------------------------------------------------------------------------------------------


def plain_step(geometry: Geometry, batch: dict[str, Tensor]) -> Step:
    """One step of the plain loop."""
    torch.manual_seed(0)
    model = diffusion.build_model(diffusion.Config(), geometry)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        model(batch)["loss"].mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def online_step(geometry: Geometry, batch: dict[str, Tensor], tower: str) -> Step:
    """One step of a loop that encodes what it learns from."""
    torch.manual_seed(0)
    model = diffusion.build_model(diffusion.Config(), geometry)
    mel = MelConfig()
    down_blocks = ("DownEncoderBlock2D",) * 3
    up_blocks = ("UpDecoderBlock2D",) * 3
    codec = AutoencoderKL(1, 1, down_blocks, up_blocks, (128, 256, 512), 2, latent_channels=8)
    codec.eval().requires_grad_(False)
    image_encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(projection_dim=IMAGE_DIM, **TOWERS[tower]))
    image_encoder.eval().requires_grad_(False)
    batch_size = len(batch["weight"])
    wavs = torch.randn(batch_size, mel.num_samples) * 0.1
    pixels = torch.randn(batch_size, 3, 224, 224)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    average = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def step() -> None:
        with torch.no_grad():
            mean, std = encode_wav(codec, wavs, mel)
            latents = mean + std * torch.randn_like(mean)
            images = embed_image(image_encoder, pixels)
        optimizer.zero_grad()
        model({**batch, "latent": latents, "image": images})["loss"].mean().backward()
        optimizer.step()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                average[name].sub_(0.0001 * (average[name] - parameter))

    return step


def median_step_s(step: Step, steps: int) -> float:
    """Of all steps but the first."""
    seconds = []
    for _ in range(steps):
        started_s = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started_s)
    return statistics.median(seconds[1:])


# --- Ours ---------------------------------------------------------------------------------------------------


class OurRun(NamedTuple):
    step_s: float  # the median before any save
    stall_s: float  # what the first save costs
    wait_share: float  # of the time of all steps, waiting for data


def our_run(data: str, output: Path, batch: int, threads: int, zero_stage: int = 0) -> OurRun:
    """A run of the real verb with one save in its middle.

    A save costs its own time, and what the steps after it take longer than those before: it uploads beside
    them.
    """
    save_s = []
    save = loop.save

    def timed_save(*args: Any) -> None:
        started_s = time.perf_counter()
        save(*args)
        save_s.append(time.perf_counter() - started_s)

    config = TrainConfig(
        data=data,
        output=str(output),
        workers=0,
        threads=threads,
        zero_stage=zero_stage,
        global_batch=batch,
        lanes=batch,
        ema=0.9999,
        steps=2 * SAVE_AT_STEP,
        checkpoint_every=SAVE_AT_STEP,
        keep_checkpoints=1,
    )
    with patch.object(loop, "save", timed_save):
        train(config)
    lines = read_lines(output / "metrics.jsonl")[1:]  # the first step warms up
    step_s = [line["step_s"] for line in lines]
    before_save_s = step_s[: SAVE_AT_STEP - 1]
    after_save_s = step_s[SAVE_AT_STEP - 1 :]
    median_s = statistics.median(before_save_s)
    slower_s = sum(after_save_s) - len(after_save_s) * median_s
    waited_s = sum(line["data_wait_s"] for line in lines)
    return OurRun(median_s, save_s[0] + max(0.0, slower_s), waited_s / sum(step_s))


# --- Result -------------------------------------------------------------------------------------------------


def first_batch(dataset: Dataset, geometry: Geometry, batch: int) -> dict[str, Tensor]:
    """The first samples of the dataset as one batch of the recipe."""
    catalogue = Catalogue.of(dataset, dataset.snapshot(), "train", diffusion.MEMBERS)
    samples = catalogue.read(list(range(batch)))
    keys = [SampleKey(0, 0, index) for index in range(batch)]
    return diffusion.make_batch(
        [samples[index] for index in range(batch)], keys, diffusion.Config(), geometry
    )


def measure(steps: int, rounds: int, batch: int, threads: int) -> dict[str, object]:
    torch.set_num_threads(threads)
    step_s: dict[str, list[float]] = {"plain": [], "ours": []}
    step_s |= {f"online_{tower}": [] for tower in TOWERS}
    runs = []
    with tempfile.TemporaryDirectory(prefix="stillsound-bench-") as name:
        dataset = make_random_latents(f"{name}/latents", SAMPLES)
        geometry = diffusion.geometry(dataset.snapshot(), dataset.meta, diffusion.Config())
        tensors = first_batch(dataset, geometry, batch)
        for index in range(rounds):
            step_s["plain"].append(median_step_s(plain_step(geometry, tensors), steps))
            run = our_run(dataset.uri, Path(name, f"run-{index}"), batch, threads)
            runs.append(run)
            step_s["ours"].append(run.step_s)
            for tower in TOWERS:
                online_s = median_step_s(online_step(geometry, tensors, tower), steps)
                step_s[f"online_{tower}"].append(online_s)
        zero_2 = our_run(dataset.uri, Path(name, "zero-2"), batch, threads, zero_stage=2)
    medians = {side: statistics.median(seconds) for side, seconds in step_s.items()}
    over_online = {
        f"ours_over_online_{tower}": round(medians[f"online_{tower}"] / medians["ours"], 2)
        for tower in TOWERS
    }
    return {
        "benchmark": "training",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine("torch", "deepspeed"),
        "batch": batch,
        "seconds_per_step": {
            side: [round(value, 2) for value in seconds] for side, seconds in step_s.items()
        },
        "plain_over_ours": round(medians["plain"] / medians["ours"], 3),
        **over_online,
        "stall_steps": round(max(run.stall_s / run.step_s for run in runs), 2),
        "stall_steps_at_zero_2": round(zero_2.stall_s / zero_2.step_s, 2),
        "data_wait_share": round(max(run.wait_share for run in runs), 5),
    }


def main() -> None:
    options = parse_options()
    steps = int(options.get("steps", 4))
    rounds = int(options.get("rounds", 2))
    batch = int(options.get("batch", 2))
    threads = int(options.get("threads", 2))
    print(json.dumps(measure(steps, rounds, batch, threads), indent=1))


if __name__ == "__main__":
    main()
