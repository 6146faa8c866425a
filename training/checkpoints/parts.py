"""What is in the files of a checkpoint: fragments of the fp32 weights, of AdamW's moments and of the moving
average, by name.

    write = snapshot(fragments, averages, untrained, shapes)           # now, in memory
    write(folder)                                                      # later, in a thread
    parts = Parts(store, checkpoint, folder)
    parts.fetch("exp_avg", [(address, tensor)], rank)                  # downloads, checks, changes nothing
    parts.fetch("exp_avg", [(address, tensor)], rank)()                # and fills the flat tensor
    state = parts.average()                                            # the whole averaged model

A rank takes what it needs from any number of parts. If as many ranks made the checkpoint at the same ZeRO
stage, that is its own part and no other; else it is every part that overlaps. So a run resumes at any legal
world size and any ZeRO stage.

    value of "a"     0              10       15       20
    stored           |------ rank 0 ---------|- rank 1 -|        ("a", 0, 15) and ("a", 15, 5)
    needed                          |===================|        ("a", 10, 10)
    segments                        | 5 of 0 | 5 of 1   |        from value 10 of rank 0, value 0 of rank 1
"""

import errno
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cluster.storage import Store
from training.checkpoints.fragments import KINDS, Address, Fragment
from training.checkpoints.store import PART, PROFILE, Checkpoint, DamagedError, Write, download

AVERAGE = "average"
BEST = "best"
BUFFERS = "buffers.safetensors"
BEST_BUFFERS = "best-buffers.safetensors"


class PartContent(TypedDict):
    """What part.json states beside the files: `fragments` in their order in the files; `shapes` of all
    trained parameters, whole, by rank 0 alone.
    """

    fragments: list[Address]
    shapes: dict[str, list[int]]


@dataclass(frozen=True)
class Kept:
    """Averaged weights of an earlier step, a tensor for each fragment, and on rank 0 the buffers.

    On the host, and never written to.
    """

    average: list[Tensor]
    buffers: dict[str, Tensor]


def profile_kind(sigma_rel: float) -> str:
    """The kind of a profile's average: that of width .05 is in profile-0.05.safetensors."""
    return f"{PROFILE}{sigma_rel:g}"


class NotFiniteError(ArithmeticError):
    """A weight is NaN or infinite: such a checkpoint is not worth keeping."""


def snapshot(
    fragments: list[Fragment],
    averages: Mapping[str, list[Tensor]],
    untrained: dict[str, Tensor],
    shapes: dict[str, list[int]],
    best: Kept | None = None,
) -> Write:
    """Copies a rank's share to the host; the function returned writes the copies and returns their content.

    `averages`: by kind, a tensor for each fragment. `untrained`: what no optimiser steps, buffers and frozen
    weights. `shapes`: of all that is stepped, whole. `best`: the weights of the best step, if they are kept.

    `NotFiniteError` if a weight is NaN or infinite.
    """
    copies: dict[str, list[Tensor]] = {}
    for kind in KINDS:
        copies[kind] = [copied(fragment.values(kind)) for fragment in fragments]
    for kind, average in averages.items():
        copies[kind] = [copied(tensor) for tensor in average]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in copies["master"]):
        raise NotFiniteError("a weight is NaN or infinite")
    beside = {BUFFERS: {name: copied(tensor) for name, tensor in untrained.items()}}
    if best:
        copies[BEST] = best.average
        beside[BEST_BUFFERS] = best.buffers
    content: PartContent = {"fragments": [fragment.address for fragment in fragments], "shapes": shapes}

    def write(folder: Path) -> PartContent:
        for kind, tensors in copies.items():
            by_index = {str(index): tensor for index, tensor in enumerate(tensors)}
            _write_file(by_index, folder / f"{kind}.safetensors")
        for name, named in beside.items():
            if named:
                _write_file(named, folder / name)
        return content

    return write


def copied(tensor: Tensor) -> Tensor:
    """On the host, of its own memory."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _write_file(tensors: dict[str, Tensor], path: Path) -> None:
    """`OSError` on a full disk; safetensors raises an error of its own, which does not name the cause."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        needed = sum(tensor.nbytes for tensor in tensors.values())
        is_full = shutil.disk_usage(path.parent).free < needed
        raise OSError(errno.ENOSPC if is_full else errno.EIO, str(error), str(path)) from error


@dataclass(frozen=True, order=True)
class StoredFragment:
    """`size` values of a parameter from `start` on: fragment `index` of the part of `rank`."""

    start: int
    size: int
    rank: int
    index: int


@dataclass(frozen=True)
class Segment:
    """`size` values of fragment `index` of the part of `rank`, from `source_start` of the fragment on.

    They belong at `target_start` of the tensor to be filled.
    """

    rank: int
    index: int
    source_start: int
    target_start: int
    size: int


