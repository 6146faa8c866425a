"""What models take and give: pictures -> normalised pixels -> embedding, log mels -> latent moments, latents
-> waveforms.

Plain functions over stock models (`AutoencoderKL`, transformers image towers), shared by precompute, the
recipes and the pipeline, so that training and inference see the same numbers. `training.export` copies this
text into the file that ships.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ingest.pixels import to_srgb
from training.pipeline.mel import MelConfig, log_mel_to_wav, wav_to_log_mel

LOWEST_LOG_MEL, HIGHEST_LOG_MEL = -40.0, 10.0
"""Of a decoder that works: a recording has ln(1e-5) = -11.5 to 3.5, full scale in one band; decoders overshoot by a little."""


class BadMelError(ArithmeticError):
    """Decoded log mels that are NaN or infinite, or far louder or quieter than any recording."""


@dataclass(frozen=True)
class ImageConfig:
    """What an image tower sees: a centred square of `size_px`, RGB in 0..1 minus `mean` over `std`.

    `resize_px` 0: the largest square is scaled to it. Otherwise it is cut out of the picture whose short side
    was scaled to `resize_px`, or, with `stretch`, of the whole picture scaled to a square of that size.
    `resample`: Pillow's number of a filter, 2 bilinear, 3 bicubic.
    """

    size_px: int = 224
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    resize_px: int = 0
    stretch: bool = False
    resample: int = 2

    @staticmethod
    def from_processor(settings: dict[str, Any]) -> "ImageConfig":
        """From the content of a `preprocessor_config.json`, ours or that of a published tower; `ValueError`
        for one that asks for what is not done here."""
        theirs = any(
            name in settings for name in ("image_processor_type", "feature_extractor_type", "do_center_crop")
        )
        size, crops = settings.get("size", settings.get("crop_size")), settings.get("do_center_crop", False)
        edges = {"height": size, "width": size} if isinstance(size, int) and not crops else size
        edges = {"shortest_edge": edges} if isinstance(edges, int) else dict(edges or {})
        stretch = theirs and "height" in edges
        resize = _edge(edges, "size")
        side = _edge(settings.get("crop_size", resize), "crop_size") if crops else resize
        unknown = [
            name
            for name in ("do_pad", "do_reduce_labels", "do_align_long_axis", "do_thumbnail", "crop_pct")
            if settings.get(name)
        ]
        unknown += [name for name in ("do_resize", "do_rescale") if settings.get(name, True) is False]
        if unknown or abs(255 * settings.get("rescale_factor", 1 / 255) - 1) > 1e-3:
            raise ValueError(
                f"{(unknown or ['rescale_factor'])[0]}={settings.get((unknown or ['rescale_factor'])[0])} is not supported"
            )
        if side > resize or (theirs and not crops and "shortest_edge" in edges):
            raise ValueError(
                f"size={size} with a crop of {side if crops else 'nothing'} gives no square picture without a border"
            )
        clip_like = any(
            "CLIP" in str(settings.get(name)) for name in ("image_processor_type", "feature_extractor_type")
        )
        resample = int(settings.get("resample", 3 if clip_like else 2))
        plain = settings.get("do_normalize", True) is False
        mean, std = (
            ((0.0,) * 3, (1.0,) * 3)
            if plain
            else (tuple(settings["image_mean"]), tuple(settings["image_std"]))
        )
        return ImageConfig(side, mean, std, resize if theirs else 0, stretch, resample)


def _edge(size: Any, name: str) -> int:
    """The side of a square, or the short side. `ValueError` for other shapes."""
    edges = {"height": size, "width": size} if isinstance(size, int) else dict(size)
    if set(edges) == {"height", "width"} and edges["height"] == edges["width"]:
        return int(edges["height"])
    if set(edges) == {"shortest_edge"}:
        return int(edges["shortest_edge"])
    raise ValueError(f"{name}={size} is not supported: give a square, or the shortest edge")


def image_to_tensor(picture: Image.Image, config: ImageConfig) -> Tensor:
    """What the tower sees of any picture as it is shown (ingest.pixels), float32 [3, size, size]."""
    shown = to_srgb(picture)
    short = min(shown.size)
    if not config.resize_px:
        box = _centre(shown.size, (short, short))
    else:
        resize = config.resize_px
        scaled = [resize if config.stretch else max(resize, resize * side // short) for side in shown.size]
        left, top, right, bottom = _centre((scaled[0], scaled[1]), (config.size_px, config.size_px))
        across, down = shown.width / scaled[0], shown.height / scaled[1]
        box = (left * across, top * down, right * across, bottom * down)
    square = shown.resize((config.size_px, config.size_px), Image.Resampling(config.resample), box=box)
    pixels = torch.from_numpy(np.asarray(square, dtype=np.float32) / 255).permute(2, 0, 1)
    return (pixels - torch.tensor(config.mean)[:, None, None]) / torch.tensor(config.std)[:, None, None]


def _centre(size: tuple[int, int], part: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the centred `part` (width, height) of a picture."""
    left, top = (size[0] - part[0]) // 2, (size[1] - part[1]) // 2
    return left, top, left + part[0], top + part[1]


def embed_image(tower: nn.Module, pixels: Tensor) -> Tensor:
    """[b, 3, s, s] -> [b, d]: the projected embedding of a CLIP tower, else the pooled output."""
    return embed_image_and_patches(tower, pixels)[0]


def embed_image_and_patches(tower: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """[b, 3, s, s] -> the embedding [b, d] and the last layer's tokens [b, patches, width], row by row, no
    class or register tokens.
    """
    output = tower(pixels.to(getattr(tower, "dtype", pixels.dtype)))
    projected, hidden = getattr(output, "image_embeds", None), output.last_hidden_state
    if hidden.ndim == 4:  # [b, c, h, w] of a convolutional tower
        tokens = hidden.flatten(2).transpose(1, 2)
    else:
        tokens = hidden[:, -((pixels.shape[-1] // tower.config.patch_size) ** 2) :]
    return (projected if projected is not None else output.pooler_output).flatten(1), tokens


def encode_wav(autoencoder: Any, wav: Tensor, mel: MelConfig) -> tuple[Tensor, Tensor]:
    """[b, n] -> mean and standard deviation of the latent, each [b, c, t, f]."""
    log_mel = wav_to_log_mel(wav, mel)[:, None]
    moments = autoencoder.encode(log_mel.to(getattr(autoencoder, "dtype", log_mel.dtype))).latent_dist
    return moments.mean.float(), moments.std.float()


def decode_latent(autoencoder: Any, latent: Tensor, mel: MelConfig) -> Tensor:
    """[b, c, t, f] -> waveforms [b, n], by Griffin-Lim.

    `BadMelError` where the decoded mels cannot be those of a sound.
    """
    log_mel = autoencoder.decode(latent.to(getattr(autoencoder, "dtype", latent.dtype))).sample[:, 0].float()
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
