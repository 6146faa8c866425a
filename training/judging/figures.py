"""What judges say of generated sounds, beside what real ones, chance and the codec give.

    figures, by_pair = judge_pairs(pairs, pair_judges, classifiers, seed=0, batch=32)

Each figure has four columns: `generated`; `real`, the references in their place (Frechet distance and KL:
between two halves of the references; onsets: of other references); `chance`, generated sounds of other pairs
(training.score.derangement); `codec`, the references through the codec, a ceiling. Each with a 95 % interval.
Towers are float32, all that follows is float64: batch size, threads and processor move a figure by rounding
alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
from PIL import Image

from ingest.pixels import open_picture
from training.judging import classes, frechet, onsets, retrieval
from training.judging.classifier import Classifier
from training.judging.embedder import Embedder
from training.judging.intervals import DIGITS, draw_media, interval, means
from training.judging.sound import batches, read_sound
from training.judging.towers import PairJudge
from training.score import NUM_DERANGEMENTS, derangement

COLUMNS = ("generated", "real", "chance", "codec")
CUTS = (1, 10)  # k of R@k
# by which pairs are sorted, the first that there is
ORDERS = ("correspondence", "clap_score", "kl", "onset_ap")


@dataclass(frozen=True)
class Pair:
    """A sound and what it is judged by. `codec`: the reference through the model's codec, if that is known.

    `picture` and `caption` may be missing. `medium`: pairs of one medium resemble each other.
    """

    name: str
    generated: Path
    reference: Path
    codec: Path | None = None
    picture: Path | None = None
    caption: str = ""
    medium: str = ""


class Cell(TypedDict):
    """A number and its 95 % interval, None where there is none."""

    value: float
    interval: list[float] | None


class Figure(TypedDict):
    """A row of the report. `n`: pairs; columns that have no meaning for it are None."""

    name: str
    judge: str
    better: Literal["higher", "lower"]
    n: int
    generated: Cell
    real: Cell | None
    chance: Cell | None
    codec: Cell | None


Sets = dict[str, np.ndarray]
"""Vectors [n, d] of each of `generated`, `real` and, where there is one, `codec`."""
ByPair = dict[str, np.ndarray]
"""Of each pair, by the name of a figure, [n]."""


def judge_pairs(
    pairs: Sequence[Pair],
    pair_judges: Sequence[PairJudge],
    classifiers: Sequence[Classifier],
    seed: int,
    batch: int,
    embedders: Sequence[Embedder] = (),
    with_onsets: bool = False,
) -> tuple[list[Figure], ByPair]:
    """All figures, and of the first judge of each kind what it says of every pair.

    Of pictures and of captions only pairs that have one, of each medium as a whole.
    """
    figures: list[Figure] = []
    by_pair: ByPair = {}
    for judge in pair_judges:
        if "image" in judge.modalities:
            seen = [pair for pair in pairs if pair.picture]
            figures += _pictures(judge, seen, seed, batch, by_pair if len(seen) == len(pairs) else {})
        if "text" in judge.modalities:
            told = [pair for pair in pairs if pair.caption]
            figures += _captions(judge, told, seed, batch, by_pair if len(told) == len(pairs) else {})
    for classifier in classifiers:
        figures += _classes(classifier, pairs, seed, batch, by_pair)
    for embedder in embedders:
        vectors = _vectors(embedder, pairs, batch)
        figures.append(_frechet(embedder.facts["name"], vectors, [pair.medium for pair in pairs], seed))
    if with_onsets:
        figures += _onsets(pairs, seed, by_pair)
    return figures, by_pair


# --- Pictures and captions ----------------------------------------------------------------------------------


def _pictures(
    judge: PairJudge, pairs: Sequence[Pair], seed: int, batch: int, by_pair: ByPair
) -> list[Figure]:
    """Correspondence, and retrieval both ways."""
    if len(pairs) < 2:
        return []

    def look(chosen: Sequence[Pair]) -> np.ndarray:
        return judge.pictures([_open(pair.picture) for pair in chosen])

    pictures = np.concatenate([look(chosen) for chosen in batches(pairs, batch)])
    sounds = _vectors(judge, pairs, batch)
    media = [pair.medium for pair in pairs]
    by_pair.setdefault("correspondence", retrieval.cosines(pictures, sounds["generated"]))
    figures = [_of_means("correspondence", judge, "higher", media, seed, sounds, partial_cosines(pictures))]
    for k in CUTS:

        def there(vectors: np.ndarray, order: np.ndarray, k: int = k) -> np.ndarray:
            others = [media[index] for index in order]
            return retrieval.hits(pictures, vectors[order], media, others, k)

        def back(vectors: np.ndarray, order: np.ndarray, k: int = k) -> np.ndarray:
            others = [media[index] for index in order]
            return retrieval.hits(vectors[order], pictures, others, media, k)

        figures.append(_of_means(f"image_to_sound_r{k}", judge, "higher", media, seed, sounds, there))
        figures.append(_of_means(f"sound_to_image_r{k}", judge, "higher", media, seed, sounds, back))
    return figures


def _captions(
    judge: PairJudge, pairs: Sequence[Pair], seed: int, batch: int, by_pair: ByPair
) -> list[Figure]:
    """CLAP score (Wu et al. 2023): the cosine of a caption and a sound."""
    if len(pairs) < 2:
        return []

    def read(chosen: Sequence[Pair]) -> np.ndarray:
        return judge.texts([pair.caption for pair in chosen])

    texts = np.concatenate([read(chosen) for chosen in batches(pairs, batch)])
    sounds = _vectors(judge, pairs, batch)
    media = [pair.medium for pair in pairs]
    by_pair.setdefault("clap_score", retrieval.cosines(texts, sounds["generated"]))
    return [_of_means("clap_score", judge, "higher", media, seed, sounds, partial_cosines(texts))]


def partial_cosines(partners: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The cosine of each of `partners` [n, d] with the vector that an order puts beside it."""
    return lambda vectors, order: retrieval.cosines(partners, vectors[order])


