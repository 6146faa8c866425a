"""Contrastive image-audio training: CLAP's idea (Wu et al. 2023) with the text branch exchanged for an image
branch.

    losses = contrastive.build_model(config, geometry)(contrastive.make_batch(samples, keys, config, geometry))["loss"]      # [b]

Both towers come from transformers and are saved apart, so that `image_encoder` loads by name or folder; what
the other models are conditioned on is its pooled output before the projection. Loss: symmetric InfoNCE with a
learnt temperature (Radford et al. 2021) over one micro batch of all ranks together: features are gathered
with their gradients, so that any number of workers computes the same loss, and `accumulate` divides the
negatives. Clips of one medium are never each other's negatives.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from cluster.dataset import Snapshot
from configs.load import UserError
from training.data.randomness import SampleKey
from training.networks.towers import AudioTower, AudioTowerConfig, ImageTowerConfig, build_image_tower
from training.pipeline.codec import ImageConfig, embed_image
from training.pipeline.mel import MelConfig
from training.recipes.clips import decode_image, decode_log_mel, mel_geometry, weights
from training.recipes.recipe import ONE_OPTIMISER, Batch, Geometry, PipelineParts, Sample

MEMBERS: tuple[str, ...] = ("flac", "jpg", "json")
LEARNS_FROM: Literal["clips", "latents"] = "clips"
COUPLES_SAMPLES = True  # those of one micro batch are each other's negatives
DRAWS: Literal["", "latents", "log_mels"] = ""
OPTIMISERS = ONE_OPTIMISER
PARTS = PipelineParts(encoders=("image_encoder",))
MASKED = -1e4
HOLE = -1
MEL_CENTRE, MEL_SPREAD = -6.0, 4.0


@dataclass
class Config:
    """`embedding_dim`: where both towers meet."""

    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    audio: AudioTowerConfig = field(default_factory=AudioTowerConfig)
    embedding_dim: int = 512
    temperature: float = 0.07


def geometry(snapshot: Snapshot, dataset_meta: dict[str, Any], config: Config) -> Geometry:
    """`{"mel"}`. `UserError` for other datasets and unknown towers."""
    if config.image.kind not in ("resnet", "clip"):
        raise UserError(f"contrastive.image.kind={config.image.kind}: give resnet or clip")
    if len(config.image.widths) != len(config.image.depths):
        raise UserError(
            f"contrastive.image: widths has {len(config.image.widths)} entries, depths {len(config.image.depths)}: give as many"
        )
    return mel_geometry(dataset_meta)


class Contrastive(nn.Module):
    """Images [b, 3, s, s] and log mels [b, frames, mels] -> losses."""

    def __init__(self, config: Config, mel: MelConfig):
        super().__init__()
        clip = config.image.kind == "clip"
        self.image: Any = build_image_tower(config.image, config.embedding_dim)
        self.audio = AudioTower(config.audio, mel.num_mels)
        self.image_head = nn.Identity() if clip else nn.Linear(config.image.widths[-1], config.embedding_dim)
        self.audio_head = nn.Linear(2 * config.audio.width, config.embedding_dim)
        self.log_scale = nn.Parameter(
            torch.tensor([math.log(1 / config.temperature)])
        )  # DeepSpeed cannot broadcast scalars

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        dtype = self.log_scale.dtype  # of the weights; the batch and the losses are float32
        image = nn.functional.normalize(
            self.image_head(embed_image(self.image, batch["image"].to(dtype))).float(), dim=-1
        )
        audio = nn.functional.normalize(
            self.audio_head(self.audio(batch["log_mel"].to(dtype))).float(), dim=-1
        )
        weight, scale = batch["weight"], self.log_scale.float().exp().clamp(max=100)
        media = torch.where(weight == 0, HOLE, batch["media"])
        pairs, all_media, truth = (
            torch.cat([image, audio], 1),
            media,
            torch.arange(len(media), device=media.device),
        )
        if (
            self.training and dist.is_initialized() and dist.get_world_size() > 1
        ):  # a validation batch is one rank's
            pairs, all_media = gather_features(pairs), gather_rows(media)
            truth = truth * dist.get_world_size() + dist.get_rank()
        images, audios = pairs.chunk(2, dim=1)
        masked = no_negatives(media, all_media, truth)
        across = (scale * image @ audios.T).masked_fill(masked, MASKED)
        down = (scale * audio @ images.T).masked_fill(masked, MASKED)
        loss = 0.5 * sum(
            nn.functional.cross_entropy(logits, truth, reduction="none") for logits in (across, down)
        )
        hit = (across.argmax(1) == truth).to(weight.dtype)
        return {"loss": loss * weight, "accuracy": hit * weight}


def no_negatives(media: Tensor, all_media: Tensor, truth: Tensor) -> Tensor:
    """bool [b, n]: which of n samples are no negatives for each of b: holes, and other clips of its own
    medium (int64 numbers).
    """
    masked = (media[:, None] == all_media) | (all_media == HOLE)
    return masked.scatter(1, truth[:, None], False)


@torch.compiler.disable
def gather_features(rows: Tensor) -> Tensor:
    """[b, d] of every rank -> [b * world, d] in the order of positions, with gradients for the ranks that
    they came from.
    """
    return _GatherFeatures.apply(rows)  # type: ignore[no-untyped-call, no-any-return]


@torch.compiler.disable
def gather_rows(rows: Tensor) -> Tensor:
    """[b, ...] of every rank -> [b * world, ...]: row i of rank r is at i * world + r, as the loader deals
    positions out.
    """
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.stack(parts, 1).flatten(0, 1)


class _GatherFeatures(torch.autograd.Function):
    """`gather_rows` whose gradient is summed over the ranks; the mean over ranks that DeepSpeed takes is then
    the global one.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return gather_rows(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.unflatten(0, (-1, dist.get_world_size()))[:, dist.get_rank()]


def build_model(config: Config, geometry: Geometry) -> nn.Module:
    """The two towers with their heads."""
    return Contrastive(config, MelConfig(**geometry["mel"]))


def make_batch(
    samples: Sequence[Sample | None], keys: Sequence[SampleKey], config: Config, geometry: Geometry
) -> Batch:
    """`image` [b, 3, s, s] in -1..1, `log_mel` [b, frames, mels] centred, `weight` [b], `media` int64 [b], a
    number for each medium.

    Nothing is drawn from the keys.
    """
    mel = MelConfig(**geometry["mel"])
    image = torch.zeros(len(samples), 3, config.image.size_px, config.image.size_px)
    log_mel = torch.zeros(len(samples), mel.num_frames, mel.num_mels)
    media = torch.full((len(samples),), HOLE)
    for place, sample in enumerate(samples):
        if sample is not None:
            image[place] = decode_image(sample["jpg"], ImageConfig(config.image.size_px))
            log_mel[place] = (decode_log_mel(sample["flac"], mel) - MEL_CENTRE) / MEL_SPREAD
            media[place] = medium_of(sample["json"])
    return {"image": image, "log_mel": log_mel, "weight": weights(samples), "media": media}


def loss_groups(batch: Batch) -> None:
    """None: there is nothing by which a pair would be easier than another."""


def draw(model: nn.Module, batch: Batch, geometry: Geometry) -> dict[str, Tensor]:
    """Nothing: embeddings are no picture."""
    return {}


def medium_of(metadata: bytes | memoryview) -> int:
    """A number in 0..2^63 for the medium that a clip was cut from, from its source and media id alone."""
    sample = json.loads(bytes(metadata))
    digest = hashlib.blake2b(f"{sample['source']}/{sample['media_id']}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def save(state: dict[str, Tensor], config: Config, geometry: Geometry, folder: Path) -> None:
    """Writes `image_encoder` (with its preprocessor_config.json), and, in one file, the audio tower and the
    heads.
    """
    model = Contrastive(config, MelConfig(**geometry["mel"]))
    model.load_state_dict(state)
    model.image.save_pretrained(folder / "image_encoder")
    size = config.image.size_px
    settings = {
        "size": {"height": size, "width": size},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "do_resize": True,
    }
    (folder / "image_encoder" / "preprocessor_config.json").write_text(json.dumps(settings, indent=1))
    rest = {name: tensor.contiguous() for name, tensor in state.items() if not name.startswith("image.")}
    save_file(rest, folder / "audio.safetensors")
