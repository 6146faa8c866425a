"""`make demo`: the whole chain on one machine, by exactly the commands a user would type, each printed before
it runs.

    python -m cluster demo [FOLDER]        # out/demo by default; run again = every step finds its work done

Scenes are rendered and served on loopback, scraped, encoded and trained on; one training worker is SIGKILLed
on the way and the run resumes by itself. Commands are started by module name, never imported. It ends with
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
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.jsonl import read_lines
from cluster.storage import open_store

console = Console(highlight=False)
SHUTDOWN_S = 10
WAIT_FOR_KILL_S = 600


@dataclass
class Stage:
    """The wall-clock seconds of each stage of the demo, by name."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0) + time.monotonic() - started, 1)


def main(folder: str = "out/demo") -> None:
    """Runs the chain in `folder`.

    `SystemExit` with the code of the first command that fails, `UserError` if it is not writable.
    """
    open_store(folder, writable=True)
    root, stage = Path(folder), Stage()
    port = _port_of(root)
    with stage.timed("synth"):
        run("ingest", "synth", f"{root}/world")
    with stage.timed("scrape"), site(root, port):
        scrape = (
            "ingest",
            "scrape",
            "configs/ingest/demo.yaml",
            f"output={root}/clips",
            f"source.path={root}/world/urls.csv",
        )
        run(*scrape, f"network.allow_private=[127.0.0.1:{port}]")
        console.rule("the same again: nothing to do")
        run(*scrape, f"network.allow_private=[127.0.0.1:{port}]")
    with stage.timed("verify"):
        run("ingest", "verify", f"{root}/clips")
    for recipe in ("contrastive", "autoencoder"):
        with stage.timed(recipe):
            run(
                "training",
                "train",
                f"configs/training/demo_{recipe}.yaml",
                f"data={root}/clips",
                f"output={root}/runs/{recipe}",
            )
    with stage.timed("precompute"):
        models = (f"autoencoder={root}/runs/autoencoder", f"image_encoder={root}/runs/contrastive")
        run(
            "training",
            "precompute",
            "configs/training/demo_latents.yaml",
            f"data={root}/clips",
            f"output={root}/latents",
            *models,
        )
    with stage.timed("diffusion"):
        train = (
            "training",
            "train",
            "configs/training/demo.yaml",
            f"data={root}/latents",
            f"output={root}/runs/diffusion",
        )
        killed_at = train_and_kill(train, root / "runs/diffusion")
        console.rule("the same again: finished")
        run(*train)
    with stage.timed("evaluate"):
        model, truth = f"model={root}/runs/diffusion", f"truth={root}/world/truth"
        run("training", "evaluate", model, f"data={root}/clips", f"output={root}/evaluation", truth)
    with stage.timed("generate"):
        run(
            "training", "generate", model, f"images={root}/evaluation/images", f"output={root}/wavs", "seed=0"
        )
        run("training", "export", model, f"output={root}/export")
    with stage.timed("report"):
        parts = (f"run={root}/runs/diffusion", f"scores={root}/evaluation", f"output={root}/report.html")
        run("ingest", "report", f"{root}/clips", *parts, "title=The Stillsound demo")
    summary = summarise(root, killed_at, stage.seconds)
    (root / "summary.json").write_text(json.dumps(summary, indent=1))
    console.print_json(
        json.dumps({name: summary[name] for name in ("clips", "refused", "train", "scores", "seconds")})
    )
    console.print(f"open {root}/report.html")


def command(*words: str) -> list[str]:
    """The argument list of `python -m words…`, printed as a user would type it."""
    shown = " ".join(f"'{word}'" if " " in word or "[" in word else word for word in words)
    console.print(f"\n[bold green]$[/bold green] [bold]python -m {shown.replace('[', chr(92) + '[')}[/bold]")
    return [sys.executable, "-m", *words]


def run(*words: str) -> None:
    """Runs a command to its end; leaves the demo with its exit code if that is not 0."""
    code = subprocess.run(command(*words)).returncode
    if code:
        raise SystemExit(code)


