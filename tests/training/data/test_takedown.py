"""What is buried while a run trains becomes a hole of it."""

from pathlib import Path
from typing import Any

import pytest

from cluster.dataset import Dataset
from tests.fakes.latents import make_latents
from tests.fakes.runs import settings
from training.data.catalogue import Catalogue
from training.data.takedown import watch_tombstones
from training.recipes import diffusion
from training.train import train


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return make_latents(tmp_path / "data", units=2)


def test_what_is_buried_while_a_run_trains_is_not_learnt_any_more(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [f"k_{unit:03d}_{number:04d}" for unit in range(2) for number in range(1, 14)]
    catalogue = Catalogue.of(data, data.snapshot(), "train", diffusion.MEMBERS)
    secrets = {bytes(sample["latent.npy"]) for sample in catalogue.read(list(range(20))).values() if sample}
    make_batch = diffusion.make_batch
    calls = [0]
    seen: list[int] = []

    def counting(samples: Any, *more: Any) -> Any:
        calls[0] += 1
        if calls[0] == 8:
            data.bury({key: "removed" for key in keys[:20]})
        if any(sample and bytes(sample["latent.npy"]) in secrets for sample in samples):
            seen.append(calls[0])
        return make_batch(samples, *more)

    monkeypatch.setattr(diffusion, "make_batch", counting)
    sizes = {"global_batch": 4, "checkpoint_every": 2, "zero_stage": 0}
    train(settings(data.uri, tmp_path / "run", steps=30, **sizes))
    assert 2 <= min(seen) < 8  # the first call is the check of the model
    assert max(seen) <= 8 + 2 + 3  # the checkpoint after it, and what had been made ready by then
    assert calls[0] == 31


def test_a_look_makes_holes_of_new_tombstones_alone(data: Dataset) -> None:
    catalogue = Catalogue.of(data, data.snapshot(), "train", diffusion.MEMBERS)
    with watch_tombstones([(data, [catalogue])]) as look:
        data.bury({"k_000_0003": "removed"})
        look()
        assert catalogue.keys[catalogue.holes].tolist() == ["k_000_0003"]
