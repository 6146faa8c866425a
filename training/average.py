"""`training average`: another average of a run's weights, whose width is chosen after the training.

    average(AverageConfig(run="out/runs/s", sigma_rel=0.08, output="out/models/s-0.08"))

For runs with `ema_profiles`, which store their averages beside every checkpoint and keep them when it goes.
The result is a model as the run leaves it in model/: evaluate several widths, and export the best. What is
computed is training.run.profiles's; the run is not changed.
"""

import json
import logging
import re
from dataclasses import dataclass
from typing import TypedDict

import torch
import yaml
from torch import Tensor

from cluster.runs import committed_steps
from cluster.scratch import scratch_folder
from cluster.storage import Store, open_store
from configs.load import UserError, load_config
from training.checkpoints.parts import Parts, profile_kind
from training.checkpoints.store import PROFILE, average_steps, read_averages, read_marker
from training.export import make_folder
from training.run.finish import write_model, write_provenance
from training.run.history import RUN
from training.run.prepare import RunRecord
from training.run.profiles import WIDEST, Profile, mixing_weights
from training.settings import TrainConfig

log = logging.getLogger(__name__)
# part of the identity of a run, and no setting
NUMBERS = "numbers"


@dataclass
class AverageConfig:
    """Which width, of which run."""

    run: str  # a run that has ema_profiles
    sigma_rel: float  # the width, as a share of the steps
    output: str  # the folder to write to
    step: int = 0  # up to which; 0 = the newest stored average

    def __post_init__(self) -> None:
        if not 0 < self.sigma_rel <= WIDEST:
            raise UserError(f"sigma_rel={self.sigma_rel}: give a width above 0, at most {WIDEST}")


class Averaged(TypedDict):
    """What `average` made; `mixed`: of how many stored averages."""

    output: str
    step: int
    mixed: int


def average(config: AverageConfig) -> Averaged:
    """Writes the model. `UserError` for a run without profiles, and for a step that has none."""
    store = open_store(config.run)
    if not store.exists(RUN):
        raise UserError(f"run={config.run}: no run here; give the output of python -m training train")
    record: RunRecord = json.loads(store.read(RUN))
    stored = stored_profiles(store)
    steps = sorted({profile.step for profile in stored})
    if not steps:
        raise UserError(
            f"run={config.run}: keeps one average only; train with 'ema_profiles=[0.05,0.1]' to choose later"
        )
    step = config.step or steps[-1]
    if step not in steps:
        listed = ", ".join(map(str, steps[-10:]))
        raise UserError(f"step={step}: has no stored average; the newest are of {listed}")
    stored = [profile for profile in stored if profile.step <= step]
    state = mix(store, stored, Profile(step, config.sigma_rel))
    folder = make_folder(config.output)
    settings = settings_of(record, config.run)
    write_model(state, settings, record["facts"], record.get("origin"), folder)
    write_provenance({**record}, settings, step, folder)
    return {"output": str(folder), "step": step, "mixed": len(stored)}


def stored_profiles(store: Store) -> list[Profile]:
    """Of all checkpoints, those that went too."""
    pattern = re.compile(rf".*/rank-0000/{PROFILE}(.+)\.safetensors")
    profiles = []
    for step in average_steps(store):
        matches = [pattern.fullmatch(entry["name"]) for entry in read_averages(store, step).files]
        profiles += [Profile(step, float(match[1])) for match in matches if match]
    return profiles


def mix(store: Store, stored: list[Profile], wanted: Profile) -> dict[str, Tensor]:
    """The state dict of the wanted profile; one stored average is in memory at a time."""
    with scratch_folder("average") as folder:
        newest = read_marker(store, committed_steps(store)[-1])
        state = Parts(store, newest, folder / "newest").untrained()
        mixed: dict[str, Tensor] = {}
        for weight, profile in zip(mixing_weights(stored, wanted), stored, strict=True):
            with scratch_folder("profile") as scratch:
                parts = Parts(store, read_averages(store, profile.step), scratch)
                values = parts.average(profile_kind(profile.sigma_rel))
            for name, tensor in values.items():
                if name not in state:
                    # float64: large weights of both signs may nearly cancel
                    term = float(weight) * tensor.double()
                    mixed[name] = mixed[name] + term if name in mixed else term
    return state | {name: tensor.to(torch.float32) for name, tensor in mixed.items()}


def settings_of(record: RunRecord, run: str) -> TrainConfig:
    """The settings of a run, as far as they are recorded: the others do not change a model."""
    settings = {name: value for name, value in record["config"].items() if name != NUMBERS}
    first, *others = [str(snapshot["uri"]) for snapshot in record["snapshots"]]
    settings["data"] = record["facts"].get("latents") or first
    # what a run's settings need to be of one piece, and what its record has in other places
    settings["more_data"] = others
    settings["init_from"] = record.get("origin", {}).get("init_from", "")
    with scratch_folder("settings") as folder:
        path = folder / "run.yaml"
        path.write_text(yaml.safe_dump(settings))
        return load_config(TrainConfig, [str(path), f"output={run}"])
