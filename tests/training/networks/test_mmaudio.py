"""MMAudio's codec: the stock class computes what was trained, of the spectrogram that is ours."""

import math
from pathlib import Path
from typing import Any

import torch
from diffusers import MMAudioVAE

from training.networks.mmaudio import build_mmaudio, stock_state, to_natural_log, trainable_state
from training.pipeline.codec import decode_log_mel, encode_wav
from training.pipeline.mel import SPECTROGRAMS, MelConfig, wav_to_log_mel

MEL = MelConfig(duration_s=0.64, **SPECTROGRAMS["mmaudio"])


def codec_of(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return build_mmaudio([16, 32], 1, MEL, mean=-6, spread=3).eval()


def sounds() -> torch.Tensor:
    """Noise, to which a tone comes."""
    noise = 0.02 * torch.randn(2, MEL.num_samples, generator=torch.Generator().manual_seed(1))
    tone = 0.5 * torch.sin(torch.arange(MEL.num_samples) * 0.3)
    tone[: MEL.num_samples // 2] = 0
    return noise + tone


def test_eight_seconds_are_250_latents_of_20() -> None:
    mel = MelConfig(duration_s=8, **SPECTROGRAMS["mmaudio"])
    assert (mel.num_frames, mel.num_mels, mel.latent_shape) == (500, 80, (20, 250, 1))
    assert mel.latent_shape[1] / mel.duration_s == 31.25


def test_our_spectrogram_is_that_of_the_stock_class() -> None:
    theirs = codec_of().mel_converter(sounds()).transpose(1, 2)
    assert (wav_to_log_mel(sounds(), MEL) - theirs).abs().max() < 1e-3


@torch.no_grad()
def test_the_stock_class_computes_what_was_trained(tmp_path: Path) -> None:
    codec = codec_of()
    for parameter in codec.parameters():
        parameter.mul_(3)  # of any length, as they become while they learn
        parameter.add_(0.05 * torch.randn_like(parameter))
    stock = MMAudioVAE.from_config(codec.config).eval()
    stock.load_state_dict(stock.state_dict() | stock_state(codec.state_dict()))
    stock.save_pretrained(tmp_path)
    stock = MMAudioVAE.from_pretrained(tmp_path)
    mean, spread = encode_wav(codec, sounds(), MEL)
    same, same_spread = encode_wav(stock, sounds(), MEL)
    assert mean.shape == (2, *MEL.latent_shape) and mean.std() > 0.01
    assert torch.allclose(mean, same, atol=1e-4) and torch.allclose(spread, same_spread, atol=1e-4)
    # through its own front end, too
    theirs = stock.encode(sounds()).latent_dist.mean
    assert (mean[..., 0] - theirs).abs().max() < 0.05 * theirs.std()
    assert torch.allclose(decode_log_mel(codec, mean, MEL), decode_log_mel(stock, mean, MEL), atol=1e-4)


@torch.no_grad()
def test_a_kernel_has_length_1_whatever_is_learnt() -> None:
    codec = codec_of()
    expected = decode_log_mel(codec, torch.ones(1, *MEL.latent_shape), MEL)
    for name, parameter in codec.named_parameters():
        if name.endswith("weight"):
            parameter.mul_(5)
    assert torch.allclose(decode_log_mel(codec, torch.ones(1, *MEL.latent_shape), MEL), expected, atol=1e-4)


@torch.no_grad()
def test_weights_of_log10_mels_become_the_same_function_of_natural_ones() -> None:
    base10 = codec_of()
    base10.vae.data_mean.copy_(torch.randn(1, 80, 1) - 2.5)
    base10.vae.data_std.copy_(torch.rand(1, 80, 1) + 0.5)
    natural = codec_of()
    natural.load_state_dict(trainable_state(to_natural_log(stock_state(base10.state_dict()))), strict=False)
    log_mel = wav_to_log_mel(sounds(), MEL).transpose(1, 2)
    latent = natural.vae.encode(log_mel)
    assert torch.allclose(latent, base10.vae.encode(log_mel / math.log(10)), atol=1e-4)
    decoded = natural.vae.decode(latent[:, :20])
    assert torch.allclose(decoded, base10.vae.decode(latent[:, :20]) * math.log(10), atol=1e-4)
