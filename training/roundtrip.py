"""What a codec loses: held-out clips through it and back, measured before anything is trained on its latents.

    report = roundtrip(EvaluateConfig(model="runs/autoencoder", data="out/clips", output="out/roundtrip"))

`python -m training evaluate` does this for the model of an autoencoder; precompute by option. What is trained
on latents is heard through the codec, so what this measures is a ceiling. Distances are of log mels (absolute
error) and of waveforms (spectra.stft_distance); the latter also for the vocoder, or Griffin-Lim, alone on the
true mels, so that the codec's own share is seen. Where truths are known, the judge's shares of sounds through
the codec stand beside those of the sounds themselves. Nothing is generated.
"""

import json
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor

from cluster.dataset import Dataset
from cluster.files import replacing
from cluster.storage import open_store
from configs.load import UserError, at_least
from training.codecs import level_of, mel_of_codec
from training.evaluation import EvaluateConfig, HeldOut, check_comparable, find_clips
from training.export import make_folder
from training.generate import stopped_by_bad_mels
from training.judge import judge
from training.pipeline.codec import check_log_mel, decode_log_mel, encode_wav, to_wave
from training.pipeline.mel import MelConfig, to_audioldm_level, wav_to_log_mel
from training.pretrained import CODECS, HUB, find_model, load_autoencoder, load_vocoder, local_copy
from training.recipes.clips import mel_of_clips
from training.recipes.spectra import stft_distance
from training.score import Intervals, Scores, score

log = logging.getLogger(__name__)
REPORT = "roundtrip.json"


class RoundTrip(TypedDict):
    """roundtrip.json. Means over clips: `mel_l1` in ln units; `stft_distance` of sounds through codec and
    vocoder, `stft_distance_of_vocoder` through the vocoder alone.

    `scores`: training.score's, where `generated` are sounds through the codec, `real` the sounds themselves
    and `closed` what the codec leaves of the gap from chance.
    """

    mel_l1: float
    stft_distance: float
    stft_distance_of_vocoder: float
    vocoder: str
    num_clips: int
    num_media: int
    latent_shape: list[int]
    scores: NotRequired[Scores]
    intervals: NotRequired[Intervals]


@dataclass
class Codec:
    """Frozen models: `autoencoder` of log mels of `mel`, and a vocoder or None (Griffin-Lim)."""

    autoencoder: Any
    mel: MelConfig
    vocoder: Any = None


def is_codec(model: str) -> bool:
    """Whether `model` is an autoencoder, and not something that makes sounds of pictures."""
    # of a URI only this file: a large model is not copied to learn that it is none
    store = open_store(str(local_copy(model)) if model.startswith(HUB) else model)
    for name in ("config.json", "model/config.json"):
        if store.exists(name):
            return json.loads(store.read(name)).get("_class_name") in CODECS
    return False


def roundtrip(config: EvaluateConfig) -> RoundTrip:
    """Measures `config.model`, an autoencoder; writes roundtrip.json. `UserError` before any work."""
    at_least(config, 1, "num_clips", "batch")
    if config.truth and not Path(config.truth).is_dir():
        raise UserError(
            f"truth={config.truth}: no such folder; give the truth folder of ingest synth, or none"
        )
    dataset = Dataset.open(config.data, "clips")
    codec = open_codec(config.model, config.vocoder, dataset)
    clips = clips_to_measure(codec, dataset, config)
    # last: what is refused leaves no folder behind
    folder = make_folder(config.output)
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    report = measure_clips(codec, clips, config)
    with replacing(folder / REPORT) as partial:
        partial.write_text(json.dumps(report, indent=1))
    return report


def open_codec(model: str, vocoder: str, clips: Dataset, level: str = "auto") -> Codec:
    """`level` as in precompute. `UserError` where a model is missing or does not fit the clips."""
    folder = find_model(model, "model", "autoencoder", "vae")
    level = level_of(folder) if level == "auto" else level
    mel = mel_of_codec(folder, replace(mel_of_clips(clips.meta), level=level))
    check_comparable(clips, mel)
    loaded = load_vocoder(find_model(vocoder, "vocoder", "vocoder"), mel) if vocoder else None
    return Codec(load_autoencoder(folder), mel, loaded)


