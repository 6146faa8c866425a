"""What a rank's optimiser works on, piece by piece and by name: one description for every ZeRO stage and
world size.

    for fragment in fragments_of(engine, stage):      # name, start, size: `size` values of a parameter
        fragment.values("exp_avg")                    # a flat fp32 view: "master", "exp_avg" or "exp_avg_sq"

ZeRO 1 to 3 give every value of every trained parameter to one rank; ZeRO 0 gives all of them to all ranks,
and `owned_by` divides them. A checkpoint is made of fragments, so that any number of ranks can read it.

Knows nothing of files. It reads fields that DeepSpeed does not document; each is named where it is used, as
of DeepSpeed 0.19.8, and tests/training/checkpoints/test_fragments.py fails where one changes.
"""

from collections.abc import Container, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")
KINDS = ("master", *MOMENTS)
AdamStates = MutableMapping[Tensor, dict[str, Tensor]]


class Address(NamedTuple):
    """`size` values of the flat parameter `name`, from `start` on."""

    name: str
    start: int
    size: int


@dataclass(frozen=True)
class Fragment:
    """`size` flat values of parameter `name` from `start` on.

    They are stored from `offset` on in `owner`, the tensor that AdamW steps; `states` is AdamW's state.
    """

    name: str
    start: int
    size: int
    owner: Tensor
    offset: int
    states: AdamStates

    @property
    def address(self) -> Address:
        return Address(self.name, self.start, self.size)

    def values(self, kind: str) -> Tensor:
        """fp32 [size], a view: writing to it changes the optimiser."""
        tensor = self.owner.data if kind == "master" else self._state()[kind]
        return tensor.view(-1).narrow(0, self.offset, self.size)

    def set_step(self, step: int) -> None:
        """Sets the step count of AdamW's bias correction."""
        self._state()["step"] = torch.tensor(float(step), device=self.owner.device)

    def _state(self) -> dict[str, Tensor]:
        """AdamW's state of the owner; before the first step it is made here as AdamW would make it."""
        state = self.states[self.owner]
        if not state:
            # on the owner's device: the fused AdamW of a GPU takes no step count that is kept on the host
            state["step"] = torch.tensor(0.0, device=self.owner.device)
            for kind in MOMENTS:
                state[kind] = torch.zeros_like(self.owner)
        return state


def fragments_of(engine: Any, stage: int) -> list[Fragment]:
    """All that this rank's optimiser works on, in the order of the model's parameters."""
    if stage == 0:
        return list(_whole(engine))
    return list(_stage3(engine) if stage == 3 else _partitioned(engine))


def trained_parameters(module: Any) -> Iterator[tuple[str, Any]]:
    """What an optimiser steps, by name: all that is not frozen."""
    return ((name, value) for name, value in module.named_parameters() if value.requires_grad)


def _whole(engine: Any) -> Iterator[Fragment]:
    """ZeRO 0: every rank steps every parameter whole. `engine.optimizer` is torch's AdamW itself."""
    for name, parameter in trained_parameters(engine.module):
        yield Fragment(name, 0, parameter.numel(), parameter, 0, engine.optimizer.state)


def _partitioned(engine: Any) -> Iterator[Fragment]:
    """ZeRO 1 and 2: each group of parameters is one flat tensor, of which a rank steps one contiguous part.

    DeepSpeed 0.19.8, stage_1_and_2.py: `_hp_mapping` of a parameter says which of its values this rank steps
    (`lp_fragment_address`, within the parameter) and where (`hp_fragment_address`, within the fp32 tensor
    `single_partition_of_fp32_groups[param_group_index]`); it is None where the rank steps none of them.
    """
    optimizer = engine.optimizer
    for name, parameter in trained_parameters(engine.module):
        mapping = parameter._hp_mapping
        if mapping is None:
            continue
        start = mapping.lp_fragment_address.start
        stepped = mapping.hp_fragment_address
        owner = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
        yield Fragment(name, start, stepped.numel, owner, stepped.start, optimizer.optimizer.state)


def _stage3(engine: Any) -> Iterator[Fragment]:
    """ZeRO 3: every parameter is cut into as many equal parts as there are ranks, the last ones padded.

    DeepSpeed 0.19.8, stage3.py: `grad_position[id]` is (group, offset, size of a part) of a parameter within
    the fp32 tensors `fp32_partitioned_groups_flat`; `ds_numel` is its size without padding.
    """
    optimizer = engine.optimizer
    rank = torch.distributed.get_rank()
    for name, parameter in trained_parameters(engine.module):
        group, offset, part_size = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = rank * part_size
        size = min(part_size, parameter.ds_numel - start)
        # the part of a last rank may be nothing but padding
        if size > 0:
            owner = optimizer.fp32_partitioned_groups_flat[group]
            yield Fragment(name, start, size, owner, offset, optimizer.optimizer.state)


def owned_by(fragments: list[Fragment], stage: int, rank: int, world: int) -> list[Fragment]:
    """The fragments that a rank saves: at ZeRO 0, where all ranks hold all, a balanced partition.

    Each value of each parameter is in one rank's share.
    """
    if stage > 0:
        return fragments
    shares = [set[str]() for _ in range(world)]
    loads = [0] * world
    # the largest first, each to the rank with the least load; the name makes the order the same on all ranks
    for fragment in sorted(fragments, key=lambda fragment: (-fragment.size, fragment.name)):
        least = loads.index(min(loads))
        shares[least].add(fragment.name)
        loads[least] += fragment.size
    return [fragment for fragment in fragments if fragment.name in shares[rank]]


@torch.no_grad()
def publish(engine: Any, stage: int) -> None:
    """After the masters were written: makes the weights that the model computes with, on all ranks."""
    if stage in (1, 2):
        engine.optimizer.update_lp_params()
    if stage == 3:
        _publish_stage3(engine.optimizer)


def _publish_stage3(optimizer: Any) -> None:
    """DeepSpeed 0.19.8, stage3.py, does this only within a step (`_reassign_or_swap_out…`)."""
    # small parameters that every rank keeps whole: cut up before the masters are copied, gathered after
    persistent = optimizer.persistent_parameters
    if persistent:
        persistent[0].partition(persistent)
    for index, master in enumerate(optimizer.fp32_partitioned_groups_flat):
        flat = optimizer.fp16_partitioned_groups_flat[index]
        parameters = optimizer.fp16_partitioned_groups[index]
        flat.data.copy_(master.data)
        for parameter, values in zip(parameters, optimizer.unflatten(flat, parameters), strict=True):
            parameter.data = values.data
    if persistent:
        persistent[0].all_gather(persistent)


def shapes_of(model: nn.Module, frozen: Container[str] = ()) -> dict[str, list[int]]:
    """Of every parameter that is not among the frozen ones, whole. At ZeRO 3 one is empty between passes, and
    `ds_shape` keeps its shape.
    """
    shapes: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        if name not in frozen:
            shapes[name] = list(getattr(parameter, "ds_shape", parameter.shape))
    return shapes
