"""Contrastive training as CLAP's (Wu et al. 2023): sounds with pictures, with captions, or with both.

    batch = contrastive.make_batch(samples, keys, config, geometry)
    losses = contrastive.build_model(config, geometry)(batch)["loss"]      # [b]

Towers come from transformers and are saved apart, so that `image_encoder` loads by name or folder, and CLAP's
as `ClapModel`; what the other models are conditioned on is the image tower's pooled output before the
projection. Loss: symmetric InfoNCE with a learnt temperature (Radford et al. 2021) over one micro batch of
all ranks together (training.recipes.matching), of three modalities the mean of the pairs. `accumulate`
divides the negatives. Clips of one medium, and in pairs with captions those of one caption, are never each
other's negatives. A sample without a caption has no part in the pairs with captions.

A contrastive loss keeps what tells pairs apart and suppresses the rest. With `sound_weight`, the pooled
output must also tell what the sound is like (training.recipes.sound_statistics).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from cluster.dataset import Dataset, DatasetMeta, Snapshot
from configs.load import UserError, at_least, positive, semantic_dict
from training.data.randomness import SampleKey
from training.networks.clap import (
    TextTowerConfig,
    build_clap_audio,
    build_clap_text,
    embed_sounds,
    embed_texts,
)
from training.networks.towers import (
    AUDIO_KINDS,
    IMAGE_KINDS,
    AudioTower,
    AudioTowerConfig,
    ImageTowerConfig,
    build_image_tower,
    size_for,
)
from training.pipeline.codec import ImageConfig, embed_image
from training.pipeline.mel import MelConfig, wav_to_log_mel
from training.recipes import clap_mel
from training.recipes.captions import (
    check_column,
    facts_of,
    load_tokenizer,
    number_of,
    pinned_tokenizer,
    save_tokenizer,
    text_of,
    token_ids,
)
from training.recipes.clap_mel import FrontEndConfig
from training.recipes.clap_weights import read_weights, save_towers
from training.recipes.clips import decode_image, decode_wav, mel_geometry, weights
from training.recipes.matching import HOLE, gather_features, gather_rows, no_negatives, pair_loss
from training.recipes.recipe import (
    ONE_OPTIMISER,
    Batch,
    DrawnKind,
    Geometry,
    Optimiser,
    PipelineParts,
    Sample,
)
from training.recipes.sound_statistics import scale_of, statistics_in

MEMBERS: tuple[str, ...] = ("flac", "jpg", "json")
LEARNS_FROM: Literal["clips", "latents"] = "clips"
DRAWS: DrawnKind = ""
PARTS = PipelineParts(encoders=("image_encoder",))
SETTINGS = "contrastive.json"  # beside the towers: what builds the model around them
# of each pair, in the order of the modalities, the name of its temperature
SCALES = {
    ("image", "audio"): "log_scale",
    ("audio", "text"): "text_log_scale",
    ("image", "text"): "caption_log_scale",
}


@dataclass
class Config:
    """`embedding_dim`: where all towers meet. `image.kind` or `text.kind` may be "": without pictures it is
    CLAP. `front_end`: what the audio tower hears. `sound_weight`: of the mean square error of
    statistics of the sound, told from the picture; 0: they are not learnt.
    """

    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    audio: AudioTowerConfig = field(default_factory=AudioTowerConfig)
    embedding_dim: int = 512
    temperature: float = 0.07  # of the loss, at first; it is learnt
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    front_end: FrontEndConfig = field(default_factory=FrontEndConfig)
    sound_weight: float = 0.0

    @property
    def modalities(self) -> list[str]:
        present = {"image": self.image.kind, "audio": self.audio.kind, "text": self.text.kind}
        return [name for name, kind in present.items() if kind]


def geometry(snapshot: Snapshot, dataset_meta: DatasetMeta, config: Config) -> Geometry:
    """`{"mel"}`, and the `tokenizer` of captions. `UserError` for other datasets and unknown towers."""
    check_config(config)
    facts = mel_geometry(dataset_meta)
    mel = MelConfig(**facts["mel"])
    if config.image.kind and not config.image.size_px:
        facts["picture_px"] = size_for(config.image, dataset_meta["config"]["frame"]["short_side_px"])
    if config.audio.kind == "clap":
        _check_htsat(config, *shape_of(config, mel))
    if config.text.kind:
        facts["tokenizer"] = facts_of(load_tokenizer(config.text.tokenizer))
        # without pictures, samples without a caption weigh nothing
        check_column(snapshot, config.text.column, needed=not config.image.kind)
    return facts


def measured(
    datasets: Sequence[Dataset], snapshots: Sequence[Snapshot], config: Config, geometry: Geometry
) -> Geometry:
    """With the scale of the statistics of sounds, where they are learnt."""
    if not config.sound_weight:
        return geometry
    mel = MelConfig(**geometry["mel"])
    return {**geometry, "sounds": scale_of(datasets, snapshots, mel)}


def check_config(config: Config) -> None:
    """`UserError` for settings that no model can be made of."""
    kinds = {"image": IMAGE_KINDS, "audio": AUDIO_KINDS, "text": ("", "clap")}
    for name, choices in kinds.items():
        kind = getattr(config, name).kind
        if kind not in choices:
            known = ", ".join(choice or '""' for choice in choices)
            raise UserError(f"contrastive.{name}.kind={kind}: give one of {known}")
    if len(config.modalities) < 2:
        raise UserError(
            "contrastive.image.kind=: sounds need a partner; give a tower, or contrastive.text.kind=clap"
        )
    widths = len(config.image.widths)
    depths = len(config.image.depths)
    if widths != depths:
        raise UserError(f"contrastive.image: widths has {widths} entries, depths {depths}: give as many")
    _check_sounds(config)
    front_end = config.front_end
    for value, setting, choices in (
        (front_end.kind, "kind", clap_mel.KINDS),
        (front_end.padding, "padding", clap_mel.PADDINGS),
    ):
        if value not in choices:
            raise UserError(f"contrastive.front_end.{setting}={value}: give one of {', '.join(choices)}")
    positive(
        front_end, "sample_rate_hz", "fft_size", "hop_size", "num_mels", section="contrastive.front_end."
    )
    text = config.text
    if not 2 <= text.max_tokens <= text.positions:
        raise UserError(
            f"contrastive.text.max_tokens={text.max_tokens}: "
            f"give 2 to contrastive.text.positions={text.positions}"
        )


def _check_sounds(config: Config) -> None:
    """`UserError` for statistics that are told from no picture, and a map that cannot be halved."""
    at_least(config, 0, "sound_weight", section="contrastive.", meaning="not learnt")
    if config.sound_weight and not config.image.kind:
        raise UserError(
            f"contrastive.sound_weight={config.sound_weight:g}: statistics of sounds are told from "
            "pictures; give contrastive.image.kind, or 0"
        )
    at_least(config.image, 0, "size_px", section="contrastive.image.", meaning="as the frames of the data")
    factor = config.image.factor
    if config.image.kind == "map" and config.image.size_px % factor:
        raise UserError(f"contrastive.image.size_px={config.image.size_px}: give a multiple of {factor}")


def _check_htsat(config: Config, frames: int, num_mels: int) -> None:
    """`UserError` where a spectrogram cannot be folded into the square of `contrastive.audio.htsat`."""
    htsat = config.audio.htsat
    setting = f"contrastive.audio.htsat.spec_size={htsat.spec_size}"
    if len(htsat.depths) != len(htsat.heads):
        raise UserError(
            f"contrastive.audio.htsat: depths has {len(htsat.depths)} entries, heads {len(htsat.heads)}: "
            "give as many"
        )
    if htsat.spec_size % num_mels:
        raise UserError(f"{setting}: is no multiple of {num_mels} mels; give one")
    if frames > htsat.max_frames(num_mels):
        raise UserError(
            f"{setting}: has room for {htsat.max_frames(num_mels)} frames of {num_mels} mels, clips have "
            f"{frames}; give {2 * htsat.spec_size}"
        )
    last = htsat.spec_size // htsat.patch // 2 ** (len(htsat.depths) - 1)
    if last < htsat.window or last % htsat.window:
        raise UserError(
            f"contrastive.audio.htsat.window={htsat.window}: the last of {len(htsat.depths)} levels has "
            f"{last} x {last} patches, which windows must divide; give {last}, or fewer levels"
        )


def shape_of(config: Config, mel: MelConfig) -> tuple[int, int]:
    """Frames and mels of what the audio tower hears of a clip."""
    if config.front_end.kind == "clap":
        return config.front_end.num_frames, config.front_end.num_mels
    return mel.num_frames, mel.num_mels


def seen_px(config: Config, geometry: Geometry) -> int:
    """Side of the square that the image tower sees: as it is given, or as it was derived from the data."""
    return config.image.size_px or geometry["picture_px"]


class Contrastive(nn.Module):
    """Images [b, 3, s, s], log mels [b, frames, mels] and token ids [b, n] -> losses."""

    def __init__(self, config: Config, facts: Geometry):
        super().__init__()
        dim = config.embedding_dim
        _, num_mels = shape_of(config, MelConfig(**facts["mel"]))
        self.modalities = config.modalities
        self.projects = config.audio.kind == "clap"
        # in this order: the first weights of a run are drawn in it
        if config.image.kind:
            image = replace(config.image, size_px=seen_px(config, facts))
            self.image: Any = build_image_tower(image, dim)
        if self.projects:
            self.audio = build_clap_audio(
                config.audio.htsat, num_mels, dim, clap_mel.NORMS[config.front_end.kind]
            )
        else:
            self.audio = AudioTower(config.audio, num_mels)
        if config.image.kind:
            # CLIP's has its own projection
            clip = config.image.kind == "clip"
            pooled = dim if clip else config.image.pooled_dim
            self.image_head = nn.Identity() if clip else nn.Linear(pooled, dim)
        self.audio_head = nn.Identity() if self.projects else nn.Linear(2 * config.audio.width, dim)
        if config.text.kind:
            tokenizer = facts["tokenizer"]
            self.pad = tokenizer["pad"]
            self.text = build_clap_text(config.text, tokenizer["vocab_size"], self.pad, dim)
        self.sound_weight = config.sound_weight
        if self.sound_weight:
            self.sound_head = nn.Linear(pooled, len(facts["sounds"]["mean"]))
        self.pairs = [pair for pair in SCALES if set(pair) <= set(self.modalities)]
        for pair in self.pairs:
            # as `ClapModel`: one from sounds to texts, one back. No scalar: DeepSpeed cannot broadcast it
            count = 2 if pair == ("audio", "text") else 1
            start = torch.full((count,), math.log(1 / config.temperature))
            self.register_parameter(SCALES[pair], nn.Parameter(start))

    def forward(self, batch: Batch) -> Batch:
        pooled = self.pooled(batch)
        features = self.embed(batch, pooled)
        weight = batch["weight"]
        media = torch.where(weight == 0, HOLE, batch["media"])
        numbers = torch.stack([media, batch.get("caption", media)], 1)
        # of all ranks together; `truth` is where the own partners of each sample are among them
        every = torch.cat(features, 1)
        all_numbers = numbers
        truth = torch.arange(len(media), device=media.device)
        # a validation batch is one rank's
        if self.training and dist.is_initialized() and dist.get_world_size() > 1:
            every = gather_features(every)
            all_numbers = gather_rows(numbers)
            truth = truth * dist.get_world_size() + dist.get_rank()
        own = dict(zip(self.modalities, features, strict=True))
        others = dict(zip(self.modalities, every.chunk(len(features), dim=1), strict=True))
        losses: list[Tensor] = []
        present: list[Tensor] = []
        hits: list[Tensor] = []
        for first, second in self.pairs:
            masked, here = _partners(numbers, all_numbers, truth, "text" in (first, second))
            loss, hit = pair_loss(
                (own[first], own[second]),
                (others[first], others[second]),
                getattr(self, SCALES[first, second]),
                masked,
                truth,
            )
            losses.append(loss)
            hits.append(hit)
            present.append(here.to(loss.dtype))
        here = torch.stack(present)
        # the mean of the pairs that a sample has
        count = here.sum(0).clamp(min=1)
        mean = (torch.stack(losses) * here).sum(0) / count
        hit_share = (torch.stack(hits) * here).sum(0) / count
        if not self.sound_weight:
            return {"loss": mean * weight, "accuracy": hit_share * weight}
        error = (self.sound_head(pooled).float() - batch["sound"]).square().mean(1)
        return {"loss": (mean + self.sound_weight * error) * weight, "accuracy": hit_share * weight}

    def pooled(self, batch: Batch) -> Tensor | None:
        """What ships as the embedding of a picture [b, d]; None without pictures."""
        if "image" not in self.modalities:
            return None
        # in the precision of the weights; the batch and the losses are float32
        return embed_image(self.image, batch["image"].to(self.audio_dtype))

    def embed(self, batch: Batch, pooled: Tensor | None) -> list[Tensor]:
        """Unit vectors float32 [b, d] of each of `modalities`, pictures from what `pooled` gave."""
        given = {"audio": batch["log_mel"]}
        if pooled is not None:
            given["image"] = pooled
        if "text" in self.modalities:
            given["text"] = batch["tokens"]
        return [self.vectors(modality, given[modality]) for modality in self.modalities]

    def vectors(self, modality: str, values: Tensor) -> Tensor:
        """Unit vectors float32 [b, d] of log mels, of token ids, or of what `pooled` gave of pictures."""
        if modality == "text":
            made = embed_texts(self.text, values, self.pad)
        elif modality == "image":
            made = self.image_head(values)
        elif self.projects:
            made = embed_sounds(self.audio, values.to(self.audio_dtype))
        else:
            made = self.audio_head(self.audio(values.to(self.audio_dtype)))
        return nn.functional.normalize(made.float(), dim=-1)

    @property
    def audio_dtype(self) -> torch.dtype:
        scale: Tensor = getattr(self, SCALES[self.pairs[0]])
        return scale.dtype


def _partners(numbers: Tensor, all_numbers: Tensor, truth: Tensor, with_text: bool) -> tuple[Tensor, Tensor]:
    """Who is no negative of whom in a pair, bool [b, n], and who has both of its halves, bool [b].

    `numbers` [b, 2]: of the medium and of the caption of each sample.
    """
    if not with_text:
        masked = no_negatives(numbers[:, 0], all_numbers[:, 0], truth)
        return masked, torch.ones_like(truth, dtype=torch.bool)
    here = numbers[:, 1] != HOLE
    # a sample without a caption is a hole of this pair alone
    media = torch.where(here, numbers[:, 0], HOLE)
    all_media = torch.where(all_numbers[:, 1] != HOLE, all_numbers[:, 0], HOLE)
    same_text = no_negatives(numbers[:, 1], all_numbers[:, 1], truth)
    return no_negatives(media, all_media, truth) | same_text, here


def optimisers(config: Config) -> tuple[Optimiser, ...]:
    """One, of all parameters."""
    return ONE_OPTIMISER


def couples_samples(config: Config) -> bool:
    """Yes: those of one micro batch are each other's negatives."""
    return True


