"""`python -m ingest VERB …`: from the open web to clean shards.

Each verb loads its settings, then calls one function.
"""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import typer
from rich.console import Console

from cluster.record import ARGS, DRY_RUN, JSON, run_verb, show_units
from configs.load import load_config, run_app
from configs.terminal import log_to_stderr, printable

Do = Callable[[], dict[str, Any]]
Show = Callable[[dict[str, Any]], None]
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console(highlight=False, soft_wrap=True, markup=False)  # what is printed may come from elsewhere
PURGE = typer.Option(False, "--purge", help="delete at once: runs that pin an old snapshot cannot resume")


@app.callback()
def main() -> None:
    """Scrape, check and look at datasets of audio-frame pairs."""
    log_to_stderr()


@app.command()
def synth(output: str, args: list[str] = ARGS, as_json: bool = JSON, dry_run: bool = DRY_RUN) -> None:
    """Render procedural scenes to real media files in OUTPUT, ground truth apart."""
    from ingest.synth import SynthConfig
    from ingest.synth import synth as run

    words = [f"path={output}", *(args or [])]
    config = load_config(SynthConfig, words)

    def show(summary: dict[str, Any]) -> None:
        console.print(
            f"{summary['media']} media in {output}/media, their truth in {output}/truth; {summary['seconds']:.0f} s"
        )

    run_verb(
        "synth",
        words,
        config,
        lambda: run(config),
        output=output,
        show=show,
        as_json=as_json,
        dry_run=dry_run,
    )


@app.command()
def serve(folder: str, args: list[str] = ARGS, dry_run: bool = DRY_RUN) -> None:
    """A loopback web site of a synth FOLDER, until interrupted."""
    from ingest.serve import ServeConfig
    from ingest.serve import serve as run

    config = load_config(ServeConfig, [f"path={folder}", *(args or [])])
    if dry_run:
        console.print(f"would serve {folder} at http://127.0.0.1:{config.port}")
    else:
        run(config)


@app.command()
def scrape(args: list[str] = ARGS, as_json: bool = JSON, dry_run: bool = DRY_RUN) -> None:
    """Source -> fetch -> clip -> filter -> shards. Run again to resume."""
    from ingest.scrape import ScrapeConfig, check
    from ingest.scrape import scrape as run

    config = load_config(ScrapeConfig, args or [])
    check(config)

    def do() -> dict[str, Any]:
        return dataclasses.asdict(run(config, progress=not as_json))

    summary = run_verb(
        "scrape",
        args or [],
        config,
        do,
        output=config.output,
        show=show_units,
        as_json=as_json,
        dry_run=dry_run,
    )
    if summary and (summary["failed"] or summary["deferred"]):
        raise typer.Exit(1)


@app.command()
def curate(dataset: str, args: list[str] = ARGS, as_json: bool = JSON, dry_run: bool = DRY_RUN) -> None:
    """Bury duplicates, what is over a channel's cap, and media in two splits of DATASET."""
    from ingest.curate import CurateConfig
    from ingest.curate import curate as run

    words = [f"dataset={dataset}", *(args or [])]
    config = load_config(CurateConfig, words)

    def show(summary: dict[str, Any]) -> None:
        verb = "would be buried" if dry_run else "buried"
        counts = [f"{count} {verb} as {reason}" for reason, count in summary["buried"].items() if count]
        console.print(
            f"{summary['samples']} samples: {summary['kept']} stay; {', '.join(counts) or 'nothing to bury'}"
        )

    do_in_dataset("curate", words, config, lambda: run(config, dry_run), show, as_json, dry_run)


@app.command()
def remove(dataset: str, args: list[str] = ARGS, as_json: bool = JSON, dry_run: bool = DRY_RUN) -> None:
    """Take down samples of DATASET by key=, media=, channel=, license= or ids=, down to the latents of
    derived=[…].
    """
    from ingest.remove import RemoveConfig
    from ingest.remove import remove as run

    words = [f"dataset={dataset}", *(args or [])]
    config = load_config(RemoveConfig, words)

    def show(summary: dict[str, Any]) -> None:
        said = "would be removed" if dry_run else "removed"
        console.print(f"{summary['samples']} samples {said}; units written again: {summary['units']}")
        if summary["pending"]:
            console.print(
                f"{summary['pending']} items that are listed and not scraped yet {'would be' if dry_run else 'are'} kept out"
            )
        for name in summary["unmatched"]:
            console.print(f"not found: {name}", style="yellow")
        show_removed(summary)
        if summary["units"] and not dry_run:
            console.print("the bytes are in the old generations until: python -m ingest gc … --purge")

    summary = do_in_dataset("remove", words, config, lambda: run(config, dry_run), show, as_json, dry_run)
    if summary and summary["failed"]:
        raise typer.Exit(1)


@app.command()
def refresh(dataset: str, args: list[str] = ARGS, as_json: bool = JSON, dry_run: bool = DRY_RUN) -> None:
    """Ask again whether what is stored in DATASET may be used, and bury what was withdrawn, down to
    derived=[…].
    """
    from ingest.refresh import RefreshConfig
    from ingest.refresh import refresh as run

    words = [f"dataset={dataset}", *(args or [])]
    config = load_config(RefreshConfig, words)

    def show(summary: dict[str, Any]) -> None:
        said = "would be buried" if dry_run else "buried"
        why = (
            ", ".join(f"{reason} {count}" for reason, count in summary["withdrawn"].items())
            or "nothing withdrawn"
        )
        console.print(
            f"{summary['asked']} of {summary['items']} items asked; {why}; {summary['samples']} samples {said}"
        )
        if summary["asked_before"]:
            console.print(f"{summary['asked_before']} were asked before this run was cut off")
        if summary["later"]:
            console.print(
                f"{summary['later']} items could not be asked now: run the same command again", style="yellow"
            )
        for name in ("unclear", "not_covered"):
            if summary[name]:
                console.print(f"{summary[name]} items {name.replace('_', ' ')}: they stay", style="yellow")
        show_removed(summary)

    summary = do_in_dataset("refresh", words, config, lambda: run(config, dry_run), show, as_json, dry_run)
    if summary and (summary["failed"] or summary["later"]):
        raise typer.Exit(1)


