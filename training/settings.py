"""What a user asks of a training run: one dataclass, the sections of the recipes in it, and what makes two
runs the same.

    config = load_config(TrainConfig, ["configs/training/demo.yaml", "steps=200"])

Checks everything that needs no look at the data. Fields made with `operational` may change from one start to
the next.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from cluster.jsonl import JsonObject
from configs.load import UserError, at_least, operational, positive, semantic_dict
from training.data.order import BLOCK_SIZE, WINDOW_SIZE, check_geometry
from training.recipes import audiomae, autoencoder, contrastive, diffusion, prior, vocoder
from training.recipes.audiomae import Config as AudioMaeConfig
from training.recipes.autoencoder import Config as AutoencoderConfig
from training.recipes.contrastive import Config as ContrastiveConfig
from training.recipes.diffusion import Config as DiffusionConfig
from training.recipes.prior import Config as PriorConfig
from training.recipes.recipe import Optimiser, Recipe
from training.recipes.vocoder import Config as VocoderConfig
from training.run.lora import LoraConfig
from training.run.profiles import WIDEST

RECIPES: dict[str, Recipe] = {  # mypy checks each module against the contract here
    "audiomae": audiomae,
    "autoencoder": autoencoder,
    "contrastive": contrastive,
    "diffusion": diffusion,
    "prior": prior,
    "vocoder": vocoder,
}
PRECISIONS = ("fp32", "bf16", "fp16")
NUMBERS = 2
"""Counts changes of what the same settings compute: a run that an older version began is not resumed.

