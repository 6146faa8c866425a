"""The door of a training run: everything that can be refused is refused here, before `run.json` binds the
output.

    plan = prepare(config)          # settings, data, model and output checked; snapshots pinned in <output>/run.json

It starts no worker (training.train does).
"""

import json
import logging
import time
from dataclasses import replace
from typing import Any

import torch

from cluster.dataset import Dataset, Snapshot
from cluster.scratch import scratch_folder
from cluster.storage import Store, absolute, open_store
from configs.load import UserError, describe_difference, semantic_hash
from training.data.catalogue import Catalogue
from training.data.mixture import weighted_statistics
from training.data.pinned import added_since, check_codec, check_pinned, codec_of, probe_of
from training.data.randomness import SampleKey
from training.pretrained import fetch_models
from training.recipes.recipe import Geometry
from training.run.engine import check_compiler
from training.run.history import RESTART, RUN, check_past, finished_step, forget
from training.run.loop import Plan, mixture_of
from training.run.metrics import check_wandb
from training.run.preview import Preview
from training.settings import TrainConfig, identity

log = logging.getLogger(__name__)


def prepare(config: TrainConfig) -> Plan:
    """Checks everything, then writes or compares `<output>/run.json`: settings, snapshots and the recipe's
    geometry.
    """
    more = [absolute(uri) for uri in config.more_data]
    config = replace(config, data=absolute(config.data), more_data=more, output=absolute(config.output))
    check_compiler(config)
    check_wandb(config)
    datasets = [Dataset.open(uri) for uri in config.all_data]
    store = open_store(config.output)
    is_finished = finished_step(store) >= config.steps
    missing = "" if is_finished else check_past(store, config.restart)
    if missing:
        raise UserError(f"output={config.output}: {missing}; {RESTART}")
    kept = _read_run(store, config)
    if kept:
        _check_same(kept, config, is_finished)
        started = kept if is_finished else _go_on(kept, config, datasets)
    else:
        started = _start(config, datasets)
    pinned = Snapshot.from_json(started["snapshots"][0])
    if config.validate_every:
        Catalogue.of(datasets[0], pinned, config.validation_split, config.module.MEMBERS)
    Preview.of(datasets[0], pinned, config, started["facts"])
    check_model(config, started["facts"])
    if not kept:
        _bind(config, started)
    return Plan(config, started["snapshots"], started["facts"], f"{time.time_ns():x}")


def _start(config: TrainConfig, datasets: list[Dataset]) -> dict[str, Any]:
    """What run.json of a new run will hold."""
    snapshots = [dataset.snapshot() for dataset in datasets]
    geometry = geometry_of(config, datasets, snapshots)
    probes = [probe_of(catalogue) for catalogue in mixture_of(config, snapshots).catalogues]
    if config.module.LEARNS_FROM == "latents":
        with scratch_folder("models") as folder:
            fetch_models(
                datasets[0], folder
            )  # refused here if they are damaged, not when the model is finished
    pinned = [snapshot.to_json() for snapshot in snapshots]
    return {"config": identity(config), "snapshots": pinned, "facts": geometry, "probes": probes}


def _go_on(kept: dict[str, Any], config: TrainConfig, datasets: list[Dataset]) -> dict[str, Any]:
    """run.json of a run that goes on, for where its datasets lie now.

    `UserError` where one of them has other content.
    """
    geometry, snapshots = (
        dict(kept["facts"]),
        [Snapshot.from_json(snapshot) for snapshot in kept["snapshots"]],
    )
    probes = kept.get("probes") or [{}] * len(datasets)
    for number, (dataset, pinned) in enumerate(zip(datasets, snapshots, strict=True)):
        setting = "more_data" if number else "data"
        check_codec(setting, dataset, geometry.get("sha256", {}))
        check_pinned(setting, dataset, pinned, config.module.MEMBERS, probes[number])
        units, samples = added_since(dataset, pinned)
        if units:
            log.warning(
                "%s=%s: %d samples in %d units were added since this run pinned its snapshot and are not part of it; "
                "train into another output to learn from them",
                *(setting, dataset.uri, samples, units),
            )
        if pinned.uri != dataset.uri:
            log.warning("this run learns from the snapshot of %s, now read at %s", pinned.uri, dataset.uri)
    if config.module.LEARNS_FROM == "latents":
        geometry |= {"latents": config.data, "sha256": codec_of(datasets[0])}
    return {**kept, "facts": geometry}


