"""What a codec's folder says of the clips that it takes: their spectrogram and their level.

    folder = find_model("runs/autoencoder", "autoencoder")        # training.pretrained
    mel = mel_of_codec(folder, replace(mel_of_clips(meta), level=level_of(folder)))

It loads no weights.
"""

import inspect
import json
import logging
from dataclasses import replace
from pathlib import Path

from diffusers import MMAudioVAE

from configs.load import UserError
from training.pipeline.mel import LEVELS, MEL_FILE, SPECTROGRAMS, MelConfig
from training.pretrained import RUN

log = logging.getLogger(__name__)
MMAUDIO_RATIO = 2  # its class shrinks time once


def mel_of_codec(folder: Path, mel: MelConfig) -> MelConfig:
    """The spectrogram of a codec, of clips of the length and level of `mel`.

    An `AutoencoderKL` says nothing of it: AudioLDM's. A `MMAudioVAE` takes another one. `UserError` where
    that is of another sample rate.
    """
    config = json.loads((folder / "config.json").read_text())
    clips = MelConfig(duration_s=mel.duration_s, sample_rate_hz=mel.sample_rate_hz, level=mel.level)
    if config.get("_class_name") != "MMAudioVAE":
        return clips
    # diffusers' defaults, which a published config may leave out
    defaults = inspect.signature(MMAudioVAE).parameters
    settings = {name: parameter.default for name, parameter in defaults.items()} | config
    if settings["sample_rate"] != mel.sample_rate_hz:
        raise UserError(
            f"autoencoder={folder}: takes {settings['sample_rate']} Hz, the clips have {mel.sample_rate_hz}; "
            "give one of 16 kHz: recipe=autoencoder autoencoder.kind=mmaudio"
        )
    return replace(
        clips,
        fft_size=settings["n_fft"],
        hop_size=settings["hop_length"],
        num_mels=settings["mel_bins"],
        max_hz=settings["sample_rate"] / 2,
        downsampling=MMAUDIO_RATIO,
        latent_channels=settings["latent_channels"],
        latent_bands=1,
    )


def mel_of_audiomae(folder: Path, duration_s: float) -> MelConfig:
    """The spectrogram that a masked autoencoder takes of clips of this length.

    `UserError` where it was trained on others: its positions are of one length.
    """
    mel = MelConfig(duration_s=duration_s, level=level_of(folder), **SPECTROGRAMS["audiomae"])
    need = [mel.num_frames, mel.num_mels]
    size = json.loads((folder / "config.json").read_text()).get("image_size")
    if size != need:
        raise UserError(
            f"audiomae={folder}: takes spectrograms of {size}, the clips have {need}; "
            "train one on them: recipe=audiomae"
        )
    return mel


def level_of(autoencoder: Path) -> str:
    """How loud a codec has its clips: what its training wrote beside it.

    Of a run from before that: recorded. Of a published one: as AudioLDM's training code normalised its clips.
    """
    mel_file = autoencoder / MEL_FILE
    if mel_file.is_file():
        return str(json.loads(mel_file.read_text()).get("level", LEVELS[0]))
    if any((folder / RUN).is_file() for folder in (autoencoder, autoencoder.parent)):
        return "recorded"
    log.warning(
        "the autoencoder is a published one: clips enter it without their mean and with a peak of 0.5; "
        "level=recorded leaves them"
    )
    return "audioldm"
