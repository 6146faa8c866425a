"""What is in the files of a checkpoint: fragments of the fp32 weights, of AdamW's moments and of the moving
average, by name.

    write = snapshot(fragments, ema.tensors, buffers, shapes)  # now, in memory; write(folder) may run in a thread
    parts = Parts(store, checkpoint, folder)
    fill = parts.fetch("exp_avg", [(address, flat tensor), …], rank)   # downloads and checks, changes nothing; then fill()
    state = parts.average()                                    # the whole averaged model

A rank takes from any number of parts what it needs: where a checkpoint was made by as many ranks at the same
ZeRO stage that is its own part and no other; else, those that overlap. So a run goes on at any legal world
size and any ZeRO stage.
"""

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cluster.storage import Store
from training.checkpoints.fragments import KINDS, Address, Fragment
from training.checkpoints.store import PART, Checkpoint, DamagedError, Write, download

AVERAGE = "average"
BUFFERS = "buffers.safetensors"


class NotFiniteError(ArithmeticError):
    """Weights that are not numbers are not worth a checkpoint."""


def snapshot(
    fragments: list[Fragment], average: list[Tensor], buffers: dict[str, Tensor], shapes: dict[str, list[int]]
) -> Write:
    """Copies a rank's share to the host; the function that is returned writes the copies as files, and tells
    their content.

    `NotFiniteError` where a weight is no number.
    """
    copies = {kind: [_copied(fragment.values(kind)) for fragment in fragments] for kind in KINDS}
    copies[AVERAGE] = [_copied(tensor) for tensor in average]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in copies["master"]):
        raise NotFiniteError("a weight is no number")
    held = {name: _copied(tensor) for name, tensor in buffers.items()}
    content = {"fragments": [list(fragment.address) for fragment in fragments], "shapes": shapes}

    def write(folder: Path) -> dict[str, Any]:
        for kind, tensors in copies.items():
            _write_file(
                {str(number): tensor for number, tensor in enumerate(tensors)}, folder / f"{kind}.safetensors"
            )
        if held:
            _write_file(held, folder / BUFFERS)
        return content

    return write


def _write_file(tensors: dict[str, Tensor], path: Path) -> None:
    """`OSError` where the disk is full; safetensors has an error of its own for that."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        room = shutil.disk_usage(path.parent).free
        raise OSError(
            errno.ENOSPC if room < sum(one.nbytes for one in tensors.values()) else errno.EIO,
            str(error),
            str(path),
        ) from error


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


@dataclass(frozen=True)
class Piece:
    """`size` values for an address from its place `to` on: those of fragment `number` of a rank's part, from
    its place `start` on.
    """

    rank: int
    number: int
    start: int
    to: int
    size: int


class Parts:
    """The parts of one checkpoint, as one rank reads them: each file is downloaded into `folder` and checked
    once.
    """

    def __init__(self, store: Store, checkpoint: Checkpoint, folder: Path):
        self.store, self.checkpoint, self.folder = store, checkpoint, folder
        self.paths: dict[tuple[int, str], Path] = {}
        self.world: int = checkpoint.facts["workers"]

    def file(self, rank: int, name: str) -> Path:
        """`DamagedError` where it is missing or has other bytes."""
        if (rank, name) not in self.paths:
            entry = self.checkpoint.of_rank(rank, name)
            if entry is None:
                raise DamagedError(
                    f"the marker of step {self.checkpoint.step} names no {name} of rank {rank}"
                )
            self.paths[rank, name] = download(self.store, entry, self.folder)
        return self.paths[rank, name]

    def content(self, rank: int) -> dict[str, Any]:
        return json.loads(self.file(rank, PART).read_text())

    def addresses(self, rank: int) -> list[Address]:
        return [(name, start, size) for name, start, size in self.content(rank)["fragments"]]

    def buffers(self) -> dict[str, Tensor]:
        """What the model keeps beside its parameters."""
        return load_file(self.file(0, BUFFERS)) if self.checkpoint.of_rank(0, BUFFERS) else {}

    def average(self) -> dict[str, Tensor]:
        """The state dict of the averaged model, whole."""
        shapes = self.content(0)["shapes"]
        flat = {
            name: torch.full((int(torch.Size(shape).numel()),), torch.nan) for name, shape in shapes.items()
        }
        for rank in range(self.world):
            tensors = load_file(self.file(rank, f"{AVERAGE}.safetensors"))
            for number, (name, start, size) in enumerate(self.addresses(rank)):
                flat[name].narrow(0, start, size).copy_(tensors[str(number)])
        return {name: tensor.reshape(shapes[name]) for name, tensor in flat.items()} | self.buffers()

    def plan(self, wanted: list[Address], rank: int) -> list[list[Piece]]:
        """For each address the pieces that make it up.

        The rank's own part alone is looked at if it holds just these.
        """
        if rank < self.world and self.addresses(rank) == wanted:
            return [[Piece(rank, number, 0, 0, address[2])] for number, address in enumerate(wanted)]
        lying: dict[str, list[tuple[int, int, int, int]]] = {}
        for source in range(self.world):
            for number, (name, start, size) in enumerate(self.addresses(source)):
                lying.setdefault(name, []).append((start, size, source, number))
        return [_overlaps(address, sorted(lying.get(address[0], []))) for address in wanted]

    def fetch(self, kind: str, targets: list[tuple[Address, Tensor]], rank: int) -> Callable[[], None]:
        """Downloads and checks all that the flat `targets` need and changes nothing; the function returned
        fills them.
        """
        plan = self.plan([address for address, _ in targets], rank)
        paths = {
            source: self.file(source, f"{kind}.safetensors")
            for source in {piece.rank for pieces in plan for piece in pieces}
        }

        def fill() -> None:
            opened = {source: load_file(path) for source, path in paths.items()}
            for (_, target), pieces in zip(targets, plan, strict=True):
                for piece in pieces:
                    found = opened[piece.rank][str(piece.number)]
                    target.narrow(0, piece.to, piece.size).copy_(found.narrow(0, piece.start, piece.size))

        return fill


def _overlaps(address: Address, lying: list[tuple[int, int, int, int]]) -> list[Piece]:
    name, first, size = address
    pieces, at = [], first
    for start, length, source, number in lying:
        if start <= at < start + length and at < first + size:
            taken = min(start + length, first + size) - at
            pieces.append(Piece(source, number, at - start, at - first, taken))
            at += taken
    if at != first + size:
        raise DamagedError(f"no part holds value {at} of {name}")
    return pieces