class Parts:
    """The parts of one checkpoint, as one rank reads them.

    Each file is downloaded into `folder` and checked once.
    """

    def __init__(self, store: Store, checkpoint: Checkpoint, folder: Path):
        self.store = store
        self.checkpoint = checkpoint
        self.folder = folder
        self.paths: dict[tuple[int, str], Path] = {}
        self.world = checkpoint.metadata["workers"]

    def file(self, rank: int, name: str) -> Path:
        """`DamagedError` if it is missing or has other bytes."""
        if (rank, name) not in self.paths:
            entry = self.checkpoint.file_of(rank, name)
            if entry is None:
                raise DamagedError(
                    f"the marker of step {self.checkpoint.step} names no {name} of rank {rank}"
                )
            self.paths[rank, name] = download(self.store, entry, self.folder)
        return self.paths[rank, name]

    def addresses(self, rank: int) -> list[Address]:
        """Of the fragments in a rank's files, in their order."""
        return [Address(*address) for address in self._content(rank)["fragments"]]

    def untrained(self) -> dict[str, Tensor]:
        """What no optimiser steps: the model's buffers, and its frozen weights."""
        return self._beside(BUFFERS)

    def best_buffers(self) -> dict[str, Tensor]:
        """Those of the best step."""
        return self._beside(BEST_BUFFERS)

    def _beside(self, name: str) -> dict[str, Tensor]:
        """What rank 0 has in a file; nothing where there is none."""
        return load_file(self.file(0, name)) if self.checkpoint.file_of(0, name) else {}

    @property
    def has_best(self) -> bool:
        """Whether the weights of the best step are in it."""
        return self.checkpoint.file_of(0, f"{BEST}.safetensors") is not None

    def average(self, kind: str = AVERAGE) -> dict[str, Tensor]:
        """The state dict of the averaged model, whole; of the best step for `BEST`.

        Of a checkpoint that went, without what no optimiser steps.
        """
        shapes = self._content(0)["shapes"]
        # NaN: a value that no part holds would be noticed
        flat = {
            name: torch.full((int(torch.Size(shape).numel()),), torch.nan) for name, shape in shapes.items()
        }
        for rank in range(self.world):
            tensors = load_file(self.file(rank, f"{kind}.safetensors"))
            for index, address in enumerate(self.addresses(rank)):
                flat[address.name].narrow(0, address.start, address.size).copy_(tensors[str(index)])
        parameters = {name: tensor.reshape(shapes[name]) for name, tensor in flat.items()}
        beside = self.untrained() | (self.best_buffers() if kind == BEST else {})
        return parameters | beside

    def fetch(self, kind: str, targets: list[tuple[Address, Tensor]], rank: int) -> Callable[[], None]:
        """Downloads and checks all that the flat `targets` need; the function returned fills them.

        Nothing changes before that: a checkpoint that turns out damaged leaves the rank as it was.
        """
        plan = self.plan([address for address, _ in targets], rank)
        sources = sorted({segment.rank for segments in plan for segment in segments})
        paths = {source: self.file(source, f"{kind}.safetensors") for source in sources}

        def fill() -> None:
            tensors = {source: load_file(path) for source, path in paths.items()}
            for (_, target), segments in zip(targets, plan, strict=True):
                for segment in segments:
                    fragment = tensors[segment.rank][str(segment.index)]
                    values = fragment.narrow(0, segment.source_start, segment.size)
                    target.narrow(0, segment.target_start, segment.size).copy_(values)

        return fill

    def plan(self, needed: list[Address], rank: int) -> list[list[Segment]]:
        """For each address the segments that make it up.

        If the rank's own part holds just these, no other part is read.
        """
        if rank < self.world and self.addresses(rank) == needed:
            return [[Segment(rank, index, 0, 0, address[2])] for index, address in enumerate(needed)]
        stored: dict[str, list[StoredFragment]] = {}
        for source in range(self.world):
            for index, (name, start, size) in enumerate(self.addresses(source)):
                stored.setdefault(name, []).append(StoredFragment(start, size, source, index))
        return [_segments(address, sorted(stored.get(address[0], []))) for address in needed]

    def _content(self, rank: int) -> PartContent:
        content: PartContent = json.loads(self.file(rank, PART).read_text())
        return content


def _segments(address: Address, stored: list[StoredFragment]) -> list[Segment]:
    """What of the `stored` fragments, in order of `start`, makes up `address`. `DamagedError` for a gap."""
    name, first, size = address
    end = first + size
    position = first
    segments = []
    for fragment in stored:
        # they are in order: one that begins after `position` leaves a gap that no later one fills
        fragment_end = fragment.start + fragment.size
        if fragment.start <= position < min(fragment_end, end):
            taken = min(fragment_end, end) - position
            source_start = position - fragment.start
            segments.append(Segment(fragment.rank, fragment.index, source_start, position - first, taken))
            position += taken
    if position != end:
        raise DamagedError(f"no part holds value {position} of {name}")
    return segments
