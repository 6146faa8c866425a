"""The end of a run, by rank 0: the finished model in `<output>/model`, and FINISHED.json, written last.

finish(run, step, cpu_s)        # after the checkpoint of the last step is committed
"""

import json
import time
from pathlib import Path

from torch import Tensor

from cluster.dataset import Dataset
from cluster.jsonl import JsonObject
from cluster.scratch import scratch_folder
from training.checkpoints.parts import AVERAGE, BEST, Parts
from training.checkpoints.store import read_marker
from training.pretrained import fetch_models
from training.provenance import of_run, write
from training.recipes.recipe import Geometry
from training.run.history import FINISHED, RUN, Finished
from training.run.plan import Origin
from training.run.setup import Run
from training.run.trained import finished_state
from training.settings import TrainConfig
from training.weights_license import ORIGIN


def finish(run: Run, step: int, cpu_s: float) -> None:
    """The model as its recipe saves it, from the averaged weights (of the best step, where these are kept),
    with its codec; then FINISHED.json.
    """
    store = run.store
    with scratch_folder("finish") as scratch:
        model = _save_model(run, step, scratch)
        # of a shorter run, whose model is now replaced file by file
        store.delete(FINISHED)
        sizes: dict[str, int] = {}
        for path in sorted(path for path in model.rglob("*") if path.is_file()):
            name = f"model/{path.relative_to(model)}"
            store.replace(name, path.read_bytes())
            sizes[name] = path.stat().st_size
    record: Finished = {"step": step, "cpu_s": round(cpu_s, 1), "time": time.time(), "files": sizes}
    record.update(run.guard.outcome(step))  # type: ignore[typeddict-item]
    store.replace(FINISHED, json.dumps(record).encode())


def _save_model(run: Run, step: int, scratch: Path) -> Path:
    """The folder of the model of a step's checkpoint."""
    model = scratch / "model"
    model.mkdir()
    # from the checkpoint, not from the engine: no rank holds all averages, and what ships is what is stored
    parts = Parts(run.store, read_marker(run.store, step), scratch / "parts")
    state = parts.average(BEST if run.guard.kept else AVERAGE)
    write_model(state, run.config, run.plan.geometry, run.plan.origin, model)
    write_provenance(json.loads(run.store.read(RUN)), run.config, step, model)
    return model


def write_model(
    state: dict[str, Tensor], config: TrainConfig, geometry: Geometry, origin: Origin | None, folder: Path
) -> None:
    """A finished model of these weights, with all that belongs to it."""
    state = finished_state(state, config, geometry, folder)
    config.module.save(state, config.section, geometry, folder)
    if origin:
        # a model is as restricted as the weights that it was made from
        (folder / ORIGIN).write_text(json.dumps(origin, indent=1))
    if config.module.LEARNS_FROM == "latents":
        # what decodes it belongs to the model, wherever the latents go
        fetch_models(Dataset.open(config.data), folder)


def write_provenance(record: JsonObject, config: TrainConfig, step: int, folder: Path) -> None:
    """Where a finished model is from, beside it: by its run.json and by where `config` has its datasets."""
    is_whole = len(config.all_data) == len(record["snapshots"])
    part = of_run(record, config.all_data if is_whole else ())
    write(folder, {own_part(config): part}, step)


def own_part(config: TrainConfig) -> str:
    """What a run trains, as a part of a model: the name of its folder, or where that is all, its recipe."""
    parts = config.module.PARTS
    name = parts.network or next(iter(parts.weights), ".")
    return config.recipe if name == "." else name
