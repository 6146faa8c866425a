"""Scratch folders: those of dead processes go, those of living ones stay."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.scratch import new_scratch, sweep
from tests.conftest import ROOT


def test_scratch_of_dead_processes_is_swept_away_and_that_of_living_ones_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    code = "import sys, time; from cluster.scratch import new_scratch; print(new_scratch('spool'), flush=True); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout
    theirs, ours = Path(child.stdout.readline().strip()), new_scratch("u0000001")
    (theirs / "big").write_bytes(b"x")
    assert sweep() == 0 and theirs.exists()
    child.kill()
    child.wait()
    assert sweep() == 1 and not theirs.exists() and ours.exists()
    other = ours.rename(
        ours.with_name(
            ours.name.replace(f"-{os.getpid()}-", "-999999999-").replace("stillsound-", "stillsound-1")
        )
    )
    assert sweep() == 0 and other.exists()  # of another container, whose processes we do not see