2: no decay of vectors, negatives over all ranks, KL in AudioLDM's units.
"""
SCHEDULES = ("constant", "cosine")
ZERO_STAGES = range(4)


@dataclass
class TrainConfig:
    """A run's settings. `operational` ones may change from one start to the next; so may `accumulate`, unless
    the recipe's loss couples the samples of a micro batch.
    """

    data: str = operational()  # what to learn from: a dataset of clips or of latents, a folder or URI
    output: str = operational()  # the run: checkpoints, curves, the model
    # start at step 0 if the run has steps behind it but no usable checkpoint; else it changes nothing
    restart: bool = operational(False)
    recipe: str = "diffusion"  # autoencoder, contrastive, diffusion, audiomae, prior or vocoder
    # weights to start from: a run, a save_pretrained folder, a URI, or hub:owner/name@revision
    init_from: str = operational("")
    init_license: str = operational("")  # license of those weights, where nothing beside them states one
    # names of the parameters that are trained, as shell patterns; none: all of them
    train_only: list[str] = field(default_factory=list)
    # adapters in the network, of weights to start from: they are trained, and what train_only names
    lora: LoraConfig = field(default_factory=LoraConfig)

    # --- Data: `more_data` is mixed in, made with the same settings; validation and previews are of `data` --
    more_data: list[str] = operational([])  # datasets that are mixed in, made with the same settings
    # how often each dataset is drawn from, `data` first; none: as often as it has samples
    weights: list[float] = field(default_factory=list)
    split: str = "train"  # which samples to learn from
    block_size: int = BLOCK_SIZE  # neighbours that are read at once
    window_size: int = WINDOW_SIZE  # samples of a lane that are shuffled together
    # steps that are fetched ahead
    prefetch: int = operational(2)

    # --- Steps and batches: `workers` divides `lanes`, which divides `global_batch` -------------------------
    workers: int = operational(1)  # processes on Ray, one a GPU; 0: in this process, without Ray
    steps: int = 1000  # updates of the weights
    # samples per step over all workers and micro batches
    global_batch: int = 48
    lanes: int = 48  # parallel streams of samples; workers divide them, they divide global_batch
    # micro batches of a step; in contrastive training negatives are of one micro batch
    accumulate: int = 1
    seed: int = 0  # of weights, order and noise

    # --- Optimiser: AdamW -----------------------------------------------------------------------------------
    lr: float = 1e-4  # learning rate after the warm-up
    warmup_steps: int = 100  # over which the learning rate rises from 0
    # constant, or cosine, which falls to zero at `steps`
    schedule: str = "constant"
    beta1: float = 0.9  # decay of AdamW's mean of gradients
    beta2: float = 0.99  # decay of AdamW's mean of their squares
    weight_decay: float = 0.01  # AdamW's; vectors have none
    gradient_clip: float = 1.0  # norm to which gradients are cut; 0 = off
    # decay of the averaged weights, which are what ships; 0 ships the plain ones
    ema: float = 0.999
    # more averages, of these relative widths, from which `average` makes one of any width (run/profiles.py)
    ema_profiles: list[float] = field(default_factory=list)

    # --- Memory and speed -----------------------------------------------------------------------------------
    # what DeepSpeed shares out: 0 nothing, 1 optimiser, 2 gradients, 3 weights
    zero_stage: int = operational(1)
    precision: str = "fp32"  # fp32, bf16 or fp16
    # the optimiser on the host, with ZeRO 1 to 3
    offload: bool = operational(False)
    activation_checkpointing: bool = operational(False)  # computes activations twice, to save memory
    compile: bool = operational(False)  # torch.compile of the network
    threads: int = operational(1)  # of torch, of each worker

    # --- Checkpoints, validation and previews: every so many steps; 0 never validates or previews -----------
    checkpoint_every: int = operational(500)  # steps
    keep_checkpoints: int = operational(3)  # newest ones that stay
    validate_every: int = operational(0)  # steps; 0 = never
    validation_split: str = operational("validation")  # which samples validation takes
    validation_items: int = operational(256)  # samples that validation takes
    keep_best: bool = operational(False)  # ships the weights of the best validation
    patience: int = operational(0)  # ends after so many validations without a gain; 0 = never
    preview_every: int = operational(0)  # steps; 0 = never
    preview_items: int = operational(4)  # samples of a preview
    # a project of Weights & Biases, beside TensorBoard
    wandb: str = operational("")
    # how often the run starts again by itself after a worker or node died
    max_failures: int = operational(8)

    # --- Recipes: only the section of the chosen one counts -------------------------------------------------
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    audiomae: AudioMaeConfig = field(default_factory=AudioMaeConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    vocoder: VocoderConfig = field(default_factory=VocoderConfig)

    def __post_init__(self) -> None:
        _check_choice(self, "recipe", RECIPES)
        _check_choice(self, "precision", PRECISIONS)
        _check_choice(self, "schedule", SCHEDULES)
        _check_choice(self, "zero_stage", ZERO_STAGES)
        positive(self, "steps", "accumulate", "block_size", "window_size", "lr")
        positive(self, "checkpoint_every", "keep_checkpoints", "threads", "prefetch")
        positive(self, "validation_items", "preview_items")
        at_least(self, 0, "workers", "warmup_steps", "max_failures", "weight_decay")
        at_least(self, 0, "gradient_clip", "validate_every", "preview_every", "patience", meaning="off")
        if not 0 <= self.ema < 1:
            raise UserError(f"ema={self.ema}: give 0 or more, below 1")
        if (self.keep_best or self.patience) and not self.validate_every:
            raise UserError(
                "validate_every=0: keep_best and patience go by validation; give it every 100 steps"
            )
        self._check_lora()
        self._check_profiles()
        self._check_zero_stage()
        self._check_datasets()
        workers = max(1, self.workers)
        check_geometry(self.lanes, self.global_batch, workers)
        if self.global_batch % (workers * self.accumulate):
            raise UserError(
                f"accumulate={self.accumulate}: "
                f"workers x accumulate must divide global_batch={self.global_batch}"
            )

    def _check_profiles(self) -> None:
        widths = self.ema_profiles
        if len(set(widths)) < len(widths) or not all(0 < width <= WIDEST for width in widths):
            raise UserError(
                f"ema_profiles={widths}: give different widths above 0, at most {WIDEST}, such as [0.05,0.1]"
            )

    def _check_lora(self) -> None:
        if not self.lora.rank:
            return
        if not self.init_from:
            raise UserError(
                f"lora.rank={self.lora.rank}: adapters change weights that are there; give init_from="
            )
        if not self.lora.merge and not self.module.PARTS.network:
            raise UserError(
                f"lora.merge=false: {self.recipe} has no network to ship adapters beside; leave it out"
            )

    def _check_zero_stage(self) -> None:
        if self.offload and self.zero_stage == 0:
            raise UserError("offload=true: needs zero_stage=1, 2 or 3")
        # DeepSpeed keeps no fp32 weights of ours at ZeRO 0 in them, and the average is made of those
        if self.precision != "fp32" and self.zero_stage == 0:
            raise UserError(
                f"zero_stage=0: averages no fp32 weights with precision={self.precision}; "
                "give zero_stage=1, which also needs less memory"
            )

    def _check_datasets(self) -> None:
        num_datasets = 1 + len(self.more_data)
        if self.weights and len(self.weights) != num_datasets:
            raise UserError(
                f"weights={self.weights}: give {num_datasets}, one for data and one for each of more_data, "
                "or none"
            )
        if len(set(self.all_data)) < num_datasets:
            raise UserError(
                f"more_data={self.more_data}: names a dataset twice; give it a greater weight instead"
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
    def members(self) -> tuple[str, ...]:
        """What a sample must have: the recipe's members, and those that its section names."""
        return (*self.module.MEMBERS, *getattr(self.section, "members", ()))

    @property
    def optimisers(self) -> tuple[Optimiser, ...]:
        """Of the chosen recipe."""
        return self.module.optimisers(self.section)

    @property
    def module(self) -> Recipe:
        """The chosen recipe."""
        return RECIPES[self.recipe]


def identity(config: TrainConfig) -> JsonObject:
    """Settings that change the numbers of a run: the chosen recipe's section, and `steps` only if the
    schedule uses it.
    """
    left_out = {name for name in RECIPES if name != config.recipe}
    if config.schedule == "constant":
        left_out.add("steps")
    settings = semantic_dict(config) | {"numbers": NUMBERS}
    return {name: value for name, value in settings.items() if name not in left_out}


def _check_choice(config: TrainConfig, name: str, choices: Collection[object]) -> None:
    value = getattr(config, name)
    if value not in choices:
        raise UserError(f"{name}={value}: give one of {', '.join(map(str, choices))}")


def learning_rate(config: TrainConfig, step: int) -> float:
    """Of step 1, 2, …: linear warm-up, then constant or a half cosine to zero."""
    warm = min(1.0, step / max(1, config.warmup_steps))
    if config.schedule == "constant":
        return config.lr * warm
    share = max(0.0, (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps))
    return config.lr * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
