"""README's six commands, from a folder of videos to a sound: typed as they stand there, each the last one's next."""

import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

import ingest.__main__
import training.__main__
from configs.load import run_app
from ingest.scenes import render_image, sample_scene
from ingest.synth import SynthConfig, synth
from tests.conftest import ROOT
from training.judging.opening import open_pair_judge

pytestmark = pytest.mark.training

APPS: dict[str, Any] = {"ingest": ingest.__main__.app, "training": training.__main__.app}
# settings that are appended: so little of each that it takes seconds
TINY = {
    "scrape": ["workers=0"],
    "train": ["workers=0", "steps=2", "global_batch=4", "lanes=4", "checkpoint_every=2", "zero_stage=0"],
    "precompute": ["workers=0"],
    "generate": ["steps=2", "threads=1"],
}


def six_commands() -> list[str]:
    section = (ROOT / "README.md").read_text().partition("in six commands")[2]
    return section.split("```")[1].strip().splitlines()


def typed(command: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> str:
    """The command that it says comes next, "" for none."""
    python, flag, room, verb, *args = shlex.split(command)
    assert [python, flag] == ["python", "-m"]
    monkeypatch.setattr(sys, "argv", [room, verb, *args, *TINY.get(verb, [])])
    with pytest.raises(SystemExit) as ended:
        run_app(APPS[room])
    out, err = capfd.readouterr()
    assert ended.value.code == 0, err
    assert "next: " not in out
    return "".join(re.findall(r"^next: (.*)$", err, re.MULTILINE))


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with videos and a picture, in which the checkout's presets are found."""
    monkeypatch.chdir(tmp_path)
    os.symlink(ROOT / "configs", tmp_path / "configs")
    none = {"webm": 0, "hls": 0, "dash": 0, "stills": 0, "silent": 0}
    synth(SynthConfig(path="world", videos=4, scenes_per_video=3, size_px=128, workers=1, **none))
    (tmp_path / "world/media").rename(tmp_path / "my-videos")
    pictures = tmp_path / "my-pictures"
    pictures.mkdir()
    scene = sample_scene(np.random.default_rng(9), 1)
    Image.fromarray(render_image(scene, 200)).save(pictures / "sea.jpg")
    return tmp_path


def test_the_readmes_six_commands_make_a_sound_and_each_names_the_next(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    commands = six_commands()
    assert len(commands) == 6
    for command, following in zip(commands, [*commands[1:], "python -m training export"], strict=True):
        assert typed(command, monkeypatch, capfd).startswith(following)
    wav, rate_hz = soundfile.read(desk / "out/sounds/sea.wav")
    # as long as the clips, whose length no preset of a model states
    assert (len(wav), rate_hz) == (256 * 160, 16000) and np.abs(wav).max() > 0
    # the size of its pictures follows from the clips, wherever the model is opened
    judge = open_pair_judge("out/runs/contrastive")
    assert judge.pictures([Image.open(desk / "my-pictures/sea.jpg")]).shape == (1, 64)
    monkeypatch.setattr(sys, "argv", ["training", "recipe-for", "out/clips"])
    with pytest.raises(SystemExit):
        run_app(APPS["training"])
    lines = capfd.readouterr().out.splitlines()
    assert [line[:3] for line in lines] == ["[x]"] * 6 + ["[ ]"]
    assert [line[4:] for line in lines[1:6]] == commands[1:]
