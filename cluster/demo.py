"""`make demo`: the whole chain on one machine, by the commands a user would type, each printed first.

    python -m cluster demo [FOLDER]        # out/demo by default; run again = every step finds its work done

Scenes are rendered and served on loopback, scraped, encoded and trained on; one training worker is SIGKILLed
on purpose, and the run resumes by itself. Commands are started by module name, never imported. It ends with
FOLDER/summary.json.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypedDict

from rich.console import Console

from cluster.jsonl import JsonObject, read_lines
from cluster.record import NEXT
from cluster.runs import committed_steps
from cluster.storage import open_store

console = Console(highlight=False)
# the site answers requests within this, or is killed
SHUTDOWN_S = 10
# a busy laptop takes minutes to the first checkpoint; after that, the kill is skipped
WAIT_FOR_KILL_S = 600
# more than one batch after the checkpoint, so that steps are seen to be redone
STEPS_BEFORE_KILL = 10
POLL_S = 0.2
SITE_START_S = 60
# the first and the last of so many parts of the losses are averaged, since single ones are noisy
LOSS_PARTS = 20


class TrainingSummary(TypedDict):
    """What the killed run did. `resumed_from_step`: None where it was not killed."""

    steps: int
    killed_at_step: int
    resumed_from_step: int | None
    loss_first: float
    loss_last: float


class DemoSummary(TypedDict):
    """FOLDER/summary.json. `refused`: reason -> rows; `scores`: of the evaluation; `seconds` by stage."""

    clips: int
    refused: dict[str, int]
    train: TrainingSummary
    scores: JsonObject
    seconds: dict[str, float]
    wavs: list[str]
    report: str


class Demo:
    """The commands of one demo in the folder `root`, and what they took: `seconds` of wall clock by stage."""

    def __init__(self, folder: str):
        self.root = Path(folder)
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[stage] = round(self.seconds.get(stage, 0) + time.monotonic() - started, 1)

    def make_clips(self) -> None:
        """Scenes -> media on a loopback site -> clips, scraped twice and verified."""
        root = self.root
        port = port_of(root)
        with self.timed("synth"):
            run("ingest", "synth", f"{root}/world")
        settings = (
            "configs/ingest/demo.yaml",
            f"output={root}/clips",
            f"source.path={root}/world/urls.csv",
            # loopback is refused otherwise, like every private address
            f"network.allow_private=[127.0.0.1:{port}]",
        )
        with self.timed("scrape"), site(root, port):
            run("ingest", "scrape", *settings)
            console.rule("the same again: nothing to do")
            run("ingest", "scrape", *settings)
        with self.timed("verify"):
            run("ingest", "verify", f"{root}/clips")

    def train(self) -> int:
        """Clips -> encoder and autoencoder -> latents -> diffusion; returns the step of the kill."""
        root = self.root
        for recipe in ("contrastive", "autoencoder"):
            with self.timed(recipe):
                preset = f"configs/training/demo_{recipe}.yaml"
                run("training", "train", preset, f"data={root}/clips", f"output={root}/runs/{recipe}")
        with self.timed("precompute"):
            run(
                "training",
                "precompute",
                "configs/training/demo_latents.yaml",
                f"data={root}/clips",
                f"output={root}/latents",
                f"autoencoder={root}/runs/autoencoder",
                f"image_encoder={root}/runs/contrastive",
            )
        with self.timed("diffusion"):
            settings = ("configs/training/demo.yaml", f"data={root}/latents", f"output={root}/runs/diffusion")
            killed_at = train_and_kill(("training", "train", *settings), root / "runs/diffusion")
            console.rule("the same again: finished")
            run("training", "train", *settings)
        return killed_at

    def show(self) -> None:
        """Model -> scores, sounds, a folder for diffusers, and the report."""
        root = self.root
        model = f"model={root}/runs/diffusion"
        with self.timed("evaluate"):
            settings = (f"data={root}/clips", f"output={root}/evaluation", f"truth={root}/world/truth")
            run("training", "evaluate", model, *settings, "num_clips=240")
        with self.timed("generate"):
            pictures = f"images={root}/evaluation/images"
            run("training", "generate", model, pictures, f"output={root}/wavs", "seed=0")
            run("training", "export", model, f"output={root}/export")
        with self.timed("report"):
            runs = ",".join(f"{root}/runs/{name}" for name in ("contrastive", "autoencoder", "diffusion"))
            inputs = (f"run={runs}", f"scores={root}/evaluation")
            output = f"output={root}/report.html"
            run("ingest", "report", f"{root}/clips", *inputs, output, "title=The Stillsound demo")


def main(folder: str = "out/demo") -> None:
    """Runs the chain in `folder`.

    `SystemExit` with the code of the first command that fails, `UserError` if it is not writable.
    """
    open_store(folder, writable=True)
    # the steps are printed here: what a verb would say comes next is of a person's own media
    os.environ.setdefault(NEXT, "no")
    demo = Demo(folder)
    demo.make_clips()
    killed_at = demo.train()
    demo.show()
    summary = summarise(demo.root, killed_at, demo.seconds)
    (demo.root / "summary.json").write_text(json.dumps(summary, indent=1))
    printed = {name: value for name, value in summary.items() if name not in ("wavs", "report")}
    console.print_json(json.dumps(printed))
    console.print(f"open {demo.root}/report.html")


def command(*args: str) -> list[str]:
    """The argument list of `python -m args…`, printed as a user would type it."""
    quoted = " ".join(f"'{arg}'" if " " in arg or "[" in arg else arg for arg in args)
    escaped = quoted.replace("[", "\\[")  # rich would take [127.0.0.1:…] for a style
    console.print(f"\n[bold green]$[/bold green] [bold]python -m {escaped}[/bold]")
    return [sys.executable, "-m", *args]


def run(*args: str) -> None:
    """Runs a command to its end; leaves the demo with its exit code if that is not 0."""
    code = subprocess.run(command(*args)).returncode
    if code:
        raise SystemExit(code)


@contextlib.contextmanager
def site(root: Path, port: int) -> Iterator[None]:
    """The loopback web site, for as long as the block runs."""
    server = subprocess.Popen(command("ingest", "serve", f"{root}/world", f"port={port}"))
    try:
        _wait_for(lambda: _answers(port) or server.poll() is not None, SITE_START_S)
        yield
    finally:
        server.terminate()
        try:
            server.wait(SHUTDOWN_S)
        except subprocess.TimeoutExpired:
            server.kill()


def train_and_kill(train: tuple[str, ...], output: Path) -> int:
    """Runs a training command and SIGKILLs a worker soon after a checkpoint; returns the step of the kill.

    A run that was finished before is left alone: the step is then read from its events.
    """
    events_before = len(read_lines(output / "events.jsonl"))
    trainer = subprocess.Popen(command(*train))
    _wait_for(lambda: trainer.poll() is not None or _is_well_past_a_checkpoint(output), WAIT_FOR_KILL_S)
    if trainer.poll() is None:
        events = read_lines(output / "events.jsonl")[events_before:]
        started = [event for event in events if event["event"] == "started"]
        _kill_worker(output, pid=started[-1]["pids"][-1])
    if trainer.wait():
        raise SystemExit(trainer.returncode)
    killed = [event["step"] for event in read_lines(output / "events.jsonl") if event["event"] == "killed"]
    return killed[0] if killed else 0


def _kill_worker(output: Path, pid: int) -> None:
    metrics = read_lines(output / "metrics.jsonl")
    step = metrics[-1]["step"]
    # the run will take these steps again: the report compares
    kept = max(committed_steps(open_store(str(output))), default=0)
    lost = {line["step"]: line["loss"] for line in metrics if line["step"] > kept}
    console.print(
        f"[bold]SIGKILL to training worker {pid} at step {step}, on purpose.[/bold] What is logged about a "
        "worker that died is expected: the run resumes by itself from its last checkpoint."
    )
    # before the kill, so that the event is there whatever the run does next
    with open(output / "events.jsonl", "a") as events:
        event = {"event": "killed", "step": step, "pid": pid, "time": time.time(), "lost": lost}
        events.write(json.dumps(event) + "\n")
    os.kill(pid, signal.SIGKILL)


def _is_well_past_a_checkpoint(output: Path) -> bool:
    """Whether there is a checkpoint, and a few steps after it that will have to be redone."""
    steps = committed_steps(open_store(str(output)))
    metrics = read_lines(output / "metrics.jsonl")
    return bool(steps and metrics and metrics[-1]["step"] >= steps[-1] + STEPS_BEFORE_KILL)


def summarise(root: Path, killed_at: int, seconds: dict[str, float]) -> DemoSummary:
    """What the demo made, read from the files that its commands left."""
    counts = _count_rows(root / "clips")
    return {
        "clips": counts.pop("kept", 0),
        "refused": {name.removeprefix("refused:"): count for name, count in sorted(counts.items())},
        "train": _summarise_training(root / "runs/diffusion", killed_at),
        "scores": json.loads((root / "evaluation/scores.json").read_text())["scores"],
        "seconds": seconds,
        "wavs": sorted(str(path) for path in (root / "wavs").glob("*.wav")),
        "report": str(root / "report.html"),
    }


def _count_rows(clips: Path) -> dict[str, int]:
    """Rows by status, over all commits."""
    counts: dict[str, int] = {}
    for path in (clips / "commits").glob("*.json"):
        for name, count in json.loads(path.read_text())["counts"].items():
            counts[name] = counts.get(name, 0) + count
    return counts


def _summarise_training(output: Path, killed_at: int) -> TrainingSummary:
    metrics = read_lines(output / "metrics.jsonl")
    events = read_lines(output / "events.jsonl")
    resumed = [event["step"] for event in events if event["event"] == "resumed"]
    losses = [line["loss"] for line in metrics]
    count = max(1, len(losses) // LOSS_PARTS)
    return {
        "steps": metrics[-1]["step"],
        "killed_at_step": killed_at,
        "resumed_from_step": resumed[-1] if resumed else None,
        "loss_first": sum(losses[:count]) / count,
        "loss_last": sum(losses[-count:]) / count,
    }


def port_of(root: Path) -> int:
    """The site's port, stored in `root`: the URLs of a frozen work list must work in the next demo, too."""
    path = root / "port.txt"
    if not path.exists():
        path.write_text(str(_free_port()))
    return int(path.read_text())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait_for(condition: Callable[[], bool], most_s: float) -> None:
    """Polls; gives up silently after `most_s`: the next command then fails with its own message."""
    end = time.monotonic() + most_s
    while not condition() and time.monotonic() < end:
        time.sleep(POLL_S)
