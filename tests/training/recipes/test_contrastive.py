"""Contrastive training: whose negatives are whose, the same loss at every number of workers, and batches of
many media.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.load import UserError, load_config
from tests.conftest import ROOT
from tests.fakes.contrastive_ranks import CONFIGS, FACTS, batch_of, build, by_ranks
from training.data.order import Order
from training.recipes import contrastive
from training.recipes.contrastive import medium_of
from training.settings import TrainConfig, identity


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_any_number_of_workers_computes_the_same_loss_and_gradients(kind: str, tmp_path: Path) -> None:
    by_ranks(tmp_path, partial(build, kind))
    steps = {world: torch.load(tmp_path / f"{world}.pt") for world in (1, 2, 4)}
    scales = {
        "pictures": {"log_scale"},
        "clap": {"text_log_scale"},
        "clap_pictures": {"log_scale"},
        "three_way": {"log_scale", "text_log_scale", "caption_log_scale"},
        "sounds": {"log_scale"},
    }
    assert {name for name in steps[1] if "scale" in name} == scales[kind]
    for world in (2, 4):
        assert steps[world].keys() == steps[1].keys()
        assert float(steps[world]["loss"]) == pytest.approx(float(steps[1]["loss"]), abs=1e-6)
        for name, expected in steps[1].items():
            assert torch.allclose(steps[world][name], expected, rtol=1e-4, atol=1e-6), name


def losses(kind: str = "pictures", **change: torch.Tensor) -> torch.Tensor:
    """[b], of a model whose weights are always the same."""
    torch.manual_seed(0)
    model: Any = contrastive.Contrastive(CONFIGS[kind], FACTS)
    with torch.no_grad():
        return model({**batch_of(0, 1), **change})["loss"]


def test_a_clip_of_the_same_medium_is_no_negative() -> None:
    louder = batch_of(0, 1)["log_mel"]
    louder[3] *= -2  # of the medium of sample 0
    before, after = losses(), losses(log_mel=louder)
    assert before[0] == pytest.approx(float(after[0]), abs=1e-6)
    assert (before[[1, 2, 4, 5, 7]] - after[[1, 2, 4, 5, 7]]).abs().min() > 1e-5


def test_a_hole_is_nobodys_negative_and_weighs_nothing() -> None:
    louder = batch_of(0, 1)["log_mel"]
    louder[6] *= -2
    before, after = losses(), losses(log_mel=louder)
    assert torch.allclose(before, after, atol=1e-6)
    assert before[6] == 0


def test_samples_of_one_medium_alone_have_nothing_to_tell_apart() -> None:
    assert torch.allclose(
        losses(media=torch.zeros(8, dtype=torch.int64), weight=torch.ones(8)), torch.zeros(8)
    )


# --- What a sound is like -----------------------------------------------------------------------------------


def test_the_error_of_the_statistics_is_added_and_a_holes_is_none() -> None:
    torch.manual_seed(0)
    model: Any = contrastive.Contrastive(CONFIGS["sounds"], FACTS)
    batch = batch_of(0, 1)
    with torch.no_grad():
        losses = model(batch)
        told = model.sound_head(model.pooled(batch))
        model.sound_weight = 0.0
        without = model(batch)["loss"]
    errors = ((told - batch["sound"]) ** 2).mean(1) * batch["weight"]
    assert torch.allclose(losses["loss"], without + 0.5 * errors, atol=1e-5)
    assert losses["loss"][6] == 0 and errors[:6].min() > 0


@pytest.mark.parametrize(
    "setting,message",
    [
        (["sound_weight=-1"], "contrastive.sound_weight=-1"),
        (
            ["sound_weight=1", "image.kind=", "text.kind=clap"],
            "are told from pictures; give contrastive.image",
        ),
        (
            ["image.kind=map", "image.size_px=60", "image.widths=[8,8,8]", "image.depths=[1,1,1]"],
            "multiple of 8",
        ),
    ],
)
def test_statistics_that_cannot_be_told_are_refused(setting: list[str], message: str) -> None:
    args = ["recipe=contrastive", "data=d", "output=o", *(f"contrastive.{each}" for each in setting)]
    config = load_config(TrainConfig, args)
    with pytest.raises(UserError, match=message):
        contrastive.check_config(config.contrastive)


# --- Captions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["clap", "three_way"])
def test_the_same_caption_and_the_same_medium_are_no_negatives(kind: str) -> None:
    """Of samples 1 and 4 (a caption), of 0 and 3 (a medium)."""
    tokens = batch_of(0, 1)["tokens"]
    tokens[4, 1:4] = torch.tensor([99, 98, 97])
    before, after = losses(kind), losses(kind, tokens=tokens)
    assert before[1] == pytest.approx(float(after[1]), abs=1e-6)
    assert (before[[0, 3, 5, 7]] - after[[0, 3, 5, 7]]).abs().min() > 1e-6


def test_a_sample_without_a_caption_has_its_picture_alone() -> None:
    """Sample 2: what its tokens are changes nothing, and its loss is that of a model without texts."""
    batch = batch_of(0, 1)
    tokens = batch["tokens"].clone()
    tokens[2] = tokens[5]
    before, after = losses("three_way"), losses("three_way", tokens=tokens)
    assert torch.allclose(before, after, atol=1e-6)
    # the same weights are drawn first, so that the pairs of pictures and sounds are the same
    assert before[2] == pytest.approx(float(losses("clap_pictures")[2]), abs=1e-6)
    everyone = losses("three_way", caption=torch.arange(8))
    assert abs(float(everyone[2] - before[2])) > 1e-4


def test_three_modalities_give_the_mean_of_their_pairs() -> None:
    """Each pair by a model of the two, in which the third has no part."""
    torch.manual_seed(0)
    model: Any = contrastive.Contrastive(CONFIGS["three_way"], FACTS)
    batch = batch_of(0, 1) | {"caption": torch.arange(8), "media": torch.arange(8), "weight": torch.ones(8)}
    with torch.no_grad():
        image, audio, text = model.embed(batch, model.pooled(batch))
        expected = torch.zeros(8)
        for first, second in ((image, audio), (audio, text), (image, text)):
            logits = first @ second.T / 0.07
            for rows in (logits, logits.T):
                expected += torch.nn.functional.cross_entropy(rows, torch.arange(8), reduction="none") / 6
        assert torch.allclose(model(batch)["loss"], expected, atol=1e-5)


def test_claps_two_temperatures_are_of_its_two_ways() -> None:
    torch.manual_seed(0)
    model: Any = contrastive.Contrastive(CONFIGS["clap"], FACTS)
    model.text_log_scale.data = torch.tensor([1.0, 2.0])
    batch = batch_of(0, 1) | {"caption": torch.arange(8), "media": torch.arange(8), "weight": torch.ones(8)}
    with torch.no_grad():
        audio, text = model.embed(batch, model.pooled(batch))
        to_text = torch.nn.functional.cross_entropy(
            audio @ text.T * np.exp(1), torch.arange(8), reduction="none"
        )
        to_audio = torch.nn.functional.cross_entropy(
            text @ audio.T * np.exp(2), torch.arange(8), reduction="none"
        )
        assert torch.allclose(model(batch)["loss"], 0.5 * (to_text + to_audio), atol=1e-5)


# --- Media --------------------------------------------------------------------------------------------------


def metadata(source: str, media_id: str, start_s: float) -> bytes:
    return json.dumps({"source": source, "media_id": media_id, "start_s": start_s}).encode()


def test_a_medium_is_known_by_its_source_and_id_whatever_was_cut_from_it() -> None:
    number = medium_of(metadata("youtube", "abc", 0.0))
    assert number == medium_of(memoryview(metadata("youtube", "abc", 12.5))) >= 0
    assert number not in (medium_of(metadata("youtube", "abd", 0.0)), medium_of(metadata("urls", "abc", 0.0)))


def share_with_a_neighbour(config: TrainConfig, clips: int, per_medium: int) -> float:
    """Of the samples of a few steps, those with another clip of their medium in the global batch."""
    order, size = (
        Order(clips, config.lanes, config.seed, config.block_size, config.window_size),
        config.global_batch,
    )
    found = []
    for step in range(20, 24):
        media = np.array(
            [order.sample(position) // per_medium for position in range(step * size, (step + 1) * size)]
        )
        _, place, counts = np.unique(media, return_inverse=True, return_counts=True)
        found.append(np.mean(counts[place] > 1))
    return float(np.mean(found))


@pytest.mark.parametrize(
    "preset", sorted(path.name for path in (ROOT / "configs/training").glob("*contrastive*.yaml"))
)
def test_shipped_presets_spread_the_clips_of_a_medium_over_batches(preset: str) -> None:
    config = load_config(TrainConfig, [str(ROOT / "configs/training" / preset), "data=x", "output=y"])
    by_chance = 1 - (1 - config.global_batch / 100_000) ** 9
    assert share_with_a_neighbour(config, 100_000, 10) < 1.5 * by_chance


def test_accumulation_divides_the_negatives_so_it_cannot_change_at_a_resume(tmp_path: Path) -> None:
    one, two = (
        TrainConfig(data="x", output="y", recipe="contrastive", accumulate=number) for number in (1, 2)
    )
    assert identity(one) != identity(two)
