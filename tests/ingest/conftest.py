"""A scrape of a small folder, for all tests that only read it."""

import shutil
from pathlib import Path

import pytest

from cluster.progress import RunSummary
from ingest.scrape import scrape
from ingest.synth import SynthConfig, synth
from tests.fakes.scraping import config

SCENES = 3


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two mp4, one webm, two stills, a silent video, and three files that cannot give a clip."""
    root = tmp_path_factory.mktemp("world")
    synth(
        SynthConfig(str(root), videos=2, webm=1, hls=0, dash=0, stills=2, silent=1, scenes_per_video=SCENES)
    )
    (root / "media/broken.mp4").write_bytes(b"no video")
    shutil.copy(root / "media/still0000.jpg", root / "media/mute.jpg")
    (root / "media/mute.wav").write_bytes(b"no sound")
    return root / "media"


@pytest.fixture(scope="session")
def done(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunSummary]:
    """A finished scrape, and its summary. Tests that damage it work on a copy."""
    output = tmp_path_factory.mktemp("out") / "clips"
    return output, scrape(config(world, output), progress=False)
