"""Mixtures: every dataset goes round by itself, at its weight, at every world size, from every position; only
what was made alike.
"""

import json
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from cluster.dataset import Dataset
from cluster.jsonl import read_lines
from configs.load import UserError
from ingest.seen import Selection, seen_by
from tests.fakes.latents import make_latents
from tests.fakes.runs import losses, settings
from training.data.catalogue import Catalogue
from training.data.loader import Loader
from training.data.mixture import PERIOD, Mixture, share_out
from training.data.npy import read_npy
from training.data.order import Order
from training.train import prepare, train

MEMBERS = ("latent.npy", "image.npy")


def mixture_of(datasets: list[Dataset], *weights: float, lanes: int = 4) -> Mixture:
    return Mixture.of(
        [Catalogue.of(d, d.snapshot(), "train", MEMBERS) for d in datasets], Order(0, lanes, 0), weights
    )


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    root = tmp_path_factory.mktemp("mixture")
    return [make_latents(root / "one/data"), make_latents(root / "two/data", units=2, seed=1)]


@given(weights=st.lists(st.floats(0.01, 1), min_size=1, max_size=5), rows=st.integers(1, 3 * PERIOD))
@effort(deadline=None, max_examples=25)
def test_every_dataset_is_walked_through_in_its_own_order_without_a_gap(
    weights: list[float], rows: int
) -> None:
    counts = share_out(weights)
    assert (
        sum(counts) == PERIOD
        and np.abs(np.array(counts) / PERIOD - np.array(weights) / sum(weights)).max() < 1 / PERIOD
    )
    nothing = np.zeros((500, 1), np.int64)
    catalogue = Catalogue(None, (), nothing, nothing[:, 0], (), nothing, nothing, nothing, nothing[:, 0])  # type: ignore[arg-type]
    mixture, lanes = Mixture.of([catalogue] * len(weights), Order(0, 3, 0), weights), 3
    told = [mixture.locate(position) for position in range(rows * lanes)]
    for number in range(len(weights)):
        for lane in range(lanes):
            own = [place for who, place in told[lane::lanes] if who == number]
            assert own == list(range(lane, lane + len(own) * lanes, lanes))
    if rows >= PERIOD:
        assert Counter(who for who, _ in told[: PERIOD * lanes]) == {
            number: count * lanes for number, count in enumerate(counts)
        }


def test_one_dataset_alone_is_in_its_own_order(pair: list[Dataset]) -> None:
    mixture = mixture_of(pair[:1])
    order = Order(len(mixture.catalogues[0]), 4, 0)
    for position in (0, 1, 7, 4 * PERIOD - 1, 4 * PERIOD, 10**9 + 3):
        assert mixture.locate(position) == (0, position) and mixture.key(position) == order.key(position)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_step_of_a_mixture_is_the_same_at_every_world_size_and_from_every_start(
    pair: list[Dataset], world: int
) -> None:
    mixture = mixture_of(pair, 0.3, 0.7)
    with Loader(mixture, 8, 0, 1) as alone:
        whole = list(islice(alone, 30))
    found: list[dict[Any, Any]] = [{} for _ in range(20)]
    for rank in range(world):
        with Loader(mixture, 8, rank, world, position=8 * 10) as loader:
            for place, batch in enumerate(islice(loader, 20)):
                found[place] |= zip(batch.keys, batch.samples, strict=True)
    assert found == [dict(zip(batch.keys, batch.samples, strict=True)) for batch in whole[10:]]


def test_each_dataset_gives_all_its_samples_once_before_any_twice(pair: list[Dataset]) -> None:
    mixture = mixture_of(pair, 0.25, 0.75)
    seen: list[list[int]] = [[], []]
    for position in range(400):
        number, own = mixture.locate(position)
        if (sample := mixture.orders[number].sample(own)) >= 0:
            seen[number].append(sample)
    rounds = Counter(seen[1])
    assert (
        set(rounds) == set(range(26)) and max(rounds.values()) - min(rounds.values()) <= 2
    )  # lanes are not quite abreast
    assert len(seen[1]) > 2.5 * len(seen[0])


def test_without_weights_each_dataset_comes_as_often_as_it_has_samples(pair: list[Dataset]) -> None:
    assert mixture_of(pair).counts == (667, 333)


def mixed(pair: list[Dataset], output: Path, **other: Any) -> Any:
    return settings(pair[0].uri, output, more_data=[pair[1].uri], **other)


