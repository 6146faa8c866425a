"""A dataset of clips is a sequence of pictures and sounds: what is committed, and nothing that was removed."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from cluster.dataset import Dataset
from cluster.shards import DamagedMemberError, Row
from configs.load import UserError
from ingest.clips import Clips
from ingest.gc import GcConfig, gc
from ingest.remove import RemoveConfig, remove
from tests.ingest.dedup.test_fingerprint import RATE, noise
from tests.ingest.test_curate import clip, picture, row, write


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    names = ("d", "a", "c", "b")
    splits = ("train", "train", "validation", "train")
    return [
        row(name, clip(picture(seed, 96), noise(seed, 0.5)), split=split)
        for seed, (name, split) in enumerate(zip(names, splits))
    ]


@pytest.fixture
def dataset(rows: list[Row], tmp_path: Path) -> Dataset:
    """Units of two samples; a third is listed, and not committed."""
    dataset = write(tmp_path / "clips", [rows[:2], rows[2:]])
    dataset.worklist.append([("urls:late", {})], 1)
    return dataset


def test_a_sample_is_what_was_stored(dataset: Dataset, rows: list[Row]) -> None:
    clips = Clips(dataset.uri)
    assert len(clips) == 4 and clips.keys == [sample.key for sample in clips]
    # units in their order, keys in theirs
    assert clips.keys == ["urls_a_0", "urls_d_0", "urls_b_0", "urls_c_0"]
    sample = clips["urls_d_0"]
    stored = soundfile.read(io.BytesIO(rows[0].members["flac"]), dtype="float32")[0]
    assert np.array_equal(sample.sound, stored)
    assert sample.sound.dtype == np.float32 and sample.sound.ndim == 1 and sample.sample_rate_hz == RATE
    assert (sample.picture.size, sample.picture.mode) == ((96, 96), "RGB")
    assert sample.metadata["license"] == "CC-BY-4.0" and sample.metadata["media_id"] == "d"
    assert clips[-1] == clips["urls_c_0"] and [each.key for each in clips[1:3]] == clips.keys[1:3]
    assert "urls_d_0" in clips and "nobody" not in clips
    with pytest.raises(IndexError):
        clips[4]
    with pytest.raises(KeyError):
        clips["nobody"]


def test_its_sound_as_a_file(dataset: Dataset, tmp_path: Path) -> None:
    sample = Clips(dataset.uri)[0]
    sample.save_wav(tmp_path / "a.wav")
    wav, rate_hz = soundfile.read(tmp_path / "a.wav", dtype="float32")
    assert rate_hz == RATE and np.array_equal(wav, sample.sound)


def test_one_split_or_a_clear_refusal(dataset: Dataset, tmp_path: Path) -> None:
    assert Clips(dataset.uri, "validation").keys == ["urls_c_0"] and len(Clips(dataset.uri, "train")) == 3
    with pytest.raises(UserError, match="split=test; splits: train, validation"):
        Clips(dataset.uri, "test")
    with pytest.raises(UserError, match="no dataset here"):
        Clips(str(tmp_path / "nowhere"))
    latents = Dataset.create_or_open(str(tmp_path / "latents"), "latents", {}, [])
    with pytest.raises(UserError, match="is a dataset of latents, need one of clips"):
        Clips(latents.uri)


def test_what_is_removed_is_gone_at_once_also_where_it_is_open(dataset: Dataset) -> None:
    clips = Clips(dataset.uri)
    dataset.bury({"urls_a_0": "removed"})
    assert "urls_a_0" not in Clips(dataset.uri) and len(Clips(dataset.uri)) == 3
    assert [sample.key for sample in clips] == ["urls_d_0", "urls_b_0", "urls_c_0"]
    remove(RemoveConfig(dataset.uri, key="urls_d_0"))
    gc(GcConfig(dataset.uri, purge=True))
    assert Clips(dataset.uri).keys == ["urls_b_0", "urls_c_0"] and len(list(Clips(dataset.uri))) == 2
    with pytest.raises(DamagedMemberError, match="open the dataset again"):
        clips["urls_d_0"]


def test_damage_is_an_error(dataset: Dataset) -> None:
    clips = Clips(dataset.uri)
    for tar in Path(dataset.uri, "shards").iterdir():
        data = bytearray(tar.read_bytes())
        data[700] ^= 1
        tar.write_bytes(data)
    with pytest.raises(DamagedMemberError, match="flac in shards/.* is damaged"):
        clips[0]
