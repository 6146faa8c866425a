"""What every verb does around its work: `--dry-run`, `--json`, and a record of the run beside its output.

    run_verb("scrape", args, config, lambda: scrape(config), output=config.output, show=print_summary, as_json=…, dry_run=…)

    <output>/runs/<run-id>/summary.json      what came of it, with seconds and cpu_s (all actors and their children)
    <output>/runs/<run-id>/config.yaml       the settings as they were asked, unresolved

It knows no verb. A run that fails leaves no record.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import typer
import yaml

from cluster.storage import open_store
from configs.load import hide_passwords, to_dict, unresolved

Summary = dict[str, Any]
ARGS = typer.Argument(None, metavar="[CONFIG] [name=value…]")
JSON = typer.Option(
    False, "--json", help="the summary as one JSON object on stdout, everything else on stderr"
)
DRY_RUN = typer.Option(False, "--dry-run", help="print the plan and do nothing")


def run_verb(
    verb: str,
    args: Sequence[str],
    config: Any,
    do: Callable[[], Summary],
    *,
    output: str,
    show: Callable[[Summary], None],
    as_json: bool,
    dry_run: bool,
) -> Summary | None:
    """Does the work and tells its summary;

    None for a dry run. `cpu_s` of the summary, if any, is the workers'; ours is added.
    """
    if dry_run:
        plan = {"verb": verb, "output": output, "settings": to_dict(config)}
        said = f"{verb} would write to {output} with\n{yaml.safe_dump(plan['settings'], sort_keys=False)}"
        print(hide_passwords(json.dumps(plan) if as_json else said))
        return None
    started, cpu_before_s = time.monotonic(), cpu_seconds()
    with _stdout_to_stderr() if as_json else contextlib.nullcontext():
        summary = do()
    cpu_s = summary.get("cpu_s", 0.0) + cpu_seconds() - cpu_before_s
    summary = {
        "verb": verb,
        **summary,
        "seconds": round(time.monotonic() - started, 2),
        "cpu_s": round(cpu_s, 2),
    }
    if output:
        store, run_id = open_store(output), f"{time.strftime('%Y%m%dT%H%M%S')}-{verb}-{os.getpid()}"
        store.put(f"runs/{run_id}/config.yaml", unresolved(type(config), args).encode())
        store.put(f"runs/{run_id}/summary.json", json.dumps(summary, indent=1).encode())
    if as_json:
        print(json.dumps(summary))
    else:
        show(summary)
    return summary


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """For the block, whatever prints to stdout, children included, prints to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def cpu_seconds(living: bool = False) -> float:
    """CPU-seconds of this process and of its children that ended.

    `living`: also of all its living descendants, as a worker has them in its warm children. A driver must leave
    it out: a local Ray, with all its workers, descends from it.
    """
    times = os.times()
    total = times.user + times.system + times.children_user + times.children_system
    for pid in _children(os.getpid()) if living else ():
        with contextlib.suppress(psutil.Error):
            for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
                used = process.cpu_times()
                total += used.user + used.system + used.children_user + used.children_system
    return total


def _children(pid: int) -> list[int]:
    """Of all threads of a process; far cheaper than to look at every process there is."""
    pids: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            pids += map(int, (task / "children").read_text().split())
    return pids
