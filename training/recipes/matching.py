"""Pairs that are told apart: symmetric InfoNCE of two modalities over one micro batch of all ranks together.

    all_rows = gather_features(rows)                   # [b, d] of every rank -> [b * world, d]
    masked = no_negatives(media, all_media, truth)     # whose negatives are whose
    loss, hit = pair_loss(first, second, …)            # [b] each

Features are gathered with their gradients, so that any number of workers computes the same loss. Knows no
towers (training.recipes.contrastive).
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

MASKED = -1e4  # finite: a row of which all is masked gives no NaN, and exp of it is 0
HOLE = -1  # no medium and no text has this number
MAX_SCALE = 100  # Radford et al. 2021, section 2.5: a colder temperature makes training unstable


def pair_loss(
    own: tuple[Tensor, Tensor], every: tuple[Tensor, Tensor], log_scale: Tensor, masked: Tensor, truth: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss and whether the first finds the second, float32 and bool [b].

    `own`: b unit vectors [b, d] of the first and of the second modality; `every`: those of all ranks [n, d].
    `log_scale` [1] or [2]: of the way from the first to the second, and back. `masked` bool [b, n]: who is no
    negative. `truth` [b]: where each sample is among the n.
    """
    scale = log_scale.float().exp().clamp(max=MAX_SCALE)
    # Radford et al. 2021, figure 3: each of the first finds its partner among all, and each of the second
    across = (scale[:1] * own[0] @ every[1].T).masked_fill(masked, MASKED)
    down = (scale[-1:] * own[1] @ every[0].T).masked_fill(masked, MASKED)
    there, back = (nn.functional.cross_entropy(logits, truth, reduction="none") for logits in (across, down))
    return 0.5 * (there + back), across.argmax(1) == truth


def no_negatives(media: Tensor, all_media: Tensor, truth: Tensor) -> Tensor:
    """bool [b, n]: which of n samples are no negatives for each of b: holes, and other clips of its medium.

    `media` int64 [b], `all_media` [n]: a number per medium. `truth` [b]: where each sample is among the n.
    """
    masked = (media[:, None] == all_media) | (all_media == HOLE)
    return masked.scatter(1, truth[:, None], False)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def gather_features(rows: Tensor) -> Tensor:
    """[b, d] of every rank -> [b * world, d] in the order of positions, with gradients for their ranks."""
    features: Tensor = _GatherFeatures.apply(rows)  # type: ignore[no-untyped-call]
    return features


@torch.compiler.disable  # type: ignore[untyped-decorator]
def gather_rows(rows: Tensor) -> Tensor:
    """[b, ...] of every rank -> [b * world, ...].

    Row i of rank r is at i * world + r, as the loader deals positions: any number of ranks gives one order.
    """
    per_rank = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(per_rank, rows.contiguous())
    return torch.stack(per_rank, 1).flatten(0, 1)


class _GatherFeatures(torch.autograd.Function):
    """`gather_rows` whose gradient is summed over the ranks.

    DeepSpeed takes the mean over ranks afterwards, which is then the gradient of the loss over all of them.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        gathered: Tensor = gather_rows(rows)
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        world = dist.get_world_size()
        return total.reshape(-1, world, *total.shape[1:])[:, dist.get_rank()]
