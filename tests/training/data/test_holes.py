"""What was removed or is damaged weighs nothing: in the loss that is minimised, in what is logged, in
validation.
"""

import copy
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from cluster.dataset import Dataset
from cluster.jsonl import read_lines
from tests.fakes.latents import make_latents
from training.data.catalogue import Catalogue
from training.data.choice import choose
from training.data.randomness import SampleKey
from training.pipeline.mel import MelConfig
from training.recipes import autoencoder, contrastive, diffusion
from training.settings import TrainConfig
from training.train import train

TINY = diffusion.Config(
    channels=[8, 8], head_counts=[2, 2], layers_per_block=1, attention=False, norm_groups=4
)


def settings(data: Dataset, output: Path, **other: Any) -> TrainConfig:
    basic = {
        "workers": 0,
        "steps": 1,
        "global_batch": 8,
        "lanes": 8,
        "checkpoint_every": 100,
        "zero_stage": 0,
    }
    return TrainConfig(data=data.uri, output=str(output), diffusion=TINY, **{**basic, **other})


def damage(data: Dataset, root: Path, split: str, key: str) -> None:
    """Flips a bit in one sample's latent."""
    catalogue = Catalogue.of(data, data.snapshot(), split, ("latent.npy", "image.npy"))
    (item,) = np.flatnonzero(catalogue.keys == key)
    tar = root / catalogue.tars[catalogue.tar_numbers[item]]
    content = bytearray(tar.read_bytes())
    content[int(catalogue.offsets[item, 0]) + 300] ^= 1
    tar.write_bytes(content)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_step_minimises_the_mean_over_the_samples_wherever_the_holes_are(
    accumulate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_latents(tmp_path / "data", units=1, per_unit=3)  # of eight lanes, five are empty
    make_batch, build_model = diffusion.make_batch, diffusion.build_model
    batches: list[dict[str, torch.Tensor]] = []
    models: list[torch.nn.Module] = []

    def keep_batch(*args: Any) -> dict[str, torch.Tensor]:
        batches.append(make_batch(*args))
        return batches[-1]

    def keep_model(*args: Any) -> torch.nn.Module:
        model = build_model(*args)
        if not next(model.parameters()).is_meta:  # one that only tells its shapes
            models.append(copy.deepcopy(model))
        return model

    monkeypatch.setattr(diffusion, "make_batch", keep_batch)
    monkeypatch.setattr(diffusion, "build_model", keep_model)
    train(settings(data, tmp_path / "run", accumulate=accumulate, gradient_clip=0.0))
    (line,) = read_lines(tmp_path / "run/metrics.jsonl")
    weight = batches[-1]["weight"]
    loss = models[0](batches[-1])["loss"].sum() / weight.sum()
    loss.backward()
    squares = [
        parameter.grad.square().sum() for parameter in models[0].parameters() if parameter.grad is not None
    ]
    assert weight.sum() == 3 and line["holes"] == 5
    assert line["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert line["grad_norm"] == pytest.approx(float(torch.stack(squares).sum().sqrt()), rel=1e-4)


def clip_bytes(seed: int) -> dict[str, bytes]:
    """A sound and a picture of noise, of a medium of its own."""
    rng = np.random.default_rng(seed)
    flac, jpg = io.BytesIO(), io.BytesIO()
    soundfile.write(flac, rng.uniform(-0.5, 0.5, 6400), 16000, format="FLAC")
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(jpg, "JPEG")
    facts = json.dumps({"source": "test", "media_id": str(seed)}).encode()
    return {"flac": flac.getvalue(), "jpg": jpg.getvalue(), "json": facts}


TOWER = contrastive.ImageTowerConfig(kind="resnet", widths=[8], depths=[1], stem=8, norm_groups=4, size_px=32)
RECIPES = {
    "autoencoder": autoencoder.Config(channels=[4, 4, 4], layers_per_block=1, norm_groups=2, attention=False),
    "contrastive": contrastive.Config(
        image=TOWER, audio=contrastive.AudioTowerConfig(width=8, depths=[1]), embedding_dim=8
    ),
}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_hole_changes_no_loss_and_no_score_of_a_recipe(name: str) -> None:
    recipe: Any = {"autoencoder": autoencoder, "contrastive": contrastive}[name]
    config, facts = RECIPES[name], {"mel": asdict(MelConfig(duration_s=0.4))}
    torch.manual_seed(0)
    model = recipe.build_model(config, facts)
    samples, keys = [clip_bytes(seed) for seed in range(3)], [SampleKey(0, 0, place) for place in range(4)]
    alone = model(recipe.make_batch(samples, keys[:3], config, facts))
    holed = model(
        recipe.make_batch(
            [*samples[:2], None, samples[2]], [keys[0], keys[1], keys[3], keys[2]], config, facts
        )
    )
    for values, ours in ((alone[kind], holed[kind]) for kind in alone):
        assert ours[2] == 0 and torch.allclose(ours[[0, 1, 3]], values, atol=1e-5)


def test_a_step_without_a_sample_has_no_loss_and_the_run_goes_on(tmp_path: Path) -> None:
    data = make_latents(tmp_path / "data", units=1, per_unit=1)
    damage(data, tmp_path / "data", "train", "k_000_0001")
    train(settings(data, tmp_path / "run", steps=3))
    lines = read_lines(tmp_path / "run/metrics.jsonl")
    assert [(line["loss"], line["holes"]) for line in lines] == [(None, 8)] * 3
    assert all(np.isfinite(line["grad_norm"]) for line in lines)


def test_samples_that_were_seen_are_counted_without_holes_and_over_a_resume(tmp_path: Path) -> None:
    data = make_latents(tmp_path / "data", units=1, per_unit=3)  # of eight lanes, five are empty
    for steps in (2, 4):
        train(settings(data, tmp_path / "run", steps=steps))
    assert [line["samples"] for line in read_lines(tmp_path / "run/metrics.jsonl")] == [3, 6, 9, 12]


def validated(data: Dataset, output: Path) -> dict[str, float]:
    """The last line of a run whose weights hardly move."""
    train(settings(data, output, lr=1e-12, validate_every=1))
    found = read_lines(output / "validation.jsonl")[-1]
    return {name: value for name, value in found.items() if name.startswith("loss")}


@pytest.mark.parametrize("how", ["buried", "damaged"])
def test_a_hole_among_the_validated_changes_nothing_about_the_others(how: str, tmp_path: Path) -> None:
    data = make_latents(tmp_path / "data", units=5)  # one validation sample each, and five fixed times
    whole = validated(data, tmp_path / "whole")
    if how == "buried":
        data.bury({"k_002_0000": "asked"})
    else:
        damage(data, tmp_path / "data", "validation", "k_002_0000")
    holed = validated(data, tmp_path / "holed")
    times = sorted(set(whole) - {"loss"})
    assert set(holed) == {"loss", *times} - {times[2]}, "no loss of 0 stands for what is missing"
    assert all(holed[time] == pytest.approx(whole[time], abs=1e-4) for time in times if time != times[2])
    assert holed["loss"] == pytest.approx(
        np.mean([holed[time] for time in times if time != times[2]]), rel=1e-6
    )
    named = [
        event["keys"]
        for event in read_lines(tmp_path / "holed/events.jsonl")
        if event["event"] == "damaged_validation"
    ]
    assert named == ([["k_002_0000"]] if how == "damaged" else [])


def test_one_whole_item_is_validated_even_where_all_that_were_chosen_are_gone(tmp_path: Path) -> None:
    data = make_latents(tmp_path / "data", units=3)
    keys = np.array([f"k_{unit:03d}_0000" for unit in range(3)])
    (first,) = choose(keys, np.zeros(3, bool), 1)
    data.bury({str(keys[first]): "asked"})
    train(settings(data, tmp_path / "run", validate_every=1, validation_items=1))
    assert np.isfinite(read_lines(tmp_path / "run/validation.jsonl")[-1]["loss"])
