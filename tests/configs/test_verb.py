"""A verb shows its settings, all or a section, without the libraries that its work needs; a flag is explained."""

import subprocess
import sys

import pytest

LIGHT = """
import sys
from configs.load import run_app
from {room}.__main__ import app
try:
    run_app(app)
finally:
    heavy = {{"torch", "ray", "diffusers", "transformers", "av"}} & set(sys.modules)
    assert not heavy, heavy
"""


def typed(room: str, *args: str) -> subprocess.CompletedProcess[str]:
    """What `python -m room args` does, and a failure where it loads what is slow to load."""
    command = [sys.executable, "-c", LIGHT.format(room=room), *args]
    return subprocess.run(command, capture_output=True, text=True, env={"COLUMNS": "120", "PYTHONPATH": "."})


@pytest.mark.parametrize(
    ("room", "verb", "line"),
    [
        ("training", "train", "* steps"),
        ("ingest", "scrape", "  network.retries"),
        ("cluster", "doctor", "  min_free_gib"),
    ],
)
def test_help_lists_the_settings_and_loads_nothing(room: str, verb: str, line: str) -> None:
    done = typed(room, verb, "--help")
    assert done.returncode == 0, done.stderr
    assert any(row.startswith(f" {line}") for row in done.stdout.splitlines()), done.stdout


def test_one_section_is_shown() -> None:
    shown = typed("ingest", "scrape", "--settings", "network").stdout
    assert "network.retries" in shown and "attempts after the first" in shown
    assert "clip." not in shown
    nested = typed("ingest", "scrape", "--settings", "youtube").stdout
    assert "source.youtube.rest_s" in nested and "source.inaturalist" not in nested
    wrong = typed("ingest", "scrape", "--settings", "netwrk")
    assert wrong.returncode == 2 and 'did you mean "network"?' in wrong.stderr


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (("--workers", "4"), '"workers=4"'),
        (("--retries=3",), '"network.retries=3"'),
        (("--unit-size",), '"unit_size=…"'),
        (("--dryrun",), "--dry-run"),
    ],
)
def test_a_setting_given_as_a_flag_is_explained(args: tuple[str, ...], hint: str) -> None:
    done = typed("ingest", "scrape", *args)
    assert done.returncode == 2
    assert hint in done.stderr and done.stderr.count("\n") == 1
