"""What one rank needs before its first step: the process, the data, the engine, validation and previews.

    with ExitStack() as stack:
        run = set_up(plan, stack)      # in a process group; what has to be closed is on the stack

It reads no checkpoint (training.run.resume does) and checks no settings (training.run.prepare did).
"""

import logging
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cluster.dataset import Dataset, Snapshot
from cluster.runs import committed_steps
from cluster.scratch import sweep
from cluster.storage import Store, open_store
from configs.load import UserError
from training.checkpoints.fragments import Fragment, fragments_of, owned_by
from training.checkpoints.parts import AVERAGE, profile_kind
from training.checkpoints.store import Saver
from training.data.catalogue import Catalogue
from training.data.heldout import HeldOut, held_out, leave_out
from training.data.mixture import Mixture
from training.data.order import Order
from training.data.takedown import Watched, watch_tombstones
from training.run.ema import Ema, warmed_up
from training.run.engine import prepare_process, start_engines
from training.run.guard import Guard
from training.run.initial import fill
from training.run.metrics import MetricsLog
from training.run.plan import Plan
from training.run.preview import Preview
from training.run.profiles import power_decay
from training.run.ranks import broadcast
from training.run.trained import choose_trained, frozen_values
from training.run.validate import Validation
from training.settings import TrainConfig

log = logging.getLogger(__name__)


@dataclass
class Run:
    """One rank's view of the run.

    `engines`: one for each optimiser of the recipe, around `model` or parts of it. `fragments`: all that its
    optimisers work on; `owned`: those it saves and averages. `averages`: of those, by kind.
    `frozen`: what is not trained, by name; on rank 0, which saves it. `attempt` is the same on all ranks and
    another one at every start. `metrics`: on rank 0, once it is known where the run resumes.
    """

    plan: Plan
    store: Store
    rank: int
    world: int
    model: nn.Module
    engines: list[Any]
    fragments: list[Fragment]
    owned: list[Fragment]
    frozen: dict[str, Tensor]
    averages: dict[str, Ema]
    guard: Guard
    saver: Saver
    attempt: str
    mixture: Mixture
    validation: Validation | None
    preview: Preview | None
    hide_removed: Callable[[], None]
    metrics: MetricsLog | None = None
    saves: int = 0
    flops_per_step: float = 0.0
    rollbacks: Counter[int] = field(default_factory=Counter)

    @property
    def ema(self) -> Ema:
        """What is validated and shipped."""
        return self.averages[AVERAGE]

    @property
    def engine(self) -> Any:
        """The first: its loss is the one that is validated."""
        return self.engines[0]

    @property
    def config(self) -> TrainConfig:
        return self.plan.config


def set_up(plan: Plan, stack: ExitStack) -> Run:
    """Everything of a rank but its state; `stack` closes it."""
    config = plan.config
    rank = dist.get_rank()
    world = dist.get_world_size()
    store = open_store(config.output)

    # --- Process --------------------------------------------------------------------------------------------
    sweep()
    check_shared(config.output)
    prepare_process(config.threads)

    # --- Data -----------------------------------------------------------------------------------------------
    mixture = mixture_of(config, plan.snapshots)

    # --- Model and engine -----------------------------------------------------------------------------------
    model = first_model(plan, store)
    frozen = frozen_values(model) if rank == 0 else {}
    engines = start_engines(model, config, world)
    fragments: list[Fragment] = []
    for engine in engines:
        fragments += fragments_of(engine, config.zero_stage)
    owned = owned_by(fragments, config.zero_stage, rank, world)
    averages = averages_of(owned, config)

    # --- Checkpoints ----------------------------------------------------------------------------------------
    saver = Saver(store, rank, world, config.keep_checkpoints)
    stack.callback(saver.close)
    # a start of its own folder: a rank that a killed start left behind must not write into this one's
    attempt = broadcast(f"{plan.attempt}-{time.time_ns()}")

    # --- Validation and previews, of `data` alone -----------------------------------------------------------
    dataset = Dataset.open(config.data)
    validation = Validation.of(dataset, plan.snapshots[0], config, plan.geometry, rank, world)
    preview = Preview.of(dataset, plan.snapshots[0], config, plan.geometry)

    # --- Take-downs while the run trains --------------------------------------------------------------------
    catalogues = [*mixture.catalogues, *([validation.catalogue] if validation else [])]
    hide_removed = stack.enter_context(watch_tombstones(_by_dataset(config, catalogues)))

    return Run(
        plan=plan,
        store=store,
        rank=rank,
        world=world,
        model=model,
        engines=engines,
        fragments=fragments,
        owned=owned,
        frozen=frozen,
        averages=averages,
        guard=Guard.of(config),
        saver=saver,
        attempt=attempt,
        mixture=mixture,
        validation=validation,
        preview=preview,
        hide_removed=hide_removed,
    )


