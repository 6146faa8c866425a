"""Contrastive models as judges: runs of ours with and without their settings beside them, and a `ClapModel`."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

from cluster.dataset import Dataset
from configs.load import UserError
from tests.fakes.chain import Chain
from tests.fakes.contrastive_ranks import CONFIGS, FACTS
from tests.fakes.published_clap import FRONT_END, save_published
from training.data.randomness import SampleKey
from training.evaluation import EvaluateConfig, find_clips
from training.judging.opening import open_pair_judge
from training.judging.sound import Sound
from training.recipes import contrastive
from training.recipes.clap_mel import resample


def save_own(folder: Path, kind: str, seed: int = 0) -> Path:
    """The model folder of a run of ours."""
    torch.manual_seed(seed)
    model = contrastive.build_model(CONFIGS[kind], FACTS)
    contrastive.save(model.state_dict(), CONFIGS[kind], FACTS, folder)
    return folder


def noise(seed: int, samples: int = 2560, rate_hz: int = 16000) -> Sound:
    return Sound(np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32), rate_hz)


def test_a_run_hears_and_sees_as_in_its_training(chain: Chain) -> None:
    judge = open_pair_judge(chain.contrastive)
    assert judge.modalities == ("image",) and judge.image_tower is not None
    asked = EvaluateConfig(output="", data=chain.clips, split="train", num_clips=3)
    clips = find_clips(Dataset.open(chain.clips), asked, 25600)
    sounds = judge.sounds([Sound(clip.wav, 16000) for clip in clips])
    pictures = judge.pictures([clip.picture for clip in clips])
    assert sounds.shape == pictures.shape == (3, 8)
    assert np.abs(np.linalg.norm(sounds, axis=1) - 1).max() < 1e-5
    # what the recipe itself makes of the clips
    own: Any = judge
    seen = torch.stack([contrastive.decode_image(clip.jpeg, contrastive.ImageConfig(32)) for clip in clips])
    heard = torch.stack([contrastive.hear_wav(clip.wav, own.mel, own.config) for clip in clips])
    batch = {"image": seen, "log_mel": heard}
    with torch.no_grad():
        for mine, expected in zip(
            (pictures, sounds), own.model.embed(batch, own.model.pooled(batch)), strict=True
        ):
            assert np.abs(mine - expected.numpy()).max() < 1e-6


def test_a_run_of_before_its_settings_were_kept_is_opened_by_its_record(chain: Chain, tmp_path: Path) -> None:
    older = Path(shutil.copytree(chain.contrastive, tmp_path / "older"))
    (older / "model" / contrastive.SETTINGS).unlink()
    sound = noise(0)
    assert (
        open_pair_judge(str(older)).sounds([sound]) == open_pair_judge(chain.contrastive).sounds([sound])
    ).all()
    # a model folder alone needs them
    shutil.move(older / "model", tmp_path / "alone")
    with pytest.raises(UserError, match="which knows no pairs; give a finished run"):
        open_pair_judge(str(tmp_path / "alone"))


@pytest.mark.parametrize("kind", ["three_way", "clap"])
def test_our_models_with_texts_are_their_own_recipe(kind: str, tmp_path: Path) -> None:
    judge: Any = open_pair_judge(str(save_own(tmp_path, kind)))
    assert judge.modalities == (("image", "text") if kind == "three_way" else ("text",))
    texts = judge.texts(["rain", "a much longer text than the tower takes", ""])
    assert texts.shape == (3, 8)
    batch = contrastive.make_batch([None], [SampleKey(0, 0, 0)], judge.config, FACTS)
    assert batch["tokens"].shape[1] == judge.config.text.max_tokens
    sounds = judge.sounds([noise(0), noise(1, 100), noise(2, 9999)])
    assert np.isfinite(sounds).all() and len({tuple(row) for row in sounds.round(4).tolist()}) == 3
    if kind == "three_way":
        assert judge.pictures([Image.new("RGB", (50, 40), "red")]).shape == (1, 8)


def test_a_published_clap_is_the_stock_one(tmp_path: Path) -> None:
    save_published(tmp_path)
    judge = open_pair_judge(str(tmp_path))
    assert judge.modalities == ("text",) and judge.facts["kind"] == "ClapModel"
    stock = ClapModel.from_pretrained(tmp_path).eval()
    sound = noise(0, 16000)
    extractor = ClapFeatureExtractor.from_pretrained(tmp_path)
    wav = resample(sound.wav, 16000, FRONT_END.sample_rate_hz)
    features = extractor(wav, sampling_rate=FRONT_END.sample_rate_hz, return_tensors="pt")
    tokens = AutoTokenizer.from_pretrained(tmp_path)(["rain on a roof"], return_tensors="pt")
    with torch.no_grad():
        heard = stock.get_audio_features(**features).pooler_output.numpy()
        read = stock.get_text_features(**tokens).pooler_output.numpy()
    assert np.abs(judge.sounds([sound]) - heard).max() < 1e-4
    assert np.abs(judge.texts(["rain on a roof"]) - read).max() < 1e-5


def test_features_that_are_drawn_at_random_and_other_models_are_refused(chain: Chain, tmp_path: Path) -> None:
    save_published(tmp_path)
    stated = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**stated, "truncation": "fusion"}))
    with pytest.raises(UserError, match="no score of it repeats; give an unfused one"):
        open_pair_judge(str(tmp_path))
    with pytest.raises(UserError, match="holds a None, which knows no pairs"):
        open_pair_judge(chain.autoencoder)
    with pytest.raises(UserError, match="judge=/nowhere: does not exist"):
        open_pair_judge("/nowhere")


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    folder = save_own(tmp_path, "pictures")
    settings = json.loads((folder / contrastive.SETTINGS).read_text())
    settings["contrastive"]["audio"]["depths"] = [1, 1]
    (folder / contrastive.SETTINGS).write_text(json.dumps(settings))
    with pytest.raises(UserError, match="its files have not these weights"):
        open_pair_judge(str(folder))


def test_the_hash_is_of_the_weights(tmp_path: Path) -> None:
    first = open_pair_judge(str(save_own(tmp_path / "a", "pictures"))).facts
    same = open_pair_judge(str(save_own(tmp_path / "b", "pictures"))).facts
    other = open_pair_judge(str(save_own(tmp_path / "c", "pictures", seed=1))).facts
    assert first["sha256"] == same["sha256"] != other["sha256"]
    assert set(first["parts"]) == {"image_encoder", "."}
    assert replace(CONFIGS["pictures"]) == CONFIGS["pictures"]
