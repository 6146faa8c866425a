"""The vocoder: log mels -> waveforms by a generator that learns against discriminators (Kong et al. 2020).

    geometry = vocoder.geometry(snapshot, dataset_meta, config)
    model = vocoder.build_model(config, geometry)
    batch = vocoder.make_batch(samples, keys, config, geometry)
    losses = model(batch, "generator")                        # loss [b], and made [b, n] for the next one
    model(batch | {"made": losses["made"]}, "discriminators")["loss"]                # [b]

Two optimisers step in turn. Least-squares losses (HiFi-GAN's eqs. 1 and 2), feature matching (eq. 4) and the
error of the log mel (eq. 3), weighted as there. The generator steps first and the discriminators judge what
it made before that step, so that it runs once per step; in HiFi-GAN's code it is the other way round, which
is the same but for the first step. Trains on random crops in time.

In validation the loss is the error of the log mel alone: those of opponents say nothing of progress.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cluster.dataset import DatasetMeta, Snapshot
from configs.load import UserError, at_least, positive
from training.data.randomness import SampleKey, keyed_rng
from training.networks.discriminators import SCALE_KERNELS, DiscriminatorConfig, WaveDiscriminators
from training.networks.istft_vocoder import IstftVocoder
from training.networks.vocoders import KINDS, VocoderConfig, build_vocoder
from training.networks.weight_norm import fold_weights, normalise_weights
from training.pipeline.codec import vocode
from training.pipeline.mel import LEVELS, MEL_FILE, SPECTROGRAMS, MelConfig, to_audioldm_level, wav_to_log_mel
from training.pretrained import find_model, load_vocoder
from training.recipes.clips import decode_wav, load_opponents, mel_geometry, save_opponents, weights
from training.recipes.recipe import Batch, DrawnKind, Geometry, Optimiser, PipelineParts, Sample
from training.recipes.spectra import stft_distance

MEMBERS: tuple[str, ...] = ("flac",)
LEARNS_FROM: Literal["clips", "latents"] = "clips"
DRAWS: DrawnKind = "waves"
GENERATOR = Optimiser("generator", ("generator",), gives=("made",))
DISCRIMINATORS = Optimiser("discriminators", ("discriminators",))
PARTS = PipelineParts(vocoder=".")  # the model folder itself
SCALE_LAYERS = len(SCALE_KERNELS) + 1


@dataclass
class Config:
    """`crop_frames` 0: complete clips. `level`: recorded, or audioldm (each clip's mean removed, its peak at
    0.5). `spectrogram`: audioldm (64 mels, a hop of 160), or mmaudio (80, 256).

    `mel_weight`, `feature_weight`, `adversarial_weight`: HiFi-GAN's. `stft_weight`: of
    `spectra.stft_distance`, which HiFi-GAN does without.
    """

    generator: VocoderConfig = field(default_factory=VocoderConfig)
    discriminators: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    crop_frames: int = 64  # length of the pieces it learns from; 0 = complete clips
    level: str = "recorded"
    spectrogram: str = "audioldm"
    mel_weight: float = 45.0  # of the error of mels
    feature_weight: float = 2.0  # of the error of the discriminators' features
    adversarial_weight: float = 1.0  # of the discriminators' verdict
    stft_weight: float = 0.0


def geometry(snapshot: Snapshot, dataset_meta: DatasetMeta, config: Config) -> Geometry:
    """`{"mel"}`: the spectrogram of the clips.

    `UserError` for other datasets, and for settings that no vocoder can be trained with.
    """
    if config.spectrogram not in SPECTROGRAMS:
        raise UserError(f"vocoder.spectrogram={config.spectrogram}: give one of {', '.join(SPECTROGRAMS)}")
    geometry = mel_geometry(dataset_meta, config.level, config.spectrogram)
    check_config(config, MelConfig(**geometry["mel"]))
    return geometry


def check_config(config: Config, mel: MelConfig) -> None:
    """`UserError` for settings that do not fit each other or the spectrogram."""
    generator = config.generator
    if generator.kind not in KINDS:
        raise UserError(f"vocoder.generator.kind={generator.kind}: give one of {', '.join(KINDS)}")
    if math.prod(generator.rates) != mel.hop_size:
        raise UserError(
            f"vocoder.generator.rates={generator.rates}: multiply to {math.prod(generator.rates)}, "
            f"need the hop of {mel.hop_size}"
        )
    if len(generator.rates) != len(generator.rate_kernels):
        raise UserError(
            f"vocoder.generator.rate_kernels={generator.rate_kernels}: give {len(generator.rates)}"
        )
    for rate, kernel in zip(generator.rates, generator.rate_kernels, strict=True):
        if kernel < rate:
            raise UserError(f"vocoder.generator.rate_kernels: {kernel} is less than its rate {rate}")
    if len(config.discriminators.scale_channels) != SCALE_LAYERS:
        raise UserError(
            f"vocoder.discriminators.scale_channels={config.discriminators.scale_channels}: "
            f"give {SCALE_LAYERS}"
        )
    if config.level not in LEVELS:
        raise UserError(f"vocoder.level={config.level}: give one of {', '.join(LEVELS)}")
    at_least(config, 0, "crop_frames", section="vocoder.", meaning="complete clips")
    at_least(config, 0, "feature_weight", "adversarial_weight", "stft_weight", section="vocoder.")
    positive(config, "mel_weight", section="vocoder.")


class Vocoder(nn.Module):
    """Log mels [b, t, m] and waveforms [b, n] -> losses of one side or the other."""

    def __init__(self, config: Config, mel: MelConfig):
        super().__init__()
        self.config = config
        self.mel = crop_of(mel, config.crop_frames)
        self.generator = build_vocoder(config.generator, mel.num_mels, mel.sample_rate_hz)
        _normalise(self.generator)
        self.discriminators = WaveDiscriminators(config.discriminators)

    def forward(self, batch: Batch, optimiser: str = GENERATOR.name) -> Batch:
        """The losses of an optimiser: [b] each, 0 for holes."""
        return self._judge(batch) if optimiser == DISCRIMINATORS.name else self._make(batch)

    def _make(self, batch: Batch) -> Batch:
        """The generator's."""
        dtype = next(self.generator.parameters()).dtype  # the batch and the losses are float32
        real = batch["wav"]
        weight = batch["weight"]
        made = vocode(self.generator, batch["log_mel"].to(dtype), real.shape[1]).float()
        # no level: what comes out has to have the one that went in
        error = (wav_to_log_mel(made, self.mel) - wav_to_log_mel(real, self.mel)).abs().mean((1, 2))
        if not self.generator.training:
            return {"loss": error * weight}
        config = self.config
        loss = config.mel_weight * error
        if config.stft_weight:
            loss = loss + config.stft_weight * stft_distance(made, real)
        if config.adversarial_weight or config.feature_weight:
            adversarial, features = self._oppose(made, real, dtype)
            loss = loss + config.adversarial_weight * adversarial + config.feature_weight * features
        return {"loss": loss * weight, "made": made.detach()}

    def _oppose(self, made: Tensor, real: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """How far [b] the discriminators take what was made for made, and how its features differ."""
        with torch.no_grad():
            of_real = self.discriminators(real.to(dtype))
        adversarial = torch.zeros(len(made), device=made.device)
        features = torch.zeros(len(made), device=made.device)
        for opinion, truth in zip(self.discriminators(made.to(dtype)), of_real, strict=True):
            adversarial = adversarial + (1 - opinion.logits.float()).square().mean(1)
            for layer, true_layer in zip(opinion.features, truth.features, strict=True):
                features = features + (layer - true_layer).float().abs().flatten(1).mean(1)
        return adversarial, features

    def _judge(self, batch: Batch) -> Batch:
        """The discriminators': real sounds are 1, made ones 0."""
        dtype = next(self.discriminators.parameters()).dtype
        real = batch["wav"]
        # one pass over both
        opinions = self.discriminators(torch.cat([real, batch["made"]]).to(dtype))
        loss = torch.zeros(len(real), device=real.device)
        for opinion in opinions:
            of_real, of_made = opinion.logits.float().chunk(2)
            loss = loss + (1 - of_real).square().mean(1) + of_made.square().mean(1)
        return {"loss": loss * batch["weight"]}


def _normalise(generator: nn.Module) -> None:
    """Of what is all convolutions; Vocos has layer norms instead."""
    if not isinstance(generator, IstftVocoder):
        normalise_weights(generator)


def crop_of(mel: MelConfig, crop_frames: int) -> MelConfig:
    """The spectrogram of a crop, of waveforms that have their level already; 0 frames: of a complete clip."""
    frames = min(crop_frames or mel.num_frames, mel.num_frames)
    duration_s = frames * mel.hop_size / mel.sample_rate_hz
    return replace(mel, duration_s=duration_s, downsampling=1, level="recorded")


def optimisers(config: Config) -> tuple[Optimiser, ...]:
    """The generator's, then the discriminators'."""
    return GENERATOR, DISCRIMINATORS


def couples_samples(config: Config) -> bool:
    """No: each loss is of its own sample."""
    return False


def build_model(config: Config, geometry: Geometry) -> nn.Module:
    """The generator and its opponents."""
    return Vocoder(config, MelConfig(**geometry["mel"]))


def initial(source: str, config: Config, geometry: Geometry) -> dict[str, Tensor]:
    """A published generator or one of ours, whose opponents are beside it."""
    folder = find_model(source, "init_from", "vocoder")
    generator = load_vocoder(folder, MelConfig(**geometry["mel"]))
    _normalise(generator)
    state = {f"generator.{name}": tensor for name, tensor in generator.state_dict().items()}
    return state | load_opponents(folder)


def make_batch(
    samples: Sequence[Sample | None], keys: Sequence[SampleKey], config: Config, geometry: Geometry
) -> Batch:
    """`log_mel` [b, crop, mels], `wav` [b, crop * hop], `weight` [b]. The crop comes from the keys."""
    mel = MelConfig(**geometry["mel"])
    crop = crop_of(mel, config.crop_frames)
    whole = replace(mel, level="recorded")
    log_mel = torch.full((len(samples), crop.num_frames, mel.num_mels), math.log(mel.floor))
    wav = torch.zeros(len(samples), crop.num_samples)
    for index, (sample, key) in enumerate(zip(samples, keys, strict=True)):
        if sample is None:
            continue
        start = int(keyed_rng(key, "crop").integers(mel.num_frames - crop.num_frames + 1))
        clip = _levelled(torch.from_numpy(decode_wav(sample["flac"])), mel)
        # of the complete clip: at a crop's edges a spectrogram of it alone would show reflections
        log_mel[index] = wav_to_log_mel(clip[None], whole)[0, start : start + crop.num_frames]
        wav[index] = clip[start * mel.hop_size :][: crop.num_samples]
    return {"log_mel": log_mel, "wav": wav, "weight": weights(samples)}


def _levelled(clip: Tensor, mel: MelConfig) -> Tensor:
    """[n] -> [num_samples], at the level of the spectrogram; padded with silence."""
    clip = clip[: mel.num_samples]
    if mel.level == "audioldm":
        clip = to_audioldm_level(clip[None])[0]
    return nn.functional.pad(clip, (0, mel.num_samples - len(clip)))


def loss_groups(batch: Batch) -> None:
    """None: all clips are alike to it."""


def draw(model: nn.Module, batch: Batch, geometry: Geometry) -> dict[str, Tensor]:
    """Waveforms [b, n] that the generator makes, and the true ones."""
    generator: Any = model.generator
    dtype = next(generator.parameters()).dtype
    made = vocode(generator, batch["log_mel"].to(dtype), batch["wav"].shape[1])
    return {"drawn": made, "truth": batch["wav"]}


def save(state: dict[str, Tensor], config: Config, geometry: Geometry, folder: Path) -> None:
    """Writes what the stock class loads by `from_pretrained`, and beside it mel.json: of what mels."""
    mel = MelConfig(**geometry["mel"])
    generator: Any = build_vocoder(config.generator, mel.num_mels, mel.sample_rate_hz)
    trained = {
        name.removeprefix("generator."): tensor
        for name, tensor in state.items()
        if name.startswith("generator.")
    }
    generator.load_state_dict(fold_weights(trained))
    generator.save_pretrained(folder)
    (folder / MEL_FILE).write_text(json.dumps(asdict(mel), indent=1))
    save_opponents(state, "discriminators", folder)