def show_removed(summary: dict[str, Any]) -> None:
    """Checkpoints that may have seen removed samples, and units that could not be written again."""
    for entry in summary["checkpoints"]:
        seen = f"{entry['run']} step {entry['step']} ({entry['checkpoint']})"
        console.print(f"may have seen {entry['samples']} of them: {seen}")
    for unit, error in sorted(summary["failed"].items()):
        console.print(
            printable(f"{unit} failed: {error}; the tombstones hold; run the same command again"), style="red"
        )


@app.command()
def gc(
    dataset: str, args: list[str] = ARGS, purge: bool = PURGE, as_json: bool = JSON, dry_run: bool = DRY_RUN
) -> None:
    """Delete what no commit of DATASET names any more, a week after it became garbage."""
    from ingest.gc import GcConfig
    from ingest.gc import gc as run

    words = [f"dataset={dataset}", *(args or []), *(["purge=true"] if purge else [])]
    config = load_config(GcConfig, words)

    def show(summary: dict[str, Any]) -> None:
        for name in summary["deleted"]:
            console.print(f"{'would delete' if dry_run else 'deleted'} {name}")
        waiting = f"{len(summary['waiting'])} wait for their grace period"
        console.print(f"{len(summary['deleted'])} objects, {summary['num_bytes'] / 1e6:.1f} MB; {waiting}")

    do_in_dataset("gc", words, config, lambda: run(config, dry_run), show, as_json, dry_run)


@app.command()
def verify(dataset: str, as_json: bool = JSON, dry_run: bool = DRY_RUN) -> None:
    """Check every hash and count of DATASET; exit 1 if anything is wrong."""
    from ingest.verify import verify as problems_of

    if dry_run:
        console.print(f"would read every shard and index of {dataset}, and write nothing")
        return
    problems = list(problems_of(dataset))
    if as_json:
        print(json.dumps({"dataset": dataset, "problems": problems}))
    else:
        for problem in problems:
            console.print(printable(f"damaged {problem}"), style="red")
        if not problems:
            console.print(f"{dataset}: every hash and count is right")
    if problems:
        raise typer.Exit(1)


@app.command()
def report(dataset: str, args: list[str] = ARGS, as_json: bool = JSON, dry_run: bool = DRY_RUN) -> None:
    """One self-contained HTML page of DATASET (and of a run and its scores, if given)."""
    from ingest.report import ReportConfig, write_report

    config = load_config(ReportConfig, [f"dataset={dataset}", *(args or [])])
    if dry_run:
        console.print(f"would write {config.output or f'{dataset}/report.html'}")
        return
    path = write_report(config)
    if as_json:
        print(json.dumps({"report": str(path)}))
    else:
        console.print(f"wrote {path}")


@app.command()
def show(dataset: str, args: list[str] = ARGS, as_json: bool = JSON, dry_run: bool = DRY_RUN) -> None:
    """Where a sample of DATASET comes from, and why one was refused: key=, id=, media= or unit=."""
    from ingest.show import ShowConfig, lines_of
    from ingest.show import show as entries_of

    config = load_config(ShowConfig, [f"dataset={dataset}", *(args or [])])
    if dry_run:
        console.print(printable(f"would look for {config.selector}={config.value} in {dataset}"))
        return
    entries = entries_of(config)
    if as_json:
        print(json.dumps({"dataset": dataset, "rows": [entry.to_json() for entry in entries]}))
        return
    for number, entry in enumerate(entries):
        console.print("\n".join(["", *lines_of(entry)] if number else lines_of(entry)))


def do_in_dataset(
    verb: str, words: list[str], config: Any, do: Do, show: Show, as_json: bool, dry_run: bool
) -> dict[str, Any] | None:
    """`run_verb` for verbs that know what they would do: a dry run looks, tells and leaves no record."""
    output = "" if dry_run else config.dataset
    return run_verb(verb, words, config, do, output=output, show=show, as_json=as_json, dry_run=False)


@app.command()
def stills(args: list[str] = ARGS, as_json: bool = JSON, dry_run: bool = DRY_RUN) -> None:
    """Photos -> silent static videos and a list of them, for video-to-audio models (images=… output=…)."""
    from ingest.stills import StillsConfig, make_stills

    config = load_config(StillsConfig, args or [])

    def show(summary: dict[str, Any]) -> None:
        refused = (
            f"; {summary['refused']} cannot be read: {config.output}/refused.tsv"
            if summary["refused"]
            else ""
        )
        console.print(f"{summary['videos']} videos, listed in {config.output}/list.tsv{refused}")

    run_verb(
        "stills",
        args or [],
        config,
        lambda: make_stills(config),
        output=config.output,
        show=show,
        as_json=as_json,
        dry_run=dry_run,
    )


if __name__ == "__main__":
    run_app(app)
