"""The guide to scenes: pictures that differ in one thing, and notes that point at it."""

import base64
import io

import numpy as np
from PIL import Image

from ingest.pages.scene_guide import GuidePicture, scene_guide


def pixels(picture: GuidePicture) -> np.ndarray:
    data = base64.b64decode(picture.image.split(",")[1])
    return np.asarray(Image.open(io.BytesIO(data)), float)


def extent(picture: GuidePicture) -> tuple[float, float]:
    """Where the object begins and ends, in percent of the width: the columns with colour."""
    colour = np.ptp(pixels(picture), axis=2).max(0) > 30
    columns = np.flatnonzero(colour)
    return 100 * columns[0] / len(colour), 100 * (columns[-1] + 1) / len(colour)


def test_three_guides_of_two_pictures_each_with_its_sound() -> None:
    guides = scene_guide()
    assert [(guide.visible, guide.audible) for guide in guides] == [
        ("shape", "timbre"),
        ("size", "pitch"),
        ("stripes", "rhythm"),
    ]
    for guide in guides:
        first, second = guide.pictures
        assert not np.array_equal(pixels(first), pixels(second)) and first.player != second.player
        assert first.player.seconds == 1.6


def test_the_line_across_an_object_is_as_long_as_it() -> None:
    for picture in scene_guide()[1].pictures:
        left, right = extent(picture)
        assert abs(left - picture.note.left) < 2 and abs(right - picture.note.right) < 2


def test_the_bracket_spans_one_bright_and_one_dark_stripe() -> None:
    for picture in scene_guide()[2].pictures:
        green = pixels(picture)[72, :, 1]
        bright = green > 160
        left, right = (round(edge / 100 * len(green)) for edge in (picture.note.left, picture.note.right))
        inside = bright[left:right]
        # half of it is bright, and it goes from one dark edge to the next
        assert 0.35 < inside.mean() < 0.65 and np.abs(np.diff(inside.astype(int))).sum() <= 2


def test_what_is_heard_is_what_the_generator_makes() -> None:
    large, small = scene_guide()[1].pictures
    assert (large.heard, small.heard) == ("171 Hz", "557 Hz")
