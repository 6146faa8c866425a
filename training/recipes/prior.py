"""The prior: the eight AudioMAE tokens of a sound from the embedding of its picture (AudioLDM2's idea).

    geometry = prior.geometry(snapshot, dataset_meta, config)       # latents that precompute audiomae=… made
    model = prior.build_model(config, geometry)
    losses = model(prior.make_batch(samples, keys, config, geometry))["loss"]              # [b]

Mean absolute error of each token, predicted from the picture and the true tokens before it (Liu et al. 2023,
AudioLDM2, section 3.2.2; its code's L1). In validation the tokens before it are the predicted ones: as it is
used. Nothing is random in it but the order of the samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GPT2Model

from cluster.dataset import DatasetMeta, Snapshot
from configs.load import UserError, positive
from training.data.npy import read_npy
from training.data.randomness import SampleKey
from training.networks.prior import TokenPrior
from training.pretrained import find_model, load_prior, model_kind
from training.recipes.clips import weights
from training.recipes.moments import merge_moments
from training.recipes.recipe import (
    ONE_OPTIMISER,
    Batch,
    DrawnKind,
    Geometry,
    Optimiser,
    PipelineParts,
    Sample,
)

TOKENS = "audiomae.npy"
MEMBERS: tuple[str, ...] = ("image.npy", TOKENS)
LEARNS_FROM: Literal["clips", "latents"] = "latents"
DRAWS: DrawnKind = ""
FOLDER = "prior"  # of a finished model, beside the encoders that the trainer puts there
PARTS = PipelineParts(prior=FOLDER)
MADE_BY = ("audiomae", "image_encoder")
"""Which of the models behind the latents made what it learns from."""


@dataclass
class Config:
    """GPT-2's smallest by default, as AudioLDM2 has it: 12 layers of 768."""

    width: int = 768  # of GPT-2
    layers: int = 12  # of GPT-2
    heads: int = 12  # of GPT-2


def geometry(snapshot: Snapshot, dataset_meta: DatasetMeta, config: Config) -> Geometry:
    """Moments of the embeddings and the shape of the tokens.

    `UserError` for a dataset without tokens, and for settings that no network can be made of.
    """
    check_config(config)
    if dataset_meta["kind"] != "latents":
        fix = "run python -m training precompute first, with audiomae="
        raise UserError(f"data={snapshot.uri}: is a dataset of {dataset_meta['kind']}, need latents; {fix}")
    statistics = [commit.statistics for commit in snapshot.commits if commit.statistics.get("image_count")]
    if not statistics:
        raise UserError(f"data={snapshot.uri}: holds no training sample")
    if "audiomae_shape" not in statistics[0]:
        raise UserError(
            f"data={snapshot.uri}: holds no AudioMAE tokens; make another one by precompute with audiomae="
        )
    image_mean, image_spread = merge_moments(statistics, "image")
    return {
        "mel": dataset_meta["config"]["mel"],
        "latents": snapshot.uri,
        "image_mean": image_mean,
        "image_std": image_spread,
        "audiomae_shape": statistics[0]["audiomae_shape"],
    }


def check_config(config: Config) -> None:
    """`UserError` for settings that no network can be made of."""
    positive(config, "width", "layers", "heads", section="prior.")
    if config.width % config.heads:
        raise UserError(f"prior.width={config.width}: give a multiple of heads={config.heads}")


def made_by(sha256: dict[str, str]) -> dict[str, str]:
    """What a prior and whatever takes its tokens must have in common, of the sha256 of models by name."""
    return {name: sha256[name] for name in MADE_BY if name in sha256}


class Prior(nn.Module):
    """`image` [b, d], `tokens` [b, k, t] -> the error of the predicted tokens [b]."""

    def __init__(self, config: Config, geometry: Geometry):
        super().__init__()
        num_tokens, token_dim = geometry["audiomae_shape"]
        self.prior = TokenPrior(
            image_dim=len(geometry["image_mean"]),
            token_dim=token_dim,
            num_tokens=num_tokens,
            width=config.width,
            layers=config.layers,
            heads=config.heads,
            sha256=made_by(geometry.get("sha256", {})),
        )
        if not self.prior.image_mean.is_meta:  # built without memory, to check its settings
            self.prior.image_mean.copy_(torch.tensor(geometry["image_mean"]))
            self.prior.image_std.copy_(torch.tensor(geometry["image_std"]))

    def forward(self, batch: Batch) -> Batch:
        tokens = batch["tokens"]
        if self.prior.training:
            predicted = self.prior(batch["image"], tokens[:, :-1])
        else:
            predicted = self.prior.predict(batch["image"])
        return {"loss": (predicted - tokens).abs().mean((1, 2)) * batch["weight"]}


def optimisers(config: Config) -> tuple[Optimiser, ...]:
    """One, of all parameters."""
    return ONE_OPTIMISER


def couples_samples(config: Config) -> bool:
    """No: each loss is of its own sample."""
    return False


def build_model(config: Config, geometry: Geometry) -> nn.Module:
    """The network between an embedding and its tokens."""
    return Prior(config, geometry)


def initial(source: str, config: Config, geometry: Geometry) -> dict[str, Tensor]:
    """One of ours, with the moments of the embeddings at hand, or the layers of a GPT-2."""
    folder = find_model(source, "init_from", FOLDER, "language_model")
    if model_kind(folder) == "gpt2":
        stock: Any = GPT2Model.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        return {f"prior.gpt.{name}": tensor for name, tensor in stock.state_dict().items()}
    state = load_prior(folder).state_dict()
    state["image_mean"] = torch.tensor(geometry["image_mean"])
    state["image_std"] = torch.tensor(geometry["image_std"])
    return {f"prior.{name}": tensor for name, tensor in state.items()}


def make_batch(
    samples: Sequence[Sample | None], keys: Sequence[SampleKey], config: Config, geometry: Geometry
) -> Batch:
    """`image` [b, d], `tokens` [b, k, t], `weight` [b]."""
    image = torch.zeros(len(samples), len(geometry["image_mean"]))
    tokens = torch.zeros(len(samples), *geometry["audiomae_shape"])
    for index, sample in enumerate(samples):
        if sample is not None:
            image[index] = torch.from_numpy(read_npy(sample["image.npy"]).astype(np.float32))
            tokens[index] = torch.from_numpy(read_npy(sample[TOKENS]).astype(np.float32))
    return {"image": image, "tokens": tokens, "weight": weights(samples)}


def loss_groups(batch: Batch) -> None:
    """None: all clips are alike to it."""


def draw(model: nn.Module, batch: Batch, geometry: Geometry) -> dict[str, Tensor]:
    """Tokens [b, k, t] from the pictures alone, and the true ones; no preview shows them (DRAWS)."""
    trained: Any = model
    return {"drawn": trained.prior.predict(batch["image"]), "truth": batch["tokens"]}


def save(state: dict[str, Tensor], config: Config, geometry: Geometry, folder: Path) -> None:
    """Writes `prior`, which `TokenPrior.from_pretrained` loads, with the moments of its embeddings."""
    model = Prior(config, geometry)
    model.load_state_dict(state)
    model.prior.save_pretrained(folder / FOLDER)
