"""The run at Weights & Biases, an option (`wandb=PROJECT`) beside TensorBoard.

    check_wandb(config)                               # at the start-up check: package and key
    run = open_wandb(store, config, stack)            # one run there for all starts of a run here
    log_previews(run, 200, previews)                  # sounds and spectrograms of held-out samples

It gets numbers, settings and, with `preview_every`, previews; not the console, the code, the machine or the
command line, which may hold a credential.
"""

import importlib.util
import io
import os
import tempfile
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from PIL import Image

from cluster.storage import Store
from configs.load import UserError
from ingest.pages.spectrogram import spectrogram_png
from training.run.preview import Drawn
from training.settings import TrainConfig, identity

WANDB_RUN = "wandb-run.txt"
OFFLINE_MODES = ("offline", "dryrun", "disabled")


def check_wandb(config: TrainConfig) -> None:
    """`UserError` if W&B is requested and its package or a key that its server takes is missing.

    Offline it needs no key.
    """
    if not config.wandb:
        return
    if not importlib.util.find_spec("wandb"):
        raise UserError(
            f"wandb={config.wandb}: the package is not installed here; "
            "pip install wandb --constraint constraints.txt, or leave it out"
        )
    import wandb

    if wandb.setup().settings.mode in OFFLINE_MODES:
        if "://" in config.output and "WANDB_DIR" not in os.environ:
            raise UserError(
                f"wandb={config.wandb}: offline files of a run in object storage need a folder; set WANDB_DIR"
            )
        return
    try:
        problem = "" if wandb.login(prompt=False) else "no API key was found"
    except wandb.Error as error:
        problem = str(error)
    if problem:
        raise UserError(
            f"wandb={config.wandb}: {problem}; "
            "set WANDB_API_KEY or call wandb login, or set WANDB_MODE=offline"
        )


def open_wandb(store: Store, config: TrainConfig, stack: ExitStack) -> Any:
    """The run there that belongs to this output: created once, continued by every later start.

    Its own files are in the output, unless WANDB_DIR names a folder; of an output in object storage in a
    temporary folder until the run ends.
    """
    import wandb

    if not store.exists(WANDB_RUN):
        store.put(WANDB_RUN, uuid.uuid4().hex[:12].encode())
    folder = store.uri
    if "://" in store.uri:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="stillsound-wandb-"))
    run = wandb.init(
        project=config.wandb,
        id=store.read(WANDB_RUN).decode(),
        name=config.output.rstrip("/").rsplit("/", 1)[-1],
        resume="allow",
        reinit="finish_previous",
        config=identity(config),
        dir=os.environ.get("WANDB_DIR", folder),
        settings=_private_settings(),
    )
    # W&B's own steps only grow; a rollback makes some again
    run.define_metric("*", step_metric="step")
    return run


def log_previews(run: Any, step: int, previews: Sequence[Drawn]) -> None:
    """A picture and a player of each preview, as for TensorBoard."""
    import wandb

    # one list for each kind: its panel then has a slider over the steps, and a column for each sample
    shown: dict[str, list[Any]] = {}
    for drawn in previews:
        key, _, kind = drawn.name.rpartition("/")
        picture = Image.open(io.BytesIO(spectrogram_png(drawn.wav)))
        shown.setdefault(f"preview/{kind}", []).append(wandb.Image(picture, caption=key))
        sound = wandb.Audio(drawn.wav, sample_rate=drawn.sample_rate_hz, caption=key)
        shown.setdefault(f"preview/{kind}_sound", []).append(sound)
    run.log({"step": step, **shown})


def _private_settings() -> Any:
    """Nothing but what we log: no console, code, machine statistics or requirements."""
    import wandb

    experimental: dict[str, Any] = {
        "x_disable_stats": True,
        "x_disable_machine_info": True,
        "x_save_requirements": False,
    }
    return wandb.Settings(console="off", disable_code=True, disable_git=True, **experimental)