def build_model(config: Config, geometry: Geometry) -> nn.Module:
    """The towers with their heads."""
    return Contrastive(config, geometry)


def initial(source: str, config: Config, geometry: Geometry) -> dict[str, Tensor]:
    """A published image tower or `ClapModel`, or all towers of ours."""
    mel = MelConfig(**geometry["mel"])
    with torch.device("meta"):
        model = Contrastive(config, geometry)
    tokenizer = geometry["tokenizer"]["sha256"] if config.text.kind else ""
    return read_weights(source, model, config.front_end, mel, tokenizer)


def make_batch(
    samples: Sequence[Sample | None], keys: Sequence[SampleKey], config: Config, geometry: Geometry
) -> Batch:
    """`log_mel` [b, frames, mels], `weight` [b], `media` int64 [b]; `image` [b, 3, s, s] in -1..1; `tokens`
    int64 [b, n] and `caption` int64 [b], a number per text, or HOLE where there is none; `sound` [b, k].

    Nothing is drawn from the keys. Without pictures, a sample without a caption weighs nothing.
    """
    mel = MelConfig(**geometry["mel"])
    log_mel = torch.zeros(len(samples), *shape_of(config, mel))
    sounds = geometry.get("sounds")
    sound = torch.zeros(len(samples), len(sounds["mean"]) if sounds else 0)
    media = torch.full((len(samples),), HOLE)
    for index, sample in enumerate(samples):
        if sample is not None:
            log_mel[index] = hear(sample["flac"], mel, config)
            media[index] = medium_of(sample["json"])
            if sounds:
                sound[index] = statistics_in(sample["flac"], mel, sounds)
    batch = {"log_mel": log_mel, "weight": weights(samples), "media": media}
    if sounds:
        batch["sound"] = sound
    if config.image.kind:
        batch["image"] = _pictures(samples, seen_px(config, geometry))
    if config.text.kind:
        batch |= _captions(samples, config, geometry)
        if not config.image.kind:
            batch["weight"] = batch["weight"] * (batch["caption"] != HOLE)
    return batch


