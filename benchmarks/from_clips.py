"""How long a training step of the recipes that learn from clips takes, beside a plain PyTorch loop.

    python -m benchmarks.from_clips [recipes=vocoder,autoencoder] [steps=8] [rounds=3] [batch=4] [threads=2]

Measured: seconds per step, medians, on the same threads and batch, of modules of a quarter of their published
width:

- `ours`: the real verb on clips of a folder: read, checked, decoded, turned into mels, clipped, averaged,
  logged, under DeepSpeed ZeRO 0; of the vocoder two engines.
- `plain`, the baseline: the same module, forward, backward, clipping and AdamW on one batch in memory, no
  average; of the vocoder the generator and then the discriminators, on what was made once.

How: the sides take turns, `rounds` times; the first step of each round is left out, because it warms up.
"""

import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile
import torch
from PIL import Image
from torch import nn

from benchmarks.command_line import parse_options
from benchmarks.machine import machine
from cluster.dataset import Dataset
from cluster.jsonl import read_lines
from cluster.shards import Row, write_shard
from training.data.catalogue import Catalogue
from training.data.randomness import SampleKey
from training.networks.discriminators import DiscriminatorConfig
from training.networks.vocoders import VocoderConfig
from training.recipes import autoencoder, vocoder
from training.run.sides import sides_of
from training.settings import RECIPES, TrainConfig
from training.train import train

CLIP_S = 2.56
RATE_HZ = 16000
CLIPS = 64
PICTURE_PX = 256
SETTINGS: dict[str, Any] = {
    "autoencoder": autoencoder.Config(channels=[32, 64, 128], kl_weight=98.0),
    "vocoder": vocoder.Config(
        generator=VocoderConfig(channels=256),
        discriminators=DiscriminatorConfig(
            period_channels=[8, 32, 128, 256, 256], scale_channels=[32, 32, 64, 128, 256, 256, 256]
        ),
    ),
}


def make_noise_clips(uri: str, duration_s: float = CLIP_S) -> Dataset:
    """Clips of noise, each with a picture of noise, in one tar, by the real commit protocol."""
    config = {"audio": {"sample_rate_hz": RATE_HZ}, "clip": {"duration_s": duration_s}}
    dataset = Dataset.create_or_open(uri, "clips", config, [])
    dataset.worklist.append([("noise", {})], 1)
    rng = np.random.default_rng(0)
    rows = []
    for index in range(CLIPS):
        flac = io.BytesIO()
        wav = 0.1 * rng.standard_normal(int(duration_s * RATE_HZ)).astype(np.float32)
        soundfile.write(flac, wav, RATE_HZ, format="FLAC")
        jpg = io.BytesIO()
        pixels = rng.integers(0, 256, (PICTURE_PX, PICTURE_PX, 3), np.uint8)
        Image.fromarray(pixels).save(jpg, "JPEG")
        key = f"noise_{index:03d}"
        # each of a video of its own: none is masked as a negative
        metadata = {"source": "noise", "media_id": key, "caption": f"noise, take {key}"}
        json_text = json.dumps(metadata).encode()
        members = {"flac": flac.getvalue(), "jpg": jpg.getvalue(), "json": json_text}
        rows.append(Row("noise", key, columns={"split": "train"}, members=members))
    (task,) = dataset.worklist.units()
    with tempfile.TemporaryDirectory() as folder:
        columns = pa.schema([("split", pa.string())])
        dataset.commit(task.unit, 0, write_shard(Path(folder), rows, columns), {})
    return dataset


# --- Both sides ---------------------------------------------------------------------------------------------


def plain_step(config: TrainConfig, dataset: Dataset) -> Callable[[], None]:
    """One step of the plain loop."""
    torch.manual_seed(0)
    recipe = config.module
    geometry = recipe.geometry(dataset.snapshot(), dataset.meta, config.section)
    catalogue = Catalogue.of(dataset, dataset.snapshot(), "train", recipe.MEMBERS)
    indexes = list(range(config.global_batch))
    samples = catalogue.read(indexes)
    keys = [SampleKey(0, 0, index) for index in indexes]
    batch = recipe.make_batch([samples[index] for index in indexes], keys, config.section, geometry)
    model = recipe.build_model(config.section, geometry)
    sides = sides_of(model, config.optimisers)
    adams = [torch.optim.AdamW(side.parameters(), lr=config.lr, fused=True) for side in sides]

    def step() -> None:
        full = dict(batch)
        for optimiser, side, adam in zip(config.optimisers, sides, adams, strict=True):
            adam.zero_grad()
            losses = side(full)
            full |= {name: losses[name] for name in optimiser.gives}
            losses["loss"].mean().backward()
            nn.utils.clip_grad_norm_(side.parameters(), config.gradient_clip)
            adam.step()

    return step


def plain_seconds(step: Callable[[], None], steps: int) -> float:
    """The median of all steps but the first."""
    seconds = []
    for _ in range(steps):
        started_s = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started_s)
    return statistics.median(seconds[1:])


def our_seconds(config: TrainConfig) -> float:
    """The median of all steps but the first of a run of the real verb."""
    train(config)
    lines = read_lines(Path(config.output, "metrics.jsonl"))
    return statistics.median(line["step_s"] for line in lines[1:])


# --- Result -------------------------------------------------------------------------------------------------


def measure(recipe: str, steps: int, rounds: int, batch: int, threads: int) -> dict[str, object]:
    torch.set_num_threads(threads)
    seconds: dict[str, list[float]] = {"plain": [], "ours": []}
    with tempfile.TemporaryDirectory(prefix="stillsound-bench-") as name:
        dataset = make_noise_clips(f"{name}/clips")
        for index in range(rounds):
            config = TrainConfig(
                data=dataset.uri,
                output=f"{name}/run-{index}",
                recipe=recipe,
                workers=0,
                threads=threads,
                zero_stage=0,
                global_batch=batch,
                lanes=batch,
                steps=steps,
                **{recipe: SETTINGS[recipe]},
            )
            seconds["plain"].append(plain_seconds(plain_step(config, dataset), steps))
            seconds["ours"].append(our_seconds(config))
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    return {
        "seconds_per_step": {side: [round(value, 3) for value in values] for side, values in seconds.items()},
        "ours_over_plain": round(medians["ours"] / medians["plain"], 3),
    }


def main() -> None:
    options = parse_options()
    recipes = options.get("recipes", "vocoder,autoencoder").split(",")
    batch = int(options.get("batch", 4))
    sizes = {"steps": int(options.get("steps", 8)), "rounds": int(options.get("rounds", 3)), "batch": batch}
    threads = int(options.get("threads", 2))
    result = {recipe: measure(recipe, threads=threads, **sizes) for recipe in recipes if recipe in RECIPES}
    record = {
        "benchmark": "from_clips",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine("torch", "deepspeed"),
        "batch": batch,
        "threads": threads,
        **result,
    }
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
