"""Plain values between ranks. Of one rank here: tests/training/run/test_ema.py and others run more."""

from training.run.engine import ensure_process_group
from training.run.ranks import broadcast, gather


def test_a_rank_alone_gathers_its_own_value() -> None:
    ensure_process_group()
    assert gather({"a": [1]}, world=1) == [{"a": [1]}]


def test_a_broadcast_gives_rank_0_its_own_value() -> None:
    ensure_process_group()
    assert broadcast((1, "b")) == (1, "b")
