"""A submission carries exactly the words a person would type, and refuses what would only fail on the
cluster.
"""

import http.server
import json
import os
import shlex
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cluster.submit import ROOT, check_answers, submission, submit
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


class Answers(http.server.BaseHTTPRequestHandler):
    """A server that wants a token."""

    def do_GET(self) -> None:
        self.send_error(401)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_server_that_is_down_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"  # bound, and nobody listens
        monkeypatch.setattr(subprocess, "run", None)  # nothing is started
        with pytest.raises(UserError, match=f"address {address}: no Ray job server answers .*8265"):
            submit(WORDS, address)


def test_a_server_that_hangs_up_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: server.accept()[0].close(), daemon=True).start()
        with pytest.raises(UserError, match="no Ray job server answers"):
            check_answers(f"http://127.0.0.1:{server.getsockname()[1]}")


def test_any_answer_will_do() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        check_answers(f"http://127.0.0.1:{server.server_port}/")
