"""Contrastive image-audio training: CLAP's idea (Wu et al. 2023) with images instead of text.

    batch = contrastive.make_batch(samples, keys, config, geometry)
    losses = contrastive.build_model(config, geometry)(batch)["loss"]      # [b]

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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cluster.dataset import DatasetMeta, Snapshot
from configs.load import UserError
from training.data.randomness import SampleKey
from training.networks.towers import AudioTower, AudioTowerConfig, ImageTowerConfig, build_image_tower
from training.pipeline.codec import ImageConfig, embed_image
from training.pipeline.mel import MelConfig
from training.pretrained import find_model, load_image_encoder
from training.recipes.clips import decode_image, decode_log_mel, mel_geometry, weights
from training.recipes.recipe import (
    ONE_OPTIMISER,
    Batch,
    DrawnKind,
    Geometry,
    Optimiser,
    PipelineParts,
    Sample,
)

MEMBERS: tuple[str, ...] = ("flac", "jpg", "json")
LEARNS_FROM: Literal["clips", "latents"] = "clips"
DRAWS: DrawnKind = ""
PARTS = PipelineParts(encoders=("image_encoder",))
AUDIO = "audio.safetensors"  # all but the image tower
MASKED = -1e4  # finite: a row of which all is masked gives no NaN, and exp of it is 0
HOLE = -1  # no medium has this number
MEL_CENTRE = -6.0  # of recordings' log mels, so that the tower starts with values around 0
MEL_SPREAD = 4.0
MAX_SCALE = 100  # Radford et al. 2021, section 2.5: a colder temperature makes training unstable


@dataclass
class Config:
    """`embedding_dim`: where both towers meet."""

    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    audio: AudioTowerConfig = field(default_factory=AudioTowerConfig)
    embedding_dim: int = 512
    temperature: float = 0.07


def geometry(snapshot: Snapshot, dataset_meta: DatasetMeta, config: Config) -> Geometry:
    """`{"mel"}`. `UserError` for other datasets and unknown towers."""
    if config.image.kind not in ("resnet", "clip"):
        raise UserError(f"contrastive.image.kind={config.image.kind}: give resnet or clip")
    widths = len(config.image.widths)
    depths = len(config.image.depths)
    if widths != depths:
        raise UserError(f"contrastive.image: widths has {widths} entries, depths {depths}: give as many")
    return mel_geometry(dataset_meta)


class Contrastive(nn.Module):
    """Images [b, 3, s, s] and log mels [b, frames, mels] -> losses."""

    def __init__(self, config: Config, mel: MelConfig):
        super().__init__()
        clip = config.image.kind == "clip"  # it has its own projection
        self.image: Any = build_image_tower(config.image, config.embedding_dim)
        self.audio = AudioTower(config.audio, mel.num_mels)
        self.image_head = nn.Identity() if clip else nn.Linear(config.image.widths[-1], config.embedding_dim)
        self.audio_head = nn.Linear(2 * config.audio.width, config.embedding_dim)
        # a vector of one: DeepSpeed cannot broadcast scalars
        self.log_scale = nn.Parameter(torch.tensor([math.log(1 / config.temperature)]))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        dtype = self.log_scale.dtype  # of the weights; the batch and the losses are float32
        image = self.image_head(embed_image(self.image, batch["image"].to(dtype)))
        audio = self.audio_head(self.audio(batch["log_mel"].to(dtype)))
        image = nn.functional.normalize(image.float(), dim=-1)
        audio = nn.functional.normalize(audio.float(), dim=-1)
        weight = batch["weight"]
        media = torch.where(weight == 0, HOLE, batch["media"])
        # of all ranks together; `truth` is where the own partner of each sample is among them
        pairs = torch.cat([image, audio], 1)
        all_media = media
        truth = torch.arange(len(media), device=media.device)
        # a validation batch is one rank's
        if self.training and dist.is_initialized() and dist.get_world_size() > 1:
            pairs = gather_features(pairs)
            all_media = gather_rows(media)
            truth = truth * dist.get_world_size() + dist.get_rank()
        images, audios = pairs.chunk(2, dim=1)
        masked = no_negatives(media, all_media, truth)
        scale = self.log_scale.float().exp().clamp(max=MAX_SCALE)
        # Radford et al. 2021, figure 3: each picture finds its sound among all, and each sound its picture
        across = (scale * image @ audios.T).masked_fill(masked, MASKED)
        down = (scale * audio @ images.T).masked_fill(masked, MASKED)
        loss = 0.5 * sum(
            nn.functional.cross_entropy(logits, truth, reduction="none") for logits in (across, down)
        )
        hit = (across.argmax(1) == truth).to(weight.dtype)
        return {"loss": loss * weight, "accuracy": hit * weight}


def no_negatives(media: Tensor, all_media: Tensor, truth: Tensor) -> Tensor:
    """bool [b, n]: which of n samples are no negatives for each of b: holes, and other clips of its medium.

    `media` int64 [b], `all_media` [n]: a number per medium. `truth` [b]: where each sample is among the n.
    """
    masked = (media[:, None] == all_media) | (all_media == HOLE)
    return masked.scatter(1, truth[:, None], False)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def gather_features(rows: Tensor) -> Tensor:
    """[b, d] of every rank -> [b * world, d] in the order of positions, with gradients for their ranks."""
    features: Tensor = _GatherFeatures.apply(rows)  # type: ignore[no-untyped-call]
    return features


@torch.compiler.disable  # type: ignore[untyped-decorator]
def gather_rows(rows: Tensor) -> Tensor:
    """[b, ...] of every rank -> [b * world, ...].

    Row i of rank r is at i * world + r, as the loader deals positions: any number of ranks gives one order.
    """
    per_rank = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(per_rank, rows.contiguous())
    return torch.stack(per_rank, 1).flatten(0, 1)


class _GatherFeatures(torch.autograd.Function):
    """`gather_rows` whose gradient is summed over the ranks.

    DeepSpeed takes the mean over ranks afterwards, which is then the gradient of the loss over all of them.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        gathered: Tensor = gather_rows(rows)
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        world = dist.get_world_size()
        return total.reshape(-1, world, *total.shape[1:])[:, dist.get_rank()]


