"""Hugging Face's `load_dataset("webdataset", …)` reads our shards; in an environment of its own:

`make interop` makes it.
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
# the library takes the sound's bytes only by torchcodec, and so by torch; here they are taken as they are
plain = {name: datasets.Value("binary") if name in ("flac", "jpg") else one for name, one in features.items()}
loaded = datasets.load_dataset(**source, features=datasets.Features(plain))
rows = []
for row in loaded:
    rows.append({"key": row["__key__"]})
    if "flac" in row:
        sound, rate = soundfile.read(io.BytesIO(row["flac"]))
        rows[-1] |= {"seconds": len(sound) / rate, "license": row["json"]["license"]}
print(json.dumps({"features": {name: type(one).__name__ for name, one in features.items()}, "rows": rows}))
"""

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-interop; make interop makes it")


def read_by_datasets(shards: Path, scratch: Path) -> dict[str, Any]:
    """What Hugging Face's library makes of the tars of a folder, without a network."""
    tars = sorted(str(path) for path in shards.glob("*.tar"))
    environment = {
        "HF_HOME": str(scratch),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HOME": str(scratch),
    }
    done = subprocess.run(
        [PYTHON, "-c", READ, *tars], capture_output=True, text=True, env=environment, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_hugging_face_reads_our_clips(tmp_path: Path) -> None:
    synth(
        SynthConfig(
            str(tmp_path / "world"), videos=2, webm=0, hls=0, dash=0, stills=1, silent=0, scenes_per_video=2
        )
    )
    shape: dict[str, Any] = {"clip": ClipConfig(1.6), "frame": FrameConfig(64), "workers": 0, "unit_size": 2}
    scrape(
        ScrapeConfig(
            str(tmp_path / "clips"), SourceConfig(str(tmp_path / "world/media"), "folder", "own"), **shape
        ),
        progress=False,
    )
    kept = {
        row["key"] for row in Dataset.open(str(tmp_path / "clips")).iter_rows() if row["status"] == "kept"
    }
    found = read_by_datasets(tmp_path / "clips/shards", tmp_path)
    assert {row["key"] for row in found["rows"]} == kept
    assert found["features"] | {"flac": "Audio", "jpg": "Image"} == found["features"]
    assert {(round(row["seconds"], 3), row["license"]) for row in found["rows"]} == {(1.6, "own")}


def test_hugging_face_reads_our_latents(tmp_path: Path) -> None:
    latents = make_latents(tmp_path / "latents", units=2)
    keys = {row["key"] for row in latents.iter_rows() if row["status"] == "kept"}
    found = read_by_datasets(tmp_path / "latents/shards", tmp_path)
    assert {row["key"] for row in found["rows"]} == keys and {"latent.npy", "image.npy"} <= found[
        "features"
    ].keys()
