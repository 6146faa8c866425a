"""The front end:

AudioLDM's literal shapes, the filter bank's place of a tone, and the way back to a waveform.
"""

import math

import pytest
import torch

from training.pipeline.mel import (
    MelConfig,
    filter_bank,
    log_mel_to_wav,
    mel_to_magnitude,
    to_audioldm_level,
    wav_to_log_mel,
)

SHORT = MelConfig(duration_s=1.6)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def tone(frequency_hz: float, mel: MelConfig) -> torch.Tensor:
    time_s = torch.arange(mel.num_samples) / mel.sample_rate_hz
    return 0.5 * torch.sin(2 * math.pi * frequency_hz * time_s)[None]


def test_the_literal_numbers_of_audioldm() -> None:
    mel = MelConfig()
    assert (mel.num_frames, mel.num_mels, mel.num_samples, mel.latent_shape) == (
        1024,
        64,
        163840,
        (8, 256, 16),
    )
    assert wav_to_log_mel(torch.zeros(1, mel.num_samples), mel).shape == (1, 1024, 64)


def test_the_numbers_of_a_short_clip() -> None:
    assert (SHORT.num_frames, SHORT.num_samples, SHORT.latent_shape) == (160, 25600, (8, 40, 16))


def test_silence_is_the_log_of_the_floor() -> None:
    assert torch.allclose(wav_to_log_mel(torch.zeros(1, 25600), SHORT), torch.tensor(math.log(1e-5)))


def test_a_tone_is_loudest_in_the_band_whose_filter_holds_it() -> None:
    band = wav_to_log_mel(tone(1000, SHORT), SHORT).mean(1).argmax().item()
    assert filter_bank(SHORT)[round(1000 / 16000 * 1024), band] > 0


@pytest.mark.parametrize("length", [20000, 25600, 30000])
def test_audio_of_any_length_gives_the_same_frames(length: int) -> None:
    assert wav_to_log_mel(torch.zeros(2, length), SHORT).shape == (2, 160, 64)


def test_magnitudes_explain_the_mels() -> None:
    mels = wav_to_log_mel(tone(440, SHORT), SHORT).exp()
    assert (mel_to_magnitude(mels, SHORT) @ filter_bank(SHORT) - mels).abs().mean() < 0.05 * mels.abs().mean()


def test_griffin_lim_gives_back_the_pitch_and_the_length() -> None:
    wav = log_mel_to_wav(wav_to_log_mel(tone(440, SHORT), SHORT), SHORT)
    peak_hz = torch.fft.rfft(wav[0]).abs().argmax().item() * SHORT.sample_rate_hz / SHORT.num_samples
    assert wav.shape == (1, 25600) and abs(peak_hz - 440) < 30


def test_griffin_lim_does_not_depend_on_the_batch() -> None:
    log_mel = torch.cat([wav_to_log_mel(tone(f, SHORT), SHORT) for f in (300, 700)])
    together, alone = log_mel_to_wav(log_mel, SHORT, 4), log_mel_to_wav(log_mel[1:], SHORT, 4)
    assert torch.allclose(together[1:], alone, atol=1e-4)


def test_audioldms_level_has_no_mean_and_a_peak_of_a_half() -> None:
    wav = 0.01 * torch.randn(3, 4000) + torch.tensor([[0.3], [0.0], [-0.1]])
    found = to_audioldm_level(wav)
    assert found.mean(1).abs().max() < 1e-5
    assert found.abs().amax(1) == pytest.approx([0.5] * 3, abs=1e-4)
    assert not to_audioldm_level(torch.full((1, 100), 0.25)).any()


def test_at_audioldms_level_neither_loudness_nor_offset_is_in_the_mel() -> None:
    mel, wav = MelConfig(duration_s=0.4, level="audioldm"), torch.randn(1, 6400) * 0.1
    assert torch.allclose(wav_to_log_mel(wav, mel), wav_to_log_mel(0.01 * wav + 0.2, mel), atol=1e-2)
    recorded = MelConfig(duration_s=0.4)
    assert (wav_to_log_mel(wav, recorded) - wav_to_log_mel(0.01 * wav, recorded)).mean() > 4


def test_padding_is_silence_at_either_level() -> None:
    mel = MelConfig(duration_s=0.4, level="audioldm")
    tail = wav_to_log_mel(torch.rand(1, 3200), mel)[0, -10:]
    assert torch.allclose(tail, torch.full_like(tail, torch.tensor(mel.floor).log()))


def test_the_level_as_recorded_leaves_settings_as_they_were() -> None:
    assert "level" not in MelConfig().settings()
    for mel in (MelConfig(duration_s=0.4), MelConfig(level="audioldm")):
        assert MelConfig(**mel.settings()) == mel
