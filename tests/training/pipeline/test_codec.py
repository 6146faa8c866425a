"""The codec: decoded mels that cannot be those of a sound are found."""

import pytest
import torch

from training.pipeline.codec import BadMelError, check_log_mel
from training.pipeline.mel import MelConfig, wav_to_log_mel

MEL = MelConfig(duration_s=0.16)


def test_one_bad_value_in_a_batch_is_found() -> None:
    log_mel = torch.full((3, 16, 64), -11.5)
    check_log_mel(log_mel)
    log_mel[2, 7, 9] = torch.nan
    with pytest.raises(BadMelError):
        check_log_mel(log_mel)


def test_the_loudest_sound_there_can_be_is_no_bad_mel() -> None:
    time = torch.arange(MEL.num_samples) / MEL.sample_rate_hz
    for wav in (
        torch.ones_like(time),
        torch.sign(torch.sin(2 * torch.pi * 200 * time)),
        torch.zeros_like(time),
    ):
        check_log_mel(wav_to_log_mel(wav[None], MEL))