def test_a_run_on_a_mixture_resumes_bit_for_bit_and_pins_both(pair: list[Dataset], tmp_path: Path) -> None:
    train(mixed(pair, tmp_path / "whole", weights=[0.2, 0.8]))
    train(mixed(pair, tmp_path / "broken", weights=[0.2, 0.8], steps=8))
    train(mixed(pair, tmp_path / "broken", weights=[0.2, 0.8]))
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    train(mixed(pair, tmp_path / "other", weights=[0.8, 0.2]))
    assert losses(tmp_path / "other") != losses(tmp_path / "whole")
    pinned = [
        snapshot["id"] for snapshot in json.loads((tmp_path / "whole/run.json").read_text())["snapshots"]
    ]
    assert pinned == [dataset.snapshot().id for dataset in pair]
    marker = json.loads((tmp_path / "whole/checkpoints/step-00000012/COMMITTED.json").read_text())
    assert marker["facts"]["snapshots"] == pinned
    assert read_lines(tmp_path / "whole/events.jsonl")[-1]["event"] == "finished"


def members_of(dataset: Dataset, name: str) -> np.ndarray:
    """float64 [n, …], of all training samples."""
    catalogue = Catalogue.of(dataset, dataset.snapshot(), "train", (name,))
    samples = catalogue.read(list(range(len(catalogue))))
    return np.stack([read_npy(sample[name]).astype(np.float64) for sample in samples.values() if sample])


@pytest.mark.parametrize(
    "weights,shares", [([0.1, 0.9], [0.1, 0.9]), ([30.0, 10.0], [0.75, 0.25]), ([], [15 / 17, 2 / 17])]
)
def test_the_statistics_of_a_mixture_are_those_of_what_is_drawn(
    tmp_path: Path, weights: list[float], shares: list[float]
) -> None:
    """Each dataset counts by its weight, not by its samples; without weights it is drawn from by its samples."""
    pair = [
        make_latents(tmp_path / f"{seed}/data", units=units, per_unit=n, seed=seed)
        for seed, units, n in ((2, 3, 5), (3, 1, 2))
    ]
    found = prepare(mixed(pair, tmp_path / "run", weights=weights)).geometry
    for name, axes in (("latent", (0, 2, 3)), ("image", 0)):
        drawn = [members_of(dataset, f"{name}.npy") for dataset in pair]
        values = [part[:, 0] if name == "latent" else part for part in drawn]
        mean = sum(share * part.mean(axes) for share, part in zip(shares, values, strict=True))
        square = sum(share * (part**2).mean(axes) for share, part in zip(shares, values, strict=True))
        assert found[f"{name}_mean"] == pytest.approx(mean, rel=1e-9)
        assert found[f"{name}_std"] == pytest.approx(np.sqrt(square - mean**2), rel=1e-9)


def test_a_take_down_in_a_dataset_mixed_in_names_the_checkpoints(pair: list[Dataset], tmp_path: Path) -> None:
    train(mixed(pair, tmp_path / "run", steps=4))
    selection = Selection(pair[1], lambda _: True, {"k_000_0003": ("u0000000", "train")})
    assert [(line["step"], line["samples"]) for line in seen_by(str(tmp_path / "run"), [selection])] == [
        (4, 1),
        (4, 1),
    ]


def test_weights_and_datasets_that_cannot_be_mixed_are_refused(pair: list[Dataset], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="weights=.*give 2"):
        mixed(pair, tmp_path / "run", weights=[1.0])
    with pytest.raises(UserError, match="names a dataset twice"):
        settings(pair[0].uri, tmp_path / "run", more_data=[pair[0].uri])
    for weights in ([1.0, 0.0], [1.0, float("nan")], [1.0, 1e-9]):
        with pytest.raises(UserError, match="weights="):
            train(mixed(pair, tmp_path / "run", weights=weights))
    meta = {**pair[1].meta["config"], "precision": "bf16"}
    strange = Dataset.create_or_open(str(tmp_path / "strange"), "latents", meta, [])
    with pytest.raises(UserError, match="was not made as"):
        train(settings(pair[0].uri, tmp_path / "run", more_data=[strange.uri]))
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_only_with_the_datasets_it_was_started_with(
    pair: list[Dataset], tmp_path: Path
) -> None:
    config = mixed(pair, tmp_path / "run", steps=4)
    train(config)
    for other in (replace(config, more_data=[]), replace(config, data=pair[1].uri, more_data=[pair[0].uri])):
        with pytest.raises(UserError, match="was started with"):
            train(replace(other, steps=8))
