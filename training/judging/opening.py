"""Opens judges of pairs by what a user types, whatever kind of model is there.

judge = open_pair_judge("out/runs/contrastive")    # of ours, a `ClapModel` or PE-AV; a folder, hub:owner/name
find_judge(path, "embedder").knows_pairs           # without loading its weights
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from configs.load import UserError
from training.judging import pe_av
from training.judging.towers import TOWERS, ClapJudge, OwnJudge, PairJudge
from training.pretrained import RUN, find_model, local_copy
from training.recipes.contrastive import SETTINGS


class FoundJudge(NamedTuple):
    """`folder`: of its config.json, which states `kind`. Of a model of ours `home` has its files, and
    `settings` are its section and its geometry; None for others.
    """

    folder: Path
    home: Path
    settings: tuple[dict[str, Any], dict[str, Any]] | None
    kind: str

    @property
    def knows_pairs(self) -> bool:
        return self.settings is not None or self.kind == "clap" or self.kind in pe_av.KINDS


def open_pair_judge(path: str) -> PairJudge:
    """A run of recipe=contrastive or its model folder, a `ClapModel`, `PeAudioModel` or `PeAudioVideoModel`.

    `UserError` for anything else.
    """
    found = find_judge(path, "judge")
    if found.settings:
        return OwnJudge(path, found.home, *found.settings)
    if found.kind in pe_av.KINDS:
        return pe_av.PeJudge(path, found.folder)
    if not found.knows_pairs:
        fix = "give a finished run of recipe=contrastive, a ClapModel or PE-AV"
        raise UserError(f"judge={path}: holds a {found.kind}, which knows no pairs; {fix}")
    return ClapJudge(path, found.folder)


def find_judge(path: str, setting: str) -> FoundJudge:
    """What is there. `UserError`, naming `setting`, where no model is."""
    root = local_copy(path)
    folder = find_model(str(root) if root.exists() else path, setting, *TOWERS)
    kind = str(json.loads((folder / "config.json").read_text()).get("model_type"))
    for home in (folder, folder.parent):
        settings = _settings_of(home)
        if settings:
            return FoundJudge(folder, home, settings, kind)
    return FoundJudge(folder, folder, None, kind)


def _settings_of(home: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The section and the geometry of a model of ours: from itself, or of older ones from their run.json."""
    if (home / SETTINGS).is_file():
        stated = json.loads((home / SETTINGS).read_text())
        return stated["contrastive"], stated["facts"]
    record = home.parent / RUN
    if home.name == "model" and record.is_file():
        run = json.loads(record.read_text())
        if run["config"]["recipe"] == "contrastive":
            return run["config"]["contrastive"], run["facts"]
    return None
