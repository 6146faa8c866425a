"""`python -m ingest VERB …`: from the open web to clean shards. Each verb loads its settings, then calls one function."""

import logging

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from cluster.units import RunSummary
from configs.load import load_config, run_app

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console()


@app.callback()
def main() -> None:
    """Scrape, check and look at datasets of audio-frame pairs."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(console=Console(stderr=True), show_path=False)])


@app.command()
def synth(output: str, args: list[str] = typer.Argument(None)) -> None:
    """Render procedural scenes to real media files in OUTPUT, ground truth apart."""
    from ingest.synth import SynthConfig
    from ingest.synth import synth as render

    render(load_config(SynthConfig, [f"path={output}", *(args or [])]))


@app.command()
def serve(folder: str, args: list[str] = typer.Argument(None)) -> None:
    """A loopback web site of a synth FOLDER, until interrupted."""
    from ingest.serve import ServeConfig
    from ingest.serve import serve as run_site

    run_site(load_config(ServeConfig, [f"path={folder}", *(args or [])]))


@app.command()
def scrape(args: list[str]) -> None:
    """CONFIG [k=v…]: source -> fetch -> clip -> filter -> shards. Run again to resume."""
    from ingest.scrape import ScrapeConfig
    from ingest.scrape import scrape as run

    summary = run(load_config(ScrapeConfig, args))
    print_summary(summary)
    if summary.failed or summary.deferred:
        raise typer.Exit(1)


@app.command()
def verify(dataset: str) -> None:
    """Check every hash and count of DATASET; exit 1 if anything is wrong."""
    from ingest.verify import verify as problems_of

    problems = list(problems_of(dataset))
    for problem in problems:
        console.print(f"[red]damaged[/red] {problem}", highlight=False)
    if problems:
        raise typer.Exit(1)
    console.print(f"{dataset}: every hash and count is right")


@app.command()
def report(dataset: str, args: list[str] = typer.Argument(None)) -> None:
    """One self-contained HTML page of DATASET (and of a run and its scores, if given)."""
    from ingest.report import ReportConfig, write_report

    console.print(f"wrote {write_report(load_config(ReportConfig, [f'dataset={dataset}', *(args or [])]))}")


def print_summary(summary: RunSummary) -> None:
    """Kept, refused by reason, bytes and seconds of a run; or that there was nothing to do."""
    if not (summary.units_done or summary.failed or summary.deferred):
        console.print(f"nothing to do: all {summary.units_before} units are committed")
        return
    table = Table("rows", "count", box=None)
    for name, count in sorted(summary.counts.items()):
        table.add_row(name.replace("refused:", "refused: "), str(count))
    console.print(table)
    size = f"{summary.num_bytes / 1e6:.1f} MB in {summary.seconds:.1f} s"
    console.print(f"{summary.units_done} units done, {summary.units_before} were there before; {size}")
    if summary.deferred:
        console.print(
            f"[yellow]{len(summary.deferred)} units left for later (mostly transient failures): run the same command again[/yellow]"
        )
    for unit, error in sorted(summary.failed.items()):
        console.print(f"[red]unit {unit} failed:[/red] {error}", highlight=False)


if __name__ == "__main__":
    run_app(app)
