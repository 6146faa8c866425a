"""`training inspect RUN`: the checkpoints of a run, each checked against its marker; nothing is changed.

for line in inspect("out/demo/runs/diffusion"): ...
"""

from typing import Any

from cluster.runs import checkpoint_folder, committed_steps
from cluster.scratch import scratch_folder
from cluster.storage import open_store
from configs.load import UserError
from training.checkpoints.store import DamagedError, download, read_marker


def inspect(run: str) -> list[dict[str, Any]]:
    """`{"step", "files", "bytes", "facts", "problem"}` per checkpoint, oldest first; `problem` is "" for a
    sound one.

    `UserError` where there is no run.
    """
    store = open_store(run)
    if not store.exists("run.json"):
        raise UserError(
            f"{run}: no run here (run.json is missing); give the output of python -m training train"
        )
    lines = []
    for step in committed_steps(store):
        line = {
            "step": step,
            "folder": checkpoint_folder(step),
            "files": 0,
            "bytes": 0,
            "facts": {},
            "problem": "",
        }
        lines.append(line)
        try:
            checkpoint = read_marker(store, step)
            line |= {
                "files": len(checkpoint.files),
                "bytes": sum(file["size"] for file in checkpoint.files),
                "facts": checkpoint.facts,
            }
            with scratch_folder("inspect") as folder:
                for entry in checkpoint.files:
                    download(store, entry, folder).unlink()
        except (DamagedError, FileNotFoundError) as error:
            line["problem"] = str(error)
    return lines
