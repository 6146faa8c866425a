"""AudioLDM's UNet with an image embedding instead of the text's, on latents.

    batch = diffusion.make_batch(samples, keys, config, geometry)
    losses = diffusion.build_model(config, geometry)(batch)["loss"]      # [b]

What it predicts, a rectified flow, the noise or v, is training.recipes.objectives'. All randomness is drawn
from the samples' keys in `make_batch`, never from a rank. The image embedding enters as AudioLDM's text
embedding does (FiLM beside the time embedding); a learnt null embedding stands in for a tenth of the samples.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from cluster.dataset import DatasetMeta, Snapshot
from cluster.jsonl import JsonObject
from configs.load import UserError, at_least
from training.data.npy import read_npy
from training.data.randomness import VALIDATION, SampleKey, keyed_rng
from training.networks.unet import build_unet
from training.pipeline.codec import predict
from training.pipeline.sampling import build_scheduler, integrate
from training.pretrained import find_model, load_network
from training.recipes.clips import weights
from training.recipes.objectives import (
    OBJECTIVES,
    TIMES,
    draw_time,
    min_snr,
    mix,
    target,
    timesteps,
)
from training.recipes.recipe import (
    ONE_OPTIMISER,
    Batch,
    DrawnKind,
    Geometry,
    Optimiser,
    PipelineParts,
    Sample,
)

MEMBERS: tuple[str, ...] = ("latent.npy", "image.npy")
LEARNS_FROM: Literal["clips", "latents"] = "latents"
DRAWS: DrawnKind = "latents"
CONDITIONING = "conditioning.json"  # marks the model of a run
# a vocoder only where export was given one
PARTS = PipelineParts(
    network="unet",
    codec="autoencoder",
    vocoder="vocoder",
    encoders=("image_encoder",),
    scheduler="scheduler",
)
DRAW_STEPS = 10  # of a preview: rough, but every rank waits for it
LEAST_SPREAD = 1e-4  # of embeddings and latents; less is rounding
FLOAT16_STEP = 2.0**-11  # relative: the precision in which both are stored
VALIDATION_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)  # the middles of five equal parts
# what a finished model is sampled with, unless another sampler is asked for
USUAL_SAMPLERS = {"flow": "euler", "eps": "ddim", "v": "ddim"}


@dataclass
class Config:
    """AudioLDM-S by default: 185.04 M parameters with 512-wide embeddings.

    `channels` to `norm_groups` as in training.networks.unet. `condition_dropout`: the share of samples with
    the null embedding. `objective`: flow, eps or v. `times`: uniform or logit_normal, the logistic of a
    normal variable of `time_mean` and `time_spread`; by default the second for flow, the first for eps and v.
    `min_snr`: gamma of the weights of Hang et al. (5 there); 0 weighs all times alike.
    """

    condition: str = "image"
    channels: list[int] = field(default_factory=lambda: [128, 256, 384, 640])
    head_counts: list[int] = field(default_factory=lambda: [4, 8, 12, 20])
    layers_per_block: int = 2
    attention: bool = True
    norm_groups: int = 32
    condition_dropout: float = 0.1
    time_mean: float = 0.0
    time_spread: float = 1.0
    objective: str = "flow"
    times: str = ""
    min_snr: float = 0.0

    @property
    def drawn_times(self) -> str:
        """What `times` means."""
        return self.times or ("logit_normal" if self.objective == "flow" else "uniform")


def geometry(snapshot: Snapshot, dataset_meta: DatasetMeta, config: Config) -> Geometry:
    """Shapes, and mean and spread per latent channel and embedding dimension, merged over the commits.

    `UserError` for a dataset that is not of latents, is empty, or has not what `condition` needs.
    """
    kind = dataset_meta["kind"]
    if kind != "latents":
        fix = "run python -m training precompute first"
        raise UserError(f"data={snapshot.uri}: is a dataset of {kind}, need latents; {fix}")
    check_config(config)
    statistics = [commit.statistics for commit in snapshot.commits if commit.statistics.get("image_count")]
    if not statistics:
        raise UserError(f"data={snapshot.uri}: holds no training sample")
    latent_mean, latent_spread = merge_moments(statistics, "latent")
    image_mean, image_spread = merge_moments(statistics, "image")
    return {
        "latent_shape": statistics[0]["latent_shape"],
        "mel": dataset_meta["config"]["mel"],
        "latents": snapshot.uri,
        "latent_mean": latent_mean,
        "latent_std": latent_spread,
        "image_mean": image_mean,
        "image_std": image_spread,
    }


def check_config(config: Config) -> None:
    """`UserError` for settings that no model can be made of or trained with."""
    if config.condition != "image":
        raise UserError(f"diffusion.condition={config.condition}: give image")
    heads = len(config.head_counts)
    levels = len(config.channels)
    if heads != levels:
        raise UserError(
            f"diffusion.head_counts has {heads} entries, diffusion.channels {levels}: give as many"
        )
    if not 0 <= config.condition_dropout < 1:
        raise UserError(f"diffusion.condition_dropout={config.condition_dropout}: give 0 or more, below 1")
    if config.objective not in OBJECTIVES:
        raise UserError(f"diffusion.objective={config.objective}: give one of {', '.join(OBJECTIVES)}")
    if config.times not in ("", *TIMES):
        raise UserError(f"diffusion.times={config.times}: give one of {', '.join(TIMES)}")
    at_least(config, 0, "min_snr", section="diffusion.", meaning="off")


def merge_moments(statistics: list[JsonObject], name: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel from the sums that each commit carries.

    The deviation of what never varied is 1, as StandardScaler of scikit-learn has it: divided by a spread
    that is only rounding, a new picture that wakes a dead unit up would be hundreds of deviations off.
    """
    count = sum(commit[f"{name}_count"] for commit in statistics)
    total = np.sum([commit[f"{name}_sum"] for commit in statistics], axis=0)
    squares = np.sum([commit[f"{name}_sumsq"] for commit in statistics], axis=0)
    mean = total / count
    variance = squares / count - mean**2
    constant = variance <= np.maximum(LEAST_SPREAD, FLOAT16_STEP * np.abs(mean)) ** 2
    return mean.tolist(), np.sqrt(np.where(constant, 1.0, variance)).tolist()


