"""Settings of a run: mistakes are refused naming value and fix; the learning rate."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.load import UserError
from tests.fakes.runs import settings
from training.settings import TrainConfig, learning_rate


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    config = TrainConfig(data="", output="", lr=1.0, steps=110, warmup_steps=10, schedule="cosine")
    assert [round(learning_rate(config, step), 4) for step in (1, 5, 10, 60, 110)] == [
        0.1,
        0.5,
        1.0,
        0.5,
        0.0,
    ]
    assert learning_rate(replace(config, schedule="constant"), 110) == 1.0


@pytest.mark.parametrize(
    "change,says",
    [
        ({"recipe": "difusion"}, "recipe=difusion"),
        ({"global_batch": 10}, "global_batch=10: must be a multiple of lanes=4; the nearest is"),
        ({"workers": 3}, "workers=3: must divide lanes=4; legal here: 1, 2, 4"),
        ({"precision": "fp8"}, "precision=fp8: give one of fp32, bf16, fp16"),
        ({"zero_stage": 4}, "zero_stage=4"),
        ({"zero_stage": 0, "precision": "bf16"}, "give zero_stage=1"),
        ({"ema": 1.0}, "ema=1.0"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    data: str, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError) as error:
        settings(data, tmp_path / "run", **change)
    assert says in str(error.value)
    assert not (tmp_path / "run").exists()
