"""The decoder's cage, by effect: what a child that misbehaves can use up, and how long it can outlive
anything.
"""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.child import MAX_WRITTEN_BYTES, WarmChild, _send
from ingest.clip.clipper import DECODER
from ingest.sample import Reason, Refused
from tests.conftest import ROOT

SETTINGS = {"max_memory_bytes": 1 << 30}


@pytest.fixture
def sandbox() -> Iterator[WarmChild]:
    with WarmChild("tests.fakes.sandbox_child", SETTINGS, 1.0, 100, DECODER) as sandbox:
        yield sandbox


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    program = f"""
import time
from ingest.child import WarmChild
from ingest.clip.clipper import DECODER
sandbox = WarmChild("tests.fakes.sandbox_child", {SETTINGS}, 600.0, 100, DECODER)
sandbox.ask({{"do": "nothing"}})
print(sandbox.pid, flush=True)
sandbox.ask({{"do": "drip"}})
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert parent.stdout
    child = int(parent.stdout.readline())
    os.kill(child, 0)
    os.kill(child, signal.SIGSTOP)  # so that it cannot notice a closed pipe by itself
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline_s = time.monotonic() + 60
    while _alive(child) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert not _alive(child)


def test_an_orphan_under_a_subreaper_ends() -> None:
    """A child whose parent is gone before it could ask for the signal: its new parent is no process 1."""
    program = """
import ctypes, os, time
from ingest.child import die_with_parent
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: orphans become ours
if os.fork() == 0:
    os.environ["STILLSOUND_PARENT"] = str(os.getpid())
    parent = os.getpid()
    if os.fork() == 0:
        while os.getppid() == parent:
            time.sleep(0.01)
        die_with_parent()
        os._exit(0)
    os._exit(0)
os.wait()
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "1\n", done.stderr


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def test_a_child_writes_no_large_file(sandbox: WarmChild, tmp_path: Path) -> None:
    answer, _ = sandbox.ask({"do": "write", "path": str(tmp_path / "full"), "die": False})
    assert answer["number"] == errno.EFBIG and (tmp_path / "full").stat().st_size == MAX_WRITTEN_BYTES
    with pytest.raises(Refused) as caught:
        sandbox.ask({"do": "write", "path": str(tmp_path / "full"), "die": True})
    assert caught.value.reason == Reason.DECODER_CRASHED and "SIGXFSZ" in caught.value.detail
    assert sandbox.ask({"do": "nothing"})[0]["did"] == "nothing"


def test_memory_and_open_files_are_bounded(sandbox: WarmChild) -> None:
    assert sandbox.ask({"do": "allocate", "bytes": 1 << 31})[0]["error"] == "MemoryError"
    assert sandbox.ask({"do": "open", "files": 100})[0]["number"] == errno.EMFILE
    assert sandbox.ask({"do": "nothing"})[0]["did"] == "nothing"


def test_an_item_has_one_deadline_however_often_the_child_answers(sandbox: WarmChild) -> None:
    sandbox.ask({"do": "nothing"})
    for what in ("drip", "spin"):
        start_s = time.monotonic()
        with pytest.raises(Refused) as caught:
            sandbox.ask({"do": what})
        assert caught.value.reason == Reason.DECODER_TIMEOUT and time.monotonic() - start_s < 30
        assert sandbox.ask({"do": "nothing"})[0]["did"] == "nothing"


def test_a_spinning_child_ends_without_anyone_watching(sandbox: WarmChild) -> None:
    sandbox.ask({"do": "nothing"})
    child = sandbox._process
    assert child
    _send(child, {"do": "spin"})
    assert child.wait(timeout=60) == -signal.SIGXCPU


def test_cpu_time_is_counted_for_each_item_anew() -> None:
    with WarmChild("tests.fakes.sandbox_child", SETTINGS, 1.0, 100, DECODER) as sandbox:
        sandbox.ask({"do": "nothing"})
        before = Path(f"/proc/{sandbox.pid}/limits").read_text()
        assert "Max cpu time              2" in before or "Max cpu time              3" in before
