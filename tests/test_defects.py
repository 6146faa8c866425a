"""The benchmark of injected defects: what it does to samples, and what it calls seen."""

from pathlib import Path

import numpy as np

from benchmarks.defects import SHARE, changed, hit, scaled_by_a_batch, swapped
from training.data.npy import read_npy, to_npy

NOWHERE = Path("nowhere")


def samples(count: int = 40) -> dict[str, dict[str, bytes]]:
    """Latents that vary more from sample to sample, and pictures that are their numbers."""
    made = {}
    shape = np.random.default_rng(0).standard_normal((2, 3, 4))
    for number in range(count):
        latent = np.stack([number * shape, np.zeros((2, 3, 4))])
        members = {"latent.npy": latent, "image.npy": np.full(5, number)}
        made[f"k{number:02}"] = {name: to_npy(array) for name, array in members.items()}
    return made


def test_a_defect_hits_its_share_and_nothing_else() -> None:
    before = samples()
    after, statistics = swapped(NOWHERE, before)
    moved = {key for key in before if after[key]["image.npy"] != before[key]["image.npy"]}
    assert moved == set(hit(before)) and len(moved) == SHARE * len(before) and statistics is None
    assert all(after[key]["latent.npy"] == before[key]["latent.npy"] for key in before)
    # no picture is lost
    assert sorted(each["image.npy"] for each in after.values()) == sorted(
        each["image.npy"] for each in before.values()
    )


def test_the_scale_of_one_batch_is_that_of_its_latents() -> None:
    after, sums = scaled_by_a_batch(NOWHERE, samples())
    latents = np.stack([read_npy(after[f"k{number:02}"]["latent.npy"])[0] for number in range(16)])
    assert sums["latent_count"] == 16 * 12
    assert np.allclose(sums["latent_sum"], latents.sum((0, 2, 3)))
    assert np.allclose(sums["latent_sumsq"], (latents**2).sum((0, 2, 3)))


def test_a_change_is_seen_where_its_interval_excludes_nothing() -> None:
    media = {f"c{number}": f"m{number // 2}" for number in range(40)}
    sound = {"mean": {key: float(number % 2) for number, key in enumerate(media)}}
    same = changed(sound, sound, media)["mean"]
    assert same == {"change": 0.0, "interval": [0.0, 0.0], "seen": False}
    # a quarter of the clips that were right are not
    worse = {
        "mean": {key: value * (number % 8 != 1) for number, (key, value) in enumerate(sound["mean"].items())}
    }
    found = changed(sound, worse, media)["mean"]
    assert found["change"] == -0.125 and found["seen"]
    # as many up as down
    both = {"mean": {key: 1 - value for key, value in sound["mean"].items()}}
    assert not changed(sound, both, media)["mean"]["seen"]
