"""What procedural scenes mean: of each attribute two annotated pictures that differ in it alone, and sounds.

    scene_guide()         # shape -> timbre, size -> fundamental, stripes -> onset rate

Rendered by the generator itself (ingest.scenes), so that the guide cannot say what the scenes do not.
Annotations are numbers in percent of a picture; the template draws them.
"""

import io
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from ingest.pages.player import Player, data_uri, player_of_wave
from ingest.scenes import (
    SIZE_RANGE,
    STRIPES_RANGE,
    Scene,
    SceneObject,
    attributes,
    render_audio,
    render_image,
)

PICTURE_PX = 144
DURATION_S = 1.6
RATE_HZ = 16000
# of no attribute: green, in the middle, upright
PLAIN = SceneObject("circle", size=0.55, stripes=0.35, hue=0.45, x=0.5, y=0.5, angle_deg=0)


@dataclass(frozen=True)
class Note:
    """What is pointed at: a `kind` (outline, width or stripe) from `left` to `right`, at the height `top`.

    In percent of the picture.
    """

    kind: str
    left: float
    right: float
    top: float


@dataclass(frozen=True)
class GuidePicture:
    """`image`: a data URI; `seen` is what the picture has and `heard` what it sounds like, in words."""

    image: str
    seen: str
    heard: str
    note: Note
    player: Player


@dataclass(frozen=True)
class Guide:
    """An attribute: what one sees, what one hears, and when a sound counts as right."""

    visible: str
    audible: str
    rule: str
    right: str
    pictures: list[GuidePicture]


def scene_guide() -> list[Guide]:
    """Three guides of two pictures each; the same bytes every time."""
    circle = replace(PLAIN, shape="circle")
    star = replace(PLAIN, shape="star")
    large = replace(PLAIN, size=0.95)
    small = replace(PLAIN, size=0.1)
    few = replace(PLAIN, shape="square", stripes=0.05)
    many = replace(PLAIN, shape="square", stripes=0.9)
    return [
        Guide(
            "shape",
            "timbre",
            "Each of five shapes has overtones of its own.",
            "the same of five timbres",
            [
                _picture(circle, "circle", "nearly a pure tone", _outline(circle)),
                _picture(star, "star", "overtones 5 to 8", _outline(star)),
            ],
        ),
        Guide(
            "size",
            "pitch",
            "Large is low, small is high: 160 to 640 Hz.",
            "within 50 cents, half a semitone",
            [
                _picture(large, "large", f"{_sound(large)['f0_hz']:.0f} Hz", _width(large)),
                _picture(small, "small", f"{_sound(small)['f0_hz']:.0f} Hz", _width(small)),
            ],
        ),
        Guide(
            "stripes",
            "rhythm",
            "The finer the stripes, the faster the onsets: 2.5 to 8 a second.",
            "within 10 %",
            [
                _picture(few, "wide stripes", f"{_sound(few)['rate_hz']:.1f} onsets a second", _stripe(few)),
                _picture(
                    many, "fine stripes", f"{_sound(many)['rate_hz']:.1f} onsets a second", _stripe(many)
                ),
            ],
        ),
    ]


def _sound(thing: SceneObject) -> dict[str, float]:
    sound = attributes(_scene(thing))
    return {"f0_hz": sound["f0_hz"], "rate_hz": sound["rate_hz"]}


def _scene(thing: SceneObject) -> Scene:
    return Scene((thing,), background=0.12, gradient=0.08)


def _picture(thing: SceneObject, seen: str, heard: str, note: Note) -> GuidePicture:
    png = io.BytesIO()
    Image.fromarray(render_image(_scene(thing), PICTURE_PX)).save(png, "PNG")
    wave = render_audio(_scene(thing), DURATION_S, RATE_HZ, np.random.default_rng(0))
    image = data_uri("image/png", png.getvalue())
    return GuidePicture(image, seen, heard, note, player_of_wave(wave, RATE_HZ))


def _side(thing: SceneObject) -> float:
    low, high = SIZE_RANGE
    return 100 * (low + (high - low) * thing.size)


def _outline(thing: SceneObject) -> Note:
    """A ring around the object."""
    side = _side(thing) + 10
    return Note("outline", 50 - side / 2, 50 + side / 2, 50)


def _width(thing: SceneObject) -> Note:
    """A dimension line across the object."""
    side = _side(thing)
    return Note("width", 50 - side / 2, 50 + side / 2, 50)


def _stripe(thing: SceneObject) -> Note:
    """A bracket over one bright stripe and one dark one, near the middle."""
    low, high = STRIPES_RANGE
    period = 100 / (2 * low * (high / low) ** thing.stripes)
    left = period * (50 // period)
    return Note("stripe", left, left + period, 50 - _side(thing) / 2 / np.sqrt(2))
