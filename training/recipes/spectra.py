"""Distances between waveforms, and between log mels, by their spectra: per sample and with gradients.

    distance = stft_distance(made, real)              # two of [b, n] -> [b]; 0 for equal ones
    distance = modulation_distance(decoded, log_mel)  # two of [b, t, m] -> [b]

Multi-resolution STFT (Yamamoto et al. 2020, eqs. 3 to 6, with its three resolutions): spectral convergence
plus the mean absolute error of log magnitudes, averaged over resolutions. It compares no phases. Used as a
loss and as a score.

Modulation spectra are those over time of each band of a log mel, at several lengths. An absolute error alone
is least at a median, which is smooth: onsets blur. Here a band that lost its beat is off by all of it.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Resolution(NamedTuple):
    """In samples."""

    fft_size: int
    hop_size: int
    window_size: int


RESOLUTIONS = (Resolution(1024, 120, 600), Resolution(2048, 240, 1200), Resolution(512, 50, 240))
# below it a magnitude is silence: the log of what a vocoder leaves there would outweigh sounds
FLOOR = 1e-5
# of modulation spectra, in frames: at a hop of 10 ms from .16 s, an onset, to 1.28 s, a rhythm
MODULATION_WINDOWS = (16, 32, 64, 128)


def stft_distance(made: Tensor, real: Tensor) -> Tensor:
    """Waveforms [b, n] and [b, n] -> float32 [b]. Not symmetric: it is relative to the energy of `real`."""
    distances = [_distance(made.float(), real.float(), resolution) for resolution in RESOLUTIONS]
    return torch.stack(distances).mean(0)


def _distance(made: Tensor, real: Tensor, resolution: Resolution) -> Tensor:
    made_magnitude = _magnitude(made, resolution)
    real_magnitude = _magnitude(real, resolution)
    error = torch.linalg.vector_norm(real_magnitude - made_magnitude, dim=(1, 2))
    convergence = error / torch.linalg.vector_norm(real_magnitude, dim=(1, 2)).clamp(min=FLOOR)
    log_error = (real_magnitude.log() - made_magnitude.log()).abs().mean((1, 2))
    distance: Tensor = convergence + log_error
    return distance


def _magnitude(wav: Tensor, resolution: Resolution) -> Tensor:
    """[b, n] -> [b, bins, frames], at least FLOOR."""
    window = torch.hann_window(resolution.window_size, device=wav.device)
    spectrum = torch.stft(
        wav,
        resolution.fft_size,
        resolution.hop_size,
        resolution.window_size,
        window=window,
        return_complex=True,
    )
    # clamped before the root: the slope of a root at 0 is infinite
    power = spectrum.real.square() + spectrum.imag.square()
    return power.clamp(min=FLOOR**2).sqrt()


def modulation_distance(made: Tensor, real: Tensor) -> Tensor:
    """Log mels [b, t, m] and [b, t, m] -> float32 [b], in units of a mean absolute error of log mels.

    The mean over windows w, half overlapping, of

        mean over bands, frames and frequencies of | |S_w(made)| - |S_w(real)| |

    where S_w is the STFT of a band over time, divided by the norm of its Hann window, so that white noise of
    deviation 1 has a mean power of 1. Takamichi et al. 2016 compare modulation spectra; several lengths, and
    magnitudes without phases, as Yamamoto et al. 2020 (eqs. 3 to 6) and Engel et al. 2020 (eq. 4) have them
    for waveforms. Windows longer than t are left out; t is at least the shortest.
    """
    windows = [window for window in MODULATION_WINDOWS if window <= made.shape[1]]
    distances: list[Tensor] = []
    for window in windows:
        difference = _modulation(made.float(), window) - _modulation(real.float(), window)
        distances.append(difference.abs().mean((1, 2, 3)))
    return torch.stack(distances).mean(0)


def _modulation(log_mel: Tensor, window: int) -> Tensor:
    """[b, t, m] -> [b, m, frequencies, frames]."""
    batch, frames, bands = log_mel.shape
    shape = torch.hann_window(window, device=log_mel.device)
    by_band = log_mel.transpose(1, 2).reshape(batch * bands, frames)
    spectrum = torch.stft(by_band, window, window // 2, window=shape, center=False, return_complex=True)
    power = spectrum.real.square() + spectrum.imag.square()
    # as for waveforms: clamped before the root
    magnitude = power.clamp(min=FLOOR**2).sqrt() / torch.linalg.vector_norm(shape)
    by_sample: Tensor = magnitude.view(batch, bands, *magnitude.shape[1:])
    return by_sample
