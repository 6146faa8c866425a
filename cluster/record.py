"""What every verb does around its work: `--dry-run`, `--json`, and a record of the run beside its output.

    run_verb("scrape", args, config, do, output=output, show=show_units, as_json=as_json, dry_run=dry_run)

    <output>/runs/<run-id>/summary.json    what the run did; its cpu_s has all actors and their children
    <output>/runs/<run-id>/config.yaml     the settings as they were given, unresolved

It knows no verb. A run that fails leaves no record. After one that did all of its work, a line on stderr says
what comes next, as a command to copy (cluster.chain); STILLSOUND_NEXT=no keeps it to itself.
"""

import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import typer
import yaml
from rich.console import Console
from rich.table import Table

from cluster.chain import next_command
from cluster.jsonl import JsonObject
from cluster.storage import open_store
from configs.load import hide_passwords, to_dict, unresolved
from configs.terminal import counted, printable

# what a verb reports: its own names, printed, recorded and given to scripts as JSON
Summary = JsonObject
# no markup: names and errors that are printed may come from the web
console = Console(highlight=False, soft_wrap=True, markup=False)
# what of a summary says that work is left
LEFT = ("failed", "deferred", "later", "kept_nothing")
NEXT = "STILLSOUND_NEXT"
# of this process's records: a command writes one, a notebook several
NUMBERS = itertools.count()
ARGS = typer.Argument(None, metavar="[CONFIG] [name=value…]")
JSON = typer.Option(
    False, "--json", help="the summary as one JSON object on stdout, everything else on stderr"
)
DRY_RUN = typer.Option(False, "--dry-run", help="print the plan and do nothing")


def run_verb(
    verb: str,
    args: Sequence[str],
    config: Any,
    do: Callable[[], Mapping[str, Any]],
    *,
    output: str,
    show: Callable[[Summary], None],
    as_json: bool,
    dry_run: bool,
    places: Sequence[str] | None = None,
) -> Summary | None:
    """Runs `do`, prints its summary and records it beside the output; None for a dry run.

    `cpu_s` of the summary, if any, is the workers'; this process's is added. `places`: what was made and of
    what, where that is not the output alone: the next command follows from the first; [] for none.
    """
    if dry_run:
        _print_plan(verb, output, config, as_json)
        return None
    started = time.monotonic()
    cpu_before_s = cpu_seconds()
    with stdout_to_stderr() if as_json else contextlib.nullcontext():
        report = do()
    cpu_s = report.get("cpu_s", 0.0) + cpu_seconds() - cpu_before_s
    summary: Summary = {"verb": verb, **report}
    summary["seconds"] = round(time.monotonic() - started, 2)
    summary["cpu_s"] = round(cpu_s, 2)
    if output:
        _write_record(verb, args, config, output, summary)
    if as_json:
        print(json.dumps(summary))
    else:
        show(summary)
    if not any(summary.get(name) for name in LEFT):
        say_next(*([output] if output and places is None else places or []))
    return summary


def say_next(*places: str) -> None:
    """What comes next after outputs, on stderr: stdout is the summary's. Nothing where none is known."""
    command = next_command(*places) if places and os.environ.get(NEXT) != "no" else ""
    if command:
        say(command)


def say(command: str) -> None:
    """A command as what comes next."""
    sys.stdout.flush()
    print(printable(f"next: {command}"), file=sys.stderr)


def _print_plan(verb: str, output: str, config: Any, as_json: bool) -> None:
    settings = to_dict(config)
    if as_json:
        plan = json.dumps({"verb": verb, "output": output, "settings": settings})
    else:
        plan = f"{verb} would write to {output} with\n{yaml.safe_dump(settings, sort_keys=False)}"
    print(hide_passwords(plan))


def _write_record(verb: str, args: Sequence[str], config: Any, output: str, summary: Summary) -> None:
    store = open_store(output)
    # the process id and the number tell apart runs that end within a second
    number = next(NUMBERS)
    run_id = f"{time.strftime('%Y%m%dT%H%M%S')}-{verb}-{os.getpid()}{f'-{number}' if number else ''}"
    store.put(f"runs/{run_id}/config.yaml", unresolved(type(config), args).encode())
    store.put(f"runs/{run_id}/summary.json", json.dumps(summary, indent=1).encode())


def show_units(summary: Summary) -> None:
    """Prints a run of units: rows by status, bytes and seconds, failures; or that there was nothing to do."""
    if not (summary["units_done"] or summary["failed"] or summary["deferred"]):
        console.print(f"nothing to do: {_all_of(summary['units_before'])} committed")
        return
    table = Table("rows", "count", box=None)
    for name, count in sorted(summary["counts"].items()):
        table.add_row(name.replace("refused:", "refused: "), str(count))
    console.print(table)
    cost = f"{summary['num_bytes'] / 1e6:.1f} MB in {summary['seconds']:.1f} s, {summary['cpu_s']:.1f} CPU-s"
    before = f"{summary['units_before']} were committed before"
    console.print(f"{counted(summary['units_done'], 'shard')} done, {before}; {cost}")
    if summary["deferred"]:
        _show_deferred(summary["deferred"], summary["deferred_counts"])
    for unit, error in sorted(summary["failed"].items()):
        console.print(printable(f"shard {unit} failed: {error}"), style="red")


def _all_of(count: int) -> str:
    return "the one shard is" if count == 1 else f"all {count} shards are"


def _show_deferred(units: Sequence[str], counts: dict[str, int]) -> None:
    reasons = [f"{name.removeprefix('refused:')} {count}" for name, count in sorted(counts.items())]
    why = f"mostly transient failures: {', '.join(reasons)}"
    left = f"{counted(len(units), 'shard')} left for later ({why})"
    console.print(f"{left}: run the same command again", style="yellow")


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """For the block, whatever prints to stdout, children included, prints to stderr."""
    sys.stdout.flush()
    # the descriptor, not sys.stdout: children and native libraries write to it directly
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)


def cpu_seconds(living: bool = False) -> float:
    """CPU seconds of this process and of its children that ended.

    `living`: also of all its living descendants, as a worker has them in its warm children. A driver must
    leave it out: a local Ray, with all its workers, descends from it.
    """
    times = os.times()
    total = times.user + times.system + times.children_user + times.children_system
    for pid in _children(os.getpid()) if living else ():
        # a child may end while it is looked at
        with contextlib.suppress(psutil.Error):
            for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
                used = process.cpu_times()
                total += used.user + used.system + used.children_user + used.children_system
    return total


def _children(pid: int) -> list[int]:
    """Children of all threads of a process, from /proc; psutil would look at every process of the machine."""
    pids: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        # the thread may have ended since the listing
        with contextlib.suppress(OSError):
            pids += map(int, (task / "children").read_text().split())
    return pids
