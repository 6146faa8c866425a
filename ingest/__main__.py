"""`python -m ingest VERB …`: from the open web to clean shards.

Each verb loads its settings, then calls one function. Modules are imported inside the verbs: a command that
needs no decoder starts without one.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, cast

import typer

from cluster.record import ARGS, DRY_RUN, JSON, Summary, console, run_verb, say, say_next, show_units
from configs.environment import typed
from configs.load import load_config, run_app
from configs.terminal import log_to_stderr, printable
from configs.verb import with_settings


class DatasetConfig(Protocol):
    """Settings of a verb that works in one dataset."""

    dataset: str


C = TypeVar("C", bound=DatasetConfig)
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
# of the steward's verbs, and what else leads to no model
LEAD_NOWHERE = ("remove", "refresh", "gc", "attribution")
PURGE = typer.Option(False, "--purge", help="delete at once: runs that pin an old snapshot cannot resume")


@app.callback()
def main() -> None:
    """Scrape, check and look at datasets of audio-frame pairs."""
    log_to_stderr()


@app.command(cls=with_settings("ingest.synth:SynthConfig", argument="path"))
def synth(output: str, args: list[str] = ARGS, as_json: bool = JSON, dry_run: bool = DRY_RUN) -> None:
    """Render procedural scenes to real media files in OUTPUT, ground truth apart."""
    from ingest.synth import SynthConfig
    from ingest.synth import synth as run

    args = [f"path={output}", *(args or [])]
    config = load_config(SynthConfig, args)

    def show(summary: Summary) -> None:
        folders = f"{output}/media, their truth in {output}/truth"
        console.print(f"{summary['media']} media in {folders}; {summary['seconds']:.0f} s")

    def do() -> Summary:
        return run(config)

    if run_verb("synth", args, config, do, output=output, show=show, as_json=as_json, dry_run=dry_run):
        say(typed("ingest", "serve", output))


@app.command(cls=with_settings("ingest.serve:ServeConfig", argument="path"))
def serve(folder: str, args: list[str] = ARGS, dry_run: bool = DRY_RUN) -> None:
    """A loopback web site of a synth FOLDER, until interrupted."""
    from ingest.serve import ServeConfig
    from ingest.serve import serve as run

    config = load_config(ServeConfig, [f"path={folder}", *(args or [])])
    if dry_run:
        console.print(f"would serve {folder} at http://127.0.0.1:{config.port}")
    else:
        run(config)


@app.command(cls=with_settings("ingest.scrape:ScrapeConfig"))
def scrape(args: list[str] = ARGS, as_json: bool = JSON, dry_run: bool = DRY_RUN) -> None:
    """Source -> fetch -> clip -> filter -> shards; exit 1 if nothing is kept. Run again to resume."""
    from ingest.advice import scrape_and_advise
    from ingest.scrape import ScrapeConfig, check

    args = args or []
    config = load_config(ScrapeConfig, args)
    check(config)

    def do() -> Summary:
        return scrape_and_advise(config, progress=not as_json)

    def show(summary: Summary) -> None:
        show_units(summary)
        for line in summary["advice"]:
            console.print(printable(line), style="yellow")

    output = config.output
    summary = run_verb("scrape", args, config, do, output=output, show=show, as_json=as_json, dry_run=dry_run)
    _exit_if(summary, "failed", "deferred", "kept_nothing")


@app.command(cls=with_settings("ingest.curate:CurateConfig", argument="dataset"))
def curate(dataset: str, args: list[str] = ARGS, as_json: bool = JSON, dry_run: bool = DRY_RUN) -> None:
    """Bury duplicates, what is over a channel's cap, and media in two splits of DATASET."""
    from ingest.curate import CurateConfig
    from ingest.curate import curate as run

    def show(summary: Summary) -> None:
        verb = _would_be(dry_run, "buried")
        counts = [f"{count} {verb} as {reason}" for reason, count in summary["buried"].items() if count]
        remaining = f"{summary['samples']} samples: {summary['kept']} stay"
        console.print(f"{remaining}; {', '.join(counts) or 'nothing to bury'}")

    run_in_dataset("curate", dataset, args, CurateConfig, run, show, as_json, dry_run)


