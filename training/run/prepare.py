"""The start-up check of a training run: everything that can be refused is refused here, before `run.json`
binds the output.

    plan = prepare(config)      # settings, data, model, output checked; snapshots pinned in <output>/run.json

It starts no worker (training.train does).
"""

import json
import logging
import time
from dataclasses import replace
from typing import Any, NotRequired, TypedDict, cast

import torch

from cluster.dataset import Dataset, Snapshot
from cluster.jsonl import JsonObject
from cluster.objects import list_own
from cluster.runs import committed_steps
from cluster.scratch import scratch_folder
from cluster.storage import Store, absolute, open_store
from configs.load import UserError, describe_difference, semantic_hash
from training.data.catalogue import Catalogue
from training.data.mixture import weighted_statistics
from training.data.pinned import added_since, check_codec, check_pinned, codec_of, probe_of
from training.data.randomness import SampleKey
from training.pretrained import HUB, fetch_models
from training.recipes.recipe import Adopts, Geometry, Measures
from training.run.engine import check_compiler, check_precision
from training.run.history import RESTART, RUN, check_past, forget, is_finished
from training.run.initial import check_origin, read_origin
from training.run.plan import Origin, Plan
from training.run.preview import Preview
from training.run.setup import mixture_of
from training.run.sides import sides_of
from training.run.trained import check_each_side, choose_trained
from training.run.wandb_run import check_wandb
from training.settings import TrainConfig, identity

log = logging.getLogger(__name__)
# what torch raises for shapes that do not fit together, and Python for settings of the wrong kind
MODEL_ERRORS = (ValueError, RuntimeError, TypeError, ZeroDivisionError, IndexError)


class RunRecord(TypedDict):
    """run.json. `facts` is the recipe's geometry; `probes` pin bytes of each dataset, but in old runs.

    `origin`: of the first weights, if these are not random. `tombstones`: how many files of them each dataset
    had: what is buried later, this run may have learnt from.
    """

    config: JsonObject
    snapshots: list[JsonObject]
    facts: Geometry
    probes: NotRequired[list[Any]]
    origin: NotRequired[Origin]
    tombstones: NotRequired[list[int]]


def prepare(config: TrainConfig) -> Plan:
    """Checks everything, then writes or compares `<output>/run.json`. `UserError` for what cannot work."""
    # workers may run in another folder
    more_data = [absolute(uri) for uri in config.more_data]
    config = replace(config, data=absolute(config.data), more_data=more_data, output=absolute(config.output))
    if config.init_from and not config.init_from.startswith(HUB):
        config = replace(config, init_from=absolute(config.init_from))

    # --- Machine --------------------------------------------------------------------------------------------
    check_compiler(config)
    check_precision(config)
    check_wandb(config)

    # --- Data and the run's past ----------------------------------------------------------------------------
    datasets = [Dataset.open(uri) for uri in config.all_data]
    store = open_store(config.output)
    is_done = is_finished(store, config.steps, config.patience)
    missing = "" if is_done else check_past(store, config.restart)
    if missing:
        raise UserError(f"output={config.output}: {missing}; {RESTART}")
    stored = _read_record(store, config)
    if stored is None:
        record = _new_record(config, datasets)
    else:
        _check_same(stored, config, is_done)
        check_origin(config, stored["facts"], stored.get("origin"), bool(committed_steps(store)))
        record = stored if is_done else _resumed_record(stored, config, datasets)

    # --- What the run would need later ----------------------------------------------------------------------
    snapshots = [Snapshot.from_json(snapshot) for snapshot in record["snapshots"]]
    pinned = snapshots[0]
    if config.validate_every:
        Catalogue.of(datasets[0], pinned, config.validation_split, config.members)
    Preview.of(datasets[0], pinned, config, record["facts"])
    check_model(config, record["facts"])

    # --- Bind, last of all: a start that was refused binds nothing ------------------------------------------
    if stored is None:
        _bind(config, record)
    attempt = f"{time.time_ns():x}"
    return Plan(config, snapshots, record["facts"], attempt, record.get("origin"))


# --- run.json -----------------------------------------------------------------------------------------------