def _bind(config: TrainConfig, started: dict[str, Any]) -> None:
    """Publishes run.json, last of all: a start that was refused binds nothing."""
    store = open_store(config.output, writable=True)
    if config.restart:
        forget(store)
        if store.exists(RUN):
            store.delete(RUN)
    try:
        store.put(RUN, json.dumps(started, indent=1).encode())
    except FileExistsError:  # another start was faster
        _check_same(json.loads(store.read(RUN)), config, finished=False)


def _read_run(store: Store, config: TrainConfig) -> dict[str, Any] | None:
    """The content of run.json;

    None where there is none, or where the run starts anew because it is damaged.
    """
    if not store.exists(RUN):
        return None
    try:
        return dict(json.loads(store.read(RUN)))
    except (ValueError, TypeError) as error:
        if config.restart:
            return None
        raise UserError(f"{config.output}/{RUN}: damaged ({error}); {RESTART}") from None


def check_model(config: TrainConfig, geometry: Geometry) -> None:
    """Builds the model without memory and passes an empty batch through.

    `UserError` where its settings do not fit together.
    """
    recipe, section = config.module, config.section
    batch = recipe.make_batch([None], [SampleKey(config.seed, 0, 0)], section, geometry)
    try:
        with torch.device("meta"), torch.no_grad():
            model = recipe.build_model(section, geometry)
            model({name: tensor.to("meta") for name, tensor in batch.items()})
    except UserError:
        raise
    except (ValueError, RuntimeError, TypeError, ZeroDivisionError, IndexError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"recipe={config.recipe}: its settings do not make a model for this data: {reason}"
        ) from error


def geometry_of(config: TrainConfig, datasets: list[Dataset], snapshots: list[Snapshot]) -> Geometry:
    """The recipe's geometry of all datasets together, by their weights.

    `UserError` unless they were made alike: latents by the same encoders, for one.
    """
    recipe, first = config.module, datasets[0]
    alike: list[Any] = [
        dataset.meta["config"]
        if dataset.meta["kind"] == "latents"
        else recipe.geometry(snapshot, dataset.meta, config.section)
        for dataset, snapshot in zip(datasets, snapshots, strict=True)
    ]
    for dataset, theirs in zip(datasets, alike, strict=True):
        if dataset.meta["kind"] != first.meta["kind"] or semantic_hash(theirs) != semantic_hash(alike[0]):
            difference = (
                describe_difference(alike[0], theirs) or f"{first.meta['kind']} and {dataset.meta['kind']}"
            )
            raise UserError(
                f"more_data={dataset.uri}: was not made as {first.uri} was: {difference}; mix only what was made alike"
            )
    together = Snapshot.of(first.uri, weighted_statistics(snapshots, config.weights))
    geometry: Geometry = recipe.geometry(together, first.meta, config.section)
    if config.module.LEARNS_FROM == "latents":
        geometry["pictures"] = first.meta["config"].get("pictures", 1)
        geometry |= {"sha256": codec_of(first), "snapshots": [snapshot.id for snapshot in snapshots]}
    return geometry


def _check_same(kept: dict[str, Any], config: TrainConfig, finished: bool) -> None:
    ours = _comparable(identity(config), config)
    stored = {**_comparable(kept["config"], config), "numbers": ours["numbers"]}
    if kept["config"].get("numbers") != ours["numbers"] and not finished:
        raise UserError(
            f"output={config.output}: begun by an older version, whose steps compute other numbers; finish it there or start another output"
        )
    if semantic_hash(stored) != semantic_hash(ours):
        difference = describe_difference(stored, ours)
        raise UserError(
            f"output={config.output}: this run was started with other settings: {difference}; use these, or another output"
        )
    pinned = [str(snapshot["uri"]) for snapshot in kept["snapshots"]]
    if len(pinned) != len(config.all_data) or (
        pinned != config.all_data and sorted(pinned) == sorted(config.all_data)
    ):
        first, more = pinned[0], ",".join(pinned[1:])
        raise UserError(
            f"more_data={config.more_data}: this run was started with data={first} 'more_data=[{more}]'; give these, in this order"
        )


def _comparable(settings: dict[str, Any], config: TrainConfig) -> dict[str, Any]:
    """Without `accumulate` where the loss is a sum over samples, which any number of micro batches gives
    alike.
    """
    coupled = config.module.COUPLES_SAMPLES
    return {name: value for name, value in settings.items() if coupled or name != "accumulate"}