@contextlib.contextmanager
def site(root: Path, port: int) -> Iterator[None]:
    """The loopback web site, for as long as the block runs."""
    server = subprocess.Popen(command("ingest", "serve", f"{root}/world", f"port={port}"))
    try:
        _wait_for(lambda: _answers(port) or server.poll() is not None, 60)
        yield
    finally:
        server.terminate()
        try:
            server.wait(SHUTDOWN_S)
        except subprocess.TimeoutExpired:
            server.kill()


def train_and_kill(train: tuple[str, ...], output: Path) -> int:
    """Runs a training command and SIGKILLs one of its workers after a checkpoint; returns the step of the
    kill.

    A run that was finished before is left alone: the step is then read from its events.
    """
    before = len(read_lines(output / "events.jsonl"))
    trainer = subprocess.Popen(command(*train))
    _wait_for(lambda: trainer.poll() is not None or _well_past_a_checkpoint(output), WAIT_FOR_KILL_S)
    if trainer.poll() is None:
        start = [
            event for event in read_lines(output / "events.jsonl")[before:] if event["event"] == "started"
        ][-1]
        step, pid = read_lines(output / "metrics.jsonl")[-1]["step"], start["pids"][-1]
        console.print(f"[bold red]SIGKILL[/bold red] to training worker {pid} at step {step}")
        with open(output / "events.jsonl", "a") as events:
            events.write(
                json.dumps({"event": "killed", "step": step, "pid": pid, "time": time.time()}) + "\n"
            )
        os.kill(pid, signal.SIGKILL)
    if trainer.wait():
        raise SystemExit(trainer.returncode)
    return next(
        (event["step"] for event in read_lines(output / "events.jsonl") if event["event"] == "killed"), 0
    )


def _well_past_a_checkpoint(output: Path) -> bool:
    """A committed checkpoint, and at least a few steps more that will have to be redone."""
    steps = [
        int(marker.parent.name.removeprefix("step-"))
        for marker in output.glob("checkpoints/step-*/COMMITTED.json")
    ]
    lines = read_lines(output / "metrics.jsonl")
    return bool(steps and lines and lines[-1]["step"] >= max(steps) + 10)


def summarise(root: Path, killed_at: int, seconds: dict[str, float]) -> dict[str, Any]:
    """What the demo came to, read from the files that its commands left."""
    counts: dict[str, int] = {}
    for path in (root / "clips/commits").glob("*.json"):
        for name, count in json.loads(path.read_text())["counts"].items():
            counts[name] = counts.get(name, 0) + count
    metrics, events = (
        read_lines(root / "runs/diffusion/metrics.jsonl"),
        read_lines(root / "runs/diffusion/events.jsonl"),
    )
    resumed = [event["step"] for event in events if event["event"] == "resumed"]
    losses = [line["loss"] for line in metrics]
    part = max(1, len(losses) // 20)
    return {
        "clips": counts.pop("kept", 0),
        "refused": {name.removeprefix("refused:"): count for name, count in sorted(counts.items())},
        "train": {
            "steps": metrics[-1]["step"],
            "killed_at_step": killed_at,
            "resumed_from_step": resumed[-1] if resumed else None,
            "loss_first": sum(losses[:part]) / part,
            "loss_last": sum(losses[-part:]) / part,
        },
        "scores": json.loads((root / "evaluation/scores.json").read_text())["scores"],
        "seconds": seconds,
        "wavs": sorted(str(path) for path in (root / "wavs").glob("*.wav")),
        "report": str(root / "report.html"),
    }


def _port_of(root: Path) -> int:
    """The site's port, kept in `root`: the URLs of a frozen work list must still lead there when the demo is
    run again.
    """
    kept = root / "port.txt"
    if not kept.exists():
        kept.write_text(str(_free_port()))
    return int(kept.read_text())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait_for(condition: Any, most_s: float) -> None:
    """Polls; gives up silently after `most_s`, the next command then fails with its own message."""
    end = time.monotonic() + most_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.2)
