"""What a user asks of a training run: one dataclass, the sections of the recipes in it, and what makes two
runs the same.

    config = load_config(TrainConfig, ["configs/training/demo.yaml", "steps=200"])

Checks everything that needs no look at the data. Fields made with `operational` may change from one start to
the next.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from configs.load import UserError, operational, semantic_dict
from training.data.order import BLOCK_SIZE, WINDOW_SIZE, check_geometry
from training.recipes import autoencoder, contrastive, diffusion
from training.recipes.autoencoder import Config as AutoencoderConfig
from training.recipes.contrastive import Config as ContrastiveConfig
from training.recipes.diffusion import Config as DiffusionConfig
from training.recipes.recipe import Recipe

RECIPES: dict[str, Recipe] = {  # mypy checks each module against the contract here
    "autoencoder": autoencoder,
    "contrastive": contrastive,
    "diffusion": diffusion,
}
PRECISIONS = ("fp32", "bf16")
NUMBERS = 2
"""Counts changes of what the same settings compute. 2: no decay of vectors, negatives over all ranks, KL in AudioLDM's units."""
SCHEDULES = ("constant", "cosine")


@dataclass
class TrainConfig:
    """`more_data`: datasets to mix in, made with the same settings; `weights` says how often each is drawn
    from, `data` first (none: as often as it has samples). Validation and previews are of `data`.

    `global_batch`: samples per step over all workers and accumulation; a multiple of `lanes`, which `workers`
    must divide. `accumulate`: micro batches of a step; in contrastive training negatives are of one micro
    batch, so there it changes the loss.

    `block_size` neighbours are read at once and `window_size` samples of a lane shuffled together
    (training.data.order.Order). `schedule` cosine falls to zero at `steps`. `ema` 0 keeps the plain weights.
    `zero_stage` 0 to 3. `split`: which samples to learn from. `validate_every` steps (0: never) the loss of
    `validation_items` of `validation_split` is measured by the live and by the averaged weights, and
    `preview_every` steps `preview_items` of them are drawn as pictures and sounds. `workers`, `zero_stage`,
    `offload` (optimiser on the host, ZeRO 1 to 3), `activation_checkpointing` and `compile` may change from
    one start to the next; so may `accumulate`, but for contrastive, whose loss couples the samples of a micro
    batch. `wandb`: a project of Weights & Biases, beside the TensorBoard. `max_failures`: how often the run
    starts again by itself after a worker or node died. `restart` starts at step 0 where a run has steps
    behind it but no usable checkpoint; it changes nothing for a run that can go on.
    """

    data: str = operational()
    output: str = operational()
    restart: bool = operational(False)
    more_data: list[str] = operational([])
    recipe: str = "diffusion"
    workers: int = operational(1)
    steps: int = 1000
    global_batch: int = 48
    lanes: int = 48
    accumulate: int = 1
    seed: int = 0
    weights: list[float] = field(default_factory=list)
    block_size: int = BLOCK_SIZE
    window_size: int = WINDOW_SIZE
    split: str = "train"
    lr: float = 1e-4
    warmup_steps: int = 100
    schedule: str = "constant"
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    ema: float = 0.999
    zero_stage: int = operational(1)
    precision: str = "fp32"
    checkpoint_every: int = operational(500)
    keep_checkpoints: int = operational(3)
    validate_every: int = operational(0)
    validation_split: str = operational("validation")
    validation_items: int = operational(256)
    preview_every: int = operational(0)
    preview_items: int = operational(4)
    activation_checkpointing: bool = operational(False)
    compile: bool = operational(False)
    offload: bool = operational(False)
    wandb: str = operational("")
    max_failures: int = operational(8)
    threads: int = operational(1)
    prefetch: int = operational(2)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)

    def __post_init__(self) -> None:
        for name, known in (
            ("recipe", RECIPES),
            ("precision", PRECISIONS),
            ("schedule", SCHEDULES),
            ("zero_stage", range(4)),
        ):
            if getattr(self, name) not in known:
                raise UserError(f"{name}={getattr(self, name)}: give one of {', '.join(map(str, known))}")
        positive = (
            "steps",
            "accumulate",
            "block_size",
            "window_size",
            "lr",
            "checkpoint_every",
            "keep_checkpoints",
            "threads",
            "prefetch",
        )
        for name in (*positive, "validation_items", "preview_items"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name}={getattr(self, name)}: give a positive number")
        for name in (
            "workers",
            "warmup_steps",
            "max_failures",
            "gradient_clip",
            "weight_decay",
            "validate_every",
            "preview_every",
        ):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)}: give 0 or more")
        if not 0 <= self.ema < 1:
            raise UserError(f"ema={self.ema}: give 0 or more, below 1")
        if self.offload and self.zero_stage == 0:
            raise UserError("offload=true: needs zero_stage=1, 2 or 3")
        if self.precision == "bf16" and self.zero_stage == 0:
            raise UserError(
                "zero_stage=0: averages no fp32 weights with precision=bf16; give zero_stage=1, which also needs less memory"
            )
        if self.weights and len(self.weights) != 1 + len(self.more_data):
            raise UserError(
                f"weights={self.weights}: give {1 + len(self.more_data)}, one for data and one for each of more_data, or none"
            )
        if len({self.data, *self.more_data}) <= len(self.more_data):
            raise UserError(
                f"more_data={self.more_data}: names a dataset twice; give it a greater weight instead"
            )
        check_geometry(self.lanes, self.global_batch, max(1, self.workers))
        if self.global_batch % (max(1, self.workers) * self.accumulate):
            raise UserError(
                f"accumulate={self.accumulate}: workers x accumulate must divide global_batch={self.global_batch}"
            )

    @property
    def all_data(self) -> list[str]:
        """`data`, then `more_data`."""
        return [self.data, *self.more_data]

    @property
    def section(self) -> Any:
        """The settings of the chosen recipe."""
        return getattr(self, self.recipe)

    @property
    def module(self) -> Recipe:
        """The chosen recipe."""
        return RECIPES[self.recipe]


def identity(config: TrainConfig) -> dict[str, Any]:
    """Settings that change the numbers of a run: the chosen recipe's section, and `steps` only if the
    schedule uses it.
    """
    found = semantic_dict(config) | {"numbers": NUMBERS}
    others = [name for name in RECIPES if name != config.recipe]
    return {
        name: value
        for name, value in found.items()
        if name not in others and (name != "steps" or config.schedule != "constant")
    }


def learning_rate(config: TrainConfig, step: int) -> float:
    """Of step 1, 2, …: linear warm-up, then constant or a half cosine to zero."""
    warm = min(1.0, step / max(1, config.warmup_steps))
    if config.schedule == "constant":
        return config.lr * warm
    share = max(0.0, (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps))
    return config.lr * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
