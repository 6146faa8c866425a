"""The loader: an order that depends on (snapshot, seed, epoch) alone, every sample once per epoch, damage
never passed on.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from cluster.dataset import Dataset
from configs.load import UserError
from tests.fakes.latents import make_latents
from training.data.catalogue import Catalogue
from training.data.loader import Loader
from training.data.mixture import Mixture
from training.data.order import Order, check_geometry
from training.data.randomness import SampleKey

MEMBERS = ("latent.npy", "image.npy")


def catalogue_of(dataset: Dataset) -> Catalogue:
    return Catalogue.of(dataset, dataset.snapshot(), "train", MEMBERS)


@given(
    num_samples=st.integers(1, 3000),
    lanes=st.sampled_from([1, 4, 48]),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 2),
)
@effort(deadline=None, max_examples=60)
def test_an_epoch_holds_every_sample_once_and_fewer_holes_than_lanes(
    num_samples: int, lanes: int, seed: int, epoch: int
) -> None:
    order = Order(num_samples, lanes, seed)
    start = epoch * order.lane_length * lanes
    found = [order.sample(position) for position in range(start, start + order.lane_length * lanes)]
    assert sorted(sample for sample in found if sample >= 0) == list(range(num_samples))
    assert found.count(-1) < lanes


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    one = [Order(500, 4, 0).sample(position) for position in range(500)]
    again = [Order(500, 4, 0).sample(position) for position in range(500, 1000)]
    other = [Order(500, 4, 1).sample(position) for position in range(500)]
    assert one != again and one != other
    assert np.mean(np.diff(one) == 1) < 0.1


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_step_is_the_same_set_at_every_world_size(tmp_path: Path, world: int) -> None:
    catalogue = catalogue_of(make_latents(tmp_path / "data"))
    order = Order(len(catalogue), 4, 0)
    whole = Loader(Mixture.of([catalogue], order), 8, 0, 1)
    ranks = [Loader(Mixture.of([catalogue], order), 8, rank, world) for rank in range(world)]
    for step in range(20):
        expected = whole.batch(step)
        parts = [rank.batch(step) for rank in ranks]
        assert all(
            {key.position % 4 % world for key in part.keys} == {rank} for rank, part in enumerate(parts)
        ), "whole lanes"
        got = {key: sample for part in parts for key, sample in zip(part.keys, part.samples, strict=True)}
        assert got == dict(zip(expected.keys, expected.samples, strict=True))


def test_a_loader_that_starts_in_the_middle_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    catalogue = catalogue_of(make_latents(tmp_path / "data"))
    order = Order(len(catalogue), 4, 0)
    with (
        Loader(Mixture.of([catalogue], order), 8, 0, 2) as first,
        Loader(Mixture.of([catalogue], order), 8, 0, 2, position=8 * 5) as later,
    ):
        whole = [batch for batch, _ in zip(first, range(15), strict=False)]
        rest = [batch for batch, _ in zip(later, range(10), strict=False)]
    assert [(b.step, b.keys, b.samples) for b in whole[5:]] == [(b.step, b.keys, b.samples) for b in rest]


def test_a_buried_sample_is_a_hole_and_moves_no_other(tmp_path: Path) -> None:
    dataset = make_latents(tmp_path / "data")
    before = catalogue_of(dataset)
    dataset.bury({"k_001_0003": "asked"})
    after = catalogue_of(dataset)
    order = Order(len(before), 4, 0)
    old, new = (Loader(Mixture.of([c], order), 8, 0, 1) for c in (before, after))
    pairs = [
        pair
        for step in range(7)
        for pair in zip(old.batch(step).samples, new.batch(step).samples, strict=True)
    ]
    changed = [pair for pair in pairs if pair[0] != pair[1]]
    assert len(changed) == 1 and changed[0][1] is None


def flip(root: Path, catalogue: Catalogue, sample: int) -> None:
    """One byte of the sample's first member."""
    tar = root / catalogue.tars[catalogue.tar_numbers[sample]]
    content = bytearray(tar.read_bytes())
    content[int(catalogue.offsets[sample, 0]) + 200] ^= 1
    tar.write_bytes(content)


def test_a_damaged_sample_is_a_hole_told_once_and_moves_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    catalogue = catalogue_of(make_latents(tmp_path / "data"))
    order = Order(len(catalogue), 4, 0)
    with Loader(Mixture.of([catalogue], order), 8, 0, 1) as loader:
        old = [sample for step in range(40) for sample in loader.batch(step).samples]
    expected = [
        None if sample is None else {name: bytes(part) for name, part in sample.items()} for sample in old
    ]
    flip(tmp_path / "data", catalogue, 5)
    with Loader(Mixture.of([catalogue], order), 8, 0, 1) as loader:
        new = [sample for step in range(40) for sample in loader.batch(step).samples]
    changed = [(was, now) for was, now in zip(expected, new, strict=True) if was != now]
    assert len(changed) == sum(order.sample(position) == 5 for position in range(320)) >= 5
    assert all(now is None for _, now in changed) and catalogue.damaged == {5}
    (said,) = caplog.messages
    assert f"{catalogue.tars[0]}: {catalogue.keys[5]} is damaged" in said


def test_a_sample_that_came_damaged_once_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = catalogue_of(make_latents(tmp_path / "data"))
    ranged, times = catalogue.store.read_range, []

    def once(name: str, start: int, end: int) -> bytes:
        times.append(end - start)
        return bytes(end - start) if len(times) == 1 else ranged(name, start, end)

    monkeypatch.setattr(catalogue.store, "read_range", once)
    assert all(catalogue.read([3, 4, 5]).values()) and len(times) == 4 and not catalogue.damaged


