"""The steps that a training run has committed, read from its markers, for rooms that load no model.

    committed_steps(open_store(run))          # [200, 400]: oldest first
    checkpoint_folder(400)                    # "checkpoints/step-00000400"
    checkpoint_marker(400)                    # "checkpoints/step-00000400/COMMITTED.json"

The one place that knows these names. What is in a checkpoint is training.checkpoints's; what else lies in
the folder, such as a copy that somebody made, is ignored.
"""

import re

from cluster.storage import Store

FOLDER = "checkpoints"
MARKER = "COMMITTED.json"


def committed_steps(store: Store) -> list[int]:
    """Steps of the run in `store` that have a marker, oldest first; empty where there is no checkpoint."""
    return marked_steps(store, MARKER)


def marked_steps(store: Store, *markers: str) -> list[int]:
    """Steps that have any of these markers, oldest first."""
    names = "|".join(map(re.escape, markers))
    pattern = re.compile(rf"{FOLDER}/step-(\d+)/(?:{names})")
    matches = (pattern.fullmatch(name) for name in store.list(FOLDER))
    return sorted(int(match[1]) for match in matches if match)


def checkpoint_folder(step: int) -> str:
    """The folder of a step's checkpoint, below the run.

    >>> checkpoint_folder(400)
    'checkpoints/step-00000400'
    """
    return f"{FOLDER}/step-{step:08d}"


def checkpoint_marker(step: int) -> str:
    """The object that makes the checkpoint of a step visible to readers."""
    return f"{checkpoint_folder(step)}/{MARKER}"
