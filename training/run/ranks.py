"""Plain values between the ranks of a run. Every rank calls these together, in the same order.

gather(problem, world)         # every rank's value, on every rank
broadcast(value)               # rank 0's value, on every rank
"""

from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


def gather(value: T, world: int) -> list[T]:
    """Every rank's value, in the order of ranks, on every rank."""
    values: list[Any] = [None] * world
    dist.all_gather_object(values, value)
    return values


def broadcast(value: T) -> T:
    """The value of rank 0; what the other ranks give is not looked at."""
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]