def hear(flac: bytes, mel: MelConfig, config: Config) -> Tensor:
    """What the audio tower hears of a clip, float32 [frames, mels]."""
    return hear_wav(decode_wav(flac), mel, config)


def hear_wav(wav: np.ndarray, mel: MelConfig, config: Config) -> Tensor:
    """What the audio tower hears of a waveform float32 [n] at the rate of `mel`, float32 [frames, mels];
    CLAP's centres it by itself.
    """
    if config.front_end.kind == "clap":
        log_mel = clap_mel.clap_mel(wav, mel.sample_rate_hz, config.front_end)
    else:
        log_mel = wav_to_log_mel(torch.from_numpy(wav)[None], mel)[0]
    norm = clap_mel.NORMS[config.front_end.kind]
    return log_mel if config.audio.kind == "clap" else (log_mel - norm.centre) / norm.spread


def _pictures(samples: Sequence[Sample | None], size_px: int) -> Tensor:
    """float32 [b, 3, s, s]."""
    image = torch.zeros(len(samples), 3, size_px, size_px)
    for index, sample in enumerate(samples):
        if sample is not None:
            image[index] = decode_image(sample["jpg"], ImageConfig(size_px))
    return image


def _captions(samples: Sequence[Sample | None], config: Config, geometry: Geometry) -> Batch:
    """`tokens` and `caption`."""
    text = config.text
    tokenizer = pinned_tokenizer(text.tokenizer, geometry["tokenizer"]["sha256"], text.max_tokens)
    texts = ["" if sample is None else text_of(sample["json"], text.column) for sample in samples]
    numbers = [number_of(caption) if caption else HOLE for caption in texts]
    return {"tokens": token_ids(tokenizer, texts, text.max_tokens), "caption": torch.tensor(numbers)}


