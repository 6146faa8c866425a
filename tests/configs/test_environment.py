"""Commands and calls get what the Makefile exports, wherever they are typed, and nobody's own choice is lost."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from configs.environment import CHECKOUT, FIXED, defaults, ensure_token

RAY = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment where nothing is set; what it has for an environment of Python's packages."""
    for name in (*FIXED, *RAY, "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def test_they_are_what_the_makefile_exports() -> None:
    text = (CHECKOUT / "Makefile").read_text()
    exported = dict(re.findall(r"^export (\w+) \?= (.*)$", text, re.MULTILINE))
    # cpu where a person runs make; by themselves, commands use a GPU that is there
    assert exported.pop("DS_ACCELERATOR") == "cpu"
    assert exported.pop("RAY_AUTH_MODE") == "token" and exported.pop("RAY_AUTH_TOKEN_PATH").endswith(
        "ray-token"
    )
    ours = {name: value for name, value in exported.items() if not name.startswith("PIP_")}
    assert ours.items() <= FIXED.items() and len(ours) >= 4


def test_a_block_leaves_no_trace_and_ray_has_a_token_in_it(bare: Path) -> None:
    before = dict(os.environ)
    with defaults():
        assert FIXED.items() <= dict(os.environ).items()
        assert os.environ["PYTHONPATH"] == str(CHECKOUT) and os.environ["RAY_AUTH_MODE"] == "token"
        token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        assert token == bare / "venv/ray-token" and len(token.read_text().strip()) == 64
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert dict(os.environ) == before


def test_what_is_set_stays(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"OMP_NUM_THREADS": "7", "RAY_AUTH_MODE": "disabled", "PYTHONPATH": f"/x:{CHECKOUT}"}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    with defaults():
        assert own.items() <= dict(os.environ).items() and "RAY_AUTH_TOKEN_PATH" not in os.environ
    assert not (bare / "venv").exists()


@pytest.mark.parametrize(("name", "value"), [("RAY_AUTH_TOKEN", "mine"), ("RAY_AUTH_TOKEN_PATH", "/own")])
def test_ones_own_token_is_used(bare: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with defaults():
        assert os.environ["RAY_AUTH_MODE"] == "token" and os.environ[name] == value
        assert sum(other in os.environ for other in RAY) == 2


def test_a_cluster_that_is_joined_is_its_owners(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    with defaults():
        assert not any(name in os.environ for name in RAY[:3])


def test_where_no_file_can_be_written_the_token_is_in_the_environment(bare: Path) -> None:
    for name in ("venv", "home"):
        (bare / name).touch()
    with defaults():
        assert len(os.environ["RAY_AUTH_TOKEN"]) == 64 and "RAY_AUTH_TOKEN_PATH" not in os.environ


def test_commands_that_start_at_once_have_one_token(tmp_path: Path) -> None:
    path = tmp_path / "a/ray-token"
    command = (
        "import sys, pathlib; from configs.environment import ensure_token; p = pathlib.Path(sys.argv[1])\n"
    )
    command += "ensure_token(p); print(p.read_text())"
    several = [
        subprocess.Popen([sys.executable, "-c", command, str(path)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert len({child.communicate(timeout=60)[0] for child in several}) == 1
    assert [file.name for file in path.parent.iterdir()] == ["ray-token"]
    path.write_text("")
    ensure_token(path)
    assert len(path.read_text().strip()) == 64
