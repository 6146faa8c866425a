"""A vocoder that works at the frame rate and ends in an inverse STFT, as Vocos does (Siuzdak 2024).

    vocoder = IstftVocoder(num_mels=64, width=256, num_layers=6, fft_size=1024, hop_size=160)
    wav = vocoder(log_mel).sample              # [b, m, t] -> [b, 1, t * hop_size]

All its work is matrices at a hundred frames a second, where HiFi-GAN has convolutions at up to 16,000: on a
CPU it costs a small part of the time. Stands alone: `training.export` copies this text beside its weights.
"""

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

KERNEL = 7
WIDENING = 3


class Block(nn.Module):
    """ConvNeXt's (Liu et al. 2022, figure 4) in one dimension."""

    def __init__(self, width: int, scale: float):
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, KERNEL, padding=KERNEL // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, WIDENING * width)
        self.reduce = nn.Linear(WIDENING * width, width)
        self.scale = nn.Parameter(torch.full((width,), scale))

    def forward(self, hidden: Tensor) -> Tensor:
        """[b, w, t] -> [b, w, t]."""
        update = self.norm(self.depthwise(hidden).transpose(1, 2))
        update = self.scale * self.reduce(nn.functional.gelu(self.expand(update)))
        output: Tensor = hidden + update.transpose(1, 2)
        return output


class IstftVocoder(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers hides its types from mypy
    """Log mels [b, m, t] -> waveforms [b, 1, t * hop_size] in -1..1."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_mels: int = 64,
        width: int = 256,
        num_layers: int = 6,
        fft_size: int = 1024,
        hop_size: int = 160,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv1d(num_mels, width, KERNEL, padding=KERNEL // 2)
        self.norm_in = nn.LayerNorm(width)
        # a sum of as many updates then starts no larger than one
        self.blocks = nn.ModuleList(Block(width, 1 / num_layers) for _ in range(num_layers))
        self.norm_out = nn.LayerNorm(width)
        self.head = nn.Linear(width, fft_size + 2)
        self.register_buffer("window", torch.hann_window(fft_size), persistent=False)

    def forward(self, log_mel: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        hidden = self.norm_in(self.conv_in(log_mel).transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            hidden = block(hidden)
        log_magnitude, phase = self.head(self.norm_out(hidden.transpose(1, 2))).float().chunk(2, dim=2)
        # no sound of full scale has more in a window than its length; exp of more would only overflow
        magnitude = log_magnitude.clamp(max=math.log(self.config.fft_size)).exp()
        spectrum = torch.polar(magnitude, phase).transpose(1, 2)
        wav = self._inverse_stft(spectrum).clamp(-1, 1)[:, None].to(log_mel.dtype)
        return DecoderOutput(sample=wav) if return_dict else (wav,)

    def _inverse_stft(self, spectrum: Tensor) -> Tensor:
        """complex [b, bins, t] -> [b, t * hop_size], by least squares (Griffin and Lim 1984, eq. 6).

        By hand: torch.istft refuses windows that are zero at the outermost samples.
        """
        fft_size = self.config.fft_size
        hop_size = self.config.hop_size
        num_frames = spectrum.shape[2]
        window: Tensor = self.window.float()[:, None]
        frames = torch.fft.irfft(spectrum, n=fft_size, dim=1) * window
        length = (num_frames - 1) * hop_size + fft_size
        fold = nn.Fold((1, length), (1, fft_size), stride=(1, hop_size))
        weight = fold((window * window).expand(1, -1, num_frames))
        # 1e-3: at the edges the windows sum to nothing, and rounding would be divided by it
        wav: Tensor = (fold(frames) / weight.clamp(min=1e-3))[:, 0, 0]
        edge = (fft_size - hop_size) // 2
        return wav[:, edge : edge + num_frames * hop_size]
