"""Stillsound from Python and from any folder: `import stillsound`, and the command `stillsound`.

    import stillsound

    source = {"path": "my-videos", "license": "own"}
    stillsound.scrape("configs/ingest/folder.yaml", source=source, output="clips")
    for sample in stillsound.open_dataset("clips", split="train"):
        print(sample.key, sample.picture.size, sample.sound.shape, sample.metadata["license"])
    stillsound.train("configs/training/tiny.yaml", data="latents", output="runs/diffusion", workers=0)
    wavs = stillsound.generate(model="runs/diffusion", images="photos", output="sounds")["wavs"]

Settings have the names that docs/settings.md lists: sections as dicts (`clip={"duration_s": 4}`), or as typed
on a command line ("clip.duration_s=4"). A preset is found here, or else in the checkout. Relative paths start
where the process stands. A mistake is a `UserError`, a run that had to stop a `StoppedError`; nothing exits.
What is done is recorded beside the output, as by the command. A Ray that a call starts ends with it; whoever
starts one before gives it `runtime_env={"env_vars": {"PYTHONPATH": stillsound.CHECKOUT}}`.

This is all that the environment's site-packages get: no `ingest` or `training` is in everybody's way until
this module is imported. It holds no work of its own.
"""

import contextlib
import importlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ingest.clips import Clips
    from training.pipeline.pipeline import StillsoundPipeline

log = logging.getLogger(__name__)
CHECKOUT = str(Path(__file__).resolve().parents[1])
ROOMS = ("cluster", "ingest", "training")
USAGE = f"""usage: stillsound ROOM VERB [CONFIG] [name=value…]
the same as python -m ROOM VERB in {CHECKOUT}, from any folder
rooms: {", ".join(ROOMS)}; stillsound ROOM --help lists its verbs"""
Summary = dict[str, Any]
"""What a verb reports: the object that its command prints with --json."""


def _open_rooms() -> None:
    """Makes the checkout importable, in front: its rooms have names that others may have, too."""
    if not (Path(CHECKOUT) / "configs/load.py").is_file():
        fix = "make setup there, or pip install --editable CHECKOUT"
        raise ImportError(f"{__file__}: stillsound runs from its checkout, which is not there; {fix}")
    for room in ("configs", *ROOMS):
        found = getattr(sys.modules.get(room), "__file__", None)
        if room in sys.modules and (not found or not Path(found).is_relative_to(CHECKOUT)):
            raise ImportError(
                f"another module called {room} is loaded ({found}): import stillsound before it"
            )
    if sys.path[0] != CHECKOUT:
        sys.path.insert(0, CHECKOUT)


_open_rooms()

from configs.environment import defaults, set_defaults  # noqa: E402
from configs.load import StoppedError, UserError, as_arguments, load_config, run_app  # noqa: E402

__all__ = [
    "CHECKOUT",
    "StoppedError",
    "UserError",
    "generate",
    "load_model",
    "open_dataset",
    "precompute",
    "scrape",
    "train",
]


def scrape(*preset_and_settings: str, **settings: Any) -> Summary:
    """Media of a folder, a list or a site -> a dataset of clips; again = resume (`ingest scrape`).

    `counts`: rows by status; `kept_nothing` and `advice`: why little was kept, which is logged as well.
    """
    from ingest.advice import scrape_and_advise
    from ingest.scrape import ScrapeConfig

    summary = _call("scrape", ScrapeConfig, scrape_and_advise, preset_and_settings, settings)
    for line in summary["advice"]:
        log.warning("%s", line)
    return summary


def open_dataset(place: str | Path, split: str = "") -> "Clips":
    """The samples of a dataset of clips, a folder or URI; of one split, or all.

    A sequence: `len`, a loop, `clips[0]`, `clips["key"]`. What is not committed, or is removed, is not in it.
    """
    from ingest.clips import Clips

    return Clips(str(place), split)


def precompute(*preset_and_settings: str, **settings: Any) -> Summary:
    """Clips -> a dataset of latents and image embeddings; again = resume (`training precompute`)."""
    from dataclasses import asdict

    from training.precompute import PrecomputeConfig
    from training.precompute import precompute as run

    return _call(
        "precompute", PrecomputeConfig, lambda config: asdict(run(config)), preset_and_settings, settings
    )


def train(*preset_and_settings: str, **settings: Any) -> Summary:
    """A recipe to its end; again = resume (`training train`).

    `steps` it came to, and `model`, the folder of what was learnt.
    """
    from training.settings import TrainConfig
    from training.train import train as run

    return _call("train", TrainConfig, run, preset_and_settings, settings)


def generate(*preset_and_settings: str, **settings: Any) -> Summary:
    """Pictures -> wav files and a page to listen to; again = resume (`training generate`).

    `wavs`: their paths. `load_model` gives arrays instead.
    """
    from training.generate import GenerateConfig
    from training.generate import generate as run

    return _call("generate", GenerateConfig, run, preset_and_settings, settings)


def load_model(
    model: str | Path, vocoder: str = "", sampler: str = "", prior: str = ""
) -> "StillsoundPipeline":
    """A finished diffusion run, exported folder or hub:owner/name; the others as settings of `generate`.

    pipe = load_model("runs/diffusion")
    wavs = pipe(image=picture, num_inference_steps=25, seed=0).audios    # float32 [1, num_samples], -1..1
    pipe.sample_rate_hz
    """
    from training.export import open_pipeline

    with defaults():
        return open_pipeline(str(model), vocoder=vocoder, sampler=sampler, prior=prior)


def _call(
    verb: str,
    schema: type,
    do: Callable[[Any], Mapping[str, Any]],
    preset_and_settings: tuple[str, ...],
    settings: Mapping[str, Any],
) -> Summary:
    """What the command of a verb does, but for what it prints and how it ends."""
    from cluster.record import run_verb

    args = [*map(str, preset_and_settings), *as_arguments(schema, settings)]
    config: Any = load_config(schema, args)

    def run() -> Summary:
        return dict(do(config))

    def show(summary: Summary) -> None:
        """It is returned."""

    try:
        # what comes next is a command line: it is for those who type
        with defaults(STILLSOUND_NEXT="no"), _ray_of_this_call():
            summary = run_verb(
                verb, args, config, run, output=config.output, show=show, as_json=False, dry_run=False
            )
    except UserError as error:
        # of a worker, Ray raises a subclass whose text is a traceback
        raise getattr(error, "cause", error) from None
    assert summary is not None, "it was no dry run"
    return summary


@contextlib.contextmanager
def _ray_of_this_call() -> Iterator[None]:
    """Ends a Ray that the block started: the next call may need more workers than this one has room for."""

    def running() -> bool:
        return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())

    was_running = running()
    try:
        yield
    finally:
        if running() and not was_running:
            sys.modules["ray"].shutdown()


def main() -> None:
    """The command: `stillsound ingest scrape …` is `python -m ingest scrape …`, typed in any folder."""
    set_defaults()
    room = sys.argv[1] if len(sys.argv) > 1 else ""
    if room == "--complete":
        from configs.completion import candidates

        print("\n".join(candidates(sys.argv[2])))
        return
    if room not in ROOMS:
        is_asked = room in ("--help", "-h")
        print(USAGE, file=sys.stdout if is_asked else sys.stderr)
        sys.exit(0 if is_asked else 2)
    # as usage and errors show it
    sys.argv[:2] = [f"stillsound {room}"]
    run_app(importlib.import_module(f"{room}.__main__").app)


if __name__ == "__main__":
    main()
