"""A scrape that keeps nothing, or little, says why, and which setting decides; nothing kept is exit code 1."""

import doctest
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from cluster.dataset import Dataset
from cluster.progress import RunSummary
from cluster.shards import Row, Shard, Status, write_shard
from ingest import advice
from ingest.advice import advice_after, examples_in, why
from ingest.rows import CLIP_COLUMNS
from ingest.sample import Reason


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """A photo with a sound of one second, which is shorter than a clip."""
    folder = tmp_path / "media"
    folder.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (300, 300, 3), dtype=np.uint8)).save(folder / "a.jpg")
    soundfile.write(folder / "a.wav", rng.normal(0, 0.1, 16000), 16000)
    return folder


def typed(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ingest", "scrape", "workers=0", "source.license=own", *args]
    return subprocess.run(command, capture_output=True, text=True)


def test_nothing_kept_names_the_setting_and_fails_each_time(media: Path, tmp_path: Path) -> None:
    args = (f"source.path={media}", f"output={tmp_path / 'none'}")
    done = typed(*args)
    assert done.returncode == 1, done.stderr
    assert "nothing is kept" in done.stdout
    assert "1 too_short: no window of clip.duration_s=10.24 fits; clip.short=pad" in done.stdout
    assert "(folder:a.jpg: no window of 10.24 s fits)" in done.stdout
    assert "nothing is stored yet" in done.stdout and "next:" not in done.stderr
    again = typed(*args, "--json")
    assert again.returncode == 1 and json.loads(again.stdout)["kept_nothing"]
    # the advice helps, also in another output
    fine = typed(f"source.path={media}", f"output={tmp_path / 'some'}", "clip.short=pad")
    assert fine.returncode == 0 and "kept in" not in fine.stdout
    assert fine.stderr.splitlines()[-1].startswith("next: python -m training train configs/training/small_")
    dataset = Dataset.open(str(tmp_path / "some"), "clips")
    assert advice_after(dataset, RunSummary(units_before=1)) == (False, [])
    # of failures and what waits, other lines tell
    empty = Dataset.open(str(tmp_path / "none"), "clips")
    assert advice_after(empty, RunSummary(failed={"u": "broken"})) == (False, [])
    assert advice_after(empty, RunSummary()).kept_nothing


def test_what_was_removed_since_is_nobodys_setting(tmp_path: Path) -> None:
    dataset = Dataset.create_or_open(str(tmp_path), "clips", {}, parents=[])
    counts = {"refused:dark": 1, "removed:take-down": 1}
    (tmp_path / "rows").write_bytes(b"")
    dataset.commit("00000", 0, Shard(None, tmp_path / "rows", counts), {})
    assert advice_after(dataset, RunSummary()) == (False, [])
    assert why(counts, {}, {}) == ["1 dark: the frame is darker than filter.min_brightness"]


def test_little_kept_is_explained_and_no_failure(tmp_path: Path) -> None:
    dataset = Dataset.create_or_open(str(tmp_path), "clips", {}, parents=[])
    little = {"kept": 1, "refused:dark": 2, "refused:license": 9, "refused:silent": 3, "refused:blank": 1}
    found = advice_after(dataset, RunSummary(counts=little))
    assert not found.kept_nothing
    assert found.lines[0] == "1 of 16 are kept:"
    assert [line.split()[1] for line in found.lines[1:]] == ["license:", "silent:", "dark:"]
    assert "license.allow" in found.lines[1]
    assert advice_after(dataset, RunSummary(counts={"kept": 4, "refused:dark": 5})).lines == []


def test_an_example_says_what_was_found(tmp_path: Path) -> None:
    dataset = Dataset.create_or_open(str(tmp_path / "out"), "clips", {}, parents=[])
    silent = Row(
        "folder:a", "a_0", Status.REFUSED, "silent", None, {"scores": json.dumps({"rms_dbfs": -71.5})}
    )
    small = Row("urls:x?token=1234", None, Status.REFUSED, "too_small", "96 x 96 pixels", {})
    bare = Row("folder:b", None, Status.REFUSED, "taken_down", None, {})
    (tmp_path / "shard").mkdir()
    dataset.commit("u0000000", 0, write_shard(tmp_path / "shard", [silent, small, bare], CLIP_COLUMNS), {})
    examples = examples_in(dataset)
    assert examples == {"silent": "folder:a: -71.5", "too_small": "urls:x?token=***: 96 x 96 pixels"}


def test_every_reason_can_be_explained() -> None:
    assert all(why({f"refused:{reason}": 1}, {}, {}) for reason in Reason)
    license = why({"refused:license": 1}, {"license": {"allow": ["attribution", "own"]}}, {})
    assert license == [
        "1 license: its license is missing, not understood, or not in license.allow=[attribution,own]"
    ]
    assert doctest.testmod(advice).failed == 0
