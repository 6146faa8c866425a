"""What every verb does around its work: a plan without work, one JSON object, a record beside the output."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.record import Summary, cpu_seconds, run_verb, show_units


@dataclass
class Config:
    output: str
    url: str = ""


def run(output: Path, do: Any, **flags: bool) -> Summary | None:
    args = [f"output={output}", "url=https://user:secret@host/path"]
    config = Config(str(output), "https://user:secret@host/path")
    defaults = {"as_json": False, "dry_run": False}
    return run_verb("sing", args, config, do, output=str(output), show=print, **{**defaults, **flags})


def refuse() -> dict[str, Any]:
    raise AssertionError("a dry run works")


def test_a_dry_run_prints_the_plan_and_does_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "out", refuse, dry_run=True) is None
    printed = capfd.readouterr().out
    assert "sing would write to" in printed and "secret" not in printed
    assert not (tmp_path / "out").exists()


def test_json_is_all_of_stdout(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def do() -> dict[str, Any]:
        subprocess.run([sys.executable, "-c", "print('a child')"], check=True)
        return {"notes": 3}

    run(tmp_path, do, as_json=True)
    out, err = capfd.readouterr()
    assert json.loads(out)["notes"] == 3
    assert "a child" in err


def test_the_record_has_the_settings_and_no_password(tmp_path: Path) -> None:
    summary = run(tmp_path, lambda: {"notes": 3})
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.split("-")[1] == "sing"
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert "secret" not in (folder / "config.yaml").read_text()


def test_runs_that_end_within_a_second_have_a_record_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "strftime", lambda _: "20260101T000000")
    for notes in (1, 2, 3):
        run(tmp_path, lambda notes=notes: {"notes": notes})
    summaries = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("runs/*/summary.json"))]
    assert sorted(summary["notes"] for summary in summaries) == [1, 2, 3]
    # all are names that the report and others read
    assert all(
        re.fullmatch(r"\d{8}T\d{6}-\w+-[\d-]+", folder.name) for folder in (tmp_path / "runs").iterdir()
    )


def test_counts_of_shards_are_told_to_people(capsys: pytest.CaptureFixture[str]) -> None:
    nothing: Summary = {"units_done": 0, "failed": {}, "deferred": [], "units_before": 1}
    show_units(nothing)
    show_units({**nothing, "units_before": 30})
    some = {"units_done": 1, "units_before": 4, "counts": {}, "num_bytes": 0, "seconds": 1.0, "cpu_s": 1.0}
    show_units({**some, "failed": {"u7": "KeyError"}, "deferred": ["u8", "u9"], "deferred_counts": {}})
    told = capsys.readouterr().out
    for line in (
        "nothing to do: the one shard is committed",
        "nothing to do: all 30 shards are committed",
        "1 shard done, 4 were committed before",
        "2 shards left for later",
        "shard u7 failed: KeyError",
    ):
        assert line in told, line
    assert "unit" not in told


def test_a_run_that_fails_leaves_no_record(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        run(tmp_path, refuse)
    assert not (tmp_path / "runs").exists()


# what a child burns, less what the kernel rounds off
TICKS_S = 0.2
BURN = "import time\nwhile time.process_time() < 0.3: pass"


def test_cpu_of_children_that_ended_counts() -> None:
    before = cpu_seconds()
    subprocess.run([sys.executable, "-c", BURN], check=True)
    assert cpu_seconds() - before >= TICKS_S


def test_cpu_of_living_children_counts_where_it_is_wanted() -> None:
    child = subprocess.Popen([sys.executable, "-c", f"{BURN}\ntime.sleep(600)"])
    try:
        deadline = time.monotonic() + 60
        while cpu_seconds(living=True) - cpu_seconds() < TICKS_S and time.monotonic() < deadline:
            time.sleep(0.05)
        assert cpu_seconds(living=True) - cpu_seconds() >= TICKS_S
    finally:
        os.kill(child.pid, 9)
        child.wait()
