"""Training of UNet-S beside a plain PyTorch loop, and beside one that encodes as it goes; and what a
checkpoint holds up.

    python -m benchmarks.training [steps=4] [rounds=2] [batch=2] [threads=2]

All on the same threads and batch, in alternating rounds; the first step of each round is left out. `ours`:
the real verb on latents of a folder: checked, shuffled, resampled, clipped, averaged, logged, under DeepSpeed
ZeRO 0. `plain`: forward, backward, clipping and AdamW on one batch that lies in memory, no average.
`online_*`: waveforms -> mel -> AudioLDM's autoencoder, pictures -> CLIP of that shape, UNet-S, AdamW, and an
average in a loop over the parameters, as audioldm_train does it: torch's AdamW as it comes, no clipping, its
formula of the average, its batch of 2. In favour of that loop, nothing is read or decoded. `stall_steps`: how
long a save holds the training up, in steps; once more at ZeRO 2.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from benchmarks.loader import IMAGE_DIM, make
from benchmarks.machine import machine
from training.data.catalogue import Catalogue
from training.data.randomness import SampleKey
from training.pipeline.codec import embed_image, encode_wav
from training.pipeline.mel import MelConfig
from training.recipes import diffusion
from training.run import loop
from training.settings import TrainConfig
from training.train import train

SAMPLES = 256
SAVE_AT = 6  # of twice as many steps
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


def plain(geometry: dict[str, Any], batch: dict[str, Tensor]) -> Step:
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


def online(geometry: dict[str, Any], batch: dict[str, Tensor], tower: str) -> Step:
    """One step of a loop that encodes what it learns from."""
    torch.manual_seed(0)
    model, mel = diffusion.build_model(diffusion.Config(), geometry), MelConfig()
    down, up = ("DownEncoderBlock2D",) * 3, ("UpDecoderBlock2D",) * 3
    codec = AutoencoderKL(1, 1, down, up, (128, 256, 512), 2, latent_channels=8).eval().requires_grad_(False)
    image_encoder = (
        CLIPVisionModelWithProjection(CLIPVisionConfig(projection_dim=IMAGE_DIM, **TOWERS[tower]))
        .eval()
        .requires_grad_(False)
    )
    size = len(batch["weight"])
    wav, pixels = torch.randn(size, mel.num_samples) * 0.1, torch.randn(size, 3, 224, 224)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    average = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def step() -> None:
        with torch.no_grad():
            mean, std = encode_wav(codec, wav, mel)
            encoded = {
                **batch,
                "latent": mean + std * torch.randn_like(mean),
                "image": embed_image(image_encoder, pixels),
            }
        optimizer.zero_grad()
        model(encoded)["loss"].mean().backward()
        optimizer.step()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                average[name].sub_(0.0001 * (average[name] - parameter))

    return step


def seconds(step: Step, steps: int) -> float:
    """The median of a step, but for the first."""
    found = []
    for _ in range(steps):
        started = time.perf_counter()
        step()
        found.append(time.perf_counter() - started)
    return statistics.median(found[1:])


def ours(
    data: str, output: Path, batch: int, threads: int, zero_stage: int = 0
) -> tuple[float, float, float]:
    """The median step before any save and what the first save costs, in seconds, and the share of waiting for
    data.

    A save costs its own time, and what the steps after it take longer than those before: it uploads beside
    them.
    """
    took, save = [], loop.save

    def timed(*arguments: Any) -> None:
        started = time.perf_counter()
        save(*arguments)
        took.append(time.perf_counter() - started)

    shape = {
        "workers": 0,
        "global_batch": batch,
        "lanes": batch,
        "zero_stage": zero_stage,
        "threads": threads,
        "ema": 0.9999,
    }
    with patch.object(loop, "save", timed):
        train(
            TrainConfig(
                data=data,
                output=str(output),
                steps=2 * SAVE_AT,
                checkpoint_every=SAVE_AT,
                keep_checkpoints=1,
                **shape,
            )
        )  # type: ignore[arg-type]
    lines = [json.loads(line) for line in (output / "metrics.jsonl").open()][1:]
    step_s = [line["step_s"] for line in lines]
    calm, later = statistics.median(step_s[: SAVE_AT - 1]), step_s[SAVE_AT - 1 :]
    waited = sum(line["data_wait_s"] for line in lines)
    return calm, took[0] + max(0.0, sum(later) - len(later) * calm), waited / sum(step_s)


def measure(steps: int, rounds: int, batch: int, threads: int) -> dict[str, object]:
    """The figures of all, and the ratios."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="stillsound-bench-") as name:
        dataset = make(f"{name}/latents", SAMPLES)
        geometry = diffusion.geometry(dataset.snapshot(), dataset.meta, diffusion.Config())
        catalogue = Catalogue.of(dataset, dataset.snapshot(), "train", diffusion.MEMBERS)
        keys, samples = [SampleKey(0, 0, place) for place in range(batch)], catalogue.read(list(range(batch)))
        tensors = diffusion.make_batch(
            [samples[place] for place in range(batch)], keys, diffusion.Config(), geometry
        )
        found: dict[str, list[float]] = {
            "plain": [],
            "ours": [],
            **{f"online_{tower}": [] for tower in TOWERS},
        }
        told = []
        for number in range(rounds):
            found["plain"].append(seconds(plain(geometry, tensors), steps))
            told.append(ours(dataset.uri, Path(name, f"run-{number}"), batch, threads))
            found["ours"].append(told[-1][0])
            for tower in TOWERS:
                found[f"online_{tower}"].append(seconds(online(geometry, tensors, tower), steps))
        step_s, stall_s, _ = ours(dataset.uri, Path(name, "zero-2"), batch, threads, 2)
    middle = {name: statistics.median(values) for name, values in found.items()}
    return {
        "benchmark": "training",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine("torch", "deepspeed"),
        "batch": batch,
        "seconds_per_step": {name: [round(value, 2) for value in values] for name, values in found.items()},
        "plain_over_ours": round(middle["plain"] / middle["ours"], 3),
        **{
            f"ours_over_online_{tower}": round(middle[f"online_{tower}"] / middle["ours"], 2)
            for tower in TOWERS
        },
        "stall_steps": round(max(stall / step for step, stall, _ in told), 2),
        "stall_steps_at_zero_2": round(stall_s / step_s, 2),
        "data_wait_share": round(max(wait for _, _, wait in told), 5),
    }


if __name__ == "__main__":
    words = dict(word.split("=", 1) for word in sys.argv[1:])
    numbers = (
        int(words.get(name, default))
        for name, default in (("steps", 4), ("rounds", 2), ("batch", 2), ("threads", 2))
    )
    print(json.dumps(measure(*numbers), indent=1))
