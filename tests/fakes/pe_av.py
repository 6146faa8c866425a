"""PE-AV, tiny, as save_pretrained writes it: weights, front ends and tokenizer in one folder.

save_pe_audio(folder)            # `PeAudioModel`: sounds and texts
model = save_pe_av(folder)       # `PeAudioVideoModel`: pictures, too; its tower for pictures is a ViT
"""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    PeAudioConfig,
    PeAudioFeatureExtractor,
    PeAudioModel,
    PeAudioVideoConfig,
    PeAudioVideoModel,
    ViTConfig,
)

SIDE_PX = 32
WIDTH = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
LAYER = {**WIDTH, "head_dim": 8}
TEXT = {
    "model_type": "modernbert",
    "vocab_size": 8,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "cls_token_id": 0,
    "sep_token_id": 2,
    **WIDTH,
}
DAC = {"model_type": "dac", "downsampling_ratios": [2, 4], "encoder_hidden_size": 4, "codebook_dim": 8}
AUDIO = {"dac_config": {**DAC, "hop_length": 8}, **LAYER}


def save_pe_audio(folder: Path) -> Path:
    """Sounds at 16 kHz, a frame per 8 samples."""
    _save(PeAudioModel(PeAudioConfig(text_config=TEXT, audio_config=AUDIO)), folder)
    return folder


def save_pe_av(folder: Path) -> Any:
    """The model. Its class loads towers of timm only, whose weights are not tiny."""
    vision = ViTConfig(**WIDTH, image_size=SIDE_PX, patch_size=16, num_labels=8)
    parts = {
        "audio_config": {"model_type": "pe_audio_encoder", **AUDIO},
        "video_config": {"model_type": "pe_video_encoder", "vision_config": vision, **LAYER},
    }
    config = PeAudioVideoConfig(text_config=TEXT, audio_video_config={**parts, **LAYER})
    model = _save(PeAudioVideoModel(config), folder)
    square = {"height": SIDE_PX, "width": SIDE_PX}
    frames = {"size": square, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
    stated = {**frames, "do_center_crop": False, "video_processor_type": "PeVideoVideoProcessor"}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(stated))
    return model


def _save(model: Any, folder: Path) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.eval().save_pretrained(folder)
    PeAudioFeatureExtractor(hop_length=8, sampling_rate=16000).save_pretrained(folder)
    known = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "rain", "on", "a", "roof"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(known)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 0))
    tokenizer.enable_padding(length=9, pad_id=1, pad_token="[PAD]")
    tokenizer.save(str(folder / "tokenizer.json"))
    return model
