"""Contrastive models as judges: unit vectors of sounds, and of the pictures or texts that belong to them.

    judge = ClapJudge(name, folder)            # or OwnJudge, of a run; training.judging.opening finds which
    judge.modalities                           # ("image",), ("text",) or both
    vectors = judge.sounds([sound])            # float32 [1, d]

A sound is heard as in that model's training: at its rate, cut or padded to its length. What a sound gives
does not depend on what is beside it in a batch, but for rounding.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor, nn
from transformers import ClapFeatureExtractor

from cluster.scratch import scratch_folder
from configs.load import UserError, load_config
from training.judging.sound import JudgeFacts, Sound, at_rate
from training.pipeline.codec import ImageConfig, image_to_tensor
from training.pipeline.mel import MEL_FILE, MelConfig, wav_to_log_mel
from training.pretrained import folder_sha256, load_clap
from training.recipes import contrastive
from training.recipes.captions import load_tokenizer, pad_of, pinned_tokenizer, token_ids, tokenizer_file
from training.recipes.clap_mel import EXTRACTOR, STATED, FrontEndConfig, clap_mel
from training.recipes.clap_weights import AUDIO_ENCODER, CLAP, IMAGE_ENCODER, TEXT_ENCODER

TOWERS = (IMAGE_ENCODER, CLAP, AUDIO_ENCODER, TEXT_ENCODER)
MAX_TOKENS = 77  # CLAP's, of a text


class PairJudge(Protocol):
    """Unit vectors float32 [b, d] of sounds, and of what `modalities` has beside them. `image_tower`: what
    sees pictures, None where nothing does. `home`: the folder of the model.
    """

    facts: JudgeFacts
    home: Path
    modalities: tuple[str, ...]
    image_tower: nn.Module | None

    def sounds(self, sounds: Sequence[Sound]) -> np.ndarray:
        """Of waveforms of any rate and length."""

    def pictures(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Of pictures of any size."""

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Of texts, cut to what the tower takes."""


class OwnJudge:
    """A model of recipe=contrastive."""

    def __init__(self, name: str, home: Path, section: dict[str, Any], facts: dict[str, Any]):
        self.home = home
        self.config = _config_of(section, home)
        self.mel = MelConfig(**facts["mel"])
        self.model = _model_of(name, home, self.config, facts)
        self.modalities = tuple(each for each in self.model.modalities if each != "audio")
        self.image_tower: nn.Module | None = self.model.image if self.config.image.kind else None
        # of a run that left it to the data, the geometry has it
        self.size_px: int = self.config.image.size_px or facts.get("picture_px", 0)
        towers = {each: home / each for each in TOWERS if (home / each).is_dir()}
        # the heads are beside the towers, and of the audio tower all
        self.facts = facts_of(
            name, f"contrastive ({', '.join(self.model.modalities)})", {**towers, ".": home}
        )
        if self.config.text.kind:
            text = self.config.text
            self.tokenizer = pinned_tokenizer(text.tokenizer, facts["tokenizer"]["sha256"], text.max_tokens)

    @torch.no_grad()
    def sounds(self, sounds: Sequence[Sound]) -> np.ndarray:
        heard: list[Tensor] = []
        for sound in sounds:
            wav = at_rate(sound, self.mel.sample_rate_hz)
            heard.append(contrastive.hear_wav(_fitted(wav, self.mel.num_samples), self.mel, self.config))
        return self._vectors("audio", torch.stack(heard))

    @torch.no_grad()
    def pictures(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        seen = ImageConfig(self.size_px)
        pixels = torch.stack([image_to_tensor(each, seen) for each in pictures])
        pooled = self.model.pooled({"image": pixels.to(device())})
        assert pooled is not None, "`modalities` says whether it sees"
        return self._vectors("image", pooled)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        return self._vectors("text", token_ids(self.tokenizer, texts, self.config.text.max_tokens))

    def _vectors(self, modality: str, values: Tensor) -> np.ndarray:
        made: np.ndarray = self.model.vectors(modality, values.to(device())).cpu().numpy()
        return made


class ClapJudge:
    """A `ClapModel`, published or of ours."""

    modalities: tuple[str, ...] = ("text",)
    image_tower: nn.Module | None = None

    def __init__(self, name: str, folder: Path):
        self.home = folder
        model: Any = load_clap(folder)
        self.model = model.to(device())
        self.front_end, self.mel = _front_end_of(name, folder)
        if tokenizer_file(folder) is None:
            raise UserError(f"judge={name}: has no tokenizer.json; save its tokenizer into the folder")
        self.tokenizer = load_tokenizer(str(folder))
        self.pad = pad_of(self.tokenizer)
        positions: int = model.config.text_config.max_position_embeddings - self.pad - 1
        self.max_tokens = min(MAX_TOKENS, positions)
        self.tokenizer.enable_truncation(self.max_tokens)
        self.facts = facts_of(name, "ClapModel", {".": folder})

    @torch.no_grad()
    def sounds(self, sounds: Sequence[Sound]) -> np.ndarray:
        heard = torch.stack([self._hear(sound) for sound in sounds])
        output = self.model.get_audio_features(input_features=heard[:, None].to(device()))
        vectors: np.ndarray = output.pooler_output.float().cpu().numpy()
        return vectors

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        ids = token_ids(self.tokenizer, texts, self.max_tokens).to(device())
        output = self.model.get_text_features(input_ids=ids, attention_mask=(ids != self.pad).long())
        vectors: np.ndarray = output.pooler_output.float().cpu().numpy()
        return vectors

    def pictures(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        raise NotImplementedError("a ClapModel sees no pictures: `modalities` says so")

    def _hear(self, sound: Sound) -> Tensor:
        """[frames, mels]."""
        if self.mel is None:
            # resampled once, from the file's own rate
            return clap_mel(sound.wav, sound.rate_hz, self.front_end)
        wav = _fitted(at_rate(sound, self.mel.sample_rate_hz), self.mel.num_samples)
        return wav_to_log_mel(torch.from_numpy(wav)[None], self.mel)[0]


def device() -> str:
    """Where judges compute. Their figures are of float32 everywhere."""
    if not torch.cuda.is_available():
        return "cpu"
    # of convolutions TF32 is the default, whose 10 bits would move figures
    torch.backends.cudnn.allow_tf32 = False
    return "cuda"


def combined_sha256(parts: dict[str, str]) -> str:
    """One hash of the hashes of several folders, by their names."""
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def facts_of(name: str, kind: str, folders: dict[str, Path]) -> JudgeFacts:
    """What a report says of a judge, by its folders of weights."""
    parts = {part: folder_sha256(folder) for part, folder in folders.items()}
    sha256 = next(iter(parts.values())) if len(parts) == 1 else combined_sha256(parts)
    return {"name": name, "kind": kind, "sha256": sha256, "parts": parts}


def _config_of(section: dict[str, Any], home: Path) -> contrastive.Config:
    """The settings of a model, and the tokenizer that was saved with it."""
    with scratch_folder("judge") as folder:
        path = folder / "contrastive.yaml"
        path.write_text(yaml.safe_dump(section))
        config = load_config(contrastive.Config, [str(path)])
    saved = tokenizer_file(home)
    if saved:
        config.text.tokenizer = str(saved.parent)
    return config


def _model_of(name: str, home: Path, config: contrastive.Config, facts: Any) -> contrastive.Contrastive:
    """Frozen, in eval mode. `UserError` where weights are missing."""
    model = contrastive.Contrastive(config, facts)
    state = contrastive.initial(str(home), config, facts)
    missing, unexpected = model.load_state_dict(state, strict=False)
    # a norm's statistics are not saved where they are what it was built with
    other = sorted(set(missing) - {each for each, _ in model.named_buffers()}) + list(unexpected)
    if other:
        raise UserError(f"judge={name}: its files have not these weights ({other[0]}); restore them")
    return model.eval().requires_grad_(False).to(device())


def _fitted(wav: np.ndarray, num_samples: int) -> np.ndarray:
    """Cut, or padded with silence, to a clip's length."""
    return np.pad(wav[:num_samples], (0, max(0, num_samples - len(wav))))


def _front_end_of(name: str, folder: Path) -> tuple[FrontEndConfig, MelConfig | None]:
    """CLAP's, or AudioLDM's of a model of ours. `UserError` for features that are drawn at random."""
    if (folder / MEL_FILE).is_file():
        return FrontEndConfig(), MelConfig(**json.loads((folder / MEL_FILE).read_text()))
    if not (folder / EXTRACTOR).is_file():
        raise UserError(f"judge={name}: has no {EXTRACTOR}; save its feature extractor into the folder")
    stated = json.loads((folder / EXTRACTOR).read_text())
    if stated.get("truncation", "fusion") == "fusion":
        raise UserError(
            f"judge={name}: its features are drawn at random (truncation=fusion), so no score of it repeats; "
            "give an unfused one, such as hub:laion/clap-htsat-unfused"
        )
    stock = ClapFeatureExtractor(**{key: stated[key] for key in STATED.values() if key in stated})
    settings = {key: getattr(stock, theirs) for key, theirs in STATED.items()}
    return FrontEndConfig(kind="clap", **settings), None