class Diffusion(nn.Module):
    """`latent`, `noise` [b, c, t, f], `time` [b], `image` [b, d], `drop` [b] -> loss [b].

    The batch and the loss are float32; the network computes in the precision of its weights.
    """

    def __init__(self, config: Config, geometry: Geometry):
        super().__init__()
        self.objective = config.objective
        self.min_snr = config.min_snr
        image_dim = len(geometry["image_mean"])
        self.unet = build_unet(config, geometry["latent_shape"][0], image_dim)
        self.null_embedding = nn.Parameter(torch.zeros(image_dim))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        latent = batch["latent"]
        noise = batch["noise"]
        image = batch["image"]
        # float32, whatever the weights are: in bf16 a time of 0.7 would be off by two of the thousand steps
        time = batch["time"]
        dtype = self.null_embedding.dtype
        null = self.null_embedding.to(image.dtype).expand_as(image)
        condition = torch.lerp(image, null, batch["drop"][:, None])
        mixed = mix(self.objective, latent, noise, time)
        prediction = predict(self.unet, mixed, timesteps(self.objective, time), condition, dtype)
        error = (prediction - target(self.objective, latent, noise, time)).square().mean((1, 2, 3))
        # in training only: losses of validation can be compared whatever the weights
        if self.min_snr and self.training:
            error = error * min_snr(self.objective, time, self.min_snr)
        return {"loss": error * batch["weight"]}


def optimisers(config: Config) -> tuple[Optimiser, ...]:
    """One, of all parameters."""
    return ONE_OPTIMISER


def couples_samples(config: Config) -> bool:
    """No: each loss is of its own sample."""
    return False


def build_model(config: Config, geometry: Geometry) -> nn.Module:
    """The UNet with its null embedding."""
    return Diffusion(config, geometry)


def initial(source: str, config: Config, geometry: Geometry) -> dict[str, Tensor]:
    """A network of this shape, and of ours the null embedding."""
    folder = find_model(source, "init_from", PARTS.network)
    network = load_network(folder)
    state = {f"unet.{name}": tensor for name, tensor in network.state_dict().items()}
    conditioning = folder.parent / CONDITIONING
    if conditioning.is_file():
        state["null_embedding"] = torch.tensor(json.loads(conditioning.read_text())["null_embedding"])
    return state


