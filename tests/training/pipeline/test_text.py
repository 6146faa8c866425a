"""Sequences of texts: those of transformers' own forward pass, whatever stands beside them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    ClapTextModelWithProjection,
    RobertaModel,
    T5ForConditionalGeneration,
    VitsModel,
)

from tests.fakes.readers import save_text, save_vits
from training.pipeline.text import embed_texts
from training.text_encoders import load_phoneme_reader, load_text_reader

TEXTS = ["rain on a roof", "", "rain", "a bell, take 1.2 on a high roof", "bell bell"]
# float32 sums in another order, of values around 1
ROUNDING = 2e-5


def stock_hidden(folder: Path, kind: str, text: str) -> torch.Tensor:
    """Of one text alone, without padding, by the classes that were published for it."""
    tokens = AutoTokenizer.from_pretrained(folder)([text], padding=False, return_tensors="pt")
    model: Any
    if kind == "vits":
        model = VitsModel.from_pretrained(folder).eval().text_encoder
        found = model(padding_mask=torch.ones(1, tokens["input_ids"].shape[1], 1), **tokens)
    elif kind == "t5":
        model = T5ForConditionalGeneration.from_pretrained(folder).eval().get_encoder()
        found = model(input_ids=tokens["input_ids"])
    elif kind == "clap":
        model = ClapTextModelWithProjection.from_pretrained(folder).eval().text_model
        found = model(input_ids=tokens["input_ids"])
    else:
        model = RobertaModel.from_pretrained(folder).eval()
        found = model(input_ids=tokens["input_ids"])
    hidden: torch.Tensor = found.last_hidden_state[0]
    return hidden


@pytest.mark.parametrize("kind", ["roberta", "t5", "clap", "vits"])
@torch.no_grad()
def test_each_text_has_what_transformers_makes_of_it_alone(tmp_path: Path, kind: str) -> None:
    folder = save_vits(tmp_path) if kind == "vits" else save_text(tmp_path, kind)
    reader = load_phoneme_reader(folder) if kind == "vits" else load_text_reader(folder)
    together = embed_texts(*reader, TEXTS, max_tokens=20)
    assert together[1].shape == (0, 16)
    for text, found in zip(TEXTS, together, strict=True):
        if not text:
            continue
        expected = stock_hidden(folder, kind, text)[:20]
        (alone,) = embed_texts(*reader, [text], max_tokens=20)
        assert found.shape == alone.shape
        if len(found) < 20:  # a longer one is cut before it is read
            assert found.shape == expected.shape and (alone - expected).abs().max() < ROUNDING
        assert (found - alone).abs().max() < ROUNDING and found.std() > 0.1


@torch.no_grad()
def test_what_is_cut_is_cut_before_it_is_read_and_keeps_its_end(tmp_path: Path) -> None:
    reader = load_text_reader(save_text(tmp_path, "roberta"))
    (cut,), (same,) = (embed_texts(*reader, [text], 4) for text in ("rain on a roof", "rain on"))
    assert cut.shape == (4, 16) and torch.equal(cut, same)


@torch.no_grad()
def test_a_text_of_nothing_that_vits_can_say_is_absent(tmp_path: Path) -> None:
    reader = load_phoneme_reader(save_vits(tmp_path))
    none, letter = embed_texts(*reader, ["?!", "A"], 20)
    assert none.shape == (0, 16)
    assert letter.shape == (3, 16), "a letter between two blanks"
    assert [len(one) for one in embed_texts(*reader, ["", "?"], 20)] == [0, 0]
    # not cleaned of what it does not know, a text has ids: of that, and of the blanks around it
    reader[1].normalize = False
    assert [len(one) for one in embed_texts(*reader, ["?", "a?"], 20)] == [0, 4]
