"""How far a run is."""

from training.run.plan import Progress
from training.settings import TrainConfig


def test_the_next_position_is_past_what_rollbacks_left_out() -> None:
    config = TrainConfig(data="", output="", global_batch=8, lanes=4)
    assert Progress(step=5, skipped=2).position(config) == 7 * 8