@app.command(cls=with_settings("ingest.remove:RemoveConfig", argument="dataset"))
def remove(dataset: str, args: list[str] = ARGS, as_json: bool = JSON, dry_run: bool = DRY_RUN) -> None:
    """Take down samples of DATASET by key=, media=, channel=, license= or ids=, and of derived=[…]."""
    from ingest.remove import RemoveConfig
    from ingest.remove import remove as run

    def show(summary: Summary) -> None:
        verb = _would_be(dry_run, "removed")
        before = f"; {summary['before']} were before" if summary["before"] else ""
        console.print(f"{summary['samples']} samples {verb}; shards rewritten: {summary['units']}{before}")
        if summary["pending"]:
            kept_out = "would be kept out" if dry_run else "are kept out"
            console.print(f"{summary['pending']} items that are listed and not scraped yet {kept_out}")
        for name in summary["unmatched"]:
            console.print(printable(f"not found: {name}"), style="yellow")
        show_removed(summary)
        if summary["stale"]:
            files = ", ".join(summary["stale"])
            again = f"python -m ingest report {dataset}"
            console.print(printable(f"made before, and still name what is removed: {files}"), style="yellow")
            console.print(printable(f"make them again: {again}, or delete them"), style="yellow")
        if summary["units"] and not dry_run:
            console.print("the bytes are in the old generations until: python -m ingest gc … --purge")

    summary = run_in_dataset("remove", dataset, args, RemoveConfig, run, show, as_json, dry_run)
    if summary and summary["units"] and not (dry_run or summary["failed"]):
        say(typed("ingest", "gc", dataset, "--purge"))
    _exit_if(summary, "failed")


@app.command(name="prove-removed", cls=with_settings("ingest.prove:ProveConfig", argument="dataset"))
def prove_removed(
    dataset: str, args: list[str] = ARGS, as_json: bool = JSON, dry_run: bool = DRY_RUN
) -> None:
    """Search DATASET and places=[…] for what was taken down; write a sealed report; exit 1 if any is left."""
    from ingest.prove import NOTHING, ProveConfig, lines_of, prove

    args = [f"dataset={dataset}", *(args or [])]
    config = load_config(ProveConfig, args)

    def show(summary: Summary) -> None:
        for line in lines_of(cast(Any, summary)):
            console.print(printable(line))
        if config.check:
            console.print(f"{config.check}: as it was written{' and signed' if config.key_file else ''}")
        elif not dry_run:
            console.print(f"the report: {summary['report']}")

    def do() -> Summary:
        return {**prove(config, dry_run)}

    # a check changes nothing, not even the list of commands
    output = "" if dry_run or config.check else dataset
    summary = run_verb(
        "prove-removed", args, config, do, output=output, show=show, as_json=as_json, dry_run=False, places=[]
    )
    if summary and not config.check and summary["verdict"] != NOTHING:
        raise typer.Exit(1)


@app.command(cls=with_settings("ingest.refresh:RefreshConfig", argument="dataset"))
def refresh(dataset: str, args: list[str] = ARGS, as_json: bool = JSON, dry_run: bool = DRY_RUN) -> None:
    """Check again whether what DATASET holds may be used; bury what was withdrawn, also in derived=[…]."""
    from ingest.refresh import RefreshConfig
    from ingest.refresh import refresh as run

    def show(summary: Summary) -> None:
        reasons = ", ".join(f"{reason} {count}" for reason, count in summary["withdrawn"].items())
        checked = f"{summary['asked']} of {summary['items']} items checked"
        buried = f"{summary['samples']} samples {_would_be(dry_run, 'buried')}"
        console.print(f"{checked}; {reasons or 'nothing withdrawn'}; {buried}")
        if summary["asked_before"]:
            console.print(f"{summary['asked_before']} were checked before this run was cut off")
        if summary["later"]:
            later = f"{summary['later']} items could not be checked now: run the same command again"
            console.print(later, style="yellow")
        for name in ("unclear", "not_covered"):
            if summary[name]:
                console.print(f"{summary[name]} items {name.replace('_', ' ')}: they stay", style="yellow")
        show_removed(summary)

    summary = run_in_dataset("refresh", dataset, args, RefreshConfig, run, show, as_json, dry_run)
    _exit_if(summary, "failed", "later")


def show_removed(summary: Summary) -> None:
    """Checkpoints that may have seen removed samples, and shards that could not be rewritten."""
    for entry in summary["checkpoints"]:
        checkpoint = f"{entry['run']} step {entry['step']} ({entry['checkpoint']})"
        console.print(f"may have seen {entry['samples']} of them: {checkpoint}")
    for unit, error in sorted(summary["failed"].items()):
        problem = f"{unit} failed: {error}; the tombstones hold; run the same command again"
        console.print(printable(problem), style="red")


