"""An audio classifier of transformers as a judge: features for Frechet distances, probabilities of classes.

    judge = Classifier("hub:MIT/ast-finetuned-audioset-10-10-0.4593")    # or a folder of save_pretrained
    features, probabilities = judge.hear([sound])                         # [1, d], [1, classes]

Features are what its last layer, the classifier, is given. Each sound passes the feature extractor alone:
padding to the longest of a batch would let neighbours decide.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoFeatureExtractor

from configs.load import UserError
from training.judging.sound import JudgeFacts, Sound, at_rate
from training.judging.towers import device
from training.pretrained import MAX_REASON, find_model, folder_sha256, load_audio_classifier, local_copy


class Classifier:
    """Any model that `AutoModelForAudioClassification` loads. `UserError` where files or weights lack."""

    def __init__(self, name: str):
        root = local_copy(name)
        folder = find_model(str(root) if root.exists() else name, "classifier")
        model: Any = load_audio_classifier(folder)
        self.model = model.to(device())
        self.extractor = extractor_of("classifier", name, folder)
        self.rate_hz: int = self.extractor.sampling_rate
        sha256 = folder_sha256(folder)
        kind = f"{type(self.model).__name__}, {model.config.num_labels} classes"
        self.facts: JudgeFacts = {"name": name, "kind": kind, "sha256": sha256, "parts": {".": sha256}}
        self._given: list[Tensor] = []
        model.classifier.register_forward_pre_hook(self._keep)

    @torch.no_grad()
    def hear(self, sounds: Sequence[Sound]) -> tuple[np.ndarray, np.ndarray]:
        """Features [b, d] and probabilities [b, classes] of waveforms of any rate and length."""
        features: list[np.ndarray] = []
        probabilities: list[np.ndarray] = []
        for inputs in inputs_of(self.extractor, self.rate_hz, sounds):
            self._given.clear()
            logits = self.model(**inputs).logits
            features.append(self._given[0].float().cpu().numpy())
            probabilities.append(logits.double().softmax(1).cpu().numpy())
        return np.concatenate(features), np.concatenate(probabilities)

    def _keep(self, module: Any, given: tuple[Tensor, ...]) -> None:
        self._given.append(given[0])


def inputs_of(extractor: Any, rate_hz: int, sounds: Sequence[Sound]) -> list[dict[str, Tensor]]:
    """A model's arguments for all sounds at once where they are of one length, else one by one, in order."""
    alone: list[dict[str, Tensor]] = []
    for sound in sounds:
        made = extractor(at_rate(sound, rate_hz), sampling_rate=rate_hz, return_tensors="pt")
        alone.append({name: values.to(device()) for name, values in made.items()})
    if len({_shape(each) for each in alone}) > 1:
        return alone
    together: dict[str, Tensor] = {}
    for name in alone[0]:
        together[name] = torch.cat([each[name] for each in alone])
    return [together]


def _shape(inputs: dict[str, Tensor]) -> tuple[torch.Size, ...]:
    return tuple(values.shape for values in inputs.values())


def extractor_of(setting: str, name: str, folder: Path) -> Any:
    """The feature extractor that was saved with a model. `UserError`, naming `setting`, if there is none."""
    try:
        return AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:MAX_REASON]
        fix = "save its feature extractor into the folder"
        raise UserError(
            f"{setting}={name}: has no usable preprocessor_config.json ({reason}); {fix}"
        ) from error