def optimisers(config: Config) -> tuple[Optimiser, ...]:
    """One, of all parameters."""
    return ONE_OPTIMISER


def couples_samples(config: Config) -> bool:
    """Yes: those of one micro batch are each other's negatives."""
    return True


def build_model(config: Config, geometry: Geometry) -> nn.Module:
    """The two towers with their heads."""
    return Contrastive(config, MelConfig(**geometry["mel"]))


def initial(source: str, config: Config, geometry: Geometry) -> dict[str, Tensor]:
    """A published image tower, or both towers of ours."""
    folder = find_model(source, "init_from", PARTS.encoders[0])
    tower = load_image_encoder(folder)
    state = {f"image.{name}": tensor for name, tensor in tower.state_dict().items()}
    # beside the folder of the image tower, in a model of ours
    if (folder.parent / AUDIO).is_file():
        state |= load_file(folder.parent / AUDIO)
    return state


def make_batch(
    samples: Sequence[Sample | None], keys: Sequence[SampleKey], config: Config, geometry: Geometry
) -> Batch:
    """`image` [b, 3, s, s] in -1..1, `log_mel` [b, frames, mels] centred, `weight` [b], `media` int64 [b].

    Nothing is drawn from the keys.
    """
    mel = MelConfig(**geometry["mel"])
    image = torch.zeros(len(samples), 3, config.image.size_px, config.image.size_px)
    log_mel = torch.zeros(len(samples), mel.num_frames, mel.num_mels)
    media = torch.full((len(samples),), HOLE)
    for index, sample in enumerate(samples):
        if sample is not None:
            image[index] = decode_image(sample["jpg"], ImageConfig(config.image.size_px))
            log_mel[index] = (decode_log_mel(sample["flac"], mel) - MEL_CENTRE) / MEL_SPREAD
            media[index] = medium_of(sample["json"])
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
    return int.from_bytes(digest, "big") >> 1  # 63 bits: an int64 of a tensor is signed


def save(state: dict[str, Tensor], config: Config, geometry: Geometry, folder: Path) -> None:
    """Writes `image_encoder` with its preprocessor_config.json, and the audio tower and heads in one file."""
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
    audio = {name: tensor.contiguous() for name, tensor in state.items() if not name.startswith("image.")}
    save_file(audio, folder / AUDIO)
