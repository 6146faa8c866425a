"""Distances between waveforms by their spectra, per sample and with gradients.

    distance = stft_distance(made, real)        # two of [b, n] -> [b]; 0 for equal ones

Multi-resolution STFT (Yamamoto et al. 2020, eqs. 3 to 6, with its three resolutions): spectral convergence
plus the mean absolute error of log magnitudes, averaged over resolutions. It compares no phases. Used as a
loss and as a score.
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
