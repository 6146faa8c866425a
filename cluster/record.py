"""What every verb does around its work: `--dry-run`, `--json`, and a record of the run beside its output.

    run_verb("scrape", args, config, lambda: scrape(config), output=config.output, show=print_summary, as_json=…, dry_run=…)

    <output>/runs/<run-id>/summary.json      what came of it, with seconds and cpu_s (all actors and their children)
    <output>/runs/<run-id>/config.yaml       the settings as they were asked, unresolved

It knows no verb. A run that fails leaves no record.
"""

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import yaml

from cluster.storage import open_store
from configs.load import hide_passwords, to_dict, unresolved

Summary = dict[str, Any]


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
    started, cpu_before_s = time.monotonic(), _own_cpu_s()
    with _stdout_to_stderr() if as_json else contextlib.nullcontext():
        summary = do()
    cpu_s = summary.get("cpu_s", 0.0) + _own_cpu_s() - cpu_before_s
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


def _own_cpu_s() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
