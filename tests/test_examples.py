"""The notebooks of examples/ run from their first cell to their last, in a kernel of their own, and are kept clean."""

import json
import os
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

import stillsound
from tests.conftest import ROOT
from tests.fakes.media import film

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
TINY = """
MEDIA, WORK, VIDEOS, CLIP_S, WORKERS = "", "work", 4, 1.28, 0
STEPS = {"contrastive": 2, "autoencoder": 2, "diffusion": 2}
SMALLER = {"global_batch": 4, "lanes": 4, "validate_every": 0, "preview_every": 0}
PICTURES, TAKES, SAMPLER_STEPS = 1, 2, 2
"""


def run(name: str, parameters: str, folder: Path) -> Any:
    """The executed notebook, its parameters replaced, as from a folder of a person's own."""
    notebook: Any = nbformat.read(ROOT / "examples" / f"{name}.ipynb", as_version=4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    cell.source = parameters
    # without a backend of matplotlib's: the kernel shows figures in the notebook
    unset = ("PYTHONPATH", "MPLBACKEND")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    # the checkout's module, and not that of whatever the environment was made from
    environment |= {"PYTHONPATH": str(ROOT / "src"), "IPYTHONDIR": str(folder / "ipython")}
    client = nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(folder)}})
    return client.execute(env=environment)


def shown(notebook: Any, kind: str) -> list[str]:
    """All of a kind that its cells show."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output["data"][kind] for output in outputs if kind in output.get("data", {})]


@pytest.mark.slow
def test_from_media_to_a_sound(tmp_path: Path) -> None:
    cells = run("folder_to_sound", TINY, tmp_path)
    # of a clip, and of what was made: each a picture and a player
    assert sum("Audio object" in text for text in shown(cells, "text/plain")) == 2
    assert len(shown(cells, "image/png")) == 2
    assert len(list((tmp_path / "work/sounds").glob("*.wav"))) == 2


def test_look_and_listen(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    film(tmp_path / "media/a.mp4", duration_s=4.0)
    small = {"workers": 0, "clip": {"duration_s": 1.6}, "frame": {"short_side_px": 64}}
    source = {"path": tmp_path / "media", "license": "own"}
    stillsound.scrape(output=tmp_path / "clips", source=source, **small)
    cells = run("look_and_listen", 'DATA, SHOWN = "clips", 2', tmp_path)
    # a player and a picture of each, and the figure
    assert sum("Audio object" in text for text in shown(cells, "text/plain")) == 2
    assert len(shown(cells, "image/png")) == 3
    assert "license {'own': 2}" in str(cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_kept_has_no_outputs(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 3 and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
