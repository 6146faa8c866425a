"""Procedural scenes: pictures that determine their sound, so that image-to-audio models can be checked
without real data.

    scene = sample_scene(rng, num_objects=1)
    image = render_image(scene, 64)                    # uint8 [H, W, 3]
    audio = render_audio(scene, 1.6, 16000, rng)       # float32 [num_samples]
    attributes(scene)                                  # {"timbre", "f0_hz", "rate_hz", "tilt_db_per_octave"}

Of every object shape sets the timbre, size the fundamental (large is low), the frequency of its stripes the
onset rate and its hue the spectral tilt. Position, background and rotation are nuisance in the picture only;
onset phase, detuning and level are chance in the sound only. So p(audio | image) is known. Renders no files
(ingest.synth does).
"""

import colorsys
from dataclasses import asdict, dataclass
from typing import TypedDict

import numpy as np
from PIL import Image, ImageDraw

from cluster.jsonl import JsonObject

SHAPES = ("circle", "square", "triangle", "star", "cross")
TONE_PEAK = 0.7  # of a tone whose amplitudes have the length 1
F0_RANGE_HZ = (160.0, 640.0)
RATE_RANGE_HZ = (2.5, 8.0)
LEVELS = 4  # that sizes and stripes are divided into, for combinations that are kept apart
TILT_RANGE_DB = (-6.0, 2.0)
STRIPES_RANGE = (2.0, 7.0)
SIZE_RANGE = (0.34, 0.84)
SUPERSAMPLING = 3

TIMBRES: dict[str, dict[int, float]] = {
    "circle": {1: 1.0, 2: 0.06},
    "square": {k: 1.0 / k for k in range(1, 16, 2)},
    "triangle": {k: 1.0 / k**0.6 for k in range(1, 17)},
    "star": {1: 0.5, 5: 0.5, 6: 0.9, 7: 1.0, 8: 0.8},
    "cross": {1: 1.0, 2: 0.05, 3: 0.05, 4: 1.0, 8: 0.7, 12: 0.5},
}
"""Amplitude of each harmonic, before the tilt; five spectra that 64 mel bands tell apart."""


class SoundAttributes(TypedDict):
    """What a sound is made by. `timbre`: index in SHAPES."""

    timbre: int
    f0_hz: float
    rate_hz: float
    tilt_db_per_octave: float


@dataclass(frozen=True)
class SceneObject:
    """One object.

    `size`, `stripes` and `hue` are in 0..1; `x`, `y` (centre) in 0..1 of the frame; `angle_deg` is nuisance.
    """

    shape: str
    size: float
    stripes: float
    hue: float
    x: float
    y: float
    angle_deg: float


@dataclass(frozen=True)
class Scene:
    """Objects over a background of one grey (0..1) with a gradient; the background is nuisance."""

    objects: tuple[SceneObject, ...]
    background: float
    gradient: float


def sample_scene(rng: np.random.Generator, num_objects: int = 1) -> Scene:
    """A random scene of 1 to 4 objects. `ValueError` for other numbers."""
    if not 1 <= num_objects <= 4:
        raise ValueError(f"num_objects={num_objects}: give 1 to 4")
    scale = 1.0 if num_objects == 1 else 0.5
    centres = [(0.5, 0.5)] if num_objects == 1 else [(0.27, 0.27), (0.73, 0.73), (0.73, 0.27), (0.27, 0.73)]
    objects = tuple(_sample_object(rng, *centres[index], 0.08 * scale) for index in range(num_objects))
    return Scene(objects, float(rng.uniform(0.0, 0.35)), float(rng.uniform(-0.15, 0.15)))


def _sample_object(rng: np.random.Generator, x: float, y: float, jitter: float) -> SceneObject:
    size, stripes, hue = (float(value) for value in rng.uniform(0, 1, 3))
    x += float(rng.uniform(-jitter, jitter))  # the order of the draws is part of every scene made so far
    y += float(rng.uniform(-jitter, jitter))
    return SceneObject(str(rng.choice(SHAPES)), size, stripes, hue, x, y, float(rng.uniform(-12, 12)))


