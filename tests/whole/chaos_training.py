"""Training runs of every recipe, killed at random while workers and ZeRO stages change between their legs.

    training_round(folder, random.Random(0), "vocoder")     # what was killed, or an AssertionError

A round draws the recipe's legs, each with another number of workers and another ZeRO stage. The legs are run
without kills and with them: every number that a step logs, and the model, must be the same bit for bit. And
every loss must be that of one process, to the recipe's tolerance: to 1e-5, and 1e-4 where an adversary
amplifies rounding.
"""

import hashlib
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cluster.dataset import Dataset
from cluster.jsonl import JsonObject, read_lines
from tests.fakes.captioned import make_captioned
from tests.fakes.clips import make_clips
from tests.fakes.latents import make_latents
from tests.fakes.runs import TINY_ARGS, losses
from tests.fakes.tokens import make_tokens
from tests.whole.random_kills import run_with_kills

WORKERS = (1, 2, 3, 4)
STAGES = (0, 1, 2, 3)
NUM_LEGS = 2
MAX_KILLS = 2  # of a leg, and at least one


@dataclass(frozen=True)
class Trained:
    """A recipe as it is run here: its tiny settings, its data, and how far another number of workers may be."""

    args: list[str]
    lr: float
    make_data: Callable[[Path], Dataset]
    leg_steps: int
    tolerance: float


AUTOENCODER = [
    "recipe=autoencoder",
    "autoencoder.channels=[8,8,8]",
    "autoencoder.layers_per_block=1",
    "autoencoder.norm_groups=4",
    "autoencoder.attention=false",
    "autoencoder.crop_frames=64",
    "autoencoder.discriminator_weight=0.5",
    "autoencoder.discriminator_start=3",
    "autoencoder.discriminator_channels=8",
]
CONTRASTIVE = [
    "recipe=contrastive",
    "block_size=1",
    "contrastive.embedding_dim=8",
    "contrastive.image.kind=resnet",
    "contrastive.image.size_px=32",
    "contrastive.image.widths=[8,16]",
    "contrastive.image.depths=[1,1]",
    "contrastive.image.stem=8",
    "contrastive.image.norm_groups=4",
    "contrastive.audio.width=16",
    "contrastive.audio.depths=[1]",
]
VOCODER = [
    "recipe=vocoder",
    "beta1=0.8",
    "vocoder.generator.channels=64",
    "vocoder.generator.block_kernels=[3]",
    "vocoder.generator.dilations=[1]",
    "vocoder.discriminators.periods=[2,3]",
    "vocoder.discriminators.period_channels=[4,8]",
    "vocoder.discriminators.num_scales=2",
    "vocoder.discriminators.scale_channels=[4,4,8,8,8,8,8]",
    "vocoder.crop_frames=16",
]
# Rates at which training is stable: at 1e-3 the contrastive run and the adversaries let rounding grow by half
# with every step, from 1e-7 to 1e-3 within twenty.
AUDIOMAE = ["recipe=audiomae", "audiomae.width=16", "audiomae.layers=2", "audiomae.heads=2"]
AUDIOMAE += ["audiomae.decoder_width=16", "audiomae.decoder_layers=1", "audiomae.decoder_heads=2"]
PRIOR = ["recipe=prior", "prior.width=32", "prior.layers=1", "prior.heads=2"]
RECIPES = {
    "diffusion": Trained(TINY_ARGS, 1e-3, make_latents, 40, 1e-5),
    "contrastive": Trained(CONTRASTIVE, 2e-4, make_captioned, 20, 1e-5),
    "autoencoder": Trained(AUTOENCODER, 1e-4, make_clips, 20, 1e-4),
    "vocoder": Trained(VOCODER, 2e-4, make_clips, 20, 1e-4),
    "audiomae": Trained(AUDIOMAE, 2e-4, make_clips, 20, 1e-5),
    "prior": Trained(PRIOR, 2e-4, make_tokens, 20, 1e-5),
}


def training_round(root: Path, rng: random.Random, recipe: str) -> list[str]:
    """What was killed, and how far the losses are from those of one process."""
    trained = RECIPES[recipe]
    data = root / f"data-{recipe}"
    if not data.exists():
        trained.make_data(data)
    args = ["training", "train", f"data={data}", "global_batch=12", "lanes=12", "warmup_steps=3"]
    args += [f"lr={trained.lr:g}", "checkpoint_every=5", *trained.args]
    alone = root / f"alone-{recipe}"
    if not alone.exists():
        steps = f"steps={trained.leg_steps * NUM_LEGS}"
        run_with_kills([*args, f"output={alone}", "workers=0", steps], rng, 0, 1)
    legs = draw_legs(rng)
    killed: list[str] = []
    for name, most in (("undisturbed", 0), ("disturbed", MAX_KILLS)):
        output = root / f"{name}-{recipe}"
        shutil.rmtree(output, ignore_errors=True)
        for leg, (workers, stage) in enumerate(legs, 1):
            more = [f"output={output}", f"workers={workers}", f"zero_stage={stage}"]
            more.append(f"steps={trained.leg_steps * leg}")
            begun = partial(has_steps, output, trained.leg_steps * (leg - 1) + 1)
            if most:
                killed.append(f"{workers} workers at ZeRO {stage}")
            killed += run_with_kills([*args, *more], rng, rng.randint(min(1, most), most), 3.0, begun)
    check_equal(root / f"disturbed-{recipe}", root / f"undisturbed-{recipe}")
    difference = largest_difference(losses(root / f"disturbed-{recipe}"), losses(alone))
    assert difference < trained.tolerance, f"losses of {recipe} differ by {difference:.1e}"
    return [*killed, f"losses within {difference:.1e}"]


def draw_legs(rng: random.Random) -> list[tuple[int, int]]:
    """Workers and ZeRO stage of each leg, all of them others."""
    return list(zip(rng.sample(WORKERS, NUM_LEGS), rng.sample(STAGES, NUM_LEGS), strict=True))


def has_steps(output: Path, count: int) -> bool:
    """Whether a run has logged so many steps."""
    return len(read_lines(output / "metrics.jsonl")) >= count


def check_equal(run: Path, expected: Path) -> None:
    """`AssertionError` unless every step and the model are the same, bit for bit."""
    pairs = zip(steps_of(run), steps_of(expected), strict=True)
    different = [line["step"] for line, other in pairs if line != other]
    assert not different, f"steps {different} differ from the run without kills"
    assert model_sha256(run) == model_sha256(expected), "the models differ"


def steps_of(run: Path) -> list[JsonObject]:
    """What each step logged of the model and its data."""
    lines = read_lines(run / "metrics.jsonl")
    return [{name: line[name] for name in line if is_of_the_model(name)} for line in lines]


def is_of_the_model(name: str) -> bool:
    return name in ("step", "lr") or name.startswith(("loss", "grad_norm"))


def model_sha256(run: Path) -> dict[str, str]:
    """Of every file of weights of a finished run, by its path."""
    files = sorted((run / "model").rglob("*.safetensors"))
    assert files, f"{run} has no model"
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def largest_difference(losses: list[float], expected: list[float]) -> float:
    """Relative to the expected losses."""
    pairs = zip(losses, expected, strict=True)
    return max(abs(loss - expected_loss) / abs(expected_loss) for loss, expected_loss in pairs)
