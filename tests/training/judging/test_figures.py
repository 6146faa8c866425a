"""Figures of pairs: each column by hand, with judges whose vectors and classes are known."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from tests.training.judging.test_frechet import textbook
from training.judging import classes
from training.judging.figures import Figure, Pair, best_first, judge_pairs
from training.judging.sound import Sound

NUM = 24


class Known:
    """A judge that hears how loud a sound is, and sees how red a picture is, as angles."""

    modalities = ("image", "text")
    image_tower = None
    facts: Any = {"name": "known", "kind": "", "sha256": "", "parts": {}}

    def sounds(self, sounds: Sequence[Sound]) -> np.ndarray:
        return vectors([float(np.abs(sound.wav).max()) for sound in sounds])

    def pictures(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        return vectors([picture.convert("RGB").getpixel((0, 0))[0] / 255 for picture in pictures])  # type: ignore[index]

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        return vectors([float(text) for text in texts])


class Loudness:
    """A classifier of three classes by loudness, whose features are it and its square."""

    facts: Any = {"name": "loudness", "kind": "", "sha256": "", "parts": {}}

    def hear(self, sounds: Sequence[Sound]) -> tuple[np.ndarray, np.ndarray]:
        peak = np.array([float(np.abs(sound.wav).max()) for sound in sounds])
        return np.stack([peak, peak**2], 1), probabilities(peak)


def vectors(values: list[float]) -> np.ndarray:
    angles = np.array(values)
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def probabilities(peak: np.ndarray) -> np.ndarray:
    logits = np.stack([4 * peak, np.ones_like(peak), 2 - 4 * peak], 1)
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


LOUD = (np.arange(NUM) + 1) / (NUM + 1)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    """Real sounds are as loud as their pictures are red; generated ones are those of the next but one."""
    folder = tmp_path_factory.mktemp("pairs")
    made = []
    for number, loud in enumerate(LOUD):
        files = {"real": loud, "generated": np.roll(LOUD, 2)[number], "codec": loud * 0.999}
        paths: dict[str, Path] = {}
        for name, peak in files.items():
            paths[name] = folder / f"{name}{number}.wav"
            soundfile.write(paths[name], np.full(100, peak), 16000, subtype="FLOAT")
        picture = folder / f"{number}.png"
        Image.new("RGB", (4, 4), (round(255 * loud), 0, 0)).save(picture)
        made.append(
            Pair(
                f"n{number:02}",
                paths["generated"],
                paths["real"],
                paths["codec"],
                picture,
                f"{loud}",
                medium=f"m{number}",
            )
        )
    return made


def figures_of(pairs: list[Pair], seed: int = 0, batch: int = 5) -> dict[str, Figure]:
    figures, _ = judge_pairs(pairs, [Known()], [Loudness()], seed, batch)  # type: ignore[list-item]
    return {figure["name"]: figure for figure in figures}


def value(figure: Figure, column: str) -> float:
    cell = figure[column]  # type: ignore[literal-required]
    assert cell is not None
    return float(cell["value"])


def test_retrieval_and_correspondence_by_hand(pairs: list[Pair]) -> None:
    figures = figures_of(pairs)
    assert list(figures)[:5] == [
        "correspondence",
        "image_to_sound_r1",
        "sound_to_image_r1",
        "image_to_sound_r10",
        "sound_to_image_r10",
    ]
    # a picture's own sound is the nearest, a generated one is that of the next picture but one
    assert (
        value(figures["image_to_sound_r1"], "real") == 1
        and value(figures["image_to_sound_r1"], "generated") == 0
    )
    assert value(figures["sound_to_image_r10"], "generated") > 0.9
    step = 1 / (NUM + 1)
    shifted = np.cos(np.where(np.arange(NUM) < 2, NUM - 2, 2) * step).mean()
    assert value(figures["correspondence"], "generated") == pytest.approx(shifted, abs=2e-3)
    assert value(figures["correspondence"], "real") == pytest.approx(1, abs=1e-5)
    assert value(figures["clap_score"], "generated") == pytest.approx(shifted, abs=1e-6)
    assert all(figure["n"] == NUM for figure in figures.values())


def test_chance_is_of_pairs_that_do_not_belong_together(pairs: list[Pair]) -> None:
    """Real sounds in the generated ones' place: deranged, none may meet its own picture."""
    swapped = [Pair(p.name, p.reference, p.reference, p.codec, p.picture, p.caption, p.medium) for p in pairs]
    figures = figures_of(swapped)
    assert value(figures["image_to_sound_r1"], "generated") == 1
    assert value(figures["image_to_sound_r1"], "chance") < 0.2
    assert value(figures["kl"], "generated") == 0 < 0.02 < value(figures["kl"], "chance")
    assert value(figures["kl"], "chance") == value(figures["kl"], "real")
    # with two pairs, the partner of each is the other one
    two = figures_of([swapped[0], swapped[-1]])
    assert value(two["image_to_sound_r1"], "chance") == 1  # which is then alone, and so the nearest
    assert value(two["correspondence"], "chance") == pytest.approx(np.cos(LOUD[-1] - LOUD[0]), abs=2e-3)


