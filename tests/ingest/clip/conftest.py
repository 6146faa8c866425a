"""A warm clipper of each mode, for the tests of a file."""

from collections.abc import Iterator

import pytest

from ingest.clip.clipper import Clipper
from tests.fakes.cutting import cutter


@pytest.fixture(scope="module")
def clippers() -> Iterator[dict[str, Clipper]]:
    with cutter("keyframe") as keyframe, cutter("grid") as grid:
        yield {"keyframe": keyframe, "grid": grid}
