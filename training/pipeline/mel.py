"""The front end of AudioLDM: waveform -> log mel spectrogram, and back by Griffin-Lim.

    mel = MelConfig(duration_s=10.24)      # all lengths derive from it: 1024 x 64 mels, latent 8 x 256 x 16
    log_mel = wav_to_log_mel(wav, mel)     # [b, n] -> [b, num_frames, num_mels]
    wav = log_mel_to_wav(log_mel, mel)     # [b, num_frames, num_mels] -> [b, n]

Magnitudes (not powers), slaney mels, natural log clamped at 1e-5 (AudioLDM, Liu et al. 2023, section 4).
`level` audioldm: of audio as AudioLDM's training code brings it to one level; recorded: as it is. Imports
torch and transformers only: `training.export` copies this text into the file that ships with a model. Trains
nothing.
"""

import math
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

LEVELS = ("recorded", "audioldm")
SPECTROGRAMS: dict[str, dict[str, Any]] = {
    "audioldm": {},
    "mmaudio": {
        "hop_size": 256,
        "num_mels": 80,
        "downsampling": 2,
        "latent_channels": 20,
        "latent_bands": 1,
    },
    "audiomae": {"num_mels": 128, "downsampling": 16},
}
"""Whose, at 16 kHz, and in what they differ from `MelConfig`'s defaults. MMAudio's: latents 20 x 250 x 1 of
8 s, 31.25 a second (Cheng et al. 2024); natural logarithms, where its weights were trained on log10.
AudioMAE's: 64 x 8 patches of 10.24 s (Huang et al. 2022); slaney mels, where its own are Kaldi's."""
ADDED: dict[str, Any] = {"level": "recorded", "latent_bands": 0}
"""Settings that were not always there, at what they meant then."""
MelSettings = dict[str, Any]
"""`MelConfig.settings()` as JSON; older ones may lack what was added since."""
MEL_FILE = "mel.json"
"""Beside the weights of a codec or a vocoder: settings of its spectrograms. Published ones have none."""


