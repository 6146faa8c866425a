"""Scenes: the picture determines the sound, and the same seed gives the same scene."""

import json

import numpy as np

from ingest.scenes import (
    SHAPES,
    attributes,
    is_unseen,
    render_audio,
    render_image,
    sample_scene,
    scene_from_dict,
    scene_to_dict,
)


def test_same_seed_same_scene_and_truth_survives_json() -> None:
    scene = sample_scene(np.random.default_rng(3), 3)
    assert scene == sample_scene(np.random.default_rng(3), 3)
    assert scene_from_dict(json.loads(json.dumps(scene_to_dict(scene)))) == scene


def test_what_is_kept_apart_is_seen_in_every_pair_but_never_together() -> None:
    rng = np.random.default_rng(0)
    seen: list[set[tuple[object, object]]] = [set(), set(), set()]
    unseen = set()
    for _ in range(4000):
        scene = sample_scene(rng)
        first = scene.objects[0]
        levels = (first.shape, int(first.size * 4), int(first.stripes * 4))
        if is_unseen(scene):
            unseen.add(levels)
            continue
        assert levels not in unseen
        for index, pair in enumerate(((0, 1), (0, 2), (1, 2))):
            seen[index].add((levels[pair[0]], levels[pair[1]]))
    assert [len(pairs) for pairs in seen] == [20, 20, 16]
    assert len(unseen) == 20


def test_fundamental_is_where_the_size_says() -> None:
    for seed in range(12):
        rng = np.random.default_rng(seed)
        scene = sample_scene(rng)
        if scene.objects[0].shape == "star":  # its strongest harmonics are high by design
            continue
        audio = render_audio(scene, 2.0, 16000, rng)
        spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio)), 1 << 17))
        f0_bin = attributes(scene)["f0_hz"] * (1 << 17) / 16000
        near = spectrum[int(f0_bin * 0.985) : int(f0_bin * 1.015)].max()
        assert near > 0.3 * spectrum[: int(1.5 * f0_bin)].max()


def test_every_shape_looks_different() -> None:
    base = sample_scene(np.random.default_rng(0)).objects[0]
    pictures = []
    for shape in SHAPES:
        scene = scene_from_dict(
            {"objects": [{**base.__dict__, "shape": shape}], "background": 0.1, "gradient": 0.0}
        )
        pictures.append(render_image(scene, 64).astype(float))
    gaps = [np.abs(a - b).mean() for i, a in enumerate(pictures) for b in pictures[:i]]
    assert min(gaps) > 2
