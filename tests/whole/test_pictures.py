"""Every kind of picture file gives the same pixels in ingest, precompute, generate and the exported pipeline."""

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import cast

import numpy as np
import pytest
from PIL import Image

from ingest.clip.picture import finish, still_picture
from ingest.clip.windows import Settings
from ingest.pixels import open_picture
from ingest.sample import Reason, Refused
from tests.fakes.pictures import KINDS
from training.pipeline.codec import ImageConfig, image_to_tensor
from training.recipes.clips import decode_image
from training.shipped import shipped_source

SETTINGS = cast(Settings, SimpleNamespace(short_side_px=32, quality=95, max_pixels=1_000_000))


@pytest.fixture(autouse=True)
def restore_pillows_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """`still_picture` sets it for its process, which usually is a decoder child."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)


@pytest.fixture(scope="module")
def shipped_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline.py of an exported folder."""
    path = tmp_path_factory.mktemp("export") / "shipped_pipeline.py"
    path.write_text(shipped_source())
    return path


@pytest.fixture(scope="module")
def shipped(shipped_path: Path) -> ModuleType:
    """The same, imported."""
    spec = importlib.util.spec_from_file_location(shipped_path.stem, shipped_path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[shipped_path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_exported_pipeline_imports_nothing_of_the_checkout(shipped_path: Path) -> None:
    imports = ("from training", "from ingest", "from configs")
    assert not [line for line in shipped_path.read_text().splitlines() if line.startswith(imports)]


@pytest.mark.parametrize(
    ("make", "name", "tolerance"), KINDS, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_every_kind_is_the_same_everywhere(
    make: Callable[[Path], np.ndarray], name: str, tolerance: int, tmp_path: Path, shipped: ModuleType
) -> None:
    path = tmp_path / name
    expected = make(path).astype(int)
    size = ImageConfig(32)
    picture = open_picture(path)
    assert picture.mode == "RGB"
    assert np.abs(np.asarray(picture, int) - expected).max() <= tolerance
    # ingest
    assert still_picture(str(path), SETTINGS).jpeg == finish(picture, 0.0, SETTINGS).jpeg
    # precompute, and generate beside it
    precomputed = decode_image(path.read_bytes(), size)
    assert (precomputed == image_to_tensor(picture, size)).all()
    # the exported pipeline
    with Image.open(path) as opened:
        exported = shipped.image_to_tensor(opened, shipped.ImageConfig(32))
    assert (exported.numpy() == precomputed.numpy()).all()


def test_a_pipe_as_a_photo_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "b.png")
    with pytest.raises(Refused) as caught:
        still_picture(str(tmp_path / "b.png"), SETTINGS)
    assert caught.value.reason == Reason.UNSUPPORTED
