"""CLAP's front end: a waveform of any rate -> the log mel that published CLAP weights were trained on.

    features = clap_mel(wav, 16000, FrontEndConfig(kind="clap"))      # [n] -> [frames, num_mels], in dB

Number for number what transformers' `ClapFeatureExtractor` gives (truncation rand_trunc), by torch and on all
frames at once, but for the place of the crop: of a longer clip the middle, where the extractor draws one.
AudioLDM's front end, which the other models share, is training.pipeline.mel.
"""

from dataclasses import dataclass
from functools import cache
from math import gcd
from typing import Any

import numpy as np
import torch
from scipy.signal import resample_poly
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

from training.networks.clap import MelNorm

# of recordings, so that new towers start with values around 0: of ln of amplitudes, and of dB of powers
NORMS = {"mel": MelNorm(-6.0, 4.0), "clap": MelNorm(-40.0, 24.0)}
KINDS = tuple(NORMS)
PADDINGS = ("repeatpad", "repeat", "pad")
FLOOR = 1e-10  # of powers, before the logarithm
EXTRACTOR = "preprocessor_config.json"
# what a `ClapFeatureExtractor` calls them
STATED = {
    "sample_rate_hz": "sampling_rate",
    "fft_size": "fft_window_size",
    "hop_size": "hop_length",
    "num_mels": "feature_size",
    "min_hz": "frequency_min",
    "max_hz": "frequency_max",
    "max_length_s": "max_length_s",
    "padding": "padding",
}


@dataclass
class FrontEndConfig:
    """`kind` mel: AudioLDM's log mels, of the dataset's own rate; clap: CLAP's, which published weights need.

    The other settings are of clap, by default those of laion/clap-htsat-unfused. Clips of more than
    `max_length_s` are cut to their middle; shorter ones are laid out by `padding`: repeatpad, repeat or pad.
    """

    # mel: AudioLDM's, of the dataset's own rate; clap: CLAP's, which published weights need
    kind: str = "mel"
    sample_rate_hz: int = 48000  # to which sounds are resampled; of clap, as all below
    fft_size: int = 1024  # samples of a window
    hop_size: int = 480  # samples from one window to the next
    num_mels: int = 64  # bands
    min_hz: float = 50.0  # of the lowest band
    max_hz: float = 14000.0  # of the highest band
    max_length_s: int = 10  # longer clips are cut to their middle
    padding: str = "repeatpad"  # how shorter clips are laid out: repeatpad, repeat or pad

    @property
    def num_samples(self) -> int:
        return self.max_length_s * self.sample_rate_hz

    @property
    def num_frames(self) -> int:
        """Frames of every clip, at the rate of the front end."""
        return 1 + self.num_samples // self.hop_size

    def extractor(self) -> dict[str, Any]:
        """As arguments of a `ClapFeatureExtractor`."""
        named = {stated: getattr(self, name) for name, stated in STATED.items()}
        return named | {"truncation": "rand_trunc"}


def clap_mel(wav: np.ndarray, rate_hz: int, config: FrontEndConfig) -> Tensor:
    """float32 [n] in -1..1 -> float32 [num_frames, num_mels], in dB of power."""
    samples = laid_out(resample(wav, rate_hz, config.sample_rate_hz), config)
    # float64: a clip's features do not depend on how a library sums
    spectrum = torch.stft(
        torch.from_numpy(samples),
        config.fft_size,
        config.hop_size,
        window=torch.hann_window(config.fft_size, dtype=torch.float64),
        return_complex=True,
    )
    power = spectrum.abs().square().T @ _bank(_key(config))
    return (10 * power.clamp(min=FLOOR).log10()).float()


def resample(wav: np.ndarray, rate_hz: int, new_rate_hz: int) -> np.ndarray:
    """[n] -> float64 [n * new_rate_hz / rate_hz], by a polyphase filter."""
    if rate_hz == new_rate_hz:
        return wav.astype(np.float64)
    common = gcd(rate_hz, new_rate_hz)
    resampled: np.ndarray = resample_poly(wav.astype(np.float64), new_rate_hz // common, rate_hz // common)
    return resampled


def laid_out(wav: np.ndarray, config: FrontEndConfig) -> np.ndarray:
    """[n] -> [num_samples]: the middle of a longer wave; a shorter one repeated, then padded with silence."""
    length = config.num_samples
    if len(wav) >= length:
        start = (len(wav) - length) // 2
        return wav[start : start + length]
    repeats = 1
    if config.padding != "pad" and len(wav):
        # repeatpad: whole ones alone
        repeats = length // len(wav) + (config.padding == "repeat")
    repeated = np.tile(wav, repeats)[:length]
    return np.pad(repeated, (0, length - len(repeated)))


def _key(config: FrontEndConfig) -> tuple[int, int, float, float, int]:
    return (config.fft_size // 2 + 1, config.num_mels, config.min_hz, config.max_hz, config.sample_rate_hz)


@cache
def _bank(key: tuple[int, int, float, float, int]) -> Tensor:
    """float64 [num_bins, num_mels]."""
    bins, num_mels, min_hz, max_hz, rate_hz = key
    bank = mel_filter_bank(bins, num_mels, min_hz, max_hz, rate_hz, norm="slaney", mel_scale="slaney")
    return torch.from_numpy(bank).double()