@dataclass(frozen=True)
class MelConfig:
    """Settings of the spectrogram; lengths are properties.

    The autoencoder shrinks time and mels by `downsampling` each; with `latent_bands` 1 only time: its latents
    are sequences, of mels as channels.
    """

    duration_s: float = 10.24
    sample_rate_hz: int = 16000
    fft_size: int = 1024
    hop_size: int = 160
    num_mels: int = 64
    min_hz: float = 0.0
    max_hz: float = 8000.0
    floor: float = 1e-5
    downsampling: int = 4
    latent_channels: int = 8
    level: str = "recorded"
    latent_bands: int = 0

    @property
    def num_frames(self) -> int:
        """Frames of a clip, cut to a multiple of the autoencoder's ratio."""
        # 1e-6 frames: 1.6 s * 16000 / 160 may come out just below 160
        frames = math.floor(self.duration_s * self.sample_rate_hz / self.hop_size + 1e-6)
        return frames - frames % self.downsampling

    @property
    def num_samples(self) -> int:
        return self.num_frames * self.hop_size

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, time, mel bands."""
        bands = self.latent_bands or self.num_mels // self.downsampling
        return self.latent_channels, self.num_frames // self.downsampling, bands

    @property
    def is_sequence(self) -> bool:
        """Whether latents have one band: those of a one-dimensional autoencoder."""
        return self.latent_bands == 1

    def settings(self) -> MelSettings:
        """Plain data of which `MelConfig(**settings)` is the inverse.

        What is as it was before there was a choice is left out, so that hashes stay.
        """
        return {name: value for name, value in asdict(self).items() if ADDED.get(name) != value}


@cache
def filter_bank(mel: MelConfig) -> Tensor:
    """float32 [num_bins, num_mels]."""
    bins = mel.fft_size // 2 + 1
    bank = mel_filter_bank(
        bins, mel.num_mels, mel.min_hz, mel.max_hz, mel.sample_rate_hz, norm="slaney", mel_scale="slaney"
    )
    return torch.from_numpy(bank).float()


def wav_to_log_mel(wav: Tensor, mel: MelConfig) -> Tensor:
    """float32 [b, n] in -1..1 -> [b, num_frames, num_mels]; cut, or padded with silence."""
    wav = wav[:, : mel.num_samples]
    if mel.level == "audioldm":
        wav = to_audioldm_level(wav)
    wav = torch.nn.functional.pad(wav, (0, mel.num_samples - wav.shape[-1]))
    # HiFi-GAN's padding (Kong et al. 2020): with it there are exactly num_samples / hop_size frames
    edge = (mel.fft_size - mel.hop_size) // 2
    padded = torch.nn.functional.pad(wav[:, None], (edge, edge), mode="reflect")[:, 0]
    magnitude = _stft(padded, mel).abs()
    return (magnitude.transpose(1, 2) @ filter_bank(mel).to(wav)).clamp(min=mel.floor).log()


def to_audioldm_level(wav: Tensor) -> Tensor:
    """[b, n] -> [b, n]: each wave without its mean, its peak at 0.5.

    `normalize_wav` of AudioLDM-training-finetuning.
    """
    centred = wav - wav.mean(-1, keepdim=True)
    # + 1e-8: silence stays silence
    return 0.5 * centred / (centred.abs().amax(-1, keepdim=True) + 1e-8)


def log_mel_to_wav(
    log_mel: Tensor, mel: MelConfig, iterations: int = 32, momentum: float = 0.99, seed: int = 0
) -> Tensor:
    """[b, num_frames, num_mels] -> [b, n]: magnitudes by least squares, phases by fast Griffin-Lim.

    Perraudin, Balazs and Sondergaard, "A fast Griffin-Lim algorithm" (2013); all clips at once; the same
    `seed` gives the same start phases for every clip, whatever the batch.
    """
    magnitude = mel_to_magnitude(log_mel.float().exp(), mel).transpose(1, 2)
    # drawn on the CPU: a seed gives the same phases on every device
    generator = torch.Generator().manual_seed(seed)
    phase = torch.rand(magnitude.shape[1:], generator=generator).to(magnitude) * 2 * math.pi
    angles = torch.polar(torch.ones_like(magnitude), phase.expand_as(magnitude))
    before = torch.zeros_like(angles)
    for _ in range(iterations):
        rebuilt = _stft(_overlap_add(magnitude * angles, mel), mel)
        angles = rebuilt + momentum * (rebuilt - before)
        # the phase alone; the bound keeps a bin of silence from a division by 0
        angles = angles / angles.abs().clamp(min=1e-9)
        before = rebuilt
    edge = (mel.fft_size - mel.hop_size) // 2
    return _overlap_add(magnitude * angles, mel)[:, edge : edge + log_mel.shape[1] * mel.hop_size]


def mel_to_magnitude(mels: Tensor, mel: MelConfig, iterations: int = 30) -> Tensor:
    """[b, frames, num_mels] -> [b, frames, num_bins], non-negative.

    Multiplicative updates (Lee and Seung 2001, eq. 4): they keep the sign of what they start from.
    """
    bank = filter_bank(mel).to(mels)
    # the start must be above 0: what is 0 stays 0
    guess: Tensor = (mels @ torch.linalg.pinv(bank)).clamp(min=1e-8)
    target = mels @ bank.T
    gram = bank @ bank.T
    for _ in range(iterations):
        guess = guess * target / (guess @ gram).clamp(min=1e-10)
    return guess


def _window(mel: MelConfig, like: Tensor) -> Tensor:
    return torch.hann_window(mel.fft_size, device=like.device)


def _stft(padded: Tensor, mel: MelConfig) -> Tensor:
    """[b, n] -> complex [b, num_bins, frames], without further padding."""
    window = _window(mel, padded)
    spectrum: Tensor = torch.stft(
        padded, mel.fft_size, mel.hop_size, window=window, center=False, return_complex=True
    )
    return spectrum


def _overlap_add(spectrum: Tensor, mel: MelConfig) -> Tensor:
    """The least-squares inverse of `_stft` (Griffin and Lim 1984, eq. 6).

    By hand: torch.istft refuses windows that are zero at the outermost samples.
    """
    window = _window(mel, spectrum)[:, None]
    frames = torch.fft.irfft(spectrum, n=mel.fft_size, dim=1) * window
    length = (spectrum.shape[2] - 1) * mel.hop_size + mel.fft_size
    fold = torch.nn.Fold((1, length), (1, mel.fft_size), stride=(1, mel.hop_size))
    weight = fold((window * window).expand(1, -1, spectrum.shape[2]))
    # 1e-3: at the edges the windows sum to nothing, and rounding would be divided by it
    wav: Tensor = (fold(frames) / weight.clamp(min=1e-3))[:, 0, 0]
    return wav
