"""Texts -> sequences of hidden states: of each text as many as it has tokens.

    embed_texts(encoder, tokenizer, ["a bell", ""], max_tokens=77)       # [t, d] and [0, d]

`encoder`: whatever takes token ids [b, t] with a mask and gives `last_hidden_state` (RoBERTa, T5's encoder,
CLAP's text tower, VITS's text encoder). How they are loaded is training.text_encoders'.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def token_ids(tokenizer: Any, text: str, max_tokens: int, vocab_size: int) -> list[int]:
    """At most `max_tokens` ids below `vocab_size`; none for a text that is empty or says nothing."""
    if not text:
        return []
    ids = tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"]
    # VITS's tokenizer counts what it does not know behind the last row of the table
    known = [number for number in ids if number < vocab_size]
    # its blanks, of id 0, stand around letters: alone, there was none
    says_nothing = getattr(tokenizer, "add_blank", False) and not any(known)
    return [] if says_nothing else known


def embed_texts(encoder: Any, tokenizer: Any, texts: Sequence[str], max_tokens: int) -> list[Tensor]:
    """The last hidden states [t, d] of each text, [0, d] of one that says nothing.

    Texts are computed together, padded behind a mask: what stands beside one does not change it, but for
    rounding.
    """
    size = encoder.config.vocab_size
    tokens = [token_ids(tokenizer, text, max_tokens, size) for text in texts]
    device = next(encoder.parameters()).device
    sequences = [torch.zeros(0, encoder.config.hidden_size, device=device)] * len(texts)
    spoken = [index for index, ids in enumerate(tokens) if ids]
    if not spoken:
        return sequences
    longest = max(len(ids) for ids in tokens)
    # RoBERTa counts places past its own padding
    padded = torch.full((len(spoken), longest), encoder.config.pad_token_id or 0)
    mask = torch.zeros(len(spoken), longest, dtype=torch.long)
    for row, index in enumerate(spoken):
        count = len(tokens[index])
        padded[row, :count] = torch.tensor(tokens[index])
        mask[row, :count] = 1
    hidden = encoder(input_ids=padded.to(device), attention_mask=mask.to(device)).last_hidden_state
    for row, index in enumerate(spoken):
        sequences[index] = hidden[row, : len(tokens[index])]
    return sequences