def _new_record(config: TrainConfig, datasets: list[Dataset]) -> RunRecord:
    """What run.json of a new run will hold."""
    # before the snapshots: what is buried meanwhile counts as buried later
    tombstones = [len(list_own(dataset.store, "tombstones")) for dataset in datasets]
    snapshots = [dataset.snapshot() for dataset in datasets]
    geometry = geometry_of(config, datasets, snapshots)
    probes = [probe_of(catalogue) for catalogue in mixture_of(config, snapshots).catalogues]
    if config.module.LEARNS_FROM == "latents":
        # refused here if they are damaged, not when the model is finished
        with scratch_folder("models") as folder:
            fetch_models(datasets[0], folder)
    record: RunRecord = {
        "config": identity(config),
        "snapshots": [snapshot.to_json() for snapshot in snapshots],
        "facts": geometry,
        "probes": probes,
        "tombstones": tombstones,
    }
    origin = read_origin(config, geometry)
    if origin:
        record["origin"] = origin
    return record


def _resumed_record(stored: RunRecord, config: TrainConfig, datasets: list[Dataset]) -> RunRecord:
    """run.json of a run that resumes, for where its datasets are stored now.

    `UserError` if one of them has other content.
    """
    geometry: Geometry = {**stored["facts"]}
    snapshots = [Snapshot.from_json(snapshot) for snapshot in stored["snapshots"]]
    probes = stored.get("probes") or [{}] * len(datasets)
    for index, (dataset, pinned) in enumerate(zip(datasets, snapshots, strict=True)):
        setting = "more_data" if index else "data"
        check_codec(setting, dataset, geometry.get("sha256", {}))
        check_pinned(setting, dataset, pinned, config.members, probes[index])
        _warn_of_changes(setting, dataset, pinned)
    if config.module.LEARNS_FROM == "latents":
        geometry["latents"] = config.data
        geometry["sha256"] = codec_of(datasets[0])
    return {**stored, "facts": geometry}


def _warn_of_changes(setting: str, dataset: Dataset, pinned: Snapshot) -> None:
    units, samples = added_since(dataset, pinned)
    if units:
        log.warning(
            "%s=%s: %d samples in %d shards were added since this run pinned its snapshot and are not part "
            "of it; train into another output to learn from them",
            *(setting, dataset.uri, samples, units),
        )
    if pinned.uri != dataset.uri:
        log.warning("this run learns from the snapshot of %s, now read at %s", pinned.uri, dataset.uri)


def _bind(config: TrainConfig, record: RunRecord) -> None:
    """Publishes run.json."""
    store = open_store(config.output, writable=True)
    if config.restart:
        forget(store)
        if store.exists(RUN):
            store.delete(RUN)
    try:
        store.put(RUN, json.dumps(record, indent=1).encode())
    except FileExistsError:
        # another start was faster
        _check_same(json.loads(store.read(RUN)), config, finished=False)


def _read_record(store: Store, config: TrainConfig) -> RunRecord | None:
    """The content of run.json; None if there is none, or if the run starts anew because it is damaged."""
    if not store.exists(RUN):
        return None
    try:
        return cast(RunRecord, dict(json.loads(store.read(RUN))))
    except (ValueError, TypeError) as error:
        if config.restart:
            return None
        raise UserError(f"{config.output}/{RUN}: damaged ({error}); {RESTART}") from None


def _check_same(stored: RunRecord, config: TrainConfig, finished: bool) -> None:
    """`UserError` if the run was started with other settings, data or an older version's numbers."""
    settings = _comparable(identity(config), config)
    stored_settings = _comparable(stored["config"], config)
    # a finished run computes nothing more: an older version's is as good
    if stored_settings.get("numbers") != settings["numbers"] and not finished:
        raise UserError(
            f"output={config.output}: begun by an older version, whose steps compute other numbers; "
            "finish it there or start another output"
        )
    stored_settings["numbers"] = settings["numbers"]
    # settings that were added since: their defaults are what the run began with
    defaults = identity(TrainConfig(data="", output="", recipe=config.recipe))
    stored_settings = with_defaults(stored_settings, settings, defaults)
    if semantic_hash(stored_settings) != semantic_hash(settings):
        difference = describe_difference(stored_settings, settings)
        raise UserError(
            f"output={config.output}: this run was started with other settings: {difference}; "
            "use these, or another output"
        )
    _check_same_datasets([str(snapshot["uri"]) for snapshot in stored["snapshots"]], config)


