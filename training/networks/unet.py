"""AudioLDM's UNet, as diffusers has it, with a vector condition beside the time embedding.

    unet = build_unet(config, latent_channels=8, condition_dim=512)        # 185.04 M parameters at AudioLDM-S's widths
    flow = unet(latent, time, encoder_hidden_states=None, class_labels=condition).sample

It holds no loss and no sampling (training.recipes.diffusion and training.pipeline.pipeline do).
"""

from typing import Protocol

from diffusers import UNet2DConditionModel


class UNetSettings(Protocol):
    """What is asked of a UNet: widths and heads per level, layers per block, attention below the first level."""

    channels: list[int]
    head_counts: list[int]
    layers_per_block: int
    attention: bool
    norm_groups: int


def build_unet(config: UNetSettings, latent_channels: int, condition_dim: int) -> UNet2DConditionModel:
    """The stock UNet; without attention its blocks are convolutional only."""
    levels = len(config.channels)
    with_attention = (levels - 1) if config.attention else 0
    down = ("DownBlock2D",) * (levels - with_attention) + ("CrossAttnDownBlock2D",) * with_attention
    up = ("CrossAttnUpBlock2D",) * with_attention + ("UpBlock2D",) * (levels - with_attention)
    return UNet2DConditionModel(
        sample_size=128,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=down,
        up_block_types=up,
        mid_block_type="UNetMidBlock2DCrossAttn" if config.attention else "UNetMidBlock2D",
        block_out_channels=tuple(config.channels),
        layers_per_block=config.layers_per_block,
        cross_attention_dim=tuple(config.channels),
        attention_head_dim=tuple(config.head_counts),
        norm_num_groups=config.norm_groups,
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=condition_dim,
        class_embeddings_concat=True,
    )
