"""Encoders of texts and phonemes: what is refused at the door, and with which way out."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ClapTextConfig, ClapTextModelWithProjection

from configs.load import UserError
from tests.fakes.published_clap import WORDS
from tests.fakes.readers import save_text, save_vits
from training import text_encoders
from training.pipeline.text import embed_texts
from training.recipes.captions import byte_tokenizer, save_tokenizer
from training.text_encoders import (
    check_reader,
    find_phoneme_encoder,
    find_text_encoder,
    load_phoneme_reader,
    load_text_reader,
)


def test_a_tokenizer_that_needs_another_package_is_refused_with_the_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_encoders, "is_phonemizer_available", lambda: False)
    monkeypatch.setattr(text_encoders, "is_uroman_available", lambda: False)
    with pytest.raises(
        UserError, match=r"pip install phonemizer.*espeak-ng.*mms-tts-eng.*phonemize to false"
    ):
        load_phoneme_reader(save_vits(tmp_path / "speaks", phonemize=True))
    with pytest.raises(UserError, match="pip install uroman"):
        load_phoneme_reader(save_vits(tmp_path / "writes", is_uroman=True))


def test_another_model_or_one_without_its_tokenizer_is_refused(tmp_path: Path) -> None:
    text = find_text_encoder(str(save_text(tmp_path / "text", "roberta")))
    vits = find_phoneme_encoder(str(save_vits(tmp_path / "vits")))
    with pytest.raises(UserError, match="text_encoder=.*holds a vits, need one of roberta, t5, clap"):
        load_text_reader(vits)
    with pytest.raises(UserError, match="phoneme_encoder=.*holds a roberta, need a vits"):
        load_phoneme_reader(text)
    (text / "tokenizer.json").unlink()
    (vits / "vocab.json").unlink()
    with pytest.raises(UserError, match="has no tokenizer.json; save its tokenizer"):
        load_text_reader(text)
    with pytest.raises(UserError, match="has no vocab.json; save its tokenizer"):
        load_phoneme_reader(vits)


def test_weights_that_are_missing_or_not_finite_are_refused(tmp_path: Path) -> None:
    folder = save_text(tmp_path / "text", "t5")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = "encoder.block.1.layer.0.SelfAttention.q.weight"
    save_file({**tensors, name: tensors[name] * torch.nan}, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="NaN or infinite"):
        check_reader(load_text_reader(folder), 77, "text_encoder", str(folder))
    tensors.pop(name)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"no weights for {name}"):
        load_text_reader(folder)


def test_more_tokens_than_a_model_has_places_for_and_anothers_tokenizer_are_refused(tmp_path: Path) -> None:
    folder = save_text(tmp_path / "text", "roberta")
    reader = load_text_reader(folder)
    check_reader(reader, 24, "text_encoder", str(folder))
    with pytest.raises(UserError, match="text_tokens=25: give 3 or more to 24"):
        check_reader(reader, 25, "text_encoder", str(folder))
    with pytest.raises(UserError, match="text_tokens=2: give 3 or more"):
        check_reader(reader, 2, "text_encoder", str(folder))
    save_tokenizer(byte_tokenizer(), folder, 24)
    with pytest.raises(UserError, match="its tokenizer has 259 tokens.*give a model with its own"):
        check_reader(load_text_reader(folder), 24, "text_encoder", str(folder))


@torch.no_grad()
def test_a_branch_that_we_trained_is_read_with_its_bytes(tmp_path: Path) -> None:
    run = tmp_path / "run/model"
    branch = ClapTextModelWithProjection(ClapTextConfig(**{**WORDS, "vocab_size": 259}, projection_dim=8))
    branch.save_pretrained(run / "text_encoder")
    save_tokenizer(byte_tokenizer(), run / "text_encoder", 16)
    reader = load_text_reader(find_text_encoder(str(run)))
    (sequence,) = embed_texts(*reader, ["né"], 16)
    assert sequence.shape == (5, 16), "three bytes between two ends"
    # as our export writes it, without its projection
    reader.encoder.save_pretrained(tmp_path / "alone")
    save_tokenizer(byte_tokenizer(), tmp_path / "alone", 16)
    assert json.loads((tmp_path / "alone/config.json").read_text())["architectures"] == ["ClapTextModel"]
    (again,) = embed_texts(*load_text_reader(tmp_path / "alone"), ["né"], 16)
    assert torch.equal(sequence, again)