def is_unseen(scene: Scene) -> bool:
    """Whether the first object is of the quarter of combinations that are kept apart (a Latin square).

    Every shape is seen with every size and every stripe, and every size with every stripe, but these three
    never together: whoever plays them right has not learnt combinations by heart.
    """
    first = scene.objects[0]
    levels = (min(int(value * LEVELS), LEVELS - 1) for value in (first.size, first.stripes))
    return (SHAPES.index(first.shape) + sum(levels)) % LEVELS == 0


def attributes(scene: Scene) -> SoundAttributes:
    """What the picture says of the sound of its first object."""
    first = scene.objects[0]
    return {
        "timbre": SHAPES.index(first.shape),
        "f0_hz": _log_between(F0_RANGE_HZ, 1 - first.size),
        "rate_hz": _log_between(RATE_RANGE_HZ, first.stripes),
        "tilt_db_per_octave": TILT_RANGE_DB[0] + (TILT_RANGE_DB[1] - TILT_RANGE_DB[0]) * first.hue,
    }


def render_image(scene: Scene, size_px: int) -> np.ndarray:
    """The picture, uint8 [size_px, size_px, 3]; anti-aliased by supersampling."""
    big = size_px * SUPERSAMPLING
    ramp = scene.background + scene.gradient * np.linspace(-0.5, 0.5, big)
    grey = np.broadcast_to((np.clip(ramp, 0, 1) * 255).astype(np.uint8)[:, None, None], (big, big, 3))
    canvas = Image.fromarray(np.ascontiguousarray(grey))
    count = len(scene.objects)
    for scene_object in scene.objects:
        canvas.paste(*_stripes_and_mask(scene_object, big, 1.0 if count == 1 else 0.5))
    return np.asarray(canvas.resize((size_px, size_px), Image.Resampling.BOX))


def _stripes_and_mask(
    scene_object: SceneObject, big: int, scale: float
) -> tuple[Image.Image, tuple[int, int], Image.Image]:
    """The striped fill, and the shape as its mask, around the object's centre."""
    side = SIZE_RANGE[0] + (SIZE_RANGE[1] - SIZE_RANGE[0]) * scene_object.size
    red, green, blue = colorsys.hsv_to_rgb(0.75 * scene_object.hue, 0.85, 1.0)
    bright = np.array([red, green, blue])
    waves = _log_between(STRIPES_RANGE, scene_object.stripes) / (
        0.5 * big * scale
    )  # per pixel: independent of the object's size
    wave = 0.5 + 0.5 * np.sign(np.sin(2 * np.pi * waves * np.arange(big)))
    fill = (bright[None] * (0.25 + 0.75 * wave[:, None]) * 255).astype(np.uint8)
    picture = Image.fromarray(np.ascontiguousarray(np.broadcast_to(fill[None], (big, big, 3))))
    mask = Image.new("L", (big, big), 0)
    radius = 0.5 * side * scale * big
    _draw_shape(ImageDraw.Draw(mask), scene_object, radius, big)
    return picture, (0, 0), mask


def _draw_shape(draw: ImageDraw.ImageDraw, scene_object: SceneObject, radius: float, big: int) -> None:
    centre = np.array([scene_object.x, scene_object.y]) * big
    if scene_object.shape == "circle":
        draw.ellipse([*(centre - radius), *(centre + radius)], fill=255)
        return
    draw.polygon(
        [tuple(point) for point in centre + radius * _outline(scene_object.shape, scene_object.angle_deg)],
        fill=255,
    )


def _outline(shape: str, angle_deg: float) -> np.ndarray:
    """Corners on or within the unit circle, [num_corners, 2]."""
    if shape == "cross":
        arm = 0.34
        corners = [
            (-arm, -1),
            (arm, -1),
            (arm, -arm),
            (1, -arm),
            (1, arm),
            (arm, arm),
            (arm, 1),
            (-arm, 1),
            (-arm, arm),
            (-1, arm),
            (-1, -arm),
        ]
        points = np.array([*corners, (-arm, -arm)])
    else:
        corners_and_turns = {"square": (4, 1.0, 45), "triangle": (3, 1.0, -90), "star": (5, 0.42, -90)}
        num_corners, inner, turn = corners_and_turns[shape]
        steps = num_corners * (2 if inner < 1 else 1)
        turns = np.deg2rad(turn + 360 * np.arange(steps) / steps)
        lengths = np.where(np.arange(steps) % 2, inner, 1.0)
        points = np.stack([np.cos(turns), np.sin(turns)], 1) * lengths[:, None]
    cosine = np.cos(np.deg2rad(angle_deg))
    sine = np.sin(np.deg2rad(angle_deg))
    return np.asarray(points @ np.array([[cosine, sine], [-sine, cosine]]))


