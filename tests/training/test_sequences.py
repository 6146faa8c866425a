"""What precompute stores beside latents: sequences as their encoders give them, of each clip its own."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.dataset import Dataset
from configs.load import UserError
from tests.conftest import ROOT
from tests.fakes.captioned import make_captioned
from tests.fakes.chain import Chain
from tests.fakes.readers import save_text, save_vits
from tests.fakes.runs import TINY, settings
from tests.fakes.towers import save_codec, save_tower
from training.data.catalogue import Catalogue
from training.data.npy import read_npy
from training.data.randomness import VALIDATION, SampleKey
from training.export import ExportConfig, PartLicenses, export
from training.networks.audiomae import embed_tokens
from training.pipeline.mel import SPECTROGRAMS, MelConfig
from training.pipeline.text import embed_texts
from training.precompute import PrecomputeConfig, precompute, prepare
from training.pretrained import load_audiomae
from training.recipes.captions import text_of
from training.recipes.clips import decode_log_mel
from training.recipes.conditions import SequenceConfig, sequence_arrays
from training.text_encoders import load_text_reader
from training.train import train

RECIPES = ROOT / "docs/recipes.md"


def test_audiomae_tokens_are_stored_beside_the_latents(chain: Chain, tmp_path: Path) -> None:
    models = {"autoencoder": chain.autoencoder, "image_encoder": chain.contrastive}
    config = PrecomputeConfig(
        data=chain.clips, output=str(tmp_path), workers=0, audiomae=chain.audiomae, batch_size=3, **models
    )
    precompute(config, progress=False)
    latents = Dataset.open(str(tmp_path))
    assert set(latents.meta["config"]["sha256"]) == {"autoencoder", "image_encoder", "audiomae"}
    (commit, *_) = [commit for commit in latents.snapshot().commits if commit.statistics["image_count"]]
    assert commit.statistics["audiomae_shape"] == [8, 16]
    catalogue = Catalogue.of(latents, latents.snapshot(), "train", ("audiomae.npy",))
    sample = catalogue.read([0])[0]
    clips = Dataset.open(chain.clips)
    sounds = Catalogue.of(clips, clips.snapshot(), "train", ("flac",))
    assert sample is not None and sounds.keys[0] == catalogue.keys[0]
    sound = sounds.read([0])[0]
    assert sound is not None
    mae = load_audiomae(Path(chain.audiomae) / "model")
    log_mel = decode_log_mel(sound["flac"], MelConfig(duration_s=1.6, **SPECTROGRAMS["audiomae"]))
    with torch.no_grad():
        expected = embed_tokens(mae, log_mel[None])[0]
    stored = torch.from_numpy(read_npy(sample["audiomae.npy"]).astype(np.float32))
    assert stored.shape == (8, 16) and torch.allclose(stored, expected, atol=5e-3)
    # the same output without them is another dataset
    with pytest.raises(UserError, match="sha256"):
        precompute(replace(config, audiomae=""), progress=False)


# --- Texts and phonemes -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("readers")
    texts = {kind: str(save_text(root / kind, kind)) for kind in ("roberta", "t5", "clap")}
    return {**texts, "vits": str(save_vits(root / "vits"))}


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_captioned(tmp_path_factory.mktemp("captioned") / "clips", units=2).uri


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("towers")
    return {
        "autoencoder": str(save_codec(root / "codec")),
        "image_encoder": str(save_tower(root / "tower")),
    }


def asked(captioned: str, towers: dict[str, str], output: Path, **other: Any) -> PrecomputeConfig:
    settings = {"workers": 0, "level": "recorded", "text_tokens": 12, **other}
    return PrecomputeConfig(data=captioned, output=str(output), **towers, **settings)


def stored(latents: str, member: str) -> dict[str, np.ndarray]:
    dataset = Dataset.open(latents)
    found: dict[str, np.ndarray] = {}
    for split in ("train", "validation"):
        catalogue = Catalogue.of(dataset, dataset.snapshot(), split, (member,))
        for index, sample in catalogue.read(list(range(len(catalogue)))).items():
            assert sample is not None
            found[str(catalogue.keys[index])] = read_npy(bytes(sample[member]))
    return found


def test_texts_and_phonemes_are_stored_as_read_alone_at_every_batch_size(
    captioned: str, towers: dict[str, str], readers: dict[str, str], tmp_path: Path
) -> None:
    wanted = {"text_encoder": readers["roberta"], "phoneme_encoder": readers["vits"]}
    wanted["phoneme_column"] = "caption"
    summary = precompute(asked(captioned, towers, tmp_path / "a", batch_size=7, **wanted), progress=False)
    # every fourth of 24 training samples of two units has no caption
    assert summary.without == {"text.npy": 12, "phonemes.npy": 12}
    precompute(asked(captioned, towers, tmp_path / "b", batch_size=1, **wanted), progress=False)
    reader = load_text_reader(Path(readers["roberta"]))
    clips = Dataset.open(captioned)
    for member, width in (("text.npy", 16), ("phonemes.npy", 16)):
        many = stored(str(tmp_path / "a"), member)
        one = stored(str(tmp_path / "b"), member)
        assert many.keys() == one.keys() and len(many) == 64
        assert sum(len(array) == 0 for array in many.values()) == 12
        for key, array in many.items():
            assert array.dtype == np.float16 and array.shape[1:] == (width,) and array.shape == one[key].shape
            # a float16 may be rounded the other way
            assert np.allclose(array.astype(float), one[key].astype(float), atol=2e-3)
    catalogue = Catalogue.of(clips, clips.snapshot(), "validation", ("json",))
    (sample,) = catalogue.read([3]).values()
    assert sample is not None
    text = text_of(sample["json"], "caption")
    assert text == "a fa, take 0.3"
    with torch.no_grad():
        (expected,) = embed_texts(*reader, [text], 12)
    found = stored(str(tmp_path / "a"), "text.npy")[str(catalogue.keys[3])]
    assert np.allclose(found.astype(np.float32), expected.numpy(), atol=2e-3)


def test_an_absent_text_is_an_absent_sequence_of_a_batch(
    captioned: str, towers: dict[str, str], readers: dict[str, str], tmp_path: Path
) -> None:
    precompute(asked(captioned, towers, tmp_path, text_encoder=readers["clap"]), progress=False)
    latents = Dataset.open(str(tmp_path))
    catalogue = Catalogue.of(latents, latents.snapshot(), "train", ("text.npy",))
    samples = list(catalogue.read(list(range(8))).values())
    keys = [SampleKey(0, VALIDATION, position) for position in range(8)]
    batch = sequence_arrays(samples, keys, [SequenceConfig("text.npy", dim=16, length=12)])
    has_caption = [bool(index % 4) for index in range(8)]
    assert batch["text_present"].amax(1).bool().tolist() == has_caption
    assert not batch["text"][0].any()


def test_another_encoder_column_or_length_is_another_dataset(
    captioned: str, towers: dict[str, str], readers: dict[str, str], tmp_path: Path
) -> None:
    config = asked(captioned, towers, tmp_path, text_encoder=readers["t5"])
    prepare(config)
    record = json.loads((tmp_path / "models/provenance.json").read_text())["parts"]["text_encoder"]
    assert record["sources"] == [readers["t5"]]
    assert prepare(config)[0].meta == Dataset.open(str(tmp_path)).meta
    for change in (
        {"text_encoder": readers["roberta"]},
        {"text_column": "title"},
        {"text_tokens": 11},
        {"text_encoder": ""},
        {"phoneme_encoder": readers["vits"], "phoneme_column": "caption"},
    ):
        with pytest.raises(UserError, match="sha256|texts"):
            prepare(replace(config, **change))


def test_a_column_that_no_clip_has_is_refused_before_an_output_is_made(
    captioned: str, towers: dict[str, str], readers: dict[str, str], tmp_path: Path
) -> None:
    config = asked(captioned, towers, tmp_path / "out", text_encoder=readers["t5"], text_column="captoin")
    with pytest.raises(UserError, match="text_column=captoin: none of the first.*they have caption, title"):
        prepare(config)
    assert not (tmp_path / "out").exists()


def test_a_model_with_texts_is_trained_and_given_one_as_the_docs_say(
    captioned: str,
    towers: dict[str, str],
    readers: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The text in photo.jpg's place: the example of docs/recipes.md, line by line."""
    monkeypatch.chdir(tmp_path)
    precompute(asked(captioned, towers, Path("out/latents"), text_encoder=readers["clap"]), progress=False)
    sequences = [SequenceConfig("text.npy", dim=16, length=12)]
    unet = replace(TINY, attention=True, sequences=sequences, widths=[16])
    train(settings("out/latents", Path("out/runs/text"), steps=2, checkpoint_every=2, diffusion=unet))
    Image.new("RGB", (40, 30), "grey").save("photo.jpg")
    (example,) = re.findall("```python\n(from training.export import.*?)```", RECIPES.read_text(), re.DOTALL)
    # as many tokens as this tiny model has places for
    found: dict[str, Any] = {}
    exec(example.replace("max_tokens=77", "max_tokens=12"), found)
    alone = found["pipe"](image="photo.jpg").audios
    assert found["audios"].shape == alone.shape and not np.array_equal(found["audios"], alone)
    _check_license_of_reader(tmp_path / "out/runs/text", tmp_path / "export")


def _check_license_of_reader(run: Path, output: Path) -> None:
    """What read the texts does not ship; its license is asked for all the same."""
    with pytest.raises(UserError, match="the license of its text_encoder .*init_license.text_encoder="):
        export(ExportConfig(str(run), str(output), init_license=PartLicenses("", "mit", "mit")))
