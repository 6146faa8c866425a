"""Texts of samples: out of a sample's JSON, and into token ids of fixed length.

    facts = facts_of(load_tokenizer("hub:laion/clap-htsat-unfused"))   # of a tokenizer.json; "" reads bytes
    tokenizer = pinned_tokenizer("hub:laion/clap-htsat-unfused", facts["sha256"], max_tokens=77)
    text = text_of(sample["json"], "caption")                          # "" where there is none
    ids = token_ids(tokenizer, [text], max_tokens=77)                  # int64 [b, 77], padded

A run pins its tokenizer by sha256 (`facts_of`): other ids would be another language to the model. Nothing is
downloaded but what `tokenizer` names.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor

from cluster.dataset import Dataset, Snapshot
from cluster.shards import Status, members_of
from configs.load import UserError
from training.pretrained import local_copy
from training.recipes.recipe import TokenizerFacts

log = logging.getLogger(__name__)
LOOKED_AT = 64  # samples
NO_TEXTS = ("source", "media_id", "url", "license", "mode", "split", "audio_sha256", "image_sha256")
TOKENIZER_FILE = "tokenizer.json"
START, PAD, END = "<s>", "<pad>", "</s>"  # RoBERTa's
# where a run of ours, or its model, has one
FOLDERS = ("", "clap", "text_encoder", "model/clap", "model/text_encoder")


def text_of(metadata: bytes | memoryview, column: str) -> str:
    """A sample's text, without white space around it: of its JSON, or of the `meta` therein.

    "" where there is none, or where it is no text. Of a list of texts the first.
    """
    sample = json.loads(bytes(metadata))
    meta = sample.get("meta")
    value = sample.get(column) or (meta.get(column) if isinstance(meta, dict) else None)
    if isinstance(value, list) and value:
        value = value[0]
    return value.strip() if isinstance(value, str) else ""


def check_column(
    snapshot: Snapshot, column: str, needed: bool, setting: str = "contrastive.text.column"
) -> None:
    """A look at some samples: where none has a text under this name, `UserError` if it is `needed`, else a
    warning, naming what they have."""
    texts: dict[str, str] = {}
    for metadata in _first_metadata(snapshot):
        if text_of(metadata, column):
            return
        sample = json.loads(metadata)
        meta = sample.get("meta")
        for name, value in {**(meta if isinstance(meta, dict) else {}), **sample}.items():
            if isinstance(value, str) and value and name not in NO_TEXTS:
                texts[name] = value
    message = (
        f"{setting}={column}: none of the first samples of {snapshot.uri} has such a text; "
        f"they have {', '.join(sorted(texts)) or 'none'}"
    )
    if needed:
        raise UserError(f"{message}; give one of these")
    log.warning("%s", message)


def _first_metadata(snapshot: Snapshot) -> Iterator[bytes]:
    """The JSON of up to `LOOKED_AT` kept samples: the first ones of units all over the dataset, since another
    source may have other texts."""
    dataset = Dataset.open(snapshot.uri)
    units = snapshot.commits[:: max(1, len(snapshot.commits) // LOOKED_AT)][:LOOKED_AT]
    of_each = -(-LOOKED_AT // max(1, len(units)))
    for commit in units:
        looked_at = 0
        for row in dataset.read_index(commit).to_pylist():
            members = [member for member in members_of(row) if member.ext == "json"]
            if row["status"] != Status.KEPT or not members or commit.tar is None:
                continue
            yield dataset.store.read_range(commit.tar.name, members[0].offset, members[0].end)
            looked_at += 1
            if looked_at == of_each:
                break


def number_of(text: str) -> int:
    """A number in 0..2^63 that two texts share only where they are the same."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # 63 bits: an int64 of a tensor is signed


def load_tokenizer(source: str) -> Tokenizer:
    """Of a folder, a run or the hub, which neither cuts nor pads; without a source `byte_tokenizer`.

    `UserError` where there is no tokenizer.json, or it lacks RoBERTa's padding.
    """
    if not source:
        return byte_tokenizer()
    file = tokenizer_file(local_copy(source))
    setting = f"contrastive.text.tokenizer={source}"
    if file is None:
        raise UserError(
            f"{setting}: has no {TOKENIZER_FILE}; give a folder or hub:owner/name that has one, "
            "or none to read bytes"
        )
    text = file.read_text()
    if '"model"' not in text or f'"{PAD}"' not in text:
        raise UserError(
            f"{setting}: its {TOKENIZER_FILE} has no model or no {PAD}; give one of RoBERTa's kind"
        )
    tokenizer: Tokenizer = Tokenizer.from_str(text)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@cache
def pinned_tokenizer(source: str, sha256: str, max_tokens: int) -> Tokenizer:
    """That of a run, which cuts to `max_tokens`. `UserError` where it is not the one that the run pinned."""
    tokenizer = load_tokenizer(source)
    if facts_of(tokenizer)["sha256"] != sha256:
        raise UserError(
            f"contrastive.text.tokenizer={source}: is not the tokenizer that this run was begun with; "
            "give that one, or another output"
        )
    tokenizer.enable_truncation(max_tokens)
    return tokenizer


def tokenizer_file(folder: Path) -> Path | None:
    """The tokenizer.json of a folder, a model or a run of ours; None where there is none."""
    files = [folder / name / TOKENIZER_FILE for name in FOLDERS]
    return next((file for file in files if file.is_file()), None)


def byte_tokenizer() -> Tokenizer:
    """Every byte of a text is a token: for towers that learn from nothing, in any language."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate((START, PAD, END, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    ends = [(START, vocabulary[START]), (END, vocabulary[END])]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=ends)
    return tokenizer


def facts_of(tokenizer: Tokenizer) -> TokenizerFacts:
    """What a run pins of it."""
    text: str = tokenizer.to_str()
    return {
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "vocab_size": tokenizer.get_vocab_size(),
        "pad": pad_of(tokenizer),
    }


def pad_of(tokenizer: Tokenizer) -> int:
    """The id of padding."""
    pad = tokenizer.token_to_id(PAD)
    assert pad is not None, "load_tokenizer refuses those without"
    return pad


def token_ids(tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int) -> Tensor:
    """int64 [b, max_tokens], padded; an empty text is its two ends. `tokenizer` cuts to as many."""
    ids = torch.full((len(texts), max_tokens), pad_of(tokenizer))
    for row, encoding in zip(ids, tokenizer.encode_batch(list(texts)), strict=True):
        row[: len(encoding.ids)] = torch.tensor(encoding.ids)
    return ids


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_tokens: int) -> None:
    """As `AutoTokenizer` of transformers loads it."""
    tokenizer.save(str(folder / TOKENIZER_FILE))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_tokens,
        "bos_token": START,
        "pad_token": PAD,
        "eos_token": END,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
