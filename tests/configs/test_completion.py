"""TAB offers what may come next, in a real bash, and leaves other commands of Python alone."""

import doctest
import subprocess
import sys
from pathlib import Path

import pytest

from configs import completion
from configs.completion import ROOMS, candidates, verbs_of

BASH = """
eval "$({python} -m cluster completion)"
COMP_LINE="$1" COMP_POINT=${{#1}} COMP_WORDS=($1)
COMP_WORDS[0]={python}
_stillsound 2>/dev/null
printf '%s\\n' "${{COMPREPLY[@]}}"
complete -p python
"""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("python -m in", ["ingest"]),
        ("python -m ingest ver", ["verify"]),
        ("python -m ingest prov", ["prove-removed"]),
        ("python -m ingest prove-removed key_", ["key_file="]),
        ("python -m ingest scrape network.ret", ["network.retries="]),
        ("python -m ingest scrape configs/ingest/fo", ["configs/ingest/folder.yaml"]),
        ("python -m training train x.yaml keep_best=t", ["true"]),
        ("python -m training train recipe=", []),
        ("python -m ingest scrape --set", ["--settings"]),
        ("python -m ingest scrape --settings net", ["network"]),
        ("python -m training inspect ", []),
        ("stillsound in", ["ingest"]),
        (".venv/bin/stillsound ingest scrape network.ret", ["network.retries="]),
        ("python -m pytest te", []),
        ("python scr", []),
    ],
)
def test_what_is_offered(line: str, expected: list[str]) -> None:
    assert candidates(line) == expected


@pytest.mark.parametrize("room", ROOMS)
def test_every_verb_is_offered(room: str) -> None:
    command = [sys.executable, "-m", room, "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert verbs_of(room)
    assert all(f"│ {verb}" in shown for verb in verbs_of(room)), shown


def test_bash_completes(tmp_path: Path) -> None:
    script = BASH.format(python=sys.executable)
    for line, expected in (("python -m ingest scrape clip.dur", "clip.duration_s="), ("python -c x", "")):
        command = ["bash", "--norc", "-c", script, "bash", line]
        offered = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
        assert offered == [expected, "complete -o default -F _stillsound python"]


def test_its_examples_are_true() -> None:
    assert doctest.testmod(completion).failed == 0
