"""AudioLDM's UNet with an image embedding instead of the text's, on latents; or AudioLDM2's.

    batch = diffusion.make_batch(samples, keys, config, geometry)
    losses = diffusion.build_model(config, geometry)(batch)["loss"]      # [b]

What it predicts, a rectified flow, the noise or v, is training.recipes.objectives'; a flow that also learns
to take few steps is training.recipes.shortcut's. All randomness is drawn
from the samples' keys in `make_batch`, never from a rank. The image embedding enters as AudioLDM's text
embedding does (FiLM beside the time embedding); a learnt null embedding stands in for a tenth of the samples.
Sequences enter through cross-attention (training.recipes.conditions). What is taken over from a published
pipeline is training.recipes.published's.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cluster.dataset import DatasetMeta, Snapshot
from configs.load import UserError, at_least
from training.data.npy import read_npy
from training.data.randomness import VALIDATION, SampleKey, keyed_rng
from training.networks.conditioner import Conditioner
from training.networks.unet import (
    build_unet,
    from_settings,
    label_dim_of,
    renamed,
    shapes_of,
    widened,
    widths_of,
    with_channels,
    with_sequences,
    with_time_condition,
    zero_time_condition,
)
from training.pipeline.codec import conditions_of, predict
from training.pipeline.sampling import build_scheduler, integrate
from training.pipeline.step_sizes import SIZE_FEATURES, step_sizes, take_steps, told
from training.pretrained import find_model, load_network
from training.recipes.clips import weights
from training.recipes.conditions import (
    PRESENT,
    PROJECTIONS,
    SequenceConfig,
    check_sequences,
    check_widths,
    plain,
    sequence_arrays,
)
from training.recipes.moments import merge_moments, whiten
from training.recipes.objectives import (
    OBJECTIVES,
    TIMES,
    draw_time,
    min_snr,
    mix,
    target,
    timesteps,
)
from training.recipes.published import CONDITIONING, adopt, conditioning_of, empty_text
from training.recipes.recipe import (
    ONE_OPTIMISER,
    Batch,
    DrawnKind,
    Geometry,
    Optimiser,
    PipelineParts,
    Sample,
)
from training.recipes.shortcut import (
    SHORTCUT,
    ShortcutConfig,
    check_shortcut,
    draw_step,
    with_steps,
)

MEMBERS: tuple[str, ...] = ("latent.npy", "image.npy")
LEARNS_FROM: Literal["clips", "latents"] = "latents"
DRAWS: DrawnKind = "latents"
# a vocoder and a prior only where export was given them
PARTS = PipelineParts(
    network="unet",
    conditioner="conditioner",
    codec="autoencoder",
    vocoder="vocoder",
    encoders=("image_encoder",),
    prior="prior",
    scheduler="scheduler",
)
DRAW_STEPS = 10  # of a preview: rough, but every rank waits for it
VALIDATION_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)  # the middles of five equal parts
CONDITIONS = ("image", "none")
FIRST_LAYER = "unet.conv_in.weight"
NETWORKS = ("audioldm", "audioldm2")
WHITENINGS = ("data", "origin")
# what a finished model is sampled with, unless another sampler is asked for
USUAL_SAMPLERS = {"flow": "euler", "eps": "ddim", "v": "ddim"}


@dataclass
class Config:
    """AudioLDM-S by default: 185.04 M parameters with 512-wide embeddings.

    `channels` to `norm_groups` as in training.networks.unet. `condition_dropout`: the share of samples with
    the null embedding. `objective`: flow, eps, v, shortcut. `times`: uniform or logit_normal, the logistic of
    a normal variable of `time_mean` and `time_spread`; by default the first for eps and v, else the second.
    `min_snr`: gamma of the weights of Hang et al. (5 there); 0 weighs all times alike.

    `network`: audioldm takes a vector, audioldm2 sequences alone; both are published ones' where `init_from`
    is a pipeline of diffusers, whatever `channels` to `norm_groups` and `widths` say. `projection` of the
    image's vector: none, linear, or identity, which is linear and begins as such; the other two are for a
    tower that is aligned with what a published network knows. `sequences`, and `widths` of the slots they
    enter, one of 768 by default. `whitening`: by the statistics of the data, or of the model in
    `init_from` (origin), for data too small to have its own. `condition` none: sequences alone.
    `frequency_channels`: made of the image's vector, beside the latent (training.networks.conditioner).
    """

    condition: str = "image"  # image, or none: sequences alone
    channels: list[int] = field(default_factory=lambda: [128, 256, 384, 640])  # of the UNet, one per level
    head_counts: list[int] = field(default_factory=lambda: [4, 8, 12, 20])  # attention heads, one per level
    layers_per_block: int = 2  # of every level
    attention: bool = True  # at the levels below the first
    norm_groups: int = 32  # of group norm
    condition_dropout: float = 0.1
    time_mean: float = 0.0  # of the normal variable behind logit_normal times
    time_spread: float = 1.0  # of the normal variable behind logit_normal times
    objective: str = "flow"
    times: str = ""
    min_snr: float = 0.0
    shortcut: ShortcutConfig = field(default_factory=ShortcutConfig)
    network: str = "audioldm"  # audioldm takes a vector, audioldm2 sequences alone
    # of the image's vector: none, linear, or identity, which is linear and begins as such
    projection: str = "none"
    # what is attended to beside the image's vector
    sequences: list[SequenceConfig] = field(default_factory=list)
    # of the tokens in the slots that sequences enter
    widths: list[int] = field(default_factory=lambda: [768])
    whitening: str = "data"  # data: by the statistics of the data; origin: by those of the model in init_from
    # beside the latent, made of the image's vector (training.networks.conditioner); 0 = none
    frequency_channels: int = 0

    @property
    def members(self) -> tuple[str, ...]:
        """What a sample must have beside MEMBERS."""
        return tuple(each.member for each in self.sequences)

    @property
    def predicts(self) -> str:
        """Flow, eps or v: what a shortcut predicts is a flow."""
        return "flow" if self.is_shortcut else self.objective

    @property
    def is_shortcut(self) -> bool:
        return self.objective == SHORTCUT

    @property
    def drawn_times(self) -> str:
        """What `times` means."""
        return self.times or ("logit_normal" if self.predicts == "flow" else "uniform")


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
    check_widths(config.sequences, statistics)
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
    for name, choices in (
        ("condition", CONDITIONS),
        ("network", NETWORKS),
        ("projection", PROJECTIONS),
        ("whitening", WHITENINGS),
    ):
        if getattr(config, name) not in choices:
            raise UserError(f"diffusion.{name}={getattr(config, name)}: give one of {', '.join(choices)}")
    heads = len(config.head_counts)
    levels = len(config.channels)
    if heads != levels:
        raise UserError(
            f"diffusion.head_counts has {heads} entries, diffusion.channels {levels}: give as many"
        )
    if not 0 <= config.condition_dropout < 1:
        raise UserError(f"diffusion.condition_dropout={config.condition_dropout}: give 0 or more, below 1")
    objectives = (*OBJECTIVES, SHORTCUT)
    if config.objective not in objectives:
        raise UserError(f"diffusion.objective={config.objective}: give one of {', '.join(objectives)}")
    if config.times not in ("", *TIMES):
        raise UserError(f"diffusion.times={config.times}: give one of {', '.join(TIMES)}")
    at_least(config, 0, "min_snr", section="diffusion.", meaning="off")
    at_least(config, 0, "frequency_channels", section="diffusion.", meaning="none")
    if config.frequency_channels and (config.network != "audioldm" or config.condition == "none"):
        raise UserError(
            f"diffusion.frequency_channels={config.frequency_channels}: are made of the image's vector, "
            "which this network does not take; give 0"
        )
    if config.is_shortcut:
        dropouts = (config.condition_dropout, *(each.dropout for each in config.sequences))
        check_shortcut(config.shortcut, config.min_snr, has_null=any(dropouts))


def adopted(source: str, config: Config, geometry: Geometry) -> Geometry:
    """`geometry` with what the weights behind `init_from` need to be what they were."""
    return adopt(source, config.predicts, config.projection, config.whitening == "origin", geometry)


def attends_newly(config: Config, geometry: Geometry) -> bool:
    """Whether cross-attention is added to a UNet that attends to itself alone, as AudioLDM's does."""
    if geometry.get("network"):
        return bool(config.sequences) and not widths_of(geometry["network"])
    return bool(config.sequences) or config.network == "audioldm2"


