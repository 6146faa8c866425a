"""A contrastive step over one global batch, by 1, 2 and 4 processes.

    python -m tests.fakes.contrastive_ranks FOLDER

writes FOLDER/1.pt, 2.pt and 4.pt: the loss, and the gradients as DeepSpeed averages them.
"""

import multiprocessing
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from training.pipeline.mel import MelConfig
from training.recipes import contrastive

MEL = MelConfig(duration_s=0.16)
TOWER = contrastive.ImageTowerConfig(kind="resnet", widths=[8], depths=[1], stem=8, norm_groups=4, size_px=32)
CONFIG = contrastive.Config(
    image=TOWER, audio=contrastive.AudioTowerConfig(width=16, depths=[1]), embedding_dim=8
)
# of the global batch: two media have two clips, one sample is missing
MEDIA = [0, 1, 2, 0, 3, 4, -1, 1]


def batch_of(rank: int, world: int) -> dict[str, torch.Tensor]:
    """A rank's rows of the global batch, as the loader deals them out."""
    rng = torch.Generator().manual_seed(1)
    media = torch.tensor(MEDIA)
    image = torch.randn(len(media), 3, 32, 32, generator=rng)
    log_mel = torch.randn(len(media), MEL.num_frames, MEL.num_mels, generator=rng)
    global_batch = {"image": image, "log_mel": log_mel, "media": media, "weight": (media >= 0).float()}
    return {name: tensor[rank::world] for name, tensor in global_batch.items()}


def step(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / f"store-{world}"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    torch.manual_seed(0)
    model: Any = contrastive.Contrastive(CONFIG, MEL)
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


def main(folder: Path) -> None:
    context = multiprocessing.get_context("fork")  # torch is imported once for all of them
    for world in (1, 2, 4):
        ranks = [context.Process(target=step, args=(rank, world, folder)) for rank in range(world)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
            assert process.exitcode == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
