"""What a rank's optimiser works on, piece by piece and by name: the same description at every ZeRO stage and
world size.

    for fragment in held(engine, stage):                 # name, start, size: `size` values of a parameter from `start` on
        fragment.values("exp_avg")                       # a flat fp32 view: "master", "exp_avg" or "exp_avg_sq"

ZeRO 1 to 3 give every value of every parameter to one rank; ZeRO 0 gives all of them to all ranks, and `mine`
shares them out. A checkpoint is made of fragments, so that it can be read by any number of ranks. Knows
nothing of files.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")
KINDS = ("master", *MOMENTS)
Address = tuple[str, int, int]


@dataclass(frozen=True)
class Fragment:
    """`size` flat values of parameter `name` from `start` on; they lie from `offset` on in `owner`, which
    AdamW steps.
    """

    name: str
    start: int
    size: int
    owner: Tensor
    offset: int
    states: Any

    @property
    def address(self) -> Address:
        return self.name, self.start, self.size

    def values(self, kind: str) -> Tensor:
        """fp32 [size], a view: writing to it changes the optimiser."""
        whole = self.owner.data if kind == "master" else self._state()[kind]
        return whole.view(-1).narrow(0, self.offset, self.size)

    def set_step(self, step: int) -> None:
        """Tells AdamW's bias correction how many steps were made."""
        self._state()["step"] = torch.tensor(float(step), device=self.owner.device)

    def _state(self) -> dict[str, Tensor]:
        """AdamW's state of the owner, made as AdamW makes it where no step was made yet."""
        state = self.states[self.owner]
        if not state:
            # on the owner's device: the fused AdamW of a GPU takes no step count that is kept on the host
            state["step"] = torch.tensor(0.0, device=self.owner.device)
            state |= {kind: torch.zeros_like(self.owner) for kind in MOMENTS}
        return state


def held(engine: Any, stage: int) -> list[Fragment]:
    """All that this rank's optimiser works on, in the order of the model's parameters."""
    optimizer, found = engine.optimizer, []
    states = optimizer.optimizer.state if stage else optimizer.state
    for name, parameter in engine.module.named_parameters():
        if stage == 0:
            found.append(Fragment(name, 0, parameter.numel(), parameter, 0, states))
        elif stage == 3:
            group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = (
                torch.distributed.get_rank() * size
            )  # the last ranks' pieces are padded, or nothing but padding
            size = min(size, parameter.ds_numel - start)
            if size > 0:
                found.append(
                    Fragment(name, start, size, optimizer.fp32_partitioned_groups_flat[group], offset, states)
                )
        elif parameter._hp_mapping is not None:
            place, start = (
                parameter._hp_mapping.hp_fragment_address,
                parameter._hp_mapping.lp_fragment_address.start,
            )
            owner = optimizer.single_partition_of_fp32_groups[parameter._hp_mapping.param_group_index]
            found.append(Fragment(name, start, place.numel, owner, place.start, states))
    return found


def mine(fragments: list[Fragment], stage: int, rank: int, world: int) -> list[Fragment]:
    """This rank's share of what all ranks hold together: each value of each parameter is in one rank's share."""
    if stage:
        return fragments
    shares, loads = [set[str]() for _ in range(world)], [0] * world
    for fragment in sorted(
        fragments, key=lambda fragment: (-fragment.size, fragment.name)
    ):  # each to the rank that has least
        least = loads.index(min(loads))
        shares[least].add(fragment.name)
        loads[least] += fragment.size
    return [fragment for fragment in fragments if fragment.name in shares[rank]]


@torch.no_grad()
def publish(engine: Any, stage: int) -> None:
    """After the masters were written: makes the weights that the model computes with, on all ranks."""
    optimizer = engine.optimizer
    if stage in (1, 2):
        optimizer.update_lp_params()
    if stage == 3:
        whole = optimizer.persistent_parameters  # small ones that are kept whole on every rank
        if whole:
            whole[0].partition(whole)
        for number, master in enumerate(optimizer.fp32_partitioned_groups_flat):
            optimizer.fp16_partitioned_groups_flat[number].data.copy_(master.data)
            pieces = optimizer.unflatten(
                optimizer.fp16_partitioned_groups_flat[number], optimizer.fp16_partitioned_groups[number]
            )
            for piece, values in zip(optimizer.fp16_partitioned_groups[number], pieces, strict=True):
                piece.data = values.data
        if whole:
            whole[0].all_gather(whole)


def shapes_of(engine: Any) -> dict[str, list[int]]:
    """Of every parameter, whole."""
    return {
        name: list(getattr(parameter, "ds_shape", parameter.shape))
        for name, parameter in engine.module.named_parameters()
    }