def test_much_damage_stops_the_run_with_one_line(tmp_path: Path) -> None:
    catalogue = catalogue_of(make_latents(tmp_path / "data", units=1, per_unit=40))
    for sample in range(12):
        flip(tmp_path / "data", catalogue, sample)
    with (
        Loader(Mixture.of([catalogue], Order(len(catalogue), 1, 0)), 1, 0, 1) as loader,
        pytest.raises(OSError, match="11 of 40 samples are damaged.*ingest verify"),
    ):
        for _ in zip(loader, range(80), strict=False):
            pass


@given(
    num_samples=st.integers(1, 3000),
    lanes=st.sampled_from([1, 4, 48]),
    sizes=st.sampled_from([(16, 64), (32, 128), (64, 64), (5, 7)]),
)
@effort(deadline=None, max_examples=60)
def test_windows_follow_each_other_through_a_lane_and_into_the_next_epoch(
    num_samples: int, lanes: int, sizes: tuple[int, int]
) -> None:
    order = Order(num_samples, lanes, 0, *sizes)
    lane = lanes - 1
    position, found = lane, []
    while position < 2 * order.lane_length * lanes:
        end, samples = order.window(position)
        assert position < end <= position + sizes[1] * lanes and end % lanes == lane
        found += samples
        position = end
    asked = [order.sample(position) for position in range(lane, 2 * order.lane_length * lanes, lanes)]
    assert sorted(found) == sorted(sample for sample in asked if sample >= 0)


def test_the_next_windows_are_on_their_way_before_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step waits for no read but the first one."""
    catalogue = catalogue_of(make_latents(tmp_path / "data", units=4, per_unit=128))
    ranged = catalogue.store.read_range

    def slow(name: str, start: int, end: int) -> bytes:
        time.sleep(0.2)
        return ranged(name, start, end)

    monkeypatch.setattr(catalogue.store, "read_range", slow)
    waits = []
    with Loader(Mixture.of([catalogue], Order(len(catalogue), 4, 0)), 4, 0, 1) as loader:
        for _, batch in zip(range(128), loader, strict=False):
            waits.append(batch.wait_s)
            time.sleep(0.04)
    assert waits[0] > 0.2 and sum(waits[1:]) < 0.5


def test_what_is_made_ahead_is_what_would_be_made_here_and_its_failure_is_raised_here(tmp_path: Path) -> None:
    catalogue = catalogue_of(make_latents(tmp_path / "data"))

    def sizes(samples: Sequence[Any], keys: Sequence[SampleKey]) -> dict[str, Any]:
        time.sleep(0.01 * (keys[0].position % 3))  # later ones may be ready sooner
        if keys[0].position == 8 * 6:
            raise ValueError("the sample is no picture")
        return {"keys": keys, "samples": [sample and bytes(sample["latent.npy"]) for sample in samples]}

    seen = 0
    with (
        Loader(Mixture.of([catalogue], Order(len(catalogue), 4, 0)), 8, 0, 1, make=sizes) as loader,
        pytest.raises(ValueError, match="no picture"),
    ):
        for batch in loader:
            samples = [sample and bytes(sample["latent.npy"]) for sample in batch.samples]
            assert batch.tensors == {"keys": batch.keys, "samples": samples}
            assert batch.keys[0].position == 8 * seen
            seen += 1
    assert seen == 6


def test_whatever_fails_in_the_thread_is_raised_where_the_batch_is_asked_for(tmp_path: Path) -> None:
    class ReadTimeout(Exception):
        """What the client of an object storage raises is often no OSError."""

    def fail(name: str, start: int, end: int) -> bytes:
        raise ReadTimeout

    catalogue = catalogue_of(make_latents(tmp_path / "data", units=1))
    catalogue.store.read_range = fail  # type: ignore[method-assign]
    with (
        Loader(Mixture.of([catalogue], Order(len(catalogue), 1, 0)), 1, 0, 1) as loader,
        pytest.raises(ReadTimeout),
    ):
        next(iter(loader))


def test_bytes_read_are_at_most_a_tenth_more_than_bytes_used(tmp_path: Path) -> None:
    catalogue = catalogue_of(make_latents(tmp_path / "data", units=6, per_unit=200))
    read = [0]
    ranged = catalogue.store.read_range

    def counted(name: str, start: int, end: int) -> bytes:
        read[0] += end - start
        return ranged(name, start, end)

    catalogue.store.read_range = counted  # type: ignore[method-assign]
    epochs = 8  # what is fetched ahead for the next one plays no part in so many
    with Loader(Mixture.of([catalogue], Order(len(catalogue), 4, 0)), 4, 0, 1) as loader:
        batches = (loader.batch(step) for step in range(epochs * len(catalogue) // 4))
        used = sum(sum(map(len, sample.values())) for batch in batches for sample in batch.samples if sample)
    headers = (
        epochs * 2 * 1024 * len(catalogue)
    )  # tar headers and padding: much of these small members, a fiftieth of real ones
    assert used == epochs * int(catalogue.sizes.sum())
    assert read[0] - headers <= 1.1 * used


def test_workers_lanes_and_batch_have_to_fit_each_other() -> None:
    check_geometry(48, 96, 3)
    with pytest.raises(UserError, match="legal here: 1, 2, 3, 4, 6"):
        check_geometry(48, 96, 5)
    with pytest.raises(UserError, match="multiple of lanes=48"):
        check_geometry(48, 50, 2)
