"""The loader: an order that depends on (snapshot, seed, epoch) alone, every sample once per epoch, damage never passed on."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from cluster.dataset import Dataset
from configs.load import UserError
from ingest.remove import rewrite_unit
from tests.latents import make_latents
from training.loader import Catalogue, Loader, Order, check_geometry

MEMBERS = ("latent.npy", "image.npy")


def catalogue_of(dataset: Dataset) -> Catalogue:
    return Catalogue.of(dataset, dataset.snapshot(), "train", MEMBERS)


@given(num_samples=st.integers(1, 3000), lanes=st.sampled_from([1, 4, 48]), seed=st.integers(0, 3), epoch=st.integers(0, 2))
@effort(deadline=None, max_examples=60)
def test_an_epoch_holds_every_sample_once_and_fewer_holes_than_lanes(num_samples: int, lanes: int, seed: int, epoch: int) -> None:
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
    whole = Loader(catalogue, order, 8, 0, 1)
    ranks = [Loader(catalogue, order, 8, rank, world) for rank in range(world)]
    for step in range(20):
        expected = whole.batch(step)
        parts = [rank.batch(step) for rank in ranks]
        assert all({key.position % 4 % world for key in part.keys} == {rank} for rank, part in enumerate(parts)), "whole lanes"
        got = {key: sample for part in parts for key, sample in zip(part.keys, part.samples, strict=True)}
        assert got == dict(zip(expected.keys, expected.samples, strict=True))


def test_a_loader_that_starts_in_the_middle_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    catalogue = catalogue_of(make_latents(tmp_path / "data"))
    order = Order(len(catalogue), 4, 0)
    with Loader(catalogue, order, 8, 0, 2) as first, Loader(catalogue, order, 8, 0, 2, position=8 * 5) as later:
        whole = [batch for batch, _ in zip(first, range(15), strict=False)]
        rest = [batch for batch, _ in zip(later, range(10), strict=False)]
    assert [(b.step, b.keys, b.samples) for b in whole[5:]] == [(b.step, b.keys, b.samples) for b in rest]


def test_a_buried_sample_is_a_hole_and_moves_no_other(tmp_path: Path) -> None:
    dataset = make_latents(tmp_path / "data")
    before = catalogue_of(dataset)
    dataset.bury({"k_001_0003": "asked"})
    after = catalogue_of(dataset)
    order = Order(len(before), 4, 0)
    old, new = (Loader(c, order, 8, 0, 1) for c in (before, after))
    pairs = [pair for step in range(7) for pair in zip(old.batch(step).samples, new.batch(step).samples, strict=True)]
    changed = [pair for pair in pairs if pair[0] != pair[1]]
    assert len(changed) == 1 and changed[0][1] is None


def test_a_flipped_byte_is_an_error_that_names_the_sample(tmp_path: Path) -> None:
    dataset = make_latents(tmp_path / "data", units=1)
    catalogue = catalogue_of(dataset)
    tar = tmp_path / "data" / catalogue.tars[0]
    content = bytearray(tar.read_bytes())
    content[int(catalogue.offsets[5, 0]) + 200] ^= 1
    tar.write_bytes(content)
    with (
        Loader(catalogue, Order(len(catalogue), 1, 0), 1, 0, 1) as loader,
        pytest.raises(OSError, match="k_000_0006.latent.npy is damaged"),
    ):
        for _ in zip(loader, range(20), strict=False):
            pass


def test_whatever_fails_in_the_thread_is_raised_where_the_batch_is_asked_for(tmp_path: Path) -> None:
    class ReadTimeout(Exception):
        """What the client of an object storage raises is often no OSError."""

    def fail(name: str, start: int, end: int) -> bytes:
        raise ReadTimeout

    catalogue = catalogue_of(make_latents(tmp_path / "data", units=1))
    catalogue.store.read_range = fail  # type: ignore[method-assign]
    with Loader(catalogue, Order(len(catalogue), 1, 0), 1, 0, 1) as loader, pytest.raises(ReadTimeout):
        next(iter(loader))


def test_bytes_read_are_at_most_a_tenth_more_than_bytes_used(tmp_path: Path) -> None:
    catalogue = catalogue_of(make_latents(tmp_path / "data", units=6, per_unit=200))
    read = [0]
    ranged = catalogue.store.read_range

    def counted(name: str, start: int, end: int) -> bytes:
        read[0] += end - start
        return ranged(name, start, end)

    catalogue.store.read_range = counted  # type: ignore[method-assign]
    loader = Loader(catalogue, Order(len(catalogue), 4, 0), 4, 0, 1)
    used = sum(sum(map(len, sample.values())) for step in range(len(catalogue) // 4) for sample in loader.batch(step).samples if sample)
    headers = 2 * 1024 * len(catalogue)  # tar headers and padding: much of these small members, a fiftieth of real ones
    assert used == int(catalogue.sizes.sum())
    assert read[0] - headers <= 1.1 * used


def test_workers_lanes_and_batch_have_to_fit_each_other() -> None:
    check_geometry(48, 96, 3)
    with pytest.raises(UserError, match="legal here: 1, 2, 3, 4, 6"):
        check_geometry(48, 96, 5)
    with pytest.raises(UserError, match="multiple of lanes=48"):
        check_geometry(48, 50, 2)


def test_a_split_without_samples_is_refused(tmp_path: Path) -> None:
    dataset = make_latents(tmp_path / "data", units=1)
    with pytest.raises(UserError, match="no sample of split=test"):
        Catalogue.of(dataset, dataset.snapshot(), "test", MEMBERS)


def test_a_take_down_with_its_old_generation_gone_moves_no_sample_of_a_pinned_run(tmp_path: Path) -> None:
    dataset = make_latents(tmp_path / "data")
    snapshot = dataset.snapshot()
    before = Catalogue.of(dataset, snapshot, "train", MEMBERS)
    gone = {"k_001_0003", "k_002_0013", "k_002_0001"}
    for commit in snapshot.commits:
        rewrite_unit(dataset, commit, lambda row: row["key"] in gone, "asked")
        if commit.unit in ("u0000001", "u0000002") and commit.tar:
            dataset.store.delete(commit.tar.name)
            dataset.store.delete(commit.index.name)
    after = Catalogue.of(dataset, snapshot, "train", MEMBERS)
    assert list(after.keys) == list(before.keys)
    old, new = (catalogue.read(list(range(len(before)))) for catalogue in (before_again(tmp_path), after))
    assert {str(before.keys[sample]) for sample in old if old[sample] != new[sample]} == gone
    assert all(new[sample] is None for sample in new if str(before.keys[sample]) in gone)


def before_again(tmp_path: Path) -> Catalogue:
    return catalogue_of(make_latents(tmp_path / "again"))
