"""An audio classifier as a judge: what the stock model gives, whatever is beside a sound."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    ASTFeatureExtractor,
    ASTForAudioClassification,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
)

from configs.load import UserError
from tests.fakes.judges import LABELS, save_classifier
from training.judging.classifier import Classifier
from training.judging.sound import Sound


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("classifier"))


def noise(seed: int, samples: int = 9600) -> Sound:
    return Sound(np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32), 16000)


def test_it_is_the_stock_model(folder: Path) -> None:
    judge = Classifier(str(folder))
    sounds = [noise(0), noise(1)]
    features, probabilities = judge.hear(sounds)
    extractor = ASTFeatureExtractor.from_pretrained(folder)
    model = ASTForAudioClassification.from_pretrained(folder).eval()
    inputs = extractor([sound.wav for sound in sounds], sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
        pooled = model.audio_spectrogram_transformer(**inputs).pooler_output
    assert np.abs(probabilities - logits.softmax(1).numpy()).max() < 1e-6
    assert np.abs(features - pooled.numpy()).max() < 1e-5
    assert judge.facts["kind"] == f"ASTForAudioClassification, {LABELS} classes"
    assert judge.facts["sha256"] == Classifier(str(folder)).facts["sha256"]


def test_neighbours_of_any_length_change_nothing(folder: Path) -> None:
    judge = Classifier(str(folder))
    sounds = [noise(0), noise(1, 4000), noise(2)]
    together, alone = judge.hear(sounds), [judge.hear([sound]) for sound in sounds]
    for index, (features, probabilities) in enumerate(alone):
        assert np.abs(together[0][index] - features[0]).max() < 1e-5
        assert np.abs(together[1][index] - probabilities[0]).max() < 1e-6


def test_what_lacks_weights_or_its_front_end_is_refused(folder: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(folder, tmp_path / "bare"))
    (bare / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="has no usable preprocessor_config"):
        Classifier(str(bare))
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    settings = json.loads((other / "config.json").read_text())
    # a base model has no classifier: it would be random
    settings["num_hidden_layers"] = 2
    (other / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="no weights for"):
        Classifier(str(other))
    with pytest.raises(UserError, match="classifier=/nowhere: does not exist"):
        Classifier("/nowhere")


def test_sounds_of_lengths_that_no_batch_holds_are_heard_one_by_one(tmp_path: Path) -> None:
    """Its front end pads nothing, as AST's does: inputs have the lengths of the sounds."""
    torch.manual_seed(0)
    shape = {"conv_dim": (8, 8), "conv_kernel": (10, 4), "conv_stride": (5, 4), "num_conv_pos_embeddings": 4}
    width = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model: Any = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**shape, **width, num_labels=LABELS)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    judge = Classifier(str(tmp_path))
    sounds = [noise(0), noise(1, 4000), noise(2), noise(3, 5001)]
    features, probabilities = judge.hear(sounds)
    assert features.shape[0] == len(sounds) and probabilities.shape == (len(sounds), LABELS)
    for index, sound in enumerate(sounds):
        scaled = torch.from_numpy((sound.wav - sound.wav.mean()) / np.sqrt(sound.wav.var() + 1e-7))
        with torch.no_grad():
            logits = model(scaled[None]).logits
            pooled = model.projector(model.wav2vec2(scaled[None]).last_hidden_state).mean(1)
        assert np.abs(probabilities[index] - logits.softmax(1)[0].numpy()).max() < 1e-5
        assert np.abs(features[index] - pooled[0].numpy()).max() < 1e-5
    # as many alone give the same, in the same order
    alone = np.concatenate([judge.hear([sound])[0] for sound in sounds])
    assert np.abs(features - alone).max() < 1e-6
