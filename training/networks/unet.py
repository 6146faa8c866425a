"""AudioLDM's UNet, conditioned on one vector: diffusers' `UNet2DConditionModel` with our shapes.

    unet = build_unet(config, latent_channels=8, condition_dim=512)
    flow = predict(unet, latent, times, condition, torch.float32)      # training.pipeline.codec

Knows nothing of losses, data or files (training.recipes.diffusion does).
"""

from typing import Protocol

from diffusers import UNet2DConditionModel


class UNetSettings(Protocol):
    """What decides the shapes: a recipe's `Config` has these among its settings.

    `channels`, `head_counts`: an entry per level, which halves both axes. `attention`: in all but the first.
    """

    channels: list[int]
    head_counts: list[int]
    layers_per_block: int
    attention: bool
    norm_groups: int


def build_unet(config: UNetSettings, latent_channels: int, condition_dim: int) -> UNet2DConditionModel:
    """The stock UNet, of random weights; without attention its blocks are convolutional only."""
    levels = len(config.channels)
    with_attention = levels - 1 if config.attention else 0
    # the finest level never attends: its positions are the most, and attention costs their square
    down = ("DownBlock2D",) * (levels - with_attention) + ("CrossAttnDownBlock2D",) * with_attention
    up = ("CrossAttnUpBlock2D",) * with_attention + ("UpBlock2D",) * (levels - with_attention)
    return UNet2DConditionModel(
        sample_size=128,  # recorded only: the network is convolutional in both axes
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=down,
        up_block_types=up,
        mid_block_type="UNetMidBlock2DCrossAttn" if config.attention else "UNetMidBlock2D",
        block_out_channels=tuple(config.channels),
        layers_per_block=config.layers_per_block,
        # as wide as the level itself: without encoder states, cross attention is self attention
        cross_attention_dim=tuple(config.channels),
        # diffusers' name; it holds the number of heads (its issue 2011)
        attention_head_dim=tuple(config.head_counts),
        norm_num_groups=config.norm_groups,
        # the embedding enters where a class label would, concatenated to the time embedding: AudioLDM's FiLM
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=condition_dim,
        class_embeddings_concat=True,
    )
