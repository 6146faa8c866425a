"""Any audio model of transformers as an embedder, whose features the Frechet distance is of.

    embedder = open_embedder("hub:facebook/hubert-base-ls960")      # or a folder of save_pretrained
    features = embedder.sounds([sound])                            # [1, d]

Of a model with a pooler its output, of one without the mean of its last layer over time, of an encoder with a
decoder the encoder's. What `judge=` takes (contrastive runs, CLAP, PE-AV) gives its vectors of sounds.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel

from configs.load import UserError
from training.judging.classifier import extractor_of, inputs_of
from training.judging.opening import find_judge, open_pair_judge
from training.judging.sound import JudgeFacts, Sound
from training.judging.towers import device
from training.pretrained import MAX_REASON, folder_sha256, load_whole


class Embedder(Protocol):
    """Features float32 [b, d] of sounds."""

    facts: JudgeFacts

    def sounds(self, sounds: Sequence[Sound]) -> np.ndarray:
        """Of waveforms of any rate and length."""


def open_embedder(path: str) -> Embedder:
    """Of a folder, a run, a URI or `hub:owner/name`. `UserError` for what embeds no sounds."""
    found = find_judge(path, "embedder")
    return open_pair_judge(path) if found.knows_pairs else AudioModel(path, found.folder)


class AudioModel:
    """A model that `AutoModel` loads, with its feature extractor."""

    def __init__(self, name: str, folder: Path):
        whole: Any = load_whole(AutoModel, folder, "embedder", dtype=torch.float32, local_files_only=True)
        # of Whisper and kin, what hears
        self.model: Any = (whole.get_encoder() if whole.config.is_encoder_decoder else whole).to(device())
        self.extractor = extractor_of("embedder", name, folder)
        self.rate_hz: int = self.extractor.sampling_rate
        sha256 = folder_sha256(folder)
        kind = type(whole).__name__
        self.facts: JudgeFacts = {"name": name, "kind": kind, "sha256": sha256, "parts": {".": sha256}}
        self._check()

    @torch.no_grad()
    def sounds(self, sounds: Sequence[Sound]) -> np.ndarray:
        features = [self._features(inputs) for inputs in inputs_of(self.extractor, self.rate_hz, sounds)]
        return np.concatenate(features)

    def _check(self) -> None:
        """`UserError` where it makes no vector of silence, such as codecs and what needs a text, too."""
        silence = Sound(np.zeros(self.rate_hz, np.float32), self.rate_hz)
        try:
            self.sounds([silence])
        except (AttributeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:MAX_REASON]
            raise UserError(
                f"embedder={self.facts['name']}: a {self.facts['kind']} gives no hidden states of a sound "
                f"alone ({reason}); give a model that embeds sounds, such as AST, HuBERT, Whisper or CLAP"
            ) from error

    def _features(self, inputs: dict[str, Tensor]) -> np.ndarray:
        output = self.model(**inputs)
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            pooled = output.last_hidden_state.mean(1)
        made: np.ndarray = pooled.float().cpu().numpy()
        return made
