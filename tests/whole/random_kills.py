"""Kills processes of a command at random moments, repeatable by a seed, until the command succeeds.

run_with_kills(["ingest", "scrape", …], random.Random(0), max_kills=3, max_wait_s=8.0)    # ["raylet", …]
"""

import random
import subprocess
import sys
import time
from collections.abc import Callable

import psutil

from tests.conftest import ROOT

# in a process's command line -> what it is called here
KINDS = {
    "ingest.fetch.process": "fetcher",
    "ingest.clip.process": "decoder",
    "raylet/raylet": "raylet",
    "ray::Worker": "worker",
    "RayTrainWorker": "trainer",
}
# a command that lost one of these ends with an error and has to be run again
FATAL_KINDS = ("driver", "raylet")
POLL_S = 0.05


def start(args: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", *args], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def kind_of(process: psutil.Process) -> str:
    """The kind of a descendant of a driver, "" for those that are not killed."""
    command_line = " ".join(process.cmdline())
    return next((kind for mark, kind in KINDS.items() if mark in command_line), "")


def kill_one(driver: subprocess.Popen[bytes], rng: random.Random) -> str:
    """Kills the driver, or a process below it, each kind as likely as the others; returns its kind."""
    by_kind: dict[str, list[psutil.Process]] = {"driver": [psutil.Process(driver.pid)]}
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            by_kind.setdefault(kind_of(process), []).append(process)
        except psutil.Error:
            continue
    by_kind.pop("", None)
    kind = rng.choice(sorted(by_kind))
    # sorted: the same seed makes the same choice
    rng.choice(sorted(by_kind[kind], key=lambda process: process.pid)).kill()
    return kind


def run_with_kills(
    args: list[str],
    rng: random.Random,
    max_kills: int,
    max_wait_s: float,
    is_under_way: Callable[[], bool] = lambda: True,
) -> list[str]:
    """Repeats the command until it succeeds; returns the kinds of the processes that were killed.

    The wait for a kill begins once `is_under_way`.
    """
    killed: list[str] = []
    while True:
        process = start(args)
        while len(killed) < max_kills and process.poll() is None:
            if not is_under_way():
                time.sleep(POLL_S)
                continue
            try:
                process.wait(rng.uniform(0.5, max_wait_s))
            except subprocess.TimeoutExpired:
                try:
                    killed.append(kill_one(process, rng))
                except psutil.NoSuchProcess:
                    continue
        _, stderr = process.communicate()
        if process.returncode == 0:
            return killed
        if len(killed) >= max_kills:
            if process.returncode > 0 and not (killed and killed[-1] in FATAL_KINDS):
                raise SystemExit(
                    f"{' '.join(args)} ended with {process.returncode} after {killed}:\n"
                    f"{stderr.decode()[-3000:]}"
                )
            killed.append("repeated")
