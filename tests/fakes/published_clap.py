"""A published CLAP, tiny: weights, feature extractor and tokenizer in one folder, as laion/clap-htsat-unfused.

save_published(folder)
words(folder, "tin")      # the tokenizer alone: a few words, of which one more
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

from training.recipes.captions import save_tokenizer
from training.recipes.clap_mel import FrontEndConfig

FRONT_END = FrontEndConfig(kind="clap", max_length_s=1, hop_size=1000)  # 49 frames
AUDIO = {
    "patch_embeds_hidden_size": 8,
    "depths": [1, 1],
    "num_attention_heads": [2, 2],
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "spec_size": 64,
    "window_size": 4,
}
WORDS = {
    "vocab_size": 8,
    "hidden_size": 16,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 18,
}


def words(folder: Path, *more: str) -> Path:
    """A published tokenizer of a few words, which cuts and pads by itself."""
    known = ["<s>", "<pad>", "</s>", "<unk>", "rain", "on", "a", "roof", *more]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(known)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=7, pad_id=1, pad_token="<pad>")
    folder.mkdir(exist_ok=True)
    save_tokenizer(tokenizer, folder, 7)
    return folder


def save_published(folder: Path) -> None:
    """With dropout, and a norm that was trained."""
    torch.manual_seed(3)
    model: Any = ClapModel(ClapConfig(audio_config=AUDIO, text_config=WORDS, projection_dim=8))
    norm = model.audio_model.audio_encoder.batch_norm
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        norm.running_mean.uniform_(-60, -20)
        norm.running_var.uniform_(100, 400)
        model.logit_scale_t.fill_(1.5)
    model.save_pretrained(folder)
    words(folder)
    ClapFeatureExtractor(**FRONT_END.extractor()).save_pretrained(folder)
