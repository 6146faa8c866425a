"""A submission carries exactly the words a person would type, and refuses what would only fail on the
cluster.
"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.submit import ROOT, submission
from configs.load import UserError

ADDRESS = "http://127.0.0.1:8265"
WORDS = ["python", "-m", "ingest", "scrape", "output=s3://bucket/a b", "--json"]


def test_the_words_arrive_as_typed_and_data_stays_at_home() -> None:
    command = submission(WORDS, ADDRESS)
    assert command[command.index("--") + 1 :] == WORDS
    assert (
        command[command.index("--address") + 1] == ADDRESS
        and command[command.index("--working-dir") + 1] == "."
    )
    excludes = json.loads(command[command.index("--runtime-env-json") + 1])["excludes"]
    assert {".venv", "out", ".git"} <= set(excludes)
    assert "--no-wait" not in command and "--no-wait" in submission(WORDS, ADDRESS, wait=False)


def test_the_command_of_any_folder_arrives_as_that_of_the_checkout() -> None:
    assert submission(["stillsound", *WORDS[2:]], ADDRESS) == submission(WORDS, ADDRESS)


@pytest.mark.parametrize(
    "words",
    [["ls"], ["python", "x.py", "a", "b"], ["python", "-m", "pip", "install"], ["python", "-m", "ingest"]],
)
def test_only_commands_of_the_rooms_are_shipped(words: list[str]) -> None:
    with pytest.raises(UserError, match="python -m ingest scrape"):
        submission(words, ADDRESS)


def test_an_address_that_is_no_job_server_is_refused() -> None:
    with pytest.raises(UserError, match="127.0.0.1:6379.*8265"):
        submission(WORDS, "127.0.0.1:6379")


def test_a_config_that_the_job_would_not_find_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such config file: configs/nowhere.yaml"):
        submission(["python", "-m", "ingest", "scrape", "configs/nowhere.yaml"], ADDRESS)
    with pytest.raises(UserError, match="is outside"):
        submission(["python", "-m", "ingest", "scrape", str(tmp_path / "a.yaml")], ADDRESS)


def test_a_dry_run_prints_what_would_run() -> None:
    command = [sys.executable, "-m", "cluster", "submit", "--dry-run", "--address", ADDRESS, "--", *WORDS]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60, env=dict(os.environ)
    )
    assert shlex.split(done.stdout) == submission(WORDS, ADDRESS)
