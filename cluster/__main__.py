"""`python -m cluster VERB …`: check a machine, ship a job, run the demo.

Each verb loads its settings, then calls one function.
"""

import dataclasses
import json
import os
import shlex

import typer
from rich.console import Console

from configs.load import UserError, load_config, run_app
from configs.verb import with_settings

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console(highlight=False, soft_wrap=True)


@app.callback()
def main() -> None:
    """Machines and jobs: checks before money is spent, and commands that run elsewhere."""


@app.command(cls=with_settings("cluster.doctor:DoctorConfig"))
def doctor(
    args: list[str] = typer.Argument(None, metavar="[CONFIG] [name=value…]"),
    as_json: bool = typer.Option(False, "--json", help="one JSON object on stdout"),
    dry_run: bool = typer.Option(False, "--dry-run", help="name the checks and do nothing"),
) -> None:
    """Check this machine, or the cluster of RAY_ADDRESS, and the place output=URI; exit 1 if anything is
    wrong.
    """
    from cluster.doctor import DoctorConfig, Finding, diagnose

    config = load_config(DoctorConfig, args or [])
    if dry_run:
        console.print(f"would check {', '.join(config.checks)} for output {config.output}", markup=False)
        return

    def show(finding: Finding) -> None:
        console.print(f"{'ok  ' if finding.ok else 'FAIL'} {finding.check:9s} {finding.found}", markup=False)
        if finding.fix:
            console.print(f"               -> {finding.fix}", markup=False)

    findings = diagnose(config, (lambda _: None) if as_json else show)
    if as_json:
        print(
            json.dumps(
                {
                    "ok": all(f.ok for f in findings),
                    "checks": [dataclasses.asdict(f) | {"ok": f.ok} for f in findings],
                }
            )
        )
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command()
def submit(
    args: list[str] = typer.Argument(metavar="-- python -m ROOM VERB …"),
    address: str = typer.Option("", help="the Ray job server, http://HOST:8265 (default: RAY_ADDRESS)"),
    no_wait: bool = typer.Option(False, "--no-wait", help="return once the job is accepted"),
    dry_run: bool = typer.Option(False, "--dry-run", help="print the submission and do nothing"),
) -> None:
    """Run a command on a cluster, with this checkout: what a person types, after --."""
    from cluster.submit import submission
    from cluster.submit import submit as run

    server = address or os.environ.get("RAY_ADDRESS", "")
    if dry_run:
        print(shlex.join(submission(args, server, wait=not no_wait)))
        return
    raise typer.Exit(run(args, server, wait=not no_wait))


@app.command()
def demo(folder: str = typer.Argument("out/demo")) -> None:
    """The whole chain on this machine, small and real, ending in FOLDER/report.html."""
    if "=" in folder:
        raise UserError(f"demo {folder}: takes a folder and no settings; give one such as out/demo")
    from cluster.demo import main as run

    run(folder)


@app.command()
def completion() -> None:
    """TAB for bash: eval "$(python -m cluster completion)" offers verbs, presets and settings."""
    from configs.completion import SCRIPT

    print(SCRIPT)


if __name__ == "__main__":
    run_app(app)