@app.command(cls=with_settings("ingest.gc:GcConfig", argument="dataset"))
def gc(
    dataset: str, args: list[str] = ARGS, purge: bool = PURGE, as_json: bool = JSON, dry_run: bool = DRY_RUN
) -> None:
    """Delete what no commit of DATASET names any more, a week after it became garbage."""
    from ingest.gc import GcConfig
    from ingest.gc import gc as run

    def show(summary: Summary) -> None:
        for name in summary["deleted"]:
            console.print(f"{'would delete' if dry_run else 'deleted'} {name}")
        waiting = f"{len(summary['waiting'])} wait for their grace period"
        console.print(f"{len(summary['deleted'])} objects, {summary['num_bytes'] / 1e6:.1f} MB; {waiting}")

    args = [*(args or []), *(["purge=true"] if purge else [])]
    run_in_dataset("gc", dataset, args, GcConfig, run, show, as_json, dry_run)


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
            say_next(dataset)
    if problems:
        raise typer.Exit(1)


@app.command(cls=with_settings("ingest.report:ReportConfig", argument="dataset"))
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


@app.command(cls=with_settings("ingest.attribution:AttributionConfig", argument="dataset"))
def attribution(dataset: str, args: list[str] = ARGS, as_json: bool = JSON, dry_run: bool = DRY_RUN) -> None:
    """Who made what is in DATASET, per license, as Markdown or CSV (output=…)."""
    from ingest.attribution import AttributionConfig, attribute

    def show(summary: Summary) -> None:
        counts = ", ".join(f"{code} {count}" for code, count in summary["licenses"].items())
        files = " ".join(summary["files"])
        console.print(printable(f"{summary['sources']} sources ({counts})"))
        console.print(printable(f"{'would write' if dry_run else 'wrote'} {files}"))

    run_in_dataset("attribution", dataset, args, AttributionConfig, attribute, show, as_json, dry_run)


@app.command(cls=with_settings("ingest.show:ShowConfig", argument="dataset"))
def show(dataset: str, args: list[str] = ARGS, as_json: bool = JSON, dry_run: bool = DRY_RUN) -> None:
    """Where a sample of DATASET comes from, and why one was refused: key=, id=, media= or unit=."""
    from ingest.show import ShowConfig, holders_of, lines_of
    from ingest.show import show as entries_of

    config = load_config(ShowConfig, [f"dataset={dataset}", *(args or [])])
    if dry_run:
        console.print(printable(f"would look for {config.selector}={config.value} in {dataset}"))
        return
    entries = entries_of(config)
    keys: set[str] = set()
    rows: list[Any] = []
    for index, entry in enumerate(entries):
        keys |= {entry.key} if entry.key else set()
        if as_json:
            rows.append(entry.to_json())
        else:
            console.print("\n".join(["", *lines_of(entry)] if index else lines_of(entry)))
    found = holders_of(config, keys)
    if as_json:
        print(json.dumps({"dataset": dataset, "rows": rows, **found}))
        return
    for each in found["held_by"]:
        console.print(printable(f"held by            {each['place']}: {each['samples']} ({each['detail']})"))
    for missed in found["not_searched"]:
        console.print(printable(f"not searched       {missed['place']}: {missed['why']}"))


def run_in_dataset(
    verb: str,
    dataset: str,
    args: list[str],
    schema: type[C],
    do: Callable[[C, bool], Mapping[str, Any]],
    show: Callable[[Summary], None],
    as_json: bool,
    dry_run: bool,
) -> Summary | None:
    """`run_verb` for verbs of a dataset that work out themselves what they would do.

    A dry run of theirs shows this, and leaves no record.
    """
    args = [f"dataset={dataset}", *(args or [])]
    config = load_config(schema, args)
    output = "" if dry_run else config.dataset
    return run_verb(
        verb,
        args,
        config,
        lambda: do(config, dry_run),
        output=output,
        show=show,
        as_json=as_json,
        dry_run=False,
        places=[] if verb in LEAD_NOWHERE else None,
    )


def _would_be(dry_run: bool, verb: str) -> str:
    return f"would be {verb}" if dry_run else verb


def _exit_if(summary: Summary | None, *names: str) -> None:
    """Exit code 1 where any of these of a summary is true or not empty."""
    if summary and any(summary[name] for name in names):
        raise typer.Exit(1)


@app.command(cls=with_settings("ingest.stills:StillsConfig"))
def stills(args: list[str] = ARGS, as_json: bool = JSON, dry_run: bool = DRY_RUN) -> None:
    """Photos -> silent static videos and a list of them, for video-to-audio models (images=… output=…)."""
    from ingest.stills import StillsConfig, make_stills

    args = args or []
    config = load_config(StillsConfig, args)

    def show(summary: Summary) -> None:
        refused = f"; {summary['refused']} cannot be read: {config.output}/refused.tsv"
        listed = f"{summary['videos']} videos, listed in {config.output}/list.tsv"
        console.print(f"{listed}{refused if summary['refused'] else ''}")

    def do() -> Summary:
        return make_stills(config)

    output = config.output
    run_verb("stills", args, config, do, output=output, show=show, as_json=as_json, dry_run=dry_run)


if __name__ == "__main__":
    run_app(app)
