"""What a sound is like: bands, rhythm, and how much they vary over the sounds that are learnt from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.dataset import Dataset
from configs.load import UserError
from tests.fakes.clips import make_clips
from training.data.catalogue import Catalogue
from training.pipeline.mel import MelConfig, wav_to_log_mel
from training.recipes.sound_statistics import frame_rate_of, scale_of, statistics_in, statistics_of

MEL = MelConfig(duration_s=1.6)
RATE_HZ = frame_rate_of(MEL)
SLOWEST_HZ = 1.25  # the first of the modulation spectrum: 1 Hz is between two
STEP_HZ = 0.3125  # of its rates: half of one period in 1.6 s


def log_mel(pulses_hz: float, tone_hz: float = 440.0, level: float = 0.3) -> torch.Tensor:
    """A tone that comes and goes."""
    time_s = np.arange(MEL.num_samples) / MEL.sample_rate_hz
    loudness = 0.5 + 0.45 * np.sin(2 * np.pi * pulses_hz * time_s)
    wav = (level * loudness * np.sin(2 * np.pi * tone_hz * time_s)).astype(np.float32)
    return wav_to_log_mel(torch.from_numpy(wav)[None], MEL)


@settings(deadline=None, max_examples=20)
@given(st.floats(2.0, 12.0))
def test_the_strongest_modulation_is_the_rhythm(pulses_hz: float) -> None:
    modulation = statistics_of(log_mel(pulses_hz), RATE_HZ)[0, MEL.num_mels :]
    assert SLOWEST_HZ + STEP_HZ * int(modulation.argmax()) == pytest.approx(pulses_hz, abs=STEP_HZ)


def test_a_rhythm_is_the_same_however_loud_and_a_level_is_not() -> None:
    loud, quiet = (statistics_of(log_mel(4.0, level=level), RATE_HZ)[0] for level in (0.5, 0.05))
    bands = MEL.num_mels
    assert torch.allclose(loud[bands:], quiet[bands:], atol=0.05)
    strongest = int(loud[:bands].argmax())
    assert float(loud[strongest] - quiet[strongest]) == pytest.approx(np.log(10), abs=0.01)


def test_the_strongest_band_is_the_tones() -> None:
    low, high = (int(statistics_of(log_mel(4.0, hz), RATE_HZ)[0, :64].argmax()) for hz in (220.0, 3000.0))
    assert low < high


def test_silence_has_finite_statistics() -> None:
    silent = wav_to_log_mel(torch.zeros(1, MEL.num_samples), MEL)
    assert torch.isfinite(statistics_of(silent, RATE_HZ)).all()


def test_the_scale_is_of_training_sounds_that_are_not_removed(tmp_path: Path) -> None:
    dataset = make_clips(tmp_path / "clips")
    snapshot = dataset.snapshot()
    mel = MelConfig(duration_s=dataset.meta["config"]["clip"]["duration_s"])
    scale = scale_of([dataset], [snapshot], mel)
    learnt = sounds_of(dataset, "train")
    statistics = torch.stack([statistics_in(flac, mel, scale) for flac in learnt])
    varies = statistics.std(0) > 0.1
    assert torch.allclose(statistics.mean(0), torch.zeros(len(varies)), atol=5e-3) and varies.sum() > 20
    assert torch.allclose(statistics.std(0)[varies], torch.ones(int(varies.sum())), atol=1e-3)
    dataset.bury({key: "a request" for key in keys_of(dataset, "train")[:-1]})
    with pytest.raises(UserError, match="has 1 training sounds .* give 0"):
        scale_of([Dataset.open(dataset.uri)], [snapshot], mel)


def keys_of(dataset: Dataset, split: str) -> list[str]:
    return [row["key"] for row in dataset.iter_rows() if row["status"] == "kept" and row["split"] == split]


def sounds_of(dataset: Dataset, split: str) -> list[bytes]:
    """The FLAC of every sample of a split."""
    catalogue = Catalogue.of(dataset, dataset.snapshot(), split, ("flac",))
    samples = catalogue.read(list(range(len(catalogue.keys))))
    return [bytes(sample["flac"]) for sample in samples.values() if sample]


def test_what_never_varies_is_divided_by_one(tmp_path: Path) -> None:
    dataset = make_clips(tmp_path / "clips")
    mel = MelConfig(duration_s=dataset.meta["config"]["clip"]["duration_s"])
    scale = scale_of([dataset], [dataset.snapshot()], mel)
    # the clips are steady tones: nothing comes and goes
    assert 1.0 in scale["spread"] and min(scale["spread"]) >= 0.05
