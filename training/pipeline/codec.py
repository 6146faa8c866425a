"""What models take and give, so that training and inference see the same numbers.

    pixels = image_to_tensor(picture, image)              # any picture -> [3, s, s], normalised
    embedding = embed_image(tower, pixels[None])          # [1, d]
    mean, std = encode_wav(autoencoder, wav, mel)         # [b, n] -> two of [b, c, t, f]
    conditions = conditions_of(embedding, sequences, conditioner, unit_vectors)
    prediction = predict(network, latent, times, conditions, dtype)
    wav = decode_latent(autoencoder, latent, mel, vocoder)     # [b, c, t, f] -> [b, n]

Plain functions over stock models (`AutoencoderKL`, `MMAudioVAE`, transformers image towers, diffusers
networks), shared by precompute, the recipes and the pipeline. `training.export` copies this text into the
file that ships.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from torch import Tensor, nn
from transformers import SpeechT5HifiGan

from ingest.pixels import to_srgb
from training.pipeline.mel import MelConfig, log_mel_to_wav, wav_to_log_mel

LOWEST_LOG_MEL = -40.0
HIGHEST_LOG_MEL = 10.0
"""Recordings have ln(1e-5) = -11.5 to 3.5 (full scale in one band); working decoders overshoot by little."""

PROCESSOR_TYPES = ("image_processor_type", "feature_extractor_type")  # the second is transformers' older name
TIMM = "TimmWrapperImageProcessor"
"""The type of timm's pictures, which torchvision crops."""
UNSUPPORTED_STEPS = ("do_pad", "do_reduce_labels", "do_align_long_axis", "do_thumbnail", "crop_pct")


Processor = dict[str, Any]
"""The content of a tower's preprocessor_config.json, as transformers writes it: keys differ by version."""


Conditions = dict[str, Tensor]
"""Named arguments of a network: class_labels [b, d], tokens [b, t, d] of slots, and their masks [b, t]. And
`frequency_channels` [b, c, 1, f], which enter beside the latent."""
Sequences = Mapping[str, tuple[Tensor, Tensor]]
"""Name -> values [b, t, d] and presence [b, t], 1 or 0."""


class BadMelError(ArithmeticError):
    """Decoded log mels that are NaN or infinite, or far louder or quieter than any recording."""


@dataclass(frozen=True)
class ImageConfig:
    """What an image tower sees: a centred square of `size_px`, RGB in 0..1 minus `mean` over `std`.

    `resize_px` 0: the largest square is scaled to it. Otherwise it is cut out of the picture whose short side
    was scaled to `resize_px`, or, with `stretch`, of the whole picture scaled to a square of that size.
    `resample`: Pillow's number of a filter, 2 bilinear, 3 bicubic. `round_crop`: a square whose middle falls
    between two pixels lies as torchvision rounds it, else up and left.
    """

    size_px: int = 224
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    resize_px: int = 0
    stretch: bool = False
    resample: int = 2
    round_crop: bool = False

    @staticmethod
    def from_processor(settings: Processor) -> "ImageConfig":
        """From the content of a `preprocessor_config.json`, ours or that of a published tower.

        `ValueError` for one that needs what is not done here.
        """
        _check_supported(settings)
        # ours have neither a type nor a crop: their square is cut from the picture, never from a scaled one
        published = any(name in settings for name in (*PROCESSOR_TYPES, "do_center_crop"))
        crops = settings.get("do_center_crop", False)
        size = settings.get("size", settings.get("crop_size"))
        edges = _edges(size, square=not crops)
        resize = _side(edges, "size")
        side = _side(settings.get("crop_size", resize), "crop_size") if crops else resize
        if side > resize or (published and not crops and "shortest_edge" in edges):
            crop = side if crops else "nothing"
            raise ValueError(f"size={size} with a crop of {crop} gives no square picture without a border")
        # transformers scales bicubically in its CLIP processors and bilinearly in all others
        clip_like = any("CLIP" in str(settings.get(name)) for name in PROCESSOR_TYPES)
        mean, std = _moments(settings)
        return ImageConfig(
            size_px=side,
            mean=mean,
            std=std,
            resize_px=resize if published else 0,
            stretch=published and "height" in edges,
            resample=int(settings.get("resample", 3 if clip_like else 2)),
            round_crop=settings.get("image_processor_type") == TIMM,
        )


