"""Fragments: at every ZeRO stage each value of each parameter once, in whatever fields DeepSpeed keeps it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fakes.runs import settings
from training.checkpoints.fragments import Fragment, fragments_of, owned_by, publish, shapes_of
from training.run.engine import ensure_process_group, prepare_process, start_engines

SHAPES = {"0.weight": [4, 3], "0.bias": [4], "1.weight": [2, 4], "1.bias": [2]}


def engine_at(stage: int, folder: Path) -> Any:
    ensure_process_group()
    prepare_process(1)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    return start_engines(model, settings("data", folder, zero_stage=stage), 1)[0]


@pytest.mark.parametrize("stage", range(4))
def test_every_value_is_in_one_fragment(stage: int, tmp_path: Path) -> None:
    engine = engine_at(stage, tmp_path)
    assert shapes_of(engine.module) == SHAPES
    sizes = {name: torch.Size(shape).numel() for name, shape in SHAPES.items()}
    assert {fragment.name: fragment.size for fragment in fragments_of(engine, stage)} == sizes
    assert all(fragment.start == 0 for fragment in fragments_of(engine, stage))


@pytest.mark.parametrize("stage", range(4))
def test_what_is_written_to_a_fragment_is_what_the_model_computes_with(stage: int, tmp_path: Path) -> None:
    engine = engine_at(stage, tmp_path)
    for fragment in fragments_of(engine, stage):
        fragment.values("master").fill_(0.5)
    publish(engine, stage)
    # 3 inputs of 1: (3 * 0.5 + 0.5) = 2 in each of 4 units, then (4 * 2 * 0.5 + 0.5)
    assert engine(torch.ones(1, 3)).tolist() == [[4.5, 4.5]]


def test_at_zero_0_the_ranks_share_all_fragments_evenly() -> None:
    fragments = [Fragment(f"p{size}", 0, size, torch.zeros(size), 0, {}) for size in (8, 5, 4, 3, 2, 2)]
    shares = [owned_by(fragments, 0, rank, 3) for rank in range(3)]
    names = [fragment.name for share in shares for fragment in share]
    assert sorted(names) == sorted(fragment.name for fragment in fragments)
    assert [sum(fragment.size for fragment in share) for share in shares] == [8, 9, 7]
