"""Hugging Face's `load_dataset("webdataset", …)` reads our shards.

It runs in an environment of its own, which `make interop` makes.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cluster.dataset import Dataset
from ingest.clip.clipper import ClipConfig, FrameConfig
from ingest.scrape import ScrapeConfig, scrape
from ingest.sources.settings import SourceConfig
from ingest.synth import SynthConfig, synth
from tests.fakes.latents import make_latents

PYTHON = Path(__file__).parents[2] / ".venv-interop/bin/python"
READ = """
import io, json, sys
import datasets, soundfile
source = {"path": "webdataset", "data_files": sys.argv[1:], "split": "train"}
features = datasets.load_dataset(**source, streaming=True).features
# the library decodes sound only by torchcodec, and so by torch; here the bytes are taken as they are
binary = {name: datasets.Value("binary") for name in ("flac", "jpg") if name in features}
plain = {**features, **binary}
loaded = datasets.load_dataset(**source, features=datasets.Features(plain))
rows = []
for row in loaded:
    rows.append({"key": row["__key__"]})
    if "flac" in row:
        sound, rate_hz = soundfile.read(io.BytesIO(row["flac"]))
        rows[-1] |= {"seconds": len(sound) / rate_hz, "license": row["json"]["license"]}
types = {name: type(feature).__name__ for name, feature in features.items()}
print(json.dumps({"features": types, "rows": rows}))
"""

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-interop; make interop makes it")


def read_by_datasets(shards: Path, scratch: Path) -> dict[str, Any]:
    """The features and rows that Hugging Face's library reads from the tars of a folder, offline."""
    tars = sorted(str(path) for path in shards.glob("*.tar"))
    environment = {
        "HF_HOME": str(scratch),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HOME": str(scratch),
    }
    command = [PYTHON, "-c", READ, *tars]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert result.returncode == 0, result.stderr[-2000:]
    return dict(json.loads(result.stdout.splitlines()[-1]))


def kept_keys(dataset: Dataset) -> set[str]:
    return {row["key"] for row in dataset.iter_rows() if row["status"] == "kept"}


def scrape_clips(root: Path) -> Dataset:
    """Clips of a small synthetic world."""
    world = str(root / "world")
    synth(SynthConfig(world, videos=2, webm=0, hls=0, dash=0, stills=1, silent=0, scenes_per_video=2))
    config = ScrapeConfig(
        str(root / "clips"),
        SourceConfig(f"{world}/media", "folder", "own"),
        clip=ClipConfig(1.6),
        frame=FrameConfig(64),
        workers=0,
        unit_size=2,
    )
    scrape(config, progress=False)
    return Dataset.open(config.output)


def test_hugging_face_reads_our_clips(tmp_path: Path) -> None:
    clips = scrape_clips(tmp_path)
    read = read_by_datasets(tmp_path / "clips/shards", tmp_path)
    assert {row["key"] for row in read["rows"]} == kept_keys(clips)
    assert (read["features"]["flac"], read["features"]["jpg"]) == ("Audio", "Image")
    assert {(round(row["seconds"], 3), row["license"]) for row in read["rows"]} == {(1.6, "own")}


def test_hugging_face_reads_our_latents(tmp_path: Path) -> None:
    latents = make_latents(tmp_path / "latents", units=2)
    read = read_by_datasets(tmp_path / "latents/shards", tmp_path)
    assert {row["key"] for row in read["rows"]} == kept_keys(latents)
    assert {"latent.npy", "image.npy"} <= read["features"].keys()