def build_network(config: Config, geometry: Geometry) -> tuple[nn.Module, Conditioner | None]:
    """The UNet, published or of the settings, and what its conditions pass first, if anything.

    `UserError` for conditions that the network does not take.
    """
    channels = geometry["latent_shape"][0]
    image_dim = len(geometry["image_mean"])
    published = geometry.get("network")
    takes_vector = config.network == "audioldm"
    more = config.frequency_channels
    settings = with_channels(published or shapes_of(config, channels, image_dim if takes_vector else 0), more)
    if config.is_shortcut:
        settings = with_time_condition(settings, SIZE_FEATURES)
    is_extended = attends_newly(config, geometry)
    widths = list(config.widths) if is_extended else widths_of(settings)
    check_sequences(config.sequences, widths)
    try:
        if is_extended:
            network: nn.Module = with_sequences(settings, widths)
        else:
            is_plain = not (published or more or config.is_shortcut)
            network = build_unet(config, channels, image_dim) if is_plain else from_settings(settings)
        label_dim = label_dim_of(settings)
    except ValueError as error:
        raise UserError(f"diffusion.sequences: {error}; give diffusion.attention=true") from error
    if config.is_shortcut:
        zero_time_condition(network)
    if not widths and not more and config.projection == "none":
        return network, None
    bands = geometry["latent_shape"][2]
    sequences = plain(config.sequences)
    conditioner = Conditioner(image_dim, label_dim, config.projection, widths, sequences, more, bands)
    return network, conditioner


