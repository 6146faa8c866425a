"""MMAudio's autoencoder as diffusers has it (`MMAudioVAE`), made trainable: log mels -> latents [b, c, t].

    codec = build_mmaudio(channels=[384, 768, 1536], layers_per_block=2, mel=mel)
    stock.load_state_dict(stock_state(codec.state_dict()))    # for its stock class: kernels of length 1

One-dimensional: bands are channels, and only time is shrunk, once, by 2. Layers keep magnitudes instead of
normalising activations (Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion
Models", eq. 47): every kernel has length 1. diffusers leaves that to released weights; here it is kept while
they learn. No loss and no data here (training.recipes.autoencoder).
"""

import math

import torch
from diffusers import MMAudioVAE
from diffusers.models.autoencoders.autoencoder_mmaudio import MMAudioMPConv1d
from torch import Tensor, nn

from training.pipeline.mel import MelConfig

FRONT_END = "mel_converter."
"""Of the stock class: a spectrogram of its own, which is ours to rounding."""
GAIN = "learnable_gain"


class UnitConv1d(MMAudioMPConv1d):  # type: ignore[misc]  # diffusers hides its types from mypy
    """Kernels of length 1, whatever the length of the weights that are learnt."""

    def forward(self, x: Tensor, gain: float | Tensor = 1.0) -> Tensor:
        weight = _unit(self.weight) * gain
        return nn.functional.conv1d(x, weight.to(x.dtype), padding=self.padding)


def build_mmaudio(
    channels: list[int], layers_per_block: int, mel: MelConfig, mean: float, spread: float
) -> MMAudioVAE:
    """The stock class of random weights. `channels` per level are multiples of the first.

    `mean` and `spread` of log mels, with which it standardises every band.
    """
    codec = MMAudioVAE(
        mel_bins=mel.num_mels,
        latent_channels=mel.latent_channels,
        hidden_channels=channels[0],
        channel_multipliers=tuple(width // channels[0] for width in channels),
        layers_per_block=layers_per_block,
        sample_rate=mel.sample_rate_hz,
        n_fft=mel.fft_size,
        hop_length=mel.hop_size,
        # ours are standardised per channel, by the moments of the latents that were made
        scaling_factor=1.0,
    )
    for module in codec.modules():
        if type(module) is MMAudioMPConv1d:
            # the same object with its weights: only how it computes changes
            module.__class__ = UnitConv1d
    for module in (codec.vae.encoder, codec.vae.decoder):
        # a vector of one: DeepSpeed broadcasts no numbers
        module.learnable_gain = nn.Parameter(module.learnable_gain.detach().reshape(1))
    codec.vae.data_mean.fill_(mean)
    codec.vae.data_std.fill_(spread)
    return codec


def stock_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The trained weights as the stock class computes with them, without the front end."""
    stock: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith(FRONT_END):
            continue
        stock[name] = _unit(tensor) if _is_kernel(name, tensor) else tensor
        if name.endswith(GAIN):
            stock[name] = tensor.reshape(())
    return stock


def trainable_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a stock class -> those of `build_mmaudio`'s."""
    return {name: tensor.reshape(1) if name.endswith(GAIN) else tensor for name, tensor in state.items()}


def to_natural_log(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights trained on log10 mels, as MMAudio's at 16 kHz are -> the same function of natural logarithms.

    Exact: bands are standardised first, and (ln x - ln 10 mean) / (ln 10 spread) is (log10 x - mean) /
    spread. diffusers' class always takes natural ones.
    """
    converted = dict(state)
    for name in ("vae.data_mean", "vae.data_std"):
        converted[name] = state[name] * math.log(10)
    return converted


def _is_kernel(name: str, tensor: Tensor) -> bool:
    """Of three axes; the statistics of bands have three, too."""
    return tensor.ndim == 3 and name.endswith(".weight")


def _unit(weight: Tensor) -> Tensor:
    """[out, in, k], each of `out` at length 1; in float32, as `weight_norm` has it."""
    lengths = torch.linalg.vector_norm(weight.float(), dim=(1, 2), keepdim=True)
    unit: Tensor = weight / lengths.to(weight.dtype)
    return unit
