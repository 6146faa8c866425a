"""CLAP's branches: published sizes and names, nothing random, nothing of the batch, and the statistics of published weights."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import ClapAudioConfig, ClapAudioModelWithProjection, ClapConfig, ClapModel

from training.networks.clap import (
    FrozenBatchNorm,
    HtsatConfig,
    MelNorm,
    TextTowerConfig,
    build_clap_audio,
    build_clap_text,
    check_steady,
    embed_sounds,
    embed_texts,
    with_statistics,
)

NORM = MelNorm(-6.0, 4.0)
TINY = HtsatConfig(width=8, depths=[1, 1], heads=[2, 2], spec_size=64, window=4)
TEXT = TextTowerConfig(kind="clap", width=16, layers=2, heads=2, positions=16)


def millions(model: nn.Module) -> float:
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def test_the_defaults_are_claps() -> None:
    with torch.device("meta"):
        stock: Any = ClapModel(ClapConfig())
        audio = build_clap_audio(HtsatConfig(), 64, 512, NORM)
        text = build_clap_text(TextTowerConfig(), 50265, 1, 512)
    shapes = {name: tensor.shape for name, tensor in stock.state_dict().items() if "logit" not in name}
    ours = {name: tensor.shape for tower in (audio, text) for name, tensor in tower.state_dict().items()}
    assert ours == shapes
    assert (millions(audio), millions(text)) == (
        pytest.approx(28.19, abs=0.01),
        pytest.approx(125.3, abs=0.1),
    )
    assert HtsatConfig().max_frames(64) == 1024


def towers() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return build_clap_audio(TINY, 64, 16, NORM), build_clap_text(TEXT, 50, 1, 16)


def test_training_draws_nothing_and_heeds_no_other_sample() -> None:
    audio, text = towers()
    sounds = NORM.centre + NORM.spread * torch.randn(3, 40, 64)
    tokens = torch.tensor([[0, 4, 5, 6, 2], [0, 7, 2, 1, 1], [0, 2, 1, 1, 1]])
    alone = [embed_sounds(audio, sounds[:1]), embed_texts(text, tokens[:1], 1)]
    torch.manual_seed(1)
    together = [embed_sounds(audio, sounds)[:1], embed_texts(text, tokens, 1)[:1]]
    for one, of_three in zip(alone, together, strict=True):
        assert torch.allclose(one, of_three, atol=1e-6) and one.std() > 1e-4


def test_what_draws_or_heeds_the_batch_is_found() -> None:
    with pytest.raises(AssertionError, match="drops at random"):
        check_steady(ClapAudioModelWithProjection(ClapAudioConfig(hidden_dropout_prob=0.1)).eval())
    stock = ClapAudioConfig(hidden_dropout_prob=0.0)
    with pytest.raises(AssertionError, match="batch_norm: takes the statistics of its batch"):
        check_steady(ClapAudioModelWithProjection(stock))
    audio, text = towers()
    check_steady(audio)
    check_steady(text)


def test_a_short_sound_is_stretched_as_the_stock_tower_does_it() -> None:
    stock, _ = towers()
    entrance: Any = stock.get_submodule("audio_model.audio_encoder.batch_norm")
    with torch.no_grad():
        entrance.weight.uniform_(0.5, 2)
        entrance.bias.normal_()
        sounds = NORM.centre + NORM.spread * torch.randn(3, 40, 64)
        theirs: Any = stock(input_features=sounds[:, None])
        assert torch.allclose(embed_sounds(stock, sounds), theirs.audio_embeds, atol=1e-6)


def test_padding_changes_no_text() -> None:
    _, text = towers()
    short = torch.tensor([[0, 4, 5, 2]])
    padded = nn.functional.pad(short, (0, 4), value=1)
    stock: Any = text
    theirs = stock(input_ids=padded, attention_mask=(padded != 1).long()).text_embeds
    assert torch.allclose(embed_texts(text, short, 1), embed_texts(text, padded, 1), atol=1e-6)
    assert torch.allclose(embed_texts(text, padded, 1), theirs, atol=1e-6)


def test_published_statistics_give_the_same_sounds_with_ours() -> None:
    stock, _ = towers()
    entrance: Any = stock.get_submodule("audio_model.audio_encoder.batch_norm")
    with torch.no_grad():
        for tensor in (entrance.weight, entrance.bias, entrance.running_mean):
            tensor.add_(torch.randn(64))
        entrance.running_var.uniform_(1, 400)
    ours, _ = towers()
    ours.load_state_dict(with_statistics(stock.state_dict(), NORM))
    own: Any = ours.get_submodule("audio_model.audio_encoder.batch_norm")
    assert torch.equal(own.running_mean, torch.full((64,), -6.0)) and torch.equal(
        own.running_var, torch.full((64,), 16.0)
    )
    sounds = NORM.centre + NORM.spread * torch.randn(3, 64, 64)
    assert torch.allclose(embed_sounds(ours, sounds), embed_sounds(stock, sounds), atol=1e-5)


def test_the_norm_takes_no_statistics_of_its_batch() -> None:
    for norm in (FrozenBatchNorm(4, NORM), FrozenBatchNorm(4, NORM).train()):
        mels = torch.full((2, 4, 3, 1), NORM.centre + NORM.spread)
        assert torch.allclose(norm(mels), torch.ones_like(mels), atol=1e-5)
        assert not norm.training and torch.equal(norm.running_mean, torch.full((4,), -6.0))
