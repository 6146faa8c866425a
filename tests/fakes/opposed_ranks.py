"""A step of an autoencoder against its discriminator over one global batch, by 1, 2 and 4 processes.

tests.fakes.contrastive_ranks.by_ranks(folder, build, batch_of)      # writes 1.pt, 2.pt and 4.pt there
"""

import torch
from torch import nn

from training.pipeline.mel import MelConfig
from training.recipes.autoencoder import Autoencoder, Config

CONFIG = Config(
    channels=[8, 8, 8],
    layers_per_block=1,
    norm_groups=4,
    attention=False,
    discriminator_weight=0.5,
    discriminator_start=1,
    discriminator_channels=8,
)
SAMPLES = 8


def build() -> nn.Module:
    return Autoencoder(CONFIG, MelConfig())


def batch_of(rank: int, world: int) -> dict[str, torch.Tensor]:
    """A rank's rows of the global batch, as the loader deals them out; one is a hole."""
    rng = torch.Generator().manual_seed(1)
    weight = torch.ones(SAMPLES)
    weight[3] = 0
    global_batch = {
        "log_mel": torch.randn(SAMPLES, 1, 64, 64, generator=rng) - 6,
        "noise": torch.randn(SAMPLES, 8, 16, 16, generator=rng),
        "weight": weight,
        "step": torch.ones(SAMPLES),
    }
    return {name: tensor[rank::world] for name, tensor in global_batch.items()}
