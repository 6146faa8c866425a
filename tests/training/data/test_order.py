"""The order of samples: complete, the same for ever, and spread over the lanes."""

import pytest

from configs.load import UserError
from training.data.order import Order, check_geometry


@pytest.mark.parametrize(("num_samples", "lanes"), [(1, 1), (100, 4), (1237, 48)])
def test_an_epoch_has_every_sample_once(num_samples: int, lanes: int) -> None:
    order = Order(num_samples, lanes, seed=0)
    epoch = [order.sample(position) for position in range(order.lanes * order.lane_length)]
    assert sorted(sample for sample in epoch if sample >= 0) == list(range(num_samples))


def test_epochs_seeds_and_streams_have_orders_of_their_own() -> None:
    orders = [Order(256, 4, seed=0), Order(256, 4, seed=1), Order(256, 4, seed=0, stream=1)]
    samples = [tuple(order.sample(position) for position in range(256)) for order in orders]
    samples.append(tuple(orders[0].sample(position) for position in range(256, 512)))
    assert len(set(samples)) == 4


def test_windows_follow_each_other_and_end_at_different_rows() -> None:
    order = Order(32 * 200, lanes=32, seed=0)
    assert [order.window_end(lane, 0) for lane in (0, 1, 2)] == [64, 62, 60]
    assert [order.window_end(1, row) for row in (61, 62, 126)] == [62, 126, 190]
    end, samples = order.window(1)
    assert samples == [order.sample(position) for position in range(1, end, 32)]


@pytest.mark.parametrize(("global_batch", "world"), [(48, 5), (47, 4), (0, 1)])
def test_a_geometry_that_does_not_divide_is_refused(global_batch: int, world: int) -> None:
    with pytest.raises(UserError, match="must"):
        check_geometry(48, global_batch, world)
