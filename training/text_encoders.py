"""Encoders of texts and phonemes by what a user types, with their tokenizers, frozen.

    folder = find_text_encoder("hub:google/flan-t5-base")          # or a run of ours with captions
    reader = load_text_reader(folder)                              # RoBERTa, T5's encoder, CLAP's text tower
    check_reader(reader, 77, "text_encoder", "hub:google/flan-t5-base")     # `UserError` before any work
    embed_texts(*reader, ["a bell"], max_tokens=77)                # training.pipeline.text

`load_phoneme_reader` reads VITS's. Its tokenizer may need the package phonemizer or uroman: neither is ours.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    AutoTokenizer,
    ClapModel,
    ClapTextModel,
    ClapTextModelWithProjection,
    RobertaModel,
    T5EncoderModel,
)
from transformers.utils import is_phonemizer_available, is_uroman_available

from configs.load import UserError
from training.networks.vits_text import VitsText
from training.pipeline.text import embed_texts
from training.pretrained import MAX_REASON, check_finite, find_model, load_whole, model_kind

TEXT = "text_encoder"
PHONEMES = "phoneme_encoder"
TEXT_MODELS: dict[str, Any] = {  # by `model_type`
    "roberta": RobertaModel,
    "t5": T5EncoderModel,
    "clap": ClapModel,
    "clap_text_model": ClapTextModelWithProjection,
}
# RoBERTa's pooler is not trained in published models, and no sequence needs it
OPTIONS: dict[str, dict[str, Any]] = {"roberta": {"add_pooling_layer": False}}
LEAST_TOKENS = 3  # the two ends of a text, and something between them


class TextReader(NamedTuple):
    """A frozen encoder and the tokenizer that it was trained with."""

    encoder: Any
    tokenizer: Any


def find_text_encoder(path: str) -> Path:
    """The folder of a text encoder: itself, or of a run of ours its CLAP or its text branch."""
    return find_model(path, TEXT, TEXT, "clap")


def find_phoneme_encoder(path: str) -> Path:
    """The folder of a VITS."""
    return find_model(path, PHONEMES, PHONEMES)


def load_text_reader(folder: Path) -> TextReader:
    """`UserError` for another class, and where weights or tokenizer.json are missing."""
    kind = model_kind(folder)
    if kind not in TEXT_MODELS:
        raise UserError(f"{TEXT}={folder}: holds a {kind}, need one of {', '.join(TEXT_MODELS)}")
    stated = json.loads((folder / "config.json").read_text()).get("architectures") or ()
    loader = ClapTextModel if ClapTextModel.__name__ in stated else TEXT_MODELS[kind]
    options = OPTIONS.get(kind, {})
    encoder: Any = load_whole(loader, folder, TEXT, dtype=torch.float32, local_files_only=True, **options)
    encoder = getattr(encoder, "text_model", encoder)
    return TextReader(encoder, _load_tokenizer(folder, "tokenizer.json", TEXT))


def load_phoneme_reader(folder: Path) -> TextReader:
    """`UserError` for another class, and where weights, vocab.json or what the tokenizer needs is missing."""
    kind = model_kind(folder)
    if kind != "vits":
        raise UserError(f"{PHONEMES}={folder}: holds a {kind}, need a vits, such as hub:facebook/mms-tts-eng")
    encoder = load_whole(VitsText, folder, PHONEMES, dtype=torch.float32, local_files_only=True)
    tokenizer = _load_tokenizer(folder, "vocab.json", PHONEMES)
    if tokenizer.phonemize and not is_phonemizer_available():
        raise UserError(
            f"{PHONEMES}={folder}: its tokenizer makes phonemes with the package phonemizer, which is not "
            "installed: pip install phonemizer, and install espeak-ng; or give one that reads letters, such "
            "as hub:facebook/mms-tts-eng; or set phonemize to false in its tokenizer_config.json and let "
            "phoneme_column name a column of phonemes"
        )
    if tokenizer.is_uroman and not is_uroman_available():
        raise UserError(
            f"{PHONEMES}={folder}: its tokenizer writes other alphabets in Latin letters with the package "
            "uroman, which is not installed: pip install uroman"
        )
    return TextReader(encoder, tokenizer)


def _load_tokenizer(folder: Path, file: str, setting: str) -> Any:
    # without its file transformers would make an empty one
    if not (folder / file).is_file():
        raise UserError(f"{setting}={folder}: has no {file}; save its tokenizer into the folder")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        reason = " ".join(str(error).split())[:MAX_REASON]
        raise UserError(f"{setting}={folder}: its tokenizer cannot be loaded ({reason})") from error


@torch.no_grad()
def check_reader(reader: TextReader, max_tokens: int, setting: str, path: str) -> None:
    """`UserError` where a reader, which a user named as `path`, cannot read so many tokens of a text."""
    encoder, tokenizer = reader
    check_finite(encoder, setting, path)
    tokens = f"{setting.removesuffix('_encoder')}_tokens={max_tokens}"
    places = getattr(encoder.config, "max_position_embeddings", None)
    if places is not None:
        # RoBERTa's first place is the one after the padding's
        places -= encoder.config.pad_token_id + 1
    if max_tokens < LEAST_TOKENS or (places is not None and max_tokens > places):
        most = "" if places is None else f" to {places}, which is all that {setting}={path} has places for"
        raise UserError(f"{tokens}: give {LEAST_TOKENS} or more{most}")
    if setting == TEXT and max(tokenizer.get_vocab().values()) >= encoder.config.vocab_size:
        raise UserError(
            f"{setting}={path}: its tokenizer has {len(tokenizer)} tokens, the model "
            f"{encoder.config.vocab_size}; give a model with its own tokenizer"
        )
    try:
        (sequence,) = embed_texts(encoder, tokenizer, ["a bell"], max_tokens)
    # phonemizer raises RuntimeError where espeak is not installed
    except (RuntimeError, ImportError, OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:MAX_REASON]
        raise UserError(f"{setting}={path}: cannot read a text ({reason}); give another") from error
    if not torch.isfinite(sequence).all():
        raise UserError(f"{setting}={path}: gives no finite sequence of a text; give another")
