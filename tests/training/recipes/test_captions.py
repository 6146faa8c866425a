"""Captions: found in a sample's JSON, read as bytes or by a published tokenizer, pinned by a run."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from configs.load import UserError
from tests.fakes.published_clap import words
from training.recipes.captions import (
    byte_tokenizer,
    facts_of,
    load_tokenizer,
    number_of,
    pad_of,
    pinned_tokenizer,
    save_tokenizer,
    text_of,
    token_ids,
)


@pytest.mark.parametrize(
    "sample,text",
    [
        ({"caption": " rain on a roof\n"}, "rain on a roof"),
        ({"title": "x", "meta": {"caption": "rain"}}, "rain"),
        ({"caption": "", "meta": {"caption": "rain"}}, "rain"),
        ({"caption": ["rain", "drops"]}, "rain"),
        ({"title": "x"}, ""),
        ({"caption": "  ", "meta": None}, ""),
        ({"caption": 7}, ""),
        ({"caption": []}, ""),
    ],
)
def test_a_caption_is_found_by_its_name(sample: dict[str, object], text: str) -> None:
    assert text_of(memoryview(json.dumps(sample).encode()), "caption") == text


def test_bytes_are_read_in_any_language_and_cut() -> None:
    tokenizer = pinned_tokenizer("", facts_of(byte_tokenizer())["sha256"], 8)
    ids = token_ids(tokenizer, ["é", "", "a long text"], 8)
    pad = pad_of(tokenizer)
    assert ids[0].tolist()[3:] == [2, *[pad] * 4] and ids[0, 0] == 0
    assert ids[1].tolist() == [0, 2, *[pad] * 6]
    assert ids[2, -1] == 2 and pad not in ids[2].tolist()
    assert facts_of(byte_tokenizer())["vocab_size"] == 259
    assert byte_tokenizer().decode(byte_tokenizer().encode("Schnee ❄ 雪").ids[1:-1]) == "Schnee ❄ 雪"


def test_published_tokens_are_those_of_transformers(tmp_path: Path) -> None:
    source = str(words(tmp_path / "published"))
    tokenizer = pinned_tokenizer(source, facts_of(load_tokenizer(source))["sha256"], 7)
    stock = AutoTokenizer.from_pretrained(source)
    texts = ["rain", "rain on a tin roof", "a roof on a roof on a roof"]
    theirs = stock(texts, padding="max_length", truncation=True, max_length=7, return_tensors="pt")[
        "input_ids"
    ]
    assert token_ids(tokenizer, texts, 7).tolist() == theirs.tolist()


def test_what_is_saved_reads_as_before(tmp_path: Path) -> None:
    save_tokenizer(load_tokenizer(""), tmp_path, 12)
    assert facts_of(load_tokenizer(str(tmp_path))) == facts_of(load_tokenizer(""))
    assert AutoTokenizer.from_pretrained(tmp_path)("né").input_ids == byte_tokenizer().encode("né").ids


def test_another_tokenizer_than_a_runs_is_refused(tmp_path: Path) -> None:
    pinned = facts_of(load_tokenizer(str(words(tmp_path / "one"))))["sha256"]
    other = str(words(tmp_path / "two", "tin"))
    with pytest.raises(UserError, match="is not the tokenizer that this run was begun with"):
        pinned_tokenizer(other, pinned, 7)


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no tokenizer.json; give a folder"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {}}))
    with pytest.raises(UserError, match="no <pad>; give one of RoBERTa's kind"):
        load_tokenizer(str(tmp_path))


def test_only_the_same_text_has_the_same_number() -> None:
    assert 0 <= number_of("rain") == number_of("rain") != number_of("Rain")
