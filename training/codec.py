"""What models take and give: pictures -> normalised pixels -> embedding, log mels -> latent moments, latents -> waveforms.

Plain functions over stock models (`AutoencoderKL`, transformers image towers), shared by precompute, the recipes and the
pipeline, so that training and inference see the same numbers. `training.export` copies this text into the file that ships.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ingest.pixels import to_srgb
from training.mel import MelConfig, log_mel_to_wav, wav_to_log_mel

LOWEST_LOG_MEL, HIGHEST_LOG_MEL = -40.0, 10.0
"""Of a decoder that works: a recording has ln(1e-5) = -11.5 to 3.5, full scale in one band; decoders overshoot by a little."""


class BadMelError(ArithmeticError):
    """Decoded log mels that are NaN or infinite, or far louder or quieter than any recording."""


@dataclass(frozen=True)
class ImageConfig:
    """What an image tower sees: a centred square of `size_px`, RGB in 0..1 minus `mean` over `std`."""

    size_px: int = 224
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @staticmethod
    def from_processor(settings: dict[str, Any]) -> "ImageConfig":
        """From the content of a `preprocessor_config.json`, ours or CLIP's."""
        size = settings.get("crop_size") or settings["size"]
        side = size if isinstance(size, int) else size.get("height") or size["shortest_edge"]
        return ImageConfig(int(side), tuple(settings["image_mean"]), tuple(settings["image_std"]))


def image_to_tensor(picture: Image.Image, config: ImageConfig) -> Tensor:
    """The centred square of any picture as it is shown (ingest.pixels), float32 [3, size, size]."""
    shown = to_srgb(picture)
    side = min(shown.size)
    left, top = (shown.width - side) // 2, (shown.height - side) // 2
    size = (config.size_px, config.size_px)
    square = shown.resize(size, Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    pixels = torch.from_numpy(np.asarray(square, dtype=np.float32) / 255).permute(2, 0, 1)
    return (pixels - torch.tensor(config.mean)[:, None, None]) / torch.tensor(config.std)[:, None, None]


def embed_image(tower: nn.Module, pixels: Tensor) -> Tensor:
    """[b, 3, s, s] -> [b, d]: the projected embedding of a CLIP tower, else the pooled output."""
    return embed_image_and_patches(tower, pixels)[0]


def embed_image_and_patches(tower: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """[b, 3, s, s] -> the embedding [b, d] and the last layer's tokens [b, patches, width], row by row, no class or register tokens."""
    output = tower(pixels)
    projected, hidden = getattr(output, "image_embeds", None), output.last_hidden_state
    if hidden.ndim == 4:  # [b, c, h, w] of a convolutional tower
        tokens = hidden.flatten(2).transpose(1, 2)
    else:
        tokens = hidden[:, -((pixels.shape[-1] // tower.config.patch_size) ** 2) :]
    return (projected if projected is not None else output.pooler_output).flatten(1), tokens


def encode_wav(autoencoder: Any, wav: Tensor, mel: MelConfig) -> tuple[Tensor, Tensor]:
    """[b, n] -> mean and standard deviation of the latent, each [b, c, t, f]."""
    moments = autoencoder.encode(wav_to_log_mel(wav, mel)[:, None]).latent_dist
    return moments.mean, moments.std


def decode_latent(autoencoder: Any, latent: Tensor, mel: MelConfig) -> Tensor:
    """[b, c, t, f] -> waveforms [b, n], by Griffin-Lim. `BadMelError` where the decoded mels cannot be those of a sound."""
    log_mel = autoencoder.decode(latent).sample[:, 0]
    check_log_mel(log_mel)
    return log_mel_to_wav(log_mel, mel)


def check_log_mel(log_mel: Tensor) -> None:
    """`BadMelError` for NaN, infinities, and levels far beyond `LOWEST_LOG_MEL` to `HIGHEST_LOG_MEL`."""
    low, high = (float(value) for value in log_mel.aminmax())
    if not (LOWEST_LOG_MEL <= low and high <= HIGHEST_LOG_MEL):  # also where one of them is NaN
        raise BadMelError(
            f"log mels from {low:.4g} to {high:.4g} were decoded, where recordings have -11.5 to 3.5: the model diverged, "
            "its files are damaged, or it overflows in this precision"
        )