def _check_supported(settings: Processor) -> None:
    """`ValueError` for a processor with a step that is not done here, or without one that is."""
    unsupported = [name for name in UNSUPPORTED_STEPS if settings.get(name)]
    unsupported += [name for name in ("do_resize", "do_rescale") if settings.get(name, True) is False]
    if abs(255 * settings.get("rescale_factor", 1 / 255) - 1) > 1e-3:
        unsupported.append("rescale_factor")
    if unsupported:
        raise ValueError(f"{unsupported[0]}={settings.get(unsupported[0])} is not supported")


def _moments(settings: Processor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation per colour; of a processor that normalises nothing, 0 and 1."""
    if settings.get("do_normalize", True) is False:
        return (0.0,) * 3, (1.0,) * 3
    return tuple(settings["image_mean"]), tuple(settings["image_std"])


def _edges(size: Any, square: bool) -> dict[str, int]:
    """A size by the names of its edges; what a bare number means depends on whether a crop follows."""
    if isinstance(size, int):
        return {"height": size, "width": size} if square else {"shortest_edge": size}
    return dict(size or {})


def _side(size: Any, name: str) -> int:
    """The side of a square, or the short side. `ValueError` for other shapes."""
    edges = _edges(size, square=True)
    if set(edges) == {"height", "width"} and edges["height"] == edges["width"]:
        return int(edges["height"])
    if set(edges) == {"shortest_edge"}:
        return int(edges["shortest_edge"])
    raise ValueError(f"{name}={size} is not supported: give a square, or the shortest edge")


def image_to_tensor(picture: Image.Image, config: ImageConfig) -> Tensor:
    """What the tower sees of any picture as it is shown (ingest.pixels), float32 [3, size, size]."""
    upright = to_srgb(picture)
    side = (config.size_px, config.size_px)
    # cut and scaled in one resampling: a second one would blur
    square = upright.resize(side, Image.Resampling(config.resample), box=_crop_box(upright.size, config))
    pixels = torch.from_numpy(np.asarray(square, dtype=np.float32) / 255).permute(2, 0, 1)
    mean = torch.tensor(config.mean)[:, None, None]
    std = torch.tensor(config.std)[:, None, None]
    return (pixels - mean) / std


def _crop_box(size: tuple[int, int], config: ImageConfig) -> tuple[float, float, float, float]:
    """What becomes the square of a picture (width, height): left, top, right, bottom in its pixels."""
    short = min(size)
    if not config.resize_px:
        return _centre(size, (short, short), config.round_crop)
    # where the crop is in the scaled picture, whose sides a processor rounds down, then back
    resize = config.resize_px
    width, height = (resize if config.stretch else max(resize, resize * side // short) for side in size)
    left, top, right, bottom = _centre((width, height), (config.size_px, config.size_px), config.round_crop)
    across = size[0] / width
    down = size[1] / height
    return left * across, top * down, right * across, bottom * down


def _centre(size: tuple[int, int], crop: tuple[int, int], to_even: bool) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the centred `crop` (width, height) of a picture."""
    left = (size[0] - crop[0]) / 2
    top = (size[1] - crop[1]) / 2
    # Python's rounding of a half is torchvision's
    left, top = (round(edge) if to_even else math.floor(edge) for edge in (left, top))
    return left, top, left + crop[0], top + crop[1]


def embed_image(tower: nn.Module, pixels: Tensor) -> Tensor:
    """[b, 3, s, s] -> [b, d]: the projected embedding of a CLIP tower, else the pooled output."""
    return embed_image_and_patches(tower, pixels)[0]


def embed_image_and_patches(tower: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """[b, 3, s, s] -> the embedding [b, d] and the last layer's tokens [b, patches, width].

    Patches are in reading order, without class or register tokens.
    """
    output = tower(pixels.to(getattr(tower, "dtype", pixels.dtype)))
    hidden = output.last_hidden_state
    timm = getattr(tower, "timm_model", None)
    if hidden.ndim == 4:  # [b, c, h, w] of a convolutional tower; some of timm have [b, h, w, c]
        channels_last = timm is not None and hidden.shape[1] != timm.num_features
        tokens = hidden.flatten(1, 2) if channels_last else hidden.flatten(2).transpose(1, 2)
    elif timm is not None:
        tokens = hidden[:, getattr(timm, "num_prefix_tokens", 0) :]
    else:  # class and register tokens come before the patches
        tokens = hidden[:, -((pixels.shape[-1] // tower.config.patch_size) ** 2) :]
    embedding = getattr(output, "image_embeds", None)
    if embedding is None:
        embedding = output.pooler_output
    return embedding.flatten(1), tokens


def encode_wav(autoencoder: Any, wav: Tensor, mel: MelConfig) -> tuple[Tensor, Tensor]:
    """[b, n] -> mean and standard deviation of the latent, each [b, c, t, f]."""
    log_mel = wav_to_log_mel(wav, mel)
    log_mel = log_mel.to(getattr(autoencoder, "dtype", log_mel.dtype))
    if mel.is_sequence:
        # past the front end of a `MMAudioVAE`: training and Griffin-Lim have ours
        moments = DiagonalGaussianDistribution(autoencoder.vae.encode(log_mel.transpose(1, 2))[..., None])
    else:
        moments = autoencoder.encode(log_mel[:, None]).latent_dist
    return moments.mean.float(), moments.std.float()


def decode_log_mel(autoencoder: Any, latent: Tensor, mel: MelConfig) -> Tensor:
    """[b, c, t, f] -> log mels float32 [b, t, m], unchecked."""
    latent = latent.to(getattr(autoencoder, "dtype", latent.dtype))
    if mel.is_sequence:
        bands_first: Tensor = autoencoder.decode(latent[..., 0]).sample
        return bands_first.transpose(1, 2).float()
    log_mel: Tensor = autoencoder.decode(latent).sample[:, 0]
    return log_mel.float()


def conditions_of(image: Tensor, sequences: Sequences, conditioner: Any, unit_vectors: bool) -> Conditions:
    """Named arguments of a network, of an image's vector [b, d] and of sequences by name.

    `unit_vectors`: of length 1 at last, as AudioLDM's pipelines have those of texts. Without a conditioner
    the vector enters as it is, and no sequence does.
    """
    # the embedding enters as a class label would (networks/unet)
    conditions = {"class_labels": image} if conditioner is None else dict(conditioner(image, sequences))
    if unit_vectors and "class_labels" in conditions:
        conditions["class_labels"] = torch.nn.functional.normalize(conditions["class_labels"], dim=-1)
    return conditions


def predict(
    network: Any, latent: Tensor, times: Tensor, conditions: Conditions, dtype: torch.dtype
) -> Tensor:
    """What a network was trained to predict, a flow, noise or v, float32 [b, c, t, f].

    Of noisy latents at `times` (0 to 1000). `dtype` of the weights: they may be half precision; what is
    integrated over time stays float32.
    """
    given = {name: values.to(dtype) for name, values in conditions.items()}
    seen = latent.to(dtype)
    bands = given.pop("frequency_channels", None)
    if bands is not None:
        seen = torch.cat([seen, bands.expand(-1, -1, seen.shape[2], -1)], 1)
    output = network(seen, times, **{"encoder_hidden_states": None, **given})
    prediction: Tensor = output.sample.float()
    return prediction


def decode_latent(autoencoder: Any, latent: Tensor, mel: MelConfig, vocoder: Any = None) -> Tensor:
    """[b, c, t, f] -> waveforms [b, n], by the vocoder, or without one by Griffin-Lim.

    `BadMelError` where the decoded mels cannot be those of a sound.
    """
    log_mel = decode_log_mel(autoencoder, latent, mel)
    check_log_mel(log_mel)
    return to_wave(log_mel, mel, vocoder)


def to_wave(log_mel: Tensor, mel: MelConfig, vocoder: Any = None) -> Tensor:
    """[b, t, m] -> waveforms [b, n], by the vocoder, or without one by Griffin-Lim."""
    if vocoder is None:
        return log_mel_to_wav(log_mel, mel)
    return vocode(vocoder, log_mel.to(vocoder.dtype), log_mel.shape[1] * mel.hop_size).float()


def vocode(vocoder: Any, log_mel: Tensor, num_samples: int) -> Tensor:
    """[b, t, m] -> [b, num_samples] by a `SpeechT5HifiGan`, or as a `MMAudioVocoder` is called."""
    if isinstance(vocoder, SpeechT5HifiGan):
        wav: Tensor = vocoder(log_mel)
    else:
        wav = vocoder(log_mel.transpose(1, 2)).sample[:, 0]
    # a kernel that is longer than its rate by an odd number adds a few samples at the end
    return wav[:, :num_samples]


def check_log_mel(log_mel: Tensor) -> None:
    """`BadMelError` for NaN, infinities, and levels far beyond `LOWEST_LOG_MEL` to `HIGHEST_LOG_MEL`."""
    low, high = (float(value) for value in log_mel.aminmax())
    if not (LOWEST_LOG_MEL <= low and high <= HIGHEST_LOG_MEL):  # also where one of them is NaN
        raise BadMelError(
            f"log mels from {low:.4g} to {high:.4g} were decoded, where recordings have -11.5 to 3.5: "
            "the model diverged, its files are damaged, or it overflows in this precision"
        )
