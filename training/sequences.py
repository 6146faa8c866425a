"""The sequences that precompute stores beside latents: members `<name>.npy` [t, d] of a clip, as tensors.

    encoders = SequenceEncoders(models, has_patches=True, duration_s=10.24, device="cpu")
    tensors = encoders(wavs, patches)             # {"tokens.npy": [b, t, d], "audiomae.npy": [b, 8, d]}

Image patches come with the image's embedding, tokens of AudioMAE from the sound. How a model attends to them
is training.recipes.conditions'.
"""

from pathlib import Path

import torch
from torch import Tensor

from training.codecs import mel_of_audiomae
from training.networks.audiomae import embed_tokens
from training.pipeline.mel import wav_to_log_mel
from training.pretrained import check_finite, load_audiomae

PATCHES_MEMBER = "tokens.npy"
AUDIOMAE = "audiomae"
AUDIOMAE_MEMBER = "audiomae.npy"


def check_audiomae(folder: Path, duration_s: float, path: str) -> None:
    """`UserError` where an AudioMAE, which a user named as `path`, does not take clips of this length."""
    mel_of_audiomae(folder, duration_s)
    check_finite(load_audiomae(folder), AUDIOMAE, path)


class SequenceEncoders:
    """Those whose models lie in a folder, on a device. `has_patches`: image patches are stored, too."""

    def __init__(self, models: Path, has_patches: bool, duration_s: float, device: str):
        self.has_patches = has_patches
        self.audiomae: torch.nn.Module | None = None
        if (models / AUDIOMAE).is_dir():
            self.audiomae = load_audiomae(models / AUDIOMAE).to(device)
            self.audiomae_mel = mel_of_audiomae(models / AUDIOMAE, duration_s)

    def __call__(self, wavs: Tensor, patches: Tensor) -> dict[str, Tensor]:
        """Of waveforms [b, n] and patches [b, t, d] of their pictures: by member, a sequence for each."""
        tensors: dict[str, Tensor] = {}
        if self.has_patches:
            tensors[PATCHES_MEMBER] = patches
        if self.audiomae is not None:
            tensors[AUDIOMAE_MEMBER] = embed_tokens(self.audiomae, wav_to_log_mel(wavs, self.audiomae_mel))
        return tensors
