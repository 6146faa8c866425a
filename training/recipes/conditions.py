"""Conditions that are sequences: what a user asks for, and the arrays of a batch.

    diffusion.sequences=[{member: tokens.npy, dim: 768, length: 49, dropout: 0.1}]

A sequence is a member `<name>.npy` [t, d] of the latents: image patches, tokens of a text, of AudioMAE,
phonemes (training.sequences writes them), or of whatever else. An empty one, [0, d], is absent, and a dropped
one is too. How they enter a network is training.networks.conditioner's.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from cluster.jsonl import JsonObject
from configs.load import UserError, positive
from training.data.npy import read_npy
from training.data.randomness import VALIDATION, SampleKey, keyed_rng
from training.recipes.recipe import Batch, Sample

SUFFIX = ".npy"
PRESENT = "_present"
PROJECTIONS = ("none", "linear", "identity")


@dataclass
class SequenceConfig:
    """`dim` of a token; at most `length` of them, longer ones are cut; `dropout`: how often it is left out.

    `projection`: linear, or none for a network that was trained on such tokens. `slot`: 0 or 1, for networks
    that attend to two kinds of tokens apart.
    """

    member: str = "tokens.npy"  # the file of a sample that holds the tokens
    dim: int = 0  # width of a token
    length: int = 0  # tokens at most; longer ones are cut
    dropout: float = 0.1  # how often it is left out
    projection: str = "linear"
    slot: int = 0

    @property
    def name(self) -> str:
        return self.member.removesuffix(SUFFIX)


def check_sequences(sequences: Sequence[SequenceConfig], widths: Sequence[int]) -> None:
    """`UserError` for what cannot enter a network with slots of `widths`."""
    names = [each.name for each in sequences]
    if len(set(names)) < len(names):
        raise UserError(f"diffusion.sequences: {', '.join(names)}: give each member once")
    for each in sequences:
        setting = f"diffusion.sequences of {each.member}"
        if not (each.member.endswith(SUFFIX) and each.name.isidentifier()) or each.name in (
            "latent",
            "image",
        ):
            raise UserError(f"{setting}: give a member of the latents such as tokens.npy")
        positive(each, "dim", "length", section=f"{setting}: ")
        if not 0 <= each.dropout <= 1:
            raise UserError(f"{setting}: dropout={each.dropout}: give 0 to 1")
        if each.projection not in PROJECTIONS[:2]:
            raise UserError(f"{setting}: projection={each.projection}: give none or linear")
        if not 0 <= each.slot < len(widths):
            raise UserError(f"{setting}: slot={each.slot}: the network has {len(widths)}, counted from 0")
        if each.projection == "none" and each.dim != widths[each.slot]:
            raise UserError(
                f"{setting}: dim={each.dim} does not fit slot {each.slot}, {widths[each.slot]} wide; "
                "give projection: linear"
            )


def check_widths(sequences: Sequence[SequenceConfig], statistics: Sequence[JsonObject]) -> None:
    """`UserError` where units of latents, by what they state of their texts, hold tokens of another width."""
    for each in sequences:
        for unit in statistics:
            stated = unit.get("sequences", {}).get(each.member, {}).get("dim", each.dim)
            if stated != each.dim:
                raise UserError(
                    f"diffusion.sequences of {each.member}: dim={each.dim}, but the data has tokens of "
                    f"{stated} numbers; give dim: {stated}"
                )


def plain(sequences: Sequence[SequenceConfig]) -> list[dict[str, Any]]:
    """As the conditioner and the pipeline read them."""
    return [{"name": each.name, **asdict(each)} for each in sequences]


def sequence_arrays(
    samples: Sequence[Sample | None], keys: Sequence[SampleKey], sequences: Sequence[SequenceConfig]
) -> Batch:
    """`<name>` [b, length, dim] and `<name>_present` [b, length], dropped by the samples' keys.

    `UserError` for a member of another shape.
    """
    batch: Batch = {}
    for each in sequences:
        values = np.zeros((len(samples), each.length, each.dim), np.float32)
        present = np.zeros((len(samples), each.length), np.float32)
        for index, (sample, key) in enumerate(zip(samples, keys, strict=True)):
            if sample is None or _is_dropped(key, each):
                continue
            tokens = read_npy(sample[each.member])
            if tokens.ndim != 2 or tokens.shape[1] != each.dim:
                raise UserError(
                    f"diffusion.sequences of {each.member}: dim={each.dim}, but the data has arrays of shape "
                    f"{list(tokens.shape)}; give dim: {tokens.shape[-1]}"
                )
            count = min(len(tokens), each.length)
            values[index, :count] = tokens[:count]
            present[index, :count] = 1
        batch[each.name] = torch.from_numpy(values)
        batch[f"{each.name}{PRESENT}"] = torch.from_numpy(present)
    return batch


def _is_dropped(key: SampleKey, sequence: SequenceConfig) -> bool:
    """Each condition is dropped by itself; none in validation, so that two measurements can be compared."""
    if key.epoch == VALIDATION:
        return False
    return bool(keyed_rng(key, f"dropout {sequence.name}").random() < sequence.dropout)
