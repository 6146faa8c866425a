"""Audio models of transformers as embedders: the stock model's features, whatever is beside a sound."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    ASTModel,
    DacConfig,
    DacFeatureExtractor,
    DacModel,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from configs.load import UserError
from tests.fakes.chain import Chain
from tests.fakes.judges import save_classifier, save_wav2vec
from tests.fakes.published_clap import save_published
from training.judging.embedder import open_embedder
from training.judging.opening import open_pair_judge
from training.judging.sound import Sound


def noise(seed: int, samples: int = 4000) -> Sound:
    return Sound(np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32), 16000)


def test_of_a_classifier_it_is_the_stock_base_model(tmp_path: Path) -> None:
    embedder = open_embedder(str(save_classifier(tmp_path)))
    sound = noise(0)
    stock = ASTModel.from_pretrained(tmp_path).eval()
    inputs = embedder.extractor(sound.wav, sampling_rate=16000, return_tensors="pt")  # type: ignore[attr-defined]
    with torch.no_grad():
        expected = stock(**inputs).pooler_output.numpy()
    assert np.abs(embedder.sounds([sound]) - expected).max() < 1e-6
    assert embedder.facts["kind"] == "ASTModel" and len(embedder.facts["sha256"]) == 64


def test_without_a_pooler_it_is_the_mean_over_time_and_neighbours_change_nothing(tmp_path: Path) -> None:
    stock = Wav2Vec2Model.from_pretrained(save_wav2vec(tmp_path)).eval()
    embedder = open_embedder(str(tmp_path))
    # of three lengths, which no tensor holds together
    sounds = [noise(0), noise(1, 2500), noise(2, 7000)]
    together = embedder.sounds(sounds)
    for row, sound in zip(together, sounds, strict=True):
        scaled = (sound.wav - sound.wav.mean()) / np.sqrt(sound.wav.var() + 1e-7)
        with torch.no_grad():
            expected = stock(torch.from_numpy(scaled)[None]).last_hidden_state.mean(1)[0].numpy()
        assert np.abs(row - expected).max() < 1e-5


def test_of_an_encoder_with_a_decoder_the_encoder_hears(tmp_path: Path) -> None:
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes = {"d_model": 16, "num_mel_bins": 8, "max_source_positions": 50, "vocab_size": 8}
    stock = WhisperModel(WhisperConfig(**tokens, **layers, **heads, **sizes)).eval()
    stock.save_pretrained(tmp_path)
    WhisperFeatureExtractor(feature_size=8, chunk_length=1).save_pretrained(tmp_path)
    embedder = open_embedder(str(tmp_path))
    inputs = embedder.extractor(noise(0).wav, sampling_rate=16000, return_tensors="pt")  # type: ignore[attr-defined]
    with torch.no_grad():
        expected = stock.encoder(inputs["input_features"]).last_hidden_state.mean(1).numpy()
    assert np.abs(embedder.sounds([noise(0)]) - expected).max() < 1e-6


def test_what_knows_pairs_gives_its_vectors_of_sounds(chain: Chain, tmp_path: Path) -> None:
    save_published(tmp_path)
    for path in (chain.contrastive, str(tmp_path)):
        assert (open_embedder(path).sounds([noise(0)]) == open_pair_judge(path).sounds([noise(0)])).all()


def test_what_embeds_no_sounds_is_refused(tmp_path: Path) -> None:
    DacModel(DacConfig(encoder_hidden_size=4, downsampling_ratios=[2, 4], hop_length=8)).save_pretrained(
        tmp_path
    )
    DacFeatureExtractor(hop_length=8).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="a DacModel gives no hidden states of a sound alone"):
        open_embedder(str(tmp_path))
    bare = Path(shutil.copytree(save_classifier(tmp_path / "ast"), tmp_path / "bare"))
    (bare / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=f"embedder={bare}: has no usable preprocessor_config"):
        open_embedder(str(bare))
    with pytest.raises(UserError, match="embedder=/nowhere: does not exist"):
        open_embedder("/nowhere")
