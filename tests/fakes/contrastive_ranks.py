"""A contrastive step over one global batch, by 1, 2 and 4 processes.

    by_ranks(folder, partial(build, "clap"))      # one of CONFIGS

writes 1.pt, 2.pt and 4.pt there: the loss, and the gradients as DeepSpeed averages them.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from tests.fakes.ranks import warm_context
from training.networks.clap import HtsatConfig, TextTowerConfig
from training.pipeline.mel import MelConfig
from training.recipes import contrastive
from training.recipes.captions import facts_of, load_tokenizer
from training.recipes.matching import HOLE
from training.recipes.recipe import Geometry

MEL = MelConfig(duration_s=0.16)
TOWER = contrastive.ImageTowerConfig(kind="resnet", widths=[8], depths=[1], stem=8, norm_groups=4, size_px=32)
MAP = contrastive.ImageTowerConfig(
    kind="map", widths=[8, 8], depths=[1, 1], dim=12, norm_groups=4, size_px=32
)
CONFIG = contrastive.Config(
    image=TOWER, audio=contrastive.AudioTowerConfig(width=16, depths=[1]), embedding_dim=8
)
SOUNDS = 5  # statistics of a sound
FACTS: Geometry = {
    "mel": MEL.settings(),
    "tokenizer": facts_of(load_tokenizer("")),
    "sounds": {"mean": [0.0] * SOUNDS, "spread": [1.0] * SOUNDS},
}
NO_IMAGE = contrastive.ImageTowerConfig(kind="")
HTSAT = contrastive.AudioTowerConfig(
    kind="clap", htsat=HtsatConfig(width=8, depths=[1, 1], heads=[2, 2], spec_size=64, window=4)
)
TEXT = TextTowerConfig(
    kind="clap", column="caption", width=16, layers=2, heads=2, max_tokens=12, positions=16
)
CONFIGS = {
    "pictures": CONFIG,
    "clap": contrastive.Config(image=NO_IMAGE, audio=HTSAT, text=TEXT, embedding_dim=8),
    "clap_pictures": contrastive.Config(image=TOWER, audio=HTSAT, embedding_dim=8),
    "three_way": contrastive.Config(image=TOWER, audio=HTSAT, text=TEXT, embedding_dim=8),
    "sounds": replace(CONFIG, image=MAP, sound_weight=0.5),
}
Build = Callable[[], nn.Module]
BatchOf = Callable[[int, int], dict[str, torch.Tensor]]
# of the global batch: two media have two clips, one sample is missing
MEDIA = [0, 1, 2, 0, 3, 4, HOLE, 1]
# two samples of other media have the same caption, one has none
CAPTIONS = [10, 11, HOLE, 12, 11, 13, HOLE, 14]


def batch_of(rank: int, world: int) -> dict[str, torch.Tensor]:
    """A rank's rows of the global batch, as the loader deals them out."""
    rng = torch.Generator().manual_seed(1)
    media = torch.tensor(MEDIA)
    image = torch.randn(len(media), 3, 32, 32, generator=rng)
    log_mel = torch.randn(len(media), MEL.num_frames, MEL.num_mels, generator=rng)
    captions = torch.tensor(CAPTIONS)
    tokens = torch.randint(3, 200, (len(media), TEXT.max_tokens), generator=rng)
    # of other lengths, padded
    tokens[torch.arange(TEXT.max_tokens) > 4 + torch.arange(len(media))[:, None]] = FACTS["tokenizer"]["pad"]
    global_batch = {"image": image, "log_mel": log_mel, "media": media, "weight": (media >= 0).float()}
    global_batch |= {"tokens": tokens, "caption": captions}
    global_batch["sound"] = torch.randn(len(media), SOUNDS, generator=rng)
    return {name: tensor[rank::world] for name, tensor in global_batch.items()}


def build(kind: str = "pictures") -> nn.Module:
    return contrastive.Contrastive(CONFIGS[kind], FACTS)


def step(rank: int, world: int, folder: Path, build: Build, batch_of: BatchOf) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / f"store-{world}"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    torch.manual_seed(0)
    model = build()
    loss = model(batch_of(rank, world))["loss"].mean()
    loss.backward()
    results = {"loss": loss.detach()}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            results[name] = parameter.grad
    for tensor in results.values():
        dist.all_reduce(tensor)
        tensor /= world
    if rank == 0:
        torch.save(results, folder / f"{world}.pt")


def by_ranks(folder: Path, build: Build = build, batch_of: BatchOf = batch_of) -> None:
    """Another recipe's step by its own `build` and `batch_of`."""
    context = warm_context()
    for world in (1, 2, 4):
        ranks = [
            context.Process(target=step, args=(rank, world, folder, build, batch_of)) for rank in range(world)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
            assert process.exitcode == 0