def _vectors(judge: PairJudge | Embedder, pairs: Sequence[Pair], batch: int) -> Sets:
    def hear(paths: Sequence[Path]) -> np.ndarray:
        return judge.sounds([read_sound(path) for path in paths])

    vectors: Sets = {}
    for column, paths in _paths(pairs).items():
        vectors[column] = np.concatenate([hear(chosen) for chosen in batches(paths, batch)])
    return vectors


def _paths(pairs: Sequence[Pair]) -> dict[str, list[Path]]:
    """The files of each set; the codec's only where all have passed it."""
    paths = {
        "generated": [pair.generated for pair in pairs],
        "real": [pair.reference for pair in pairs],
    }
    codec = [pair.codec for pair in pairs if pair.codec]
    return {**paths, "codec": codec} if len(codec) == len(pairs) else paths


def _of_means(
    name: str,
    judge: PairJudge,
    better: Literal["higher", "lower"],
    media: Sequence[str],
    seed: int,
    sounds: Sets,
    values_of: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Figure:
    """A figure that is a mean over pairs. `values_of`: vectors of sounds and an order of them -> [n]."""
    drawn = draw_media(media, seed)
    in_order = np.arange(len(media))
    exchanges = [derangement(media, seed, index) for index in range(NUM_DERANGEMENTS)]
    deranged = np.mean([values_of(sounds["generated"], exchange) for exchange in exchanges], 0)
    columns = {column: _mean_cell(values_of(vectors, in_order), drawn) for column, vectors in sounds.items()}
    return {
        "name": name,
        "judge": judge.facts["name"],
        "better": better,
        "n": len(media),
        "generated": columns["generated"],
        "real": columns["real"],
        "chance": _mean_cell(deranged, drawn),
        "codec": columns.get("codec"),
    }


# --- Classes ------------------------------------------------------------------------------------------------


def _classes(
    judge: Classifier, pairs: Sequence[Pair], seed: int, batch: int, by_pair: ByPair
) -> list[Figure]:
    """Frechet distance, KL and inception score."""
    features: Sets = {}
    probabilities: Sets = {}

    def hear(paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
        return judge.hear([read_sound(path) for path in paths])

    for column, paths in _paths(pairs).items():
        heard = [hear(chosen) for chosen in batches(paths, batch)]
        features[column] = np.concatenate([one[0] for one in heard])
        probabilities[column] = np.concatenate([one[1] for one in heard])
    media = [pair.medium for pair in pairs]
    by_pair.setdefault("kl", classes.divergences(probabilities["real"], probabilities["generated"]))
    name = judge.facts["name"]
    return [
        _frechet(name, features, media, seed),
        _kl(name, probabilities, media, seed),
        _inception(name, probabilities, media, seed),
    ]


def _frechet(judge: str, features: Sets, media: Sequence[str], seed: int) -> Figure:
    drawn = draw_media(media, seed, frechet.NUM_RESAMPLED)

    def cell(column: str) -> Cell | None:
        if column not in features:
            return None
        value = frechet.frechet(features[column], features["real"])
        # few distinct pairs have no covariance
        usable = drawn[(drawn > 0).sum(1) > 1]
        return _cell(value, interval(frechet.resampled(features[column], features["real"], usable), value))

    floor = frechet.floor(features["real"], media, seed)
    generated = cell("generated")
    assert generated is not None
    return {
        "name": "frechet",
        "judge": judge,
        "better": "lower",
        "n": len(media),
        "generated": generated,
        "real": None if floor is None else _cell(floor, None),
        # no pairs enter it
        "chance": None,
        "codec": cell("codec"),
    }


def _kl(judge: str, probabilities: Sets, media: Sequence[str], seed: int) -> Figure:
    real = probabilities["real"]

    def of(column: str, order: np.ndarray) -> np.ndarray:
        return classes.divergences(real, probabilities[column][order])

    own, others = _own_and_others(of, tuple(probabilities), media, seed)
    return _of_real(("kl", judge, "lower"), own, others, media, seed)


def _inception(judge: str, probabilities: Sets, media: Sequence[str], seed: int) -> Figure:
    drawn = draw_media(media, seed)

    def cell(column: str) -> Cell:
        value = classes.inception_score(probabilities[column])
        return _cell(value, interval(classes.inception_scores(probabilities[column], drawn), value))

    return {
        "name": "inception_score",
        "judge": judge,
        "better": "higher",
        "n": len(media),
        "generated": cell("generated"),
        "real": cell("real"),
        "chance": None,
        "codec": cell("codec") if "codec" in probabilities else None,
    }


# --- Against the real sound ---------------------------------------------------------------------------------


def _onsets(pairs: Sequence[Pair], seed: int, by_pair: ByPair) -> list[Figure]:
    """Onset alignment, of the pairs whose real sound has onsets."""
    heard: dict[str, list[onsets.Onsets]] = {}
    for column, paths in _paths(pairs).items():
        heard[column] = [onsets.find_onsets(read_sound(path)) for path in paths]
    kept = [index for index, real in enumerate(heard["real"]) if len(real.times_s)]
    if len(kept) < 2:
        return []
    media = [pairs[index].medium for index in kept]
    real = [heard["real"][index] for index in kept]

    def of(column: str, order: np.ndarray) -> np.ndarray:
        sounds = [heard[column][kept[index]] for index in order]
        return np.array([onsets.align(*each) for each in zip(real, sounds, strict=True)])

    own, others = _own_and_others(of, tuple(heard), media, seed)
    if len(kept) == len(pairs):
        by_pair["onset_ap"] = own["generated"][:, onsets.Alignment._fields.index("ap")]
    figures: list[Figure] = []
    for index, name in enumerate(onsets.Alignment._fields):
        better: Literal["higher", "lower"] = "lower" if name == "offset_s" else "higher"
        one = {column: values[:, index] for column, values in own.items()}
        other = {column: values[:, index] for column, values in others.items()}
        figures.append(_of_real((f"onset_{name}", onsets.NAME, better), one, other, media, seed))
    return figures


def _own_and_others(
    of: Callable[[str, np.ndarray], np.ndarray], columns: Sequence[str], media: Sequence[str], seed: int
) -> tuple[Sets, Sets]:
    """What sounds get beside their own real sound, by column, and beside those of other pairs, the mean over
    exchanges. `of`: a column and an order of its sounds -> [n] or [n, k].
    """
    exchanges = [derangement(media, seed, index) for index in range(NUM_DERANGEMENTS)]
    in_order = np.arange(len(media))
    own = {column: of(column, in_order) for column in columns}
    others: Sets = {}
    for column in ("generated", "real"):
        others[column] = np.mean([of(column, exchange) for exchange in exchanges], 0)
    return own, others


def _of_real(
    named: tuple[str, str, Literal["higher", "lower"]],
    own: Sets,
    others: Sets,
    media: Sequence[str],
    seed: int,
) -> Figure:
    """A figure (its name, judge and better) of sounds beside the real one; `real` is of another real one, as
    to itself each is perfect.
    """
    drawn = draw_media(media, seed)
    name, judge, better = named
    return {
        "name": name,
        "judge": judge,
        "better": better,
        "n": len(media),
        "generated": _mean_cell(own["generated"], drawn),
        "real": _mean_cell(others["real"], drawn),
        "chance": _mean_cell(others["generated"], drawn),
        "codec": _mean_cell(own["codec"], drawn) if "codec" in own else None,
    }


def _mean_cell(values: np.ndarray, drawn: np.ndarray) -> Cell:
    return _cell(float(values.mean()), interval(means(drawn, values)))


def _cell(value: float, bounds: list[float] | None) -> Cell:
    return {"value": round(value, DIGITS), "interval": bounds}


def _open(picture: Path | None) -> Image.Image:
    assert picture is not None, "only pairs with a picture are looked at"
    return open_picture(picture)


def best_first(by_pair: ByPair) -> tuple[str, list[int]]:
    """By what pairs are sorted, and their numbers from best to worst; "" and none where nobody does."""
    for name in ORDERS:
        if name in by_pair:
            falling = by_pair[name] if name == "kl" else -by_pair[name]
            return name, np.argsort(falling, kind="stable").tolist()
    return "", []