def averages_of(owned: list[Fragment], config: TrainConfig) -> dict[str, Ema]:
    """All averages of a run, by their kind in a checkpoint."""
    averages = {AVERAGE: Ema(owned, warmed_up(config.ema))}
    for width in config.ema_profiles:
        averages[profile_kind(width)] = Ema(owned, power_decay(width))
    return averages


def first_model(plan: Plan, store: Store) -> nn.Module:
    """The model of step 0: random weights, or those of `init_from` where the run has no checkpoint yet."""
    config = plan.config
    # seeded right before: the first weights are the same on every rank and in every start
    torch.manual_seed(config.seed)
    model = config.module.build_model(config.section, plan.geometry)
    # a run that has a checkpoint never reads them again: they may be gone
    if plan.origin and not broadcast(bool(committed_steps(store))):
        fill(model, config, plan.geometry, plan.origin)
    choose_trained(model, config)
    return model


def check_shared(output: str) -> None:
    """`UserError` if this node does not see what the driver wrote: its part of a checkpoint would be lost."""
    if not open_store(output).exists("run.json"):
        raise UserError(
            f"output={output}: {socket.gethostname()} does not see the run there; "
            "give a folder that all nodes share, or s3://"
        )


def mixture_of(config: TrainConfig, snapshots: list[Snapshot]) -> Mixture:
    """The samples of `split` of all datasets, in the order of this run. `UserError` if one has none."""
    datasets = [Dataset.open(uri) for uri in config.all_data]
    members = config.members
    catalogues = [
        Catalogue.of(dataset, snapshot, config.split, members)
        for dataset, snapshot in zip(datasets, snapshots, strict=True)
    ]
    if config.more_data:
        reserved = held_out(datasets[0], snapshots[0], config.split)
        more = list(zip(catalogues, datasets, snapshots, strict=True))[1:]
        for catalogue, dataset, snapshot in more:
            _leave_out(catalogue, dataset, snapshot, reserved, config)
    order = Order(0, config.lanes, config.seed, config.block_size, config.window_size)
    return Mixture.of(catalogues, order, config.weights)


def _leave_out(
    catalogue: Catalogue, dataset: Dataset, snapshot: Snapshot, reserved: HeldOut, config: TrainConfig
) -> None:
    """What `data` holds out for validation or test is not learnt from another dataset either."""
    count = leave_out(catalogue, dataset, snapshot, reserved, config.split)
    if catalogue.holes.all():
        raise UserError(
            f"more_data={dataset.uri}: data={config.data} holds out all of its samples "
            "for validation or test; leave it out"
        )
    if count:
        log.warning(
            "more_data=%s: %d samples are left out: data=%s holds them out", dataset.uri, count, config.data
        )


def _by_dataset(config: TrainConfig, catalogues: list[Catalogue]) -> Watched:
    watched: Watched = []
    for uri in config.all_data:
        dataset = Dataset.open(uri)
        # the validation's catalogue is of `data` too
        watched.append((dataset, [each for each in catalogues if each.store.uri == dataset.uri]))
    return watched
