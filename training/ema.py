"""The moving average of the weights, in fp32, by name: what a run ships. Tensors are shared out over the ranks.

    ema = Ema(model, rank, world, decay=0.999)
    ema.update(step)                               # every rank calls it: ZeRO may have to gather
    ema.save(path)                                 # this rank's tensors, safetensors
    read_weights([paths of all ranks])             # the whole state, whatever the world size was

Taken from the master weights where the engine keeps such; decay 0 keeps plain weights.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FILE = "weights.safetensors"


class Ema:
    """`tensors`: this rank's share, name -> fp32 tensor."""

    def __init__(self, model: nn.Module, rank: int, world: int, decay: float):
        self.model, self.decay = model, decay
        sizes = {name: getattr(parameter, "ds_numel", parameter.numel()) for name, parameter in model.named_parameters()}
        self.mine = share_out(sizes, world)[rank]
        self.buffers = rank == 0
        self.tensors = {name: master.clone() for name, master in self._masters() if name in self.mine}

    def update(self, step: int) -> None:
        """After optimiser step 1, 2, …; the decay warms up as (1 + step) / (10 + step), so that the start is forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        masters = {name: master for name, master in self._masters() if name in self.mine}
        torch._foreach_lerp_([self.tensors[name] for name in masters], list(masters.values()), 1 - decay)

    def _masters(self) -> Iterable[tuple[str, Tensor]]:
        from deepspeed.utils import safe_get_full_fp32_param  # not before training.engine has prepared the process

        for name, parameter in self.model.named_parameters():
            apart = parameter.dtype != torch.float32 and hasattr(parameter, "_hp_mapping")
            if apart or hasattr(parameter, "ds_id"):
                master = safe_get_full_fp32_param(parameter)  # collective: every rank asks for every parameter
            else:
                master = parameter.detach()
            assert master is not None, name
            yield name, master.detach().float().reshape(getattr(parameter, "ds_shape", parameter.shape))

    def save(self, path: Path) -> None:
        """This rank's tensors, and on rank 0 the buffers."""
        parameters = dict(self.model.named_parameters())
        buffers = {name: value for name, value in self.model.state_dict().items() if name not in parameters} if self.buffers else {}
        tensors = {**self.tensors, **buffers}
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, path)

    def load(self, paths: Iterable[Path]) -> None:
        """This rank's share out of the files of all ranks of whatever world size."""
        state = read_weights(paths)
        for name in self.tensors:
            self.tensors[name].copy_(state[name])


def share_out(sizes: dict[str, int], world: int) -> list[set[str]]:
    """Names shared out over ranks, the largest first, each to the rank that has least."""
    shares: list[set[str]] = [set() for _ in range(world)]
    loads = [0] * world
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        least = loads.index(min(loads))
        shares[least].add(name)
        loads[least] += sizes[name]
    return shares


def read_weights(paths: Iterable[Path]) -> dict[str, Tensor]:
    """The state dict that the ranks' files make up."""
    state: dict[str, Tensor] = {}
    for path in paths:
        state.update(load_file(path))
    return state
