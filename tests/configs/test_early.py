"""Early checks: what is refused without the schema, in the same words as with it; and what is left to it."""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from configs.early import check_early, check_place
from configs.load import UserError, load_config
from configs.meanings import settings_of
from configs.settings_page import PAGE, settings_in
from tests.conftest import ROOT


@dataclass
class Inner:
    """A section."""

    depth: int = 1  # how deep
    free: dict[str, int] = field(default_factory=dict)  # of any names


@dataclass
class Schema:
    """Settings of every kind."""

    output: str  # where
    steps: int = 3  # how many
    rate: float | None = None  # how fast
    inner: Inner = field(default_factory=Inner)


SETTINGS = settings_of(Schema)


@pytest.mark.parametrize(
    "args",
    [
        ["step=3"],
        ["zzz=3", "output=x"],
        ["inner.dept=3"],
        ["inner.zzz.deeper=3"],
        ["steps=many", "output=x"],
        ["steps=3"],
        ["nowhere.yaml"],
    ],
)
def test_a_mistake_has_the_words_of_the_schema(args: list[str]) -> None:
    with pytest.raises(UserError) as late:
        load_config(Schema, args)
    with pytest.raises(UserError) as early:
        check_early(args, SETTINGS, "tests")
    assert str(early.value) == str(late.value)


def test_a_file_is_read_too(tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text("output: x\ninner: {dept: 3}\n")
    with pytest.raises(UserError, match=f"inner.dept.* in {preset}; did you mean .inner.depth") as early:
        check_early([str(preset)], SETTINGS, "tests")
    with pytest.raises(UserError) as late:
        load_config(Schema, [str(preset)])
    assert str(early.value) == str(late.value)


@pytest.mark.parametrize(
    "args",
    [
        ["output=x", "steps=1_000"],
        ["output=x", "steps=0x10"],
        ["output=x", "rate=null"],
        ["output=x", "inner.free.anything=3"],
        ["output=x", "inner={depth: 3}"],
        ["output=${oc.env:HOME}", "steps=${inner.depth}"],
    ],
)
def test_what_the_schema_takes_is_let_through(args: list[str]) -> None:
    check_early(args, SETTINGS, "tests")
    load_config(Schema, args)


def test_every_preset_is_let_through() -> None:
    needed = {"training train": ["data=x", "output=x"], "ingest scrape": ["output=x", "source.path=x"]}
    for verb, words in needed.items():
        room = verb.split()[0]
        settings = settings_in(PAGE.read_text(), verb)
        for path in sorted((ROOT / "configs" / room).glob("*.yaml")):
            if "latents" not in path.name:  # those are of precompute
                check_early([str(path), *words], settings, room)


@pytest.mark.parametrize("value", ["a=1", "seed=3", "source.path=x y", "dataset=out/clips"])
def test_a_setting_in_the_place_of_a_folder_is_refused(value: str) -> None:
    with pytest.raises(UserError, match="OUTPUT comes first, then settings"):
        check_place("synth", "OUTPUT", value)


@pytest.mark.parametrize("value", ["out/a=1", "./a=1", "s3://bucket/a=1", "/tmp/a=1", "out", "A=1"])
def test_a_folder_may_have_an_equals_sign(value: str) -> None:
    check_place("synth", "OUTPUT", value)


def test_a_typed_mistake_is_told_without_torch(tmp_path: Path) -> None:
    def typed(*words: str) -> str:
        program = (
            "import runpy, sys\n"
            f"sys.argv = {['x', *words[1:]]!r}\n"
            f"try: runpy.run_module({words[0]!r}, run_name='__main__')\n"
            "finally: print('torch' in sys.modules)"
        )
        command = [sys.executable, "-c", program]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT)}
        )
        assert done.stdout.splitlines()[-1] == "False", done
        return done.stderr

    preset = str(ROOT / "configs/training/demo.yaml")
    assert typed("training", "train", preset, "step=3") == (
        'error: unknown setting "step"; did you mean "steps"?\n'
    )
    assert typed("ingest", "synth", "a=1").startswith("error: synth a=1: OUTPUT comes first")
    assert not list(tmp_path.iterdir())
    assert typed("training", "generate").startswith("error: missing settings: images, model, output")