def render_audio(
    scene: Scene, duration_s: float, sample_rate_hz: int, rng: np.random.Generator
) -> np.ndarray:
    """The sound, float32 [num_samples] within -1..1; onset phase, detuning (<= 8 cents) and level are drawn
    from `rng`.
    """
    time_s = np.arange(round(duration_s * sample_rate_hz)) / sample_rate_hz
    sound = sum(
        _object_sound(scene_object, attributes(Scene((scene_object,), 0, 0)), time_s, sample_rate_hz, rng)
        for scene_object in scene.objects
    )
    noise = rng.standard_normal(len(time_s)) * 10 ** (-50 / 20)
    level = 10 ** (rng.uniform(-3, 0) / 20)
    return (0.5 * level * (np.asarray(sound) / len(scene.objects) + noise)).astype(np.float32)


def _object_sound(
    scene_object: SceneObject,
    sound: SoundAttributes,
    time_s: np.ndarray,
    sample_rate_hz: int,
    rng: np.random.Generator,
) -> np.ndarray:
    f0_hz = sound["f0_hz"] * 2 ** (rng.uniform(-8, 8) / 1200)
    wave = harmonics(
        scene_object.shape,
        f0_hz,
        sound["tilt_db_per_octave"],
        time_s,
        sample_rate_hz,
        rng.uniform(0, 2 * np.pi, 32),
    )
    return np.asarray(wave * onset_envelope(sound["rate_hz"], rng.uniform(0, 1), time_s))


def onset_envelope(rate_hz: float, phase: float, time_s: np.ndarray) -> np.ndarray:
    """Decaying pulses, 0..1; `phase` in 0..1 of a period."""
    since_onset = np.mod(time_s * rate_hz + phase, 1.0) / rate_hz
    attack = np.minimum(since_onset / 0.005, 1.0)  # 5 ms: shorter clicks
    return np.asarray(attack * np.exp(-since_onset * 3.0 * rate_hz))


def harmonics(
    shape: str, f0_hz: float, tilt_db: float, time_s: np.ndarray, sample_rate_hz: int, phases: np.ndarray
) -> np.ndarray:
    """The steady tone of a shape at unit peak (about), float64 [num_samples]."""
    amplitudes = partials(shape, f0_hz, tilt_db, sample_rate_hz)
    wave = sum(a * np.sin(2 * np.pi * k * f0_hz * time_s + phases[k % 32]) for k, a in amplitudes.items())
    power = sum(a * a for a in amplitudes.values())
    return np.asarray(np.asarray(wave) / np.sqrt(power) * TONE_PEAK)


def partials(shape: str, f0_hz: float, tilt_db: float, sample_rate_hz: int) -> dict[int, float]:
    """Amplitudes by the number of the harmonic; those over 0.45 of the rate are left out."""
    return {
        k: a * 10 ** (tilt_db * np.log2(k) / 20)
        for k, a in TIMBRES[shape].items()
        if k * f0_hz < 0.45 * sample_rate_hz
    }


def scene_to_dict(scene: Scene) -> JsonObject:
    """Plain data, for the truth file."""
    return asdict(scene)


def scene_from_dict(data: JsonObject) -> Scene:
    """The inverse of `scene_to_dict`."""
    return Scene(
        tuple(SceneObject(**scene_object) for scene_object in data["objects"]),
        data["background"],
        data["gradient"],
    )


def _log_between(limits: tuple[float, float], share: float) -> float:
    low, high = limits
    return float(low * (high / low) ** share)
