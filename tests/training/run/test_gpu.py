"""Training on a GPU, where there is one, in a process of its own:

env -u DS_ACCELERATOR python -m pytest tests/training/run/test_gpu.py
"""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.fakes.latents import make_latents
from tests.fakes.runs import losses, settings
from training.train import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if dist.is_initialized() and dist.get_backend() != "nccl":
        pytest.skip("this process has trained on its CPU: run this file alone")
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


@pytest.mark.parametrize(
    "zero_stage,precision,offload",
    [(0, "fp32", False), (1, "bf16", False), (2, "bf16", True), (2, "bf16", False), (3, "bf16", False)],
)
def test_a_resumed_run_gives_the_losses_of_an_unbroken_one(
    tmp_path: Path, zero_stage: int, precision: str, offload: bool
) -> None:
    data = make_latents(tmp_path / "data").uri
    kind = {
        "zero_stage": zero_stage,
        "precision": precision,
        "offload": offload,
        "validate_every": 4,
        "validation_items": 3,
    }
    torch.cuda.reset_peak_memory_stats()
    train(settings(data, tmp_path / "whole", **kind))
    train(settings(data, tmp_path / "broken", **kind, steps=8))
    assert train(settings(data, tmp_path / "broken", **kind))["resumed_from"] == 8
    assert torch.cuda.max_memory_allocated() > 0
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
