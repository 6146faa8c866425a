"""Checkpoints: dying at any storage call of a save costs nothing, retention keeps what is needed, any rank
finds its values.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies

from cluster.jsonl import read_lines
from cluster.runs import checkpoint_folder, committed_steps
from cluster.storage import FolderStore, open_store
from tests.fakes.latents import make_latents
from training.checkpoints.parts import Parts, snapshot
from training.checkpoints.store import Saver, commit, read_marker, retain
from training.inspect import inspect
from training.recipes import diffusion
from training.settings import TrainConfig
from training.train import train

TINY = diffusion.Config(
    channels=[16, 16], head_counts=[2, 2], layers_per_block=1, attention=False, norm_groups=8
)


class Died(BaseException):
    """kill -9 in a test: no `except Exception` may catch it."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("latents")
    make_latents(folder / "data")
    basic = {
        "workers": 0,
        "steps": 9,
        "global_batch": 8,
        "lanes": 4,
        "checkpoint_every": 3,
        "keep_checkpoints": 1,
        "lr": 1e-3,
    }
    return TrainConfig(data=str(folder / "data"), output=str(folder / "whole"), diffusion=TINY, **basic)  # type: ignore[arg-type]


def outcome(config: TrainConfig) -> tuple[list[float], bytes]:
    """Losses, and all that the last checkpoint holds: weights, moments and average."""
    output = Path(config.output)
    parts = [
        path
        for path in sorted(output.glob(f"{checkpoint_folder(config.steps)}/*/rank-0000/*.safetensors"))
        if path.is_file()
    ]
    return [line["loss"] for line in read_lines(output / "metrics.jsonl")], b"".join(
        path.read_bytes() for path in parts[-4:]
    )


def dies(config: TrainConfig, n: int, after: bool) -> bool:
    """Trains, and dies at the n-th write to the run, before or after it took effect; whether it came to that."""
    left = n

    def dying(real: Any) -> Any:
        def call(self: FolderStore, *args: Any) -> None:
            nonlocal left
            left -= self.uri == config.output
            if left == 0 and not after and self.uri == config.output:
                raise Died
            real(self, *args)
            if left == 0 and after and self.uri == config.output:
                raise Died

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("put", "put_file", "replace", "delete"):
            patch.setattr(FolderStore, name, dying(getattr(FolderStore, name)))
        try:
            train(config)
        except Died:
            return True
    return False


@pytest.mark.parametrize("after", [False, True])
def test_dying_at_every_storage_call_of_a_run_costs_no_step_and_no_bit(
    config: TrainConfig, tmp_path: Path, after: bool
) -> None:
    if not Path(config.output).exists():
        train(config)
    n = 1
    while dies(ours := replace(config, output=str(tmp_path / str(n))), n, after):
        if Path(ours.output, "run.json").exists():
            assert not any(line["problem"] for line in inspect(ours.output))
        train(ours)
        assert outcome(ours) == outcome(config)
        n += 1
    assert n > 20


def test_retention_keeps_older_ones_while_the_newest_is_not_whole(tmp_path: Path) -> None:
    store = open_store(str(tmp_path), writable=True)
    for step in (1, 2, 3):
        name = f"{checkpoint_folder(step)}/a/rank-0000/x"
        store.put(name, b"1234")
        commit(store, step, {}, [{"name": name, "size": 4, "sha256": ""}])
    store.put(f"{checkpoint_folder(2)}/b/rank-0000/x", b"never committed")
    store.delete(f"{checkpoint_folder(3)}/a/rank-0000/x")
    retain(store, keep=1)
    assert committed_steps(store) == [1, 2, 3]
    store.put(f"{checkpoint_folder(3)}/a/rank-0000/x", b"1234")
    retain(store, keep=1)
    assert store.list("checkpoints") == [
        f"{checkpoint_folder(3)}/COMMITTED.json",
        f"{checkpoint_folder(3)}/a/rank-0000/x",
    ]


class Piece:
    """A fragment without an optimiser."""

    def __init__(self, name: str, start: int, values: torch.Tensor):
        self.address, self._values = (name, start, len(values)), values

    def values(self, kind: str) -> torch.Tensor:
        return self._values * {"master": 1, "exp_avg": 2, "exp_avg_sq": 3}[kind]


def cut(sizes: dict[str, int], world: int) -> list[list[tuple[str, int, int]]]:
    """All values of all parameters in a row, dealt out evenly, as ZeRO 1 does: a parameter may begin and end
    anywhere.
    """
    total, at, ranks = sum(sizes.values()), 0, [[] for _ in range(world)]  # type: ignore[var-annotated]
    share = -(-total // world)
    for name, size in sizes.items():
        first = at
        while at < first + size:
            taken = min(first + size, (at // share + 1) * share) - at
            ranks[at // share].append((name, at - first, taken))
            at += taken
    return ranks


@settings(max_examples=30, deadline=None)
@given(
    sizes=strategies.lists(strategies.integers(1, 40), min_size=1, max_size=6),
    before=strategies.integers(1, 5),
    now=strategies.integers(1, 5),
)
def test_any_number_of_ranks_finds_its_values_in_the_parts_of_any_other(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], before: int, now: int
) -> None:
    named = {f"p{number}": size for number, size in enumerate(sizes)}
    whole = {name: torch.arange(size) + 1000.0 * number for number, (name, size) in enumerate(named.items())}
    store = open_store(str(tmp_path_factory.mktemp("run")), writable=True)
    savers = [Saver(store, rank, before, keep=1) for rank in range(before)]
    for saver, addresses in zip(savers, cut(named, before), strict=True):
        pieces: Any = [
            Piece(name, start, whole[name][start : start + size]) for name, start, size in addresses
        ]
        write = snapshot(
            pieces,
            [piece.values("master") * 4 for piece in pieces],
            {},
            {name: [size] for name, size in named.items()},
        )
        saver.save(1, "a", write, {"workers": before}, lambda: None)
    for saver in savers:
        saver.join()
        saver.close()
    checkpoint = read_marker(store, 1)
    for rank, addresses in enumerate(cut(named, now)):
        parts = Parts(store, checkpoint, tmp_path_factory.mktemp("parts"))
        targets = [(address, torch.zeros(address[2])) for address in addresses]
        parts.fetch("exp_avg", targets, rank)()
        for (name, start, size), found in targets:
            assert torch.equal(found, 2 * whole[name][start : start + size])
        if before == now:
            assert {source for source, _ in parts.paths} <= {rank}
    assert all(torch.equal(tensor, 4 * whole[name]) for name, tensor in parts.average().items())


def test_every_flipped_byte_of_a_checkpoint_is_noticed(config: TrainConfig, tmp_path: Path) -> None:
    ours = replace(config, output=str(tmp_path / "run"), steps=3)
    train(ours)
    files = [path for path in (tmp_path / "run/checkpoints").rglob("*") if path.is_file()]
    assert len(files) == 6
    for path in files:
        whole = path.read_bytes()
        for place in (0, len(whole) // 3, len(whole) - 1):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            (line,) = inspect(ours.output)
            assert line["problem"], (path, place)
        path.write_bytes(whole)