def clips_to_measure(codec: Codec, dataset: Dataset, config: EvaluateConfig) -> list[HeldOut]:
    """Held-out clips as `config` says. `UserError` where there is none."""
    clips = find_clips(dataset, config, codec.mel.num_samples)
    if not clips:
        raise UserError(f"data={config.data}: has no clips of split={config.split}; give split=train")
    return clips


def measure_clips(codec: Codec, clips: list[HeldOut], config: EvaluateConfig) -> RoundTrip:
    """What the codec loses of these clips."""
    with stopped_by_bad_mels(config.model, "a clip through the codec"):
        report, wavs = measure(codec, clips, config.batch)
    report["vocoder"] = config.vocoder or "Griffin-Lim"
    truths = [clip.truth for clip in clips if clip.truth]
    if len(truths) == len(clips) > 1:  # chance is measured by exchanging the truths of two
        rate_hz = codec.mel.sample_rate_hz
        heard = [judge(wav, rate_hz) for wav in wavs]
        true = [judge(clip.wav, rate_hz) for clip in clips]
        media = [clip.media_id for clip in clips]
        report["scores"], report["intervals"] = score(heard, true, truths, media, config.seed)
    return report


@torch.no_grad()
def measure(codec: Codec, clips: list[HeldOut], batch: int) -> tuple[RoundTrip, list[np.ndarray]]:
    """The distances, and every clip's sound [n] through codec and vocoder."""
    wavs: list[np.ndarray] = []
    distances: list[Tensor] = []
    for start in range(0, len(clips), batch):
        real = torch.from_numpy(np.stack([clip.wav for clip in clips[start : start + batch]]))
        made, measured = pass_through(codec, real)
        wavs += list(made.clamp(-1, 1).numpy())
        distances.append(measured)
    mel_l1, through, alone = torch.cat(distances).mean(0).tolist()
    report: RoundTrip = {
        "mel_l1": round(mel_l1, 4),
        "stft_distance": round(through, 4),
        "stft_distance_of_vocoder": round(alone, 4),
        "vocoder": "",
        "num_clips": len(clips),
        "num_media": len({clip.media_id for clip in clips}),
        "latent_shape": list(codec.mel.latent_shape),
    }
    return report, wavs


def pass_through(codec: Codec, real: Tensor) -> tuple[Tensor, Tensor]:
    """Waveforms [b, n] -> those through the codec [b, n], and the three distances of `RoundTrip` [b, 3]."""
    mel = codec.mel
    mean, _ = encode_wav(codec.autoencoder, real, mel)
    decoded = decode_log_mel(codec.autoencoder, mean, mel)
    check_log_mel(decoded)
    true = wav_to_log_mel(real, mel)
    # what the codec is given has this level, so it is what comes back
    levelled = to_audioldm_level(real) if mel.level == "audioldm" else real
    made = to_wave(decoded, mel, codec.vocoder)
    alone = to_wave(true, mel, codec.vocoder)
    mel_l1 = (decoded - true).abs().mean((1, 2))
    return made, torch.stack([mel_l1, stft_distance(made, levelled), stft_distance(alone, levelled)], 1)


def summary_line(report: RoundTrip) -> str:
    """What a log or a terminal says of it."""
    through = f"spectra are {report['stft_distance']:.2f} off"
    alone = f"{report['stft_distance_of_vocoder']:.2f} without it"
    line = f"the codec loses {report['mel_l1']:.3f} of a log mel; {through}, {alone}"
    line += f" ({report['vocoder']}; {report['num_clips']} clips)"
    kept = [f"{name} {shares['closed']:.2f}" for name, shares in report.get("scores", {}).items()]
    return line + (f"; it keeps of the gap from chance: {', '.join(kept)}" if kept else "")
