"""Whether a model learnt from the encoder that is to judge it, which hears what it taught; and whether the
judge learnt from the very clips.

    check_independent(facts, tower, pipeline, allowed=False)     # `UserError`, or noted in `facts`
    check_unseen("runs/other", home, dataset, "validation")      # `UserError`

A model states the sha256 of the encoders behind its latents, and an export of the parts as shipped; the
judge's image tower is compared number by number, too, because files that are written again hash otherwise.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from cluster.dataset import Dataset
from configs.load import UserError
from training.judging.sound import JudgeFacts
from training.provenance import of_source

YES = "yes: its scores of this model prove nothing"
NO = "no"
UNKNOWN = "not known: no model was named"


def check_independent(facts: JudgeFacts, tower: nn.Module | None, pipeline: Any, allowed: bool) -> None:
    """Notes in `facts` whether the model of `pipeline` (None: not known) learnt from this judge, whose image
    tower, if it has one, is `tower`. `UserError` where it did, unless that is `allowed`.
    """
    if pipeline is None:
        facts["learnt_by_model"] = UNKNOWN
        return
    facts["learnt_by_model"] = YES if _learnt(facts, tower, pipeline) else NO
    if facts["learnt_by_model"] == YES and not allowed:
        raise UserError(
            f"judge={facts['name']}: the model was trained with this encoder, and is no witness of itself; "
            "give another, trained with another seed or data, or own_judge=true to see the figure marked"
        )


def check_unseen(name: str, home: Path, dataset: Dataset, split: str) -> None:
    """`UserError` where the judge in the folder `home` learnt from this split of these clips: it knows which
    sound is whose. Of published judges nothing is known.
    """
    indexes = {commit.index.sha256 for commit in dataset.commits().values()}
    for record in of_source(name, home, "")["learnt_from"]:
        pinned = {sha256 for *_, sha256 in record["units"]}
        if record["split"] in ("", split) and pinned & indexes:
            raise UserError(
                f"judge={name}: learnt from split={split} of {dataset.uri}, and knows its pairs by heart; "
                "judge a split that it has not seen, or give another judge"
            )


def _learnt(facts: JudgeFacts, tower: nn.Module | None, pipeline: Any) -> bool:
    conditioning = pipeline.config.conditioning
    stated: set[str] = set()
    for name in ("sha256", "exported_sha256"):
        stated |= set(conditioning.get(name, {}).values())
    if stated & {facts["sha256"], *facts["parts"].values()}:
        return True
    return tower is not None and same_weights(tower, pipeline.image_encoder)


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    """Whether two models have the same tensors under the same names."""
    others = second.state_dict()
    own = first.state_dict()
    if own.keys() != others.keys():
        return False
    return all(_equal(values, others[name]) for name, values in own.items())


def _equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.shape == second.shape and torch.equal(first.cpu().float(), second.cpu().float())
