"""A run by several ranks without Ray: the same loop, process group and checkpoints, at a tenth of the cost.

    args = arguments(data, output, "steps=12", "checkpoint_every=4")      # tests.fakes.runs
    kill_ranks(args, world=2, step=10)
    train_ranks(args, world=2)                                            # resumes
    losses = killed_and_whole(data, tmp_path, "recipe=prior")             # the same, beside a run left alone

Under Ray every rank imports torch, diffusers and transformers anew, 7 CPU-seconds each; these are forked
from one process that has. What Ray itself does is tested with it: tests/training/run/test_loop.py kills one
of its workers, tests/training/recipes/test_vocoder.py one of a run with two optimisers.
"""

import functools
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch.distributed as dist

from cluster.jsonl import read_lines
from cluster.runs import committed_steps
from cluster.storage import open_store
from configs.load import load_config
from tests.fakes.runs import arguments, losses
from training.run import loop
from training.run.plan import Plan
from training.run.prepare import prepare
from training.settings import TrainConfig

TIMEOUT_S = 200


def train_ranks(args: list[str], world: int) -> None:
    """Trains to the end, from the newest checkpoint on."""
    plan = prepare(load_config(TrainConfig, [*args, f"workers={world}"]))
    assert _start(plan, world) == [0] * world
    assert read_lines(Path(plan.config.output) / "events.jsonl")[-1]["event"] == "finished"


def kill_ranks(args: list[str], world: int, step: int) -> None:
    """Trains until the last rank is killed in that step, and the others with it."""
    plan = prepare(load_config(TrainConfig, [*args, f"workers={world}"]))
    assert _start(plan, world, step)[-1] == -signal.SIGKILL
    # what comes next does not start afresh
    assert committed_steps(open_store(plan.config.output))


def killed_and_whole(data: str, folder: Path, *more: str) -> list[float]:
    """The losses of two ranks, once left alone and once killed in step 10: they must be the same bit for bit.

    The killed run must have gone on from its checkpoint: one that began again would have the same losses.
    """
    args = [*more, "steps=12", "checkpoint_every=4"]
    train_ranks(arguments(data, folder / "whole", *args), 2)
    killed = arguments(data, folder / "killed", *args)
    kill_ranks(killed, 2, step=10)
    train_ranks(killed, 2)
    events = read_lines(folder / "killed/events.jsonl")
    assert [line["event"] for line in events] == ["started", "resumed", "finished"]
    # the save of step 8 may have been under way
    assert events[1]["step"] in (4, 8)
    expected = losses(folder / "whole")
    assert losses(folder / "killed") == expected
    return expected


def _start(plan: Plan, world: int, die_at: int = 0) -> list[int]:
    """The exit codes of all ranks. When one dies, the others are killed, as Ray Train does it."""
    store = Path(plan.config.output) / f".ranks-{plan.attempt}"
    dying = [0] * (world - 1) + [die_at]
    given = (plan, world, store, dict(os.environ))
    ranks = [warm_context().Process(target=_rank, args=(*given, rank, dying[rank])) for rank in range(world)]
    for process in ranks:
        process.start()
    waiting = list(ranks)
    while waiting:
        ended = connection.wait([process.sentinel for process in waiting], TIMEOUT_S)
        waiting = [process for process in waiting if process.sentinel not in ended]
        if not ended or any(process.exitcode for process in ranks):
            for process in waiting:
                process.kill()
    for process in ranks:
        process.join()
    store.unlink(missing_ok=True)
    return [process.exitcode for process in ranks]


@functools.cache
def warm_context() -> Any:
    """Of processes that are forked from one which has imported what they need, and trained nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.fakes.ranks", "deepspeed"])
    return context


def _rank(plan: Plan, world: int, store: Path, environment: dict[str, str], rank: int, die_at: int) -> None:
    os.environ |= environment | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    if die_at:
        loop.log_step = _killing(loop.log_step, die_at)
    dist.init_process_group("gloo", store=dist.FileStore(str(store), world), rank=rank, world_size=world)
    loop.work(plan)


def _killing(log_step: Callable[..., None], die_at: int) -> Callable[..., None]:
    def log_or_die(run: Any, step: int, *more: Any) -> None:
        log_step(run, step, *more)
        if step == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    return log_or_die
