"""A hint names what was meant, as it is typed."""

import doctest
from pathlib import Path

import pytest

from configs import hints
from configs.hints import flag_hint, near, preset_hint


@pytest.mark.parametrize("name", ["folder", "folder.yaml", "foldr", "configs/folder.yaml"])
def test_a_preset_is_found_by_its_short_name(name: str) -> None:
    assert preset_hint(name, "ingest") == '; did you mean "configs/ingest/folder.yaml"?'


def test_the_preset_is_of_the_own_room_and_a_file_beside_wins(tmp_path: Path) -> None:
    assert preset_hint("demo", "training") == '; did you mean "configs/training/demo.yaml"?'
    assert preset_hint("demo", "ingest") == '; did you mean "configs/ingest/demo.yaml"?'
    assert preset_hint("qqqq", "ingest") == preset_hint("demo", "nowhere") == ""
    (tmp_path / "my_folder.yaml").touch()
    assert f'"{tmp_path}/my_folder.yaml"' in preset_hint(f"{tmp_path}/my_foldr.yaml", "ingest")


def test_a_flag_is_the_setting_of_its_name_with_its_value() -> None:
    settings = ["clip.workers", "workers", "network.retries", "batch_size"]
    assert flag_hint("--workers", ["--workers", "4"], settings) == '; did you mean "workers=4"?'
    assert flag_hint("--clip.workers", ["--clip.workers=2"], settings) == '; did you mean "clip.workers=2"?'
    assert flag_hint("--batch-size", ["--batch-size", "--json"], settings).endswith('"batch_size=…"?')
    assert flag_hint("--worker", ["--worker", "4"], settings) == '; did you mean "workers=4"?'
    assert flag_hint("--quiet", [], settings) == flag_hint("", [], settings) == ""


def test_nothing_near_is_no_hint() -> None:
    assert near("abc", ["xyz"]) == ""
    assert doctest.testmod(hints).failed == 0