def test_classes_by_hand_and_by_scipy(pairs: list[Pair]) -> None:
    figures = figures_of(pairs)
    generated, real = np.roll(LOUD, 2), LOUD
    sets = [np.stack([peak, peak**2], 1) for peak in (generated * 1.0, real, 0.999 * real)]
    # the generated ones are the real ones in another order: a distance of sets sees no difference
    assert value(figures["frechet"], "generated") == pytest.approx(0, abs=1e-5)
    assert value(figures["frechet"], "codec") == pytest.approx(textbook(sets[2], sets[1]), abs=1e-6)
    assert value(figures["frechet"], "real") > value(figures["frechet"], "codec")
    by_hand = classes.divergences(probabilities(real), probabilities(generated)).mean()
    assert value(figures["kl"], "generated") == pytest.approx(by_hand, rel=1e-4)
    assert value(figures["inception_score"], "real") == pytest.approx(
        value(figures["inception_score"], "generated")
    )
    assert figures["frechet"]["chance"] is None and figures["inception_score"]["chance"] is None


def test_the_seed_decides_intervals_and_the_batch_does_not(pairs: list[Pair]) -> None:
    one, again, other = figures_of(pairs), figures_of(pairs, batch=7), figures_of(pairs, seed=1)
    assert one == again
    for name in ("correspondence", "frechet", "kl", "inception_score"):
        assert one[name]["generated"]["interval"] != other[name]["generated"]["interval"]
        assert one[name]["generated"]["value"] == other[name]["generated"]["value"]
        bounds = one[name]["generated"]["interval"]
        assert bounds and bounds[0] <= one[name]["generated"]["value"] <= bounds[1]


def test_pairs_without_a_picture_or_caption_are_left_out_of_what_needs_one(pairs: list[Pair]) -> None:
    bare = [Pair(p.name, p.generated, p.reference, medium=p.medium) for p in pairs[:4]]
    figures = figures_of([*bare, *pairs[4:]])
    assert figures["correspondence"]["n"] == figures["clap_score"]["n"] == NUM - 4
    # the codec's column is there only where all have passed it
    assert figures["kl"]["n"] == NUM and figures["kl"]["codec"] is None
    assert figures["correspondence"]["codec"] is not None
    assert set(figures_of(bare)) == {"frechet", "kl", "inception_score"}


def test_pairs_are_sorted_by_the_first_figure_that_there_is() -> None:
    kl, cosine = np.array([0.3, 0.1, 0.2]), np.array([0.1, 0.9, 0.5])
    assert best_first({"kl": kl}) == ("kl", [1, 2, 0])
    assert best_first({"kl": kl, "clap_score": -cosine, "correspondence": cosine}) == (
        "correspondence",
        [1, 2, 0],
    )
    assert best_first({}) == ("", [])
