"""Weights to start from: published ones or those of another run, with their license.

    origin = read_origin(config, geometry)          # the driver: found, read, compared; None for random ones
    fill(model, config, geometry, origin)           # each rank, of a run that has no checkpoint yet

What was loaded, what is new and what was left over is one table in the log; nothing is partial in silence.
The license of the weights is pinned in run.json and goes with the finished model (origin.json). A run that
resumes never reads them again.
"""

import hashlib
import logging
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from configs.load import UserError
from training.pretrained import local_copy
from training.provenance import of_source
from training.recipes.recipe import Geometry
from training.run.plan import Origin
from training.settings import TrainConfig
from training.weights_license import license_of

log = logging.getLogger(__name__)


@dataclass
class PartCounts:
    """Tensors of one part of a model."""

    loaded: int = 0
    new: int = 0
    left_over: int = 0
    other_shape: int = 0


# --- In the driver ------------------------------------------------------------------------------------------


def read_origin(config: TrainConfig, geometry: Geometry) -> Origin | None:
    """What `init_from` names, after a look at all of it; the table is logged.

    `UserError` where it is missing or damaged, fits nothing of the model, or its license is not known.
    """
    if not config.init_from:
        return None
    # first: what is missing has no license either
    weights = config.module.initial(config.init_from, config.section, geometry)
    license = license_of(config.init_from, config.init_license)
    with torch.device("meta"):
        model = config.module.build_model(config.section, geometry)
    counts = compare(model, weights)
    log.info("init_from=%s (license %s):\n%s", config.init_from, license, table(counts))
    if not any(part.loaded for part in counts.values()):
        raise UserError(
            f"init_from={config.init_from}: none of its {len(weights)} tensors fits the model; "
            f"give the settings of {config.recipe}.* that it was trained with"
        )
    origin: Origin = {"init_from": config.init_from, "sha256": digest(weights), "license": license}
    # of a run of ours, or of what one made: their data and first weights are those of this run, too
    before = of_source(config.init_from, local_copy(config.init_from), "")
    if before["learnt_from"]:
        origin["learnt_from"] = before["learnt_from"]
    # a published one is its own source
    if before["sources"] and before["sources"] != [config.init_from]:
        origin["sources"] = before["sources"]
    return origin


def check_origin(config: TrainConfig, geometry: Geometry, pinned: Origin | None, has_steps: bool) -> None:
    """`UserError` where a run that exists was started from other weights than are given now."""
    source = pinned["init_from"] if pinned else ""
    if source == config.init_from and (has_steps or not source):
        return
    # the same weights may have moved
    current = read_origin(config, geometry)
    is_same = current is not None and pinned is not None and current["sha256"] == pinned["sha256"]
    if not is_same:
        raise UserError(
            f"init_from={config.init_from}: this run was started from {source or 'random weights'}; "
            "give the same, or another output"
        )


def compare(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, PartCounts]:
    """What fits, by the first part of the names."""
    counts: dict[str, PartCounts] = defaultdict(PartCounts)
    expected = model.state_dict()
    for name, tensor in expected.items():
        part = counts[name.split(".")[0]]
        if name not in weights:
            part.new += 1
        elif weights[name].shape != tensor.shape:
            part.other_shape += 1
        else:
            part.loaded += 1
    for name in weights.keys() - expected.keys():
        counts[name.split(".")[0]].left_over += 1
    return dict(counts)


def table(counts: dict[str, PartCounts]) -> str:
    """One line for each part of the model: loaded, new, left over, and of another shape.

    Narrow, so that a log of 80 letters a line does not wrap it.
    """
    lines = [f"{'part':15}{'loaded':>8}{'new':>6}{'left':>6}{'shape':>7}"]
    for name, part in sorted(counts.items()):
        lines.append(f"{name:15}{part.loaded:8}{part.new:6}{part.left_over:6}{part.other_shape:7}")
    return "\n".join(lines)


def digest(weights: dict[str, Tensor]) -> str:
    """sha256 over names, shapes and values, whatever files they were read from."""
    total = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().float().contiguous()
        total.update(f"{name} {list(tensor.shape)} ".encode())
        total.update(tensor.numpy().tobytes())
    return total.hexdigest()


# --- In each rank -------------------------------------------------------------------------------------------


@torch.no_grad()
def fill(model: nn.Module, config: TrainConfig, geometry: Geometry, origin: Origin) -> None:
    """Overwrites the random weights that `origin` has; `UserError` where it has changed meanwhile."""
    weights = config.module.initial(origin["init_from"], config.section, geometry)
    if digest(weights) != origin["sha256"]:
        raise UserError(
            f"init_from={origin['init_from']}: holds other weights than when this run was bound to them; "
            "restore them, or start another output"
        )
    for name, tensor in model.state_dict().items():
        if name in weights and weights[name].shape == tensor.shape:
            tensor.copy_(weights[name])
