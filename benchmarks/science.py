"""Whether sounds follow pictures: the whole chain from a web site to scores, over several seeds.

    python -m benchmarks.science output=out/science [seeds=0,1,2] [oracle=true] [videos=500]

A seed is a world of its own, scraped from a loopback site, and models of their own. Its videos leave out a
quarter of all combinations of shape, size and stripes (ingest.scenes.is_unseen), and the models are scored on
both: held-out videos of seen combinations, and a world of the unseen ones. With `oracle`, one more diffusion
is trained on what the pictures say (shape, size and stripes as numbers) in place of the embedding: what the
rest of the chain could do with a perfect image tower. `closed` is the share of the gap from chance to the
codec's ceiling (training.score), `shuffled_closed` the same with another clip's picture.

Run again: what is done is not done again. Each seed's figures stay in OUTPUT/seed<n>.json; mean and worst of
all seeds go to stdout.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.command_line import parse_options, run
from benchmarks.finetune import copy_part, scene_of
from benchmarks.machine import machine
from cluster.dataset import Dataset
from cluster.demo import port_of, site
from cluster.jsonl import JsonObject
from cluster.record import stdout_to_stderr
from ingest.scenes import F0_RANGE_HZ, RATE_RANGE_HZ, SHAPES
from training.data.choice import seed_of
from training.evaluate import reconstruct
from training.evaluation import EvaluateConfig, HeldOut, find_clips
from training.export import open_pipeline
from training.judge import Attributes, judge
from training.pipeline.pipeline import StillsoundPipeline
from training.score import ATTRIBUTES, Scores, score

CLIPS = 320  # scored of either kind
SIZE_PX = 128  # of pictures: twice the demo's, so that half a semitone is a pixel or two
BATCH = 32
FREQUENCIES = (1, 2, 4, 8)  # of the waves that an oracle states a number by
TOWERS = (
    "steps=1200",
    "contrastive.image.size_px=128",
    "contrastive.image.widths=[16,32,64,96,128]",
    "contrastive.image.depths=[1,1,1,1,1]",
)
DIFFUSION = ("steps=1200", "checkpoint_every=300")


@dataclass(frozen=True)
class Seed:
    """One seed's folder. `seconds`: wall time by stage, of what was done in this process."""

    number: int
    root: Path
    videos: int
    seconds: dict[str, float]

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[stage] = round(self.seconds.get(stage, 0) + time.monotonic() - started, 1)

    # --- Data -----------------------------------------------------------------------------------------------

    def make_clips(self) -> None:
        """A world of seen combinations for training, a small one of unseen ones, and the clips of both."""
        for kind, videos in (("seen", self.videos), ("unseen", max(2, CLIPS // 16))):
            place = self.root / kind
            place.mkdir(parents=True, exist_ok=True)
            sizes = (f"videos={videos}", f"size_px={SIZE_PX}", f"combinations={kind}")
            with self.timed("synth"):
                # a seed of its own, or the unseen world would have the seen one's noise
                run(
                    "ingest",
                    "synth",
                    f"{place}/world",
                    *sizes,
                    f"seed={2 * self.number + (kind == 'unseen')}",
                )
            port = port_of(place)
            settings = (
                f"output={place}/clips",
                f"source.path={place}/world/urls.csv",
                f"network.allow_private=[127.0.0.1:{port}]",
                f"frame.short_side_px={SIZE_PX}",
                # of the unseen world every clip is for scores
                *(["split.validation=1.0"] if kind == "unseen" else []),
            )
            with self.timed("scrape"), site(place, port):
                run("ingest", "scrape", "configs/ingest/demo.yaml", *settings)

    def make_oracle(self) -> None:
        """The latents once more, with what the pictures say in place of embeddings."""
        target = self.root / "oracle"
        done = self.root / "oracle.done"
        if done.exists():
            return
        world = self.root / "seen"
        source = Dataset.open(f"{self.root}/latents")
        copy_part(
            source, target, lambda row: row["split"], lambda row: oracle(scene_of(world, row)["attributes"])
        )
        done.touch()

    # --- Models ---------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Towers, autoencoder, latents and diffusion."""
        clips = f"data={self.root}/seen/clips"
        for recipe, settings in (("contrastive", TOWERS), ("autoencoder", ())):
            preset = f"configs/training/demo_{recipe}.yaml"
            with self.timed(recipe):
                self._train(preset, clips, f"output={self.root}/runs/{recipe}", *settings)
        with self.timed("precompute"):
            run(
                "training",
                "precompute",
                "configs/training/demo_latents.yaml",
                clips,
                f"output={self.root}/latents",
                f"autoencoder={self.root}/runs/autoencoder",
                f"image_encoder={self.root}/runs/contrastive",
            )
        with self.timed("diffusion"):
            self.train_diffusion("latents", "diffusion")

    def train_diffusion(self, latents: str, name: str) -> None:
        places = (f"data={self.root}/{latents}", f"output={self.root}/runs/{name}")
        self._train("configs/training/demo.yaml", *places, *DIFFUSION)

    def _train(self, *settings: str) -> None:
        run("training", "train", *settings, f"seed={self.number}")

    # --- Scores ---------------------------------------------------------------------------------------------

    def score(self, kind: str) -> Scores:
        """The chain's scores on clips of a kind, as a user has them from evaluate."""
        folder = self.root / f"scores_{kind}"
        if not (folder / "scores.json").exists():
            place = self.root / kind
            settings = (f"data={place}/clips", f"truth={place}/world/truth", f"output={folder}")
            with self.timed("evaluate"):
                run(
                    "training",
                    "evaluate",
                    f"model={self.root}/runs/diffusion",
                    *settings,
                    f"num_clips={CLIPS}",
                )
        scores: Scores = json.loads((folder / "scores.json").read_text())["scores"]
        return scores

    def score_oracle(self, kind: str) -> Scores:
        """The same of the diffusion that is told what the pictures say."""
        place = self.root / kind
        pipeline = open_pipeline(f"{self.root}/runs/oracle")
        config = EvaluateConfig("", data=f"{place}/clips", truth=f"{place}/world/truth", num_clips=CLIPS)
        clips = find_clips(Dataset.open(config.data), config, pipeline.mel.num_samples)
        truths = [clip.truth for clip in clips if clip.truth]
        heard = [judge(wav, pipeline.sample_rate_hz) for wav in sounds_of(pipeline, clips)]
        real = [judge(wav, pipeline.sample_rate_hz) for wav in reconstruct(pipeline, clips, BATCH)]
        return score(heard, real, truths, [clip.media_id for clip in clips], seed=0)[0]


def main(output: Path, seeds: list[int], with_oracle: bool, videos: int) -> None:
    results: list[JsonObject] = []
    with stdout_to_stderr():
        for number in seeds:
            path = output / f"seed{number}.json"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(run_seed(output, number, with_oracle, videos), indent=1))
            results.append(json.loads(path.read_text()))
    print(json.dumps(summarise(results), indent=1))


def run_seed(output: Path, number: int, with_oracle: bool, videos: int) -> JsonObject:
    """The figures of a seed, closed shares by model, kind of combination and attribute."""
    seed = Seed(number, output / f"seed{number}", videos, {})
    seed.make_clips()
    seed.train()
    scores = {"scraped": {kind: seed.score(kind) for kind in ("seen", "unseen")}}
    if with_oracle:
        seed.make_oracle()
        with seed.timed("oracle"):
            seed.train_diffusion("oracle", "oracle")
            scores["oracle"] = {kind: seed.score_oracle(kind) for kind in ("seen", "unseen")}
    return {
        "seed": number,
        "scores": scores,
        "clips": CLIPS,
        "videos": videos,
        "seconds": seed.seconds,
        "machine": machine("torch", "deepspeed"),
        "date": time.strftime("%Y-%m-%d"),
    }


def summarise(results: list[JsonObject]) -> JsonObject:
    """Mean and worst over the seeds; of exchanged pictures the worst is the highest."""
    table: dict[str, Any] = {}
    for model in ("scraped", "oracle"):
        for kind in ("seen", "unseen"):
            of_seeds = [result["scores"][model][kind] for result in results if model in result["scores"]]
            if of_seeds:
                table[f"{model}, {kind} combinations"] = {
                    name: _spread(of_seeds, name) for name in ATTRIBUTES
                }
    return {
        "what": "share of the gap from chance to the codec's ceiling that sounds close, over seeds",
        "closed": table,
        "seeds": [result["seed"] for result in results],
        "clips": CLIPS,
        "seconds": [sum(result["seconds"].values()) for result in results],
        "machine": machine("torch", "deepspeed"),
        "date": time.strftime("%Y-%m-%d"),
    }


def _spread(of_seeds: list[Scores], attribute: str) -> dict[str, float]:
    closed = [scores[attribute]["closed"] for scores in of_seeds]
    shuffled = [scores[attribute]["shuffled_closed"] for scores in of_seeds]
    return {
        "mean": round(float(np.mean(closed)), 3),
        "worst": round(min(closed), 3),
        "shuffled_worst": round(max(shuffled), 3),
    }


# --- The oracle ---------------------------------------------------------------------------------------------


def oracle(truth: Attributes | JsonObject) -> np.ndarray:
    """What a picture says of its sound, float16 [21]: which shape, and size and stripes as waves."""
    shape = np.eye(len(SHAPES))[truth["timbre"]]
    numbers = [
        _within(truth["f0_hz"], F0_RANGE_HZ),
        _within(truth["rate_hz"], RATE_RANGE_HZ),
    ]
    angles = np.pi * np.outer(numbers, FREQUENCIES).ravel()
    return np.concatenate([shape, np.cos(angles), np.sin(angles)]).astype(np.float16)


def _within(value: float, limits: tuple[float, float]) -> float:
    """0..1 on a logarithmic scale."""
    low, high = limits
    return float(np.log(value / low) / np.log(high / low))


def sounds_of(pipeline: StillsoundPipeline, clips: list[HeldOut]) -> list[np.ndarray]:
    """A sound [n] for every clip, from noise of its own, as evaluate makes them."""
    wavs: list[np.ndarray] = []
    for start in range(0, len(clips), BATCH):
        batch = clips[start : start + BATCH]
        embeds = np.stack([oracle(clip.truth) for clip in batch if clip.truth])
        noise = [torch.Generator().manual_seed(seed_of(0, clip.key)) for clip in batch]
        wavs += list(pipeline(image_embeds=embeds, generator=noise).audios)
    return wavs


if __name__ == "__main__":
    options = parse_options()
    main(
        Path(options["output"]),
        [int(number) for number in options.get("seeds", "0,1,2").split(",")],
        options.get("oracle", "true") == "true",
        int(options.get("videos", 500)),
    )