class Diffusion(nn.Module):
    """`latent`, `noise` [b, c, t, f], `time` [b], `image` [b, d], `drop` [b], sequences -> loss [b].

    Of a shortcut also `size` [b]: of the step that a sample learns, 0 where it learns the flow. The batch and
    the loss are float32; the network computes in the precision of its weights.
    """

    def __init__(self, config: Config, geometry: Geometry):
        super().__init__()
        self.objective = config.predicts
        self.shortcut = config.shortcut if config.is_shortcut else None
        self.dropouts = {each.name: each.dropout for each in config.sequences}
        self.min_snr = config.min_snr
        self.unit_vectors = geometry.get("unit_vectors", False)
        self.names = [each.name for each in config.sequences]
        self.unet, self.conditioner = build_network(config, geometry)
        takes_vector = self.conditioner is None or self.conditioner.config.label_dim > 0
        image_dim = len(geometry["image_mean"])
        self.null_embedding = nn.Parameter(torch.zeros(image_dim)) if takes_vector else None

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        latent = batch["latent"]
        noise = batch["noise"]
        # float32, whatever the weights are: in bf16 a time of 0.7 would be off by two of the thousand steps
        time = batch["time"]
        dtype = next(self.unet.parameters()).dtype
        mixed = mix(self.objective, latent, noise, time)
        conditions = self.conditions(batch)
        wanted = target(self.objective, latent, noise, time)
        if self.shortcut is not None:
            conditions |= told(batch["size"])
            # in validation all samples learn the flow
            wanted = self.with_steps(wanted, mixed, batch) if self.training else wanted
        prediction = predict(self.unet, mixed, timesteps(self.objective, time), conditions, dtype)
        error = (prediction - wanted).square().mean((1, 2, 3))
        # in training only: losses of validation can be compared whatever the weights
        if self.min_snr and self.training:
            error = error * min_snr(self.objective, time, self.min_snr)
        return {"loss": error * batch["weight"]}

    def with_steps(self, wanted: Tensor, mixed: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """`wanted` [b, c, t, f], where a sample learns a step what two half steps of the network lead to."""
        assert self.shortcut is not None
        dtype = next(self.unet.parameters()).dtype

        def predicted(latent: Tensor, time: Tensor, given: dict[str, Tensor]) -> Tensor:
            return predict(self.unet, latent, timesteps(self.objective, time), given, dtype)

        dropped = [name for name, dropout in self.dropouts.items() if dropout]
        both: Tensor = with_steps(wanted, mixed, batch, self.shortcut, dropped, self.conditions, predicted)
        return both

    def conditions(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the network is given, with the null embedding where the vector is dropped."""
        image = batch["image"]
        if self.null_embedding is not None:
            null = self.null_embedding.to(image.dtype).expand_as(image)
            image = torch.lerp(image, null, batch["drop"][:, None])
        sequences = {name: (batch[name], batch[f"{name}{PRESENT}"]) for name in self.names}
        return conditions_of(image, sequences, self.conditioner, self.unit_vectors)


def optimisers(config: Config) -> tuple[Optimiser, ...]:
    """One, of all parameters."""
    return ONE_OPTIMISER


def couples_samples(config: Config) -> bool:
    """No: each loss is of its own sample."""
    return False


def build_model(config: Config, geometry: Geometry) -> nn.Module:
    """The UNet with its null embedding, and what its conditions pass first."""
    return Diffusion(config, geometry)


def initial(source: str, config: Config, geometry: Geometry) -> dict[str, Tensor]:
    """A network of this shape, and of ours the null embedding and the projections of conditions."""
    folder = find_model(source, "init_from", PARTS.network)
    network: nn.Module = load_network(folder)
    # a network that attends to itself alone may start one that attends to sequences
    extends = type(network).__name__ == "UNet2DConditionModel" and attends_newly(config, geometry)
    state: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        state[f"unet.{renamed(name, len(config.widths)) if extends else name}"] = tensor
    channels = geometry["latent_shape"][0] + config.frequency_channels
    if state[FIRST_LAYER].shape[1] < channels:
        state[FIRST_LAYER] = widened(state[FIRST_LAYER], channels)
    conditioning = conditioning_of(folder.parent)
    null = conditioning.get("null_embedding")
    if null:
        state["null_embedding"] = torch.tensor(null)
    if not conditioning and config.projection != "linear" and geometry.get("unit_vectors"):
        unconditional = empty_text(folder.parent)
        state |= {} if unconditional is None else {"null_embedding": unconditional}
    for path in (folder.parent / PARTS.conditioner).glob("*.safetensors"):
        state |= {f"conditioner.{name}": tensor for name, tensor in load_file(path).items()}
    return state


def make_batch(
    samples: Sequence[Sample | None], keys: Sequence[SampleKey], config: Config, geometry: Geometry
) -> Batch:
    """`latent`, `noise` [b, c, t, f], `time`, `drop`, `weight` [b], `image` [b, d], sequences: from the keys.

    Latents are drawn from their moments: a clip has another one in every epoch. Validation has fixed times
    and drops no condition, so that two measurements can be compared.
    """
    shape = tuple(geometry["latent_shape"])
    latent = torch.zeros(len(samples), *shape)
    noise = torch.zeros(len(samples), *shape)
    image = torch.zeros(len(samples), len(geometry["image_mean"]))
    time = torch.full((len(samples),), 0.5)
    drop = torch.zeros(len(samples))
    size = torch.zeros(len(samples))
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
            *(config.predicts, config.drawn_times, config.time_mean, config.time_spread),
            keyed_rng(key, "time"),
        )
        step = draw_step(key, config.shortcut) if config.is_shortcut else None
        if step is not None:
            time[index], size[index] = step
        drop[index] = float(keyed_rng(key, "dropout").random() < config.condition_dropout)
    if config.condition == "none":
        drop = torch.ones(len(samples))
    weight = weights(samples)
    batch = {"latent": latent, "noise": noise, "time": time, "image": image, "drop": drop, "weight": weight}
    batch |= {"size": size} if config.is_shortcut else {}
    return batch | sequence_arrays(samples, keys, config.sequences)


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
    assert isinstance(model, Diffusion)
    conditions = model.conditions(batch)
    dtype = next(model.parameters()).dtype

    def predicted(latent: Tensor, time: Tensor) -> Tensor:
        times = time.to(device).expand(len(latent))
        return predict(model.unet, latent, times, conditions, dtype)

    def velocity(latent: Tensor, time: Tensor, size: Tensor) -> Tensor:
        return predict(model.unet, latent, time, conditions | told(size), dtype)

    if model.shortcut is None:
        scheduler = build_scheduler(USUAL_SAMPLERS[model.objective], model.objective)
        latent = integrate(scheduler, batch["noise"], DRAW_STEPS, predicted)
    else:
        sizes = model.shortcut.sizes
        few = step_sizes(min(DRAW_STEPS, 2 ** (sizes - 1)), sizes)
        latent = take_steps(batch["noise"], few, velocity)
    return {"drawn": latent * std + mean, "truth": batch["latent"] * std + mean}


def _load(data: bytes | memoryview) -> np.ndarray:
    return read_npy(data).astype(np.float32)


def save(state: dict[str, Tensor], config: Config, geometry: Geometry, folder: Path) -> None:
    """Writes `unet`, `scheduler`, `conditioner` if there is one, and `conditioning.json`.

    That is the geometry, the null embedding, the sequences, and how often each condition was dropped.
    """
    model = Diffusion(config, geometry)
    model.load_state_dict(state)
    network: Any = model.unet
    network.save_pretrained(folder / PARTS.network)
    if model.conditioner is not None:
        model.conditioner.save_pretrained(folder / PARTS.conditioner)
    build_scheduler(USUAL_SAMPLERS[config.predicts], config.predicts).save_pretrained(
        folder / PARTS.scheduler
    )
    null = model.null_embedding
    conditioning = {
        **geometry,
        "null_embedding": [] if null is None else null.tolist(),
        "condition_dropout": 0.0 if null is None else config.condition_dropout,
    }
    if config.condition != "image":
        conditioning["condition"] = config.condition
    if config.sequences:
        conditioning["sequences"] = plain(config.sequences)
    if config.is_shortcut:
        conditioning[SHORTCUT] = {"sizes": config.shortcut.sizes, "guidance": config.shortcut.guidance}
    (folder / CONDITIONING).write_text(json.dumps(conditioning, indent=1))
