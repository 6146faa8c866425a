"""Published encoders of texts and phonemes, tiny, each with a tokenizer of its own in the same folder.

save_text(folder, "roberta")      # or t5, clap
save_vits(folder)
"""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    ClapConfig,
    ClapModel,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
    VitsConfig,
    VitsModel,
    VitsTokenizer,
)

from tests.fakes.captioned import NAMES
from tests.fakes.published_clap import AUDIO, WORDS, words

MORE = sorted({word for name in NAMES for word in name.split()} | {"take", "bell"} - {"a"})
SIZE = 8 + len(MORE)
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "pad_token_id": 1}
VITS = {
    "vocab_size": 28,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "ffn_dim": 32,
    "flow_size": 16,
    "spectrogram_bins": 17,
    "prior_encoder_num_flows": 1,
    "prior_encoder_num_wavenet_layers": 1,
    "posterior_encoder_num_wavenet_layers": 1,
    "duration_predictor_num_flows": 1,
    "depth_separable_num_layers": 1,
    "upsample_initial_channel": 32,
}
LETTERS = "_ abcdefghijklmnopqrstuvwxyz"


def save_text(folder: Path, kind: str) -> Path:
    """Its tokenizer knows the captions of tests.fakes.captioned."""
    torch.manual_seed(3)
    model: Any
    if kind == "roberta":
        settings = {**WORDS, "vocab_size": SIZE, "max_position_embeddings": 26, "pad_token_id": 1}
        model = RobertaForMaskedLM(RobertaConfig(**settings))
    elif kind == "t5":
        model = T5ForConditionalGeneration(T5Config(vocab_size=SIZE, decoder_start_token_id=1, **T5))
    else:
        texts = {**WORDS, "vocab_size": SIZE, "max_position_embeddings": 26}
        model = ClapModel(ClapConfig(audio_config=AUDIO, text_config=texts, projection_dim=8))
    _stir(model)
    model.save_pretrained(folder)
    return words(folder, *MORE)


def save_vits(folder: Path, **tokenizer: Any) -> Path:
    """It reads letters, unless `tokenizer` says phonemize=True."""
    torch.manual_seed(4)
    model: Any = VitsModel(VitsConfig(**VITS))
    _stir(model)
    model.save_pretrained(folder)
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({letter: number for number, letter in enumerate(LETTERS)}))
    settings = {"phonemize": False, "pad_token": "_", **tokenizer}
    VitsTokenizer(str(vocabulary), **settings).save_pretrained(folder)
    return folder


def _stir(model: Any) -> None:
    """New weights of a transformer are so small that attention, and with it a mask, changes next to nothing."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.add_(0.3 * torch.randn_like(parameter))
