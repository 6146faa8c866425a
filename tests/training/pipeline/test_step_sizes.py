"""How many steps of which size, what a network is told of it, and the loop that takes them."""

import pytest
import torch

from training.pipeline.step_sizes import SIZE_FEATURES, step_sizes, take_steps, told


@pytest.mark.parametrize("steps", range(1, 65))
def test_any_number_of_steps_reaches_the_end_by_trained_sizes_at_trained_times(steps: int) -> None:
    sizes = step_sizes(steps, num_sizes=7)
    assert len(sizes) == steps and sum(sizes) == 1
    assert set(sizes) <= {2.0**-power for power in range(7)}
    begun = 1.0
    for size in sizes:
        assert begun % size == 0
        begun -= size


@pytest.mark.parametrize("steps", [0, 5])
def test_more_steps_than_the_smallest_size_has_room_for_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps={steps}: this shortcut model takes 1 to 4 steps"):
        step_sizes(steps, num_sizes=3)


def test_each_step_goes_its_size_from_where_the_one_before_ended() -> None:
    seen: list[tuple[float, float]] = []

    def velocity(latent: torch.Tensor, time: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
        seen.append((float(time[0]), float(size[0])))
        return latent + 1

    latent = take_steps(torch.zeros(2, 1, 1, 1), step_sizes(3, 7), velocity)
    assert seen == [(1000, 0.5), (500, 0.25), (250, 0.25)]
    # x - size (x + 1), three times
    assert latent.flatten().tolist() == pytest.approx([-0.71875] * 2)


def test_every_size_is_told_unlike_the_others() -> None:
    sizes = torch.tensor([0.0, *(2.0**-power for power in range(10))])
    features = told(sizes)["timestep_cond"]
    assert features.shape == (11, SIZE_FEATURES)
    # in bf16, too
    distances = torch.cdist(features.bfloat16().float(), features.bfloat16().float())
    assert distances[~torch.eye(11, dtype=torch.bool)].min() > 1