def loss_groups(batch: Batch) -> None:
    """None: there is nothing by which a pair would be easier than another."""


def draw(model: nn.Module, batch: Batch, geometry: Geometry) -> dict[str, Tensor]:
    """Nothing: embeddings are no picture."""
    return {}


def medium_of(metadata: bytes | memoryview) -> int:
    """A number in 0..2^63 for the medium that a clip was cut from, from its source and media id alone."""
    sample = json.loads(bytes(metadata))
    return number_of(f"{sample['source']}/{sample['media_id']}")


def save(state: dict[str, Tensor], config: Config, geometry: Geometry, folder: Path) -> None:
    """Every tower as its library saves it, the heads and temperatures in one file, and what builds them."""
    model = Contrastive(config, geometry)
    missing, unexpected = model.load_state_dict(state, strict=False)
    # an average is of parameters; buffers are what the model was built with
    assert not unexpected and set(missing) <= {name for name, _ in model.named_buffers()}
    size_px = seen_px(config, geometry) if config.image.kind else 0
    save_towers(model, size_px, config.front_end, MelConfig(**geometry["mel"]), folder)
    settings = {"contrastive": semantic_dict(config), "facts": geometry}
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1))
    if config.text.kind:
        text = config.text
        tokenizer = pinned_tokenizer(text.tokenizer, geometry["tokenizer"]["sha256"], text.max_tokens)
        (saved,) = (folder / name for name in ("clap", "text_encoder") if (folder / name).is_dir())
        save_tokenizer(tokenizer, saved, text.max_tokens)