def with_defaults(stored: JsonObject, current: JsonObject, defaults: JsonObject) -> JsonObject:
    """`stored` with the defaults of the settings that it lacks, at every depth."""
    completed = dict(stored)
    for name, value in current.items():
        if name not in stored:
            completed[name] = defaults.get(name, value)
        elif isinstance(value, dict) and isinstance(stored[name], dict):
            completed[name] = with_defaults(stored[name], value, defaults.get(name, {}))
    return completed


def _check_same_datasets(pinned: list[str], config: TrainConfig) -> None:
    """Datasets may have moved to other URIs; what is refused is another number of them or another order."""
    is_reordered = pinned != config.all_data and sorted(pinned) == sorted(config.all_data)
    if len(pinned) != len(config.all_data) or is_reordered:
        raise UserError(
            f"more_data={config.more_data}: this run was started with data={pinned[0]} "
            f"'more_data=[{','.join(pinned[1:])}]'; give these, in this order"
        )


def _comparable(settings: JsonObject, config: TrainConfig) -> JsonObject:
    """Without `accumulate` if the loss is a sum over samples: any number of micro batches gives the same."""
    couples = config.module.couples_samples(config.section)
    return {name: value for name, value in settings.items() if couples or name != "accumulate"}


# --- Data and model -----------------------------------------------------------------------------------------


def geometry_of(config: TrainConfig, datasets: list[Dataset], snapshots: list[Snapshot]) -> Geometry:
    """The recipe's geometry of all datasets together, by their weights.

    `UserError` unless they were made alike: latents by the same encoders, for one.
    """
    _check_alike(config, datasets, snapshots)
    recipe = config.module
    first = datasets[0]
    mixed = Snapshot.of(first.uri, weighted_statistics(snapshots, config.weights))
    geometry = recipe.geometry(mixed, first.meta, config.section)
    if recipe.LEARNS_FROM == "latents":
        geometry["pictures"] = first.meta["config"].get("pictures", 1)
        geometry["sha256"] = codec_of(first)
        geometry["snapshots"] = [snapshot.id for snapshot in snapshots]
    if isinstance(recipe, Measures):
        geometry = recipe.measured(datasets, snapshots, config.section, geometry)
    if config.init_from and isinstance(recipe, Adopts):
        geometry = recipe.adopted(config.init_from, config.section, geometry)
    return geometry


def _check_alike(config: TrainConfig, datasets: list[Dataset], snapshots: list[Snapshot]) -> None:
    """`UserError` for a dataset that was not made as the first one was."""
    origins: list[Any] = []
    for dataset, snapshot in zip(datasets, snapshots, strict=True):
        if dataset.meta["kind"] == "latents":
            origins.append(dataset.meta["config"])
        else:
            # the settings of clips may differ in what a model does not see
            origins.append(config.module.geometry(snapshot, dataset.meta, config.section))
    first = datasets[0]
    for dataset, origin in zip(datasets, origins, strict=True):
        same_kind = dataset.meta["kind"] == first.meta["kind"]
        if same_kind and semantic_hash(origin) == semantic_hash(origins[0]):
            continue
        kinds = f"{first.meta['kind']} and {dataset.meta['kind']}"
        difference = describe_difference(origins[0], origin) or kinds
        raise UserError(
            f"more_data={dataset.uri}: was not made as {first.uri} was: {difference}; "
            "mix only what was made alike"
        )


def check_model(config: TrainConfig, geometry: Geometry) -> None:
    """Builds the model without memory and passes a batch of one hole through.

    `UserError` if its settings do not fit together.
    """
    recipe = config.module
    batch = recipe.make_batch([None], [SampleKey(config.seed, 0, 0)], config.section, geometry)
    try:
        with torch.device("meta"), torch.no_grad():
            model = recipe.build_model(config.section, geometry)
            choose_trained(model, config)
            sides = sides_of(model, config.optimisers)
            check_each_side(sides)
            on_meta = {name: values.to("meta") for name, values in batch.items()}
            # read, not computed with: a value that meta tensors do not have
            on_meta["step"] = torch.full((1,), config.steps, device="cpu")
            for optimiser, side in zip(config.optimisers, sides, strict=True):
                losses = side(on_meta)
                on_meta |= {name: losses[name] for name in optimiser.gives}
    except UserError:
        raise
    except MODEL_ERRORS as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"recipe={config.recipe}: its settings do not make a model for this data: {reason}"
        ) from error