def make_batch(
    samples: Sequence[Sample | None], keys: Sequence[SampleKey], config: Config, geometry: Geometry
) -> Batch:
    """`latent`, `noise` [b, c, t, f], `time`, `drop`, `weight` [b], `image` [b, d], all drawn from the keys.

    Latents are drawn from their moments: a clip has another one in every epoch. Validation has fixed times
    and drops no condition, so that two measurements can be compared.
    """
    shape = tuple(geometry["latent_shape"])
    latent = torch.zeros(len(samples), *shape)
    noise = torch.zeros(len(samples), *shape)
    image = torch.zeros(len(samples), len(geometry["image_mean"]))
    time = torch.full((len(samples),), 0.5)
    drop = torch.zeros(len(samples))
    mean = np.array(geometry["latent_mean"], np.float32)[:, None, None]
    std = np.array(geometry["latent_std"], np.float32)[:, None, None]
    for index, (sample, key) in enumerate(zip(samples, keys, strict=True)):
        if sample is None:
            continue
        moments = _load(sample["latent.npy"])
        drawn = moments[0] + moments[1] * keyed_rng(key, "resample").standard_normal(shape, dtype=np.float32)
        latent[index] = torch.from_numpy((drawn - mean) / std)
        noise[index] = torch.from_numpy(keyed_rng(key, "noise").standard_normal(shape, dtype=np.float32))
        image[index] = torch.from_numpy(whiten(_load(sample["image.npy"]), geometry))
        if key.epoch == VALIDATION:
            time[index] = VALIDATION_TIMES[key.position % len(VALIDATION_TIMES)]
            continue
        time[index] = draw_time(
            *(config.objective, config.drawn_times, config.time_mean, config.time_spread),
            keyed_rng(key, "time"),
        )
        drop[index] = float(keyed_rng(key, "dropout").random() < config.condition_dropout)
    weight = weights(samples)
    return {"latent": latent, "noise": noise, "time": time, "image": image, "drop": drop, "weight": weight}


def loss_groups(batch: Batch) -> list[str]:
    """The time of each sample: validation draws a few fixed ones, and early and late are learnt unlike."""
    return [f"loss_at_{time:.1f}" for time in batch["time"].tolist()]


def draw(model: nn.Module, batch: Batch, geometry: Geometry) -> dict[str, Tensor]:
    """Latents [b, c, t, f] for the batch's images, and the true ones.

    From the batch's noise in DRAW_STEPS evaluations without guidance.
    """
    device = batch["noise"].device
    mean = torch.tensor(geometry["latent_mean"], device=device)[:, None, None]
    std = torch.tensor(geometry["latent_std"], device=device)[:, None, None]
    dtype = next(model.parameters()).dtype

    def predicted(latent: Tensor, time: Tensor) -> Tensor:
        return predict(model.unet, latent, time.to(device).expand(len(latent)), batch["image"], dtype)

    objective = str(model.objective)
    scheduler = build_scheduler(USUAL_SAMPLERS[objective], objective)
    latent = integrate(scheduler, batch["noise"], DRAW_STEPS, predicted)
    return {"drawn": latent * std + mean, "truth": batch["latent"] * std + mean}


def whiten(image: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Each dimension of an embedding to mean 0 and spread 1, float32 [d]."""
    mean = np.array(geometry["image_mean"], np.float32)
    std = np.array(geometry["image_std"], np.float32)
    whitened: np.ndarray = (image - mean) / std
    return whitened


def _load(data: bytes | memoryview) -> np.ndarray:
    return read_npy(data).astype(np.float32)


def save(state: dict[str, Tensor], config: Config, geometry: Geometry, folder: Path) -> None:
    """Writes `unet`, `scheduler` and `conditioning.json`: the geometry, null embedding and its dropout."""
    model = Diffusion(config, geometry)
    model.load_state_dict(state)
    model.unet.save_pretrained(folder / PARTS.network)
    build_scheduler(USUAL_SAMPLERS[config.objective], config.objective).save_pretrained(
        folder / PARTS.scheduler
    )
    conditioning = {
        **geometry,
        "null_embedding": model.null_embedding.tolist(),
        "condition_dropout": config.condition_dropout,
    }
    (folder / CONDITIONING).write_text(json.dumps(conditioning, indent=1))
