"""What `python -m training` sets up before a verb loads anything."""

import os
import subprocess
import sys

from tests.conftest import ROOT

PROGRAM = """
import contextlib, os, sys
from configs.load import run_app
from training.__main__ import app
sys.argv = ["training"]
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(sys.stderr):
    run_app(app)
assert "torch" not in sys.modules
print(os.environ["OMP_WAIT_POLICY"])
"""


def wait_policy(**settings: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={**environment, **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_threads_that_wait_do_not_spin() -> None:
    """Else a busy machine makes torch ten times slower; it must be set before torch loads."""
    assert wait_policy() == "PASSIVE"


def test_the_users_own_wait_policy_stays() -> None:
    assert wait_policy(OMP_WAIT_POLICY="ACTIVE") == "ACTIVE"
