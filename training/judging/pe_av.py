"""PE-AV as a judge (Perception Encoder Audiovisual of transformers): sounds beside pictures and captions.

    judge = PeJudge("hub:facebook/pe-av-large", folder)    # a `PeAudioVideoModel`: pictures and captions
    judge = PeJudge("hub:…", folder)                       # a `PeAudioModel`: captions alone
    vectors = judge.pictures([picture])                    # float32 [1, d], of unit length

A still picture is a video of one frame. The tower for pictures is timm's, and needs the extra `timm`.
"""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import PeAudioModel, PeAudioVideoModel

from configs.load import UserError
from training.judging.classifier import extractor_of, inputs_of
from training.judging.sound import Sound
from training.judging.towers import MAX_TOKENS, device, facts_of
from training.pipeline.codec import ImageConfig, image_to_tensor
from training.pretrained import load_whole
from training.recipes.captions import tokenizer_file

KINDS: dict[str, Any] = {"pe_audio": PeAudioModel, "pe_audio_video": PeAudioVideoModel}
"""By `model_type` in their config.json."""
PROCESSORS = ("video_preprocessor_config.json", "processor_config.json", "preprocessor_config.json")


class PeJudge:
    """`UserError` where weights, the tokenizer or a front end are missing."""

    def __init__(self, name: str, folder: Path):
        self.home = folder
        kind = json.loads((folder / "config.json").read_text())["model_type"]
        self.sees = kind == "pe_audio_video"
        if self.sees and not importlib.util.find_spec("timm"):
            raise UserError(f"judge={name}: its pictures pass a tower of timm; pip install '.[timm]'")
        loaded: Any = load_whole(KINDS[kind], folder, "judge", dtype=torch.float32, local_files_only=True)
        self.model: Any = loaded.to(device())
        self.extractor = extractor_of("judge", name, folder)
        self.rate_hz: int = self.extractor.sampling_rate
        self.image = _image_of(name, folder) if self.sees else ImageConfig()
        self.tokenizer = _tokenizer_of(name, folder)
        self.modalities: tuple[str, ...] = ("image", "text") if self.sees else ("text",)
        # no model of ours learns from it, so none is compared number by number
        self.image_tower: nn.Module | None = None
        self.facts = facts_of(name, type(loaded).__name__, {".": folder})

    @torch.no_grad()
    def sounds(self, sounds: Sequence[Sound]) -> np.ndarray:
        vectors: list[np.ndarray] = []
        for inputs in inputs_of(self.extractor, self.rate_hz, sounds):
            vectors.append(
                _unit(self._hearing.audio_head(self._hearing.audio_encoder(**inputs).pooler_output))
            )
        return np.concatenate(vectors)

    @torch.no_grad()
    def pictures(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        frames = torch.stack([image_to_tensor(each, self.image) for each in pictures])[:, None]
        seeing = self.model.video_model
        encoded = seeing.video_encoder(pixel_values_videos=frames.to(device()))
        return _unit(seeing.video_head(encoded.pooler_output))

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        vectors: list[np.ndarray] = []
        # one by one, so that none is padded
        for text in texts:
            ids = torch.tensor([self.tokenizer.encode(text).ids], device=device())
            read = self.model.text_model(input_ids=ids, output_hidden_states=True)
            vectors.append(_unit(self._hearing.text_audio_head(read.hidden_states[-1][:, 0])))
        return np.concatenate(vectors)

    @property
    def _hearing(self) -> Any:
        return self.model.audio_model if self.sees else self.model


def _unit(vectors: Tensor) -> np.ndarray:
    made: np.ndarray = functional.normalize(vectors.float(), dim=-1).cpu().numpy()
    return made


def _tokenizer_of(name: str, folder: Path) -> Tokenizer:
    file = tokenizer_file(folder)
    if file is None:
        raise UserError(f"judge={name}: has no tokenizer.json; save its tokenizer into the folder")
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return tokenizer


def _image_of(name: str, folder: Path) -> ImageConfig:
    """How a frame is made: of the processor of videos, which newer files keep within another."""
    for file in PROCESSORS:
        if not (folder / file).is_file():
            continue
        stated = json.loads((folder / file).read_text())
        stated = stated.get("video_processor", stated)
        if "image_mean" not in stated:
            continue
        try:
            # its size is the whole frame's, which is what the type of a picture's processor says
            return ImageConfig.from_processor({"image_processor_type": "", **stated})
        except (ValueError, KeyError, TypeError) as error:
            fix = "save a processor of whole or centred squares"
            raise UserError(f"judge={name}: {file} cannot be used ({error}); {fix}") from error
    raise UserError(f"judge={name}: has no {PROCESSORS[0]}; save its video processor into the folder")
