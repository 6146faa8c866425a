"""AudioLDM's UNets: diffusers' own classes with our shapes, or with those of published weights.

    unet = build_unet(config, latent_channels=8, condition_dim=512)
    wider = with_sequences(unet.config, widths=[768])        # the same network, that can attend to sequences
    prediction = predict(unet, latent, times, {"class_labels": condition}, dtype)    # training.pipeline.codec

AudioLDM's takes one vector where a class label would enter; AudioLDM2's also one or two sequences. Knows
nothing of losses, data or files (training.recipes.diffusion does).
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from diffusers import AudioLDM2UNet2DConditionModel, UNet2DConditionModel
from torch import Tensor, nn

NetworkSettings = Mapping[str, Any]
"""The config.json of a network of diffusers; which names there are is its class's matter."""
MOST_SLOTS = 2


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
    """The stock UNet, of random weights; without attention its blocks are convolutional only.

    `condition_dim` 0: it takes no vector.
    """
    levels = len(config.channels)
    with_attention = levels - 1 if config.attention else 0
    # the finest level never attends: its positions are the most, and attention costs their square
    down = ("DownBlock2D",) * (levels - with_attention) + ("CrossAttnDownBlock2D",) * with_attention
    up = ("CrossAttnUpBlock2D",) * with_attention + ("UpBlock2D",) * (levels - with_attention)
    vector: dict[str, Any] = {}
    if condition_dim:
        # the embedding enters where a class label would, concatenated to the time embedding: AudioLDM's FiLM
        vector = {
            "class_embed_type": "simple_projection",
            "projection_class_embeddings_input_dim": condition_dim,
            "class_embeddings_concat": True,
        }
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
        **vector,
    )


def with_sequences(settings: NetworkSettings, widths: Sequence[int]) -> AudioLDM2UNet2DConditionModel:
    """The UNet of `settings`, that after each self-attention also attends to tokens of each of `widths`.

    As AudioLDM2 has it. What is added gives zero at first: with the weights of the UNet (`renamed`), the
    output is the same to the bit. `ValueError` for a UNet that AudioLDM2's class cannot express.
    """
    known = inspect.signature(AudioLDM2UNet2DConditionModel.__init__).parameters
    usual = inspect.signature(UNet2DConditionModel.__init__).parameters
    for name, value in settings.items():
        if name in usual and name not in known and value not in (usual[name].default, None):
            raise ValueError(f"{name}={value}: a UNet with it cannot attend to sequences")
    if settings["mid_block_type"] != "UNetMidBlock2DCrossAttn":
        raise ValueError("a UNet without attention cannot attend to sequences")
    kept = {name: value for name, value in settings.items() if name in known}
    levels = len(settings["block_out_channels"])
    kept["cross_attention_dim"] = [[None, *widths]] * levels
    network = AudioLDM2UNet2DConditionModel(**kept)
    for block in (*network.down_blocks, network.mid_block, *network.up_blocks):
        for index, attention in enumerate(getattr(block, "attentions", ())):
            if index % (1 + len(widths)):
                nn.init.zeros_(attention.proj_out.weight)
                nn.init.zeros_(attention.proj_out.bias)
    return network


def with_channels(settings: NetworkSettings, count: int) -> NetworkSettings:
    """The settings of a UNet that sees `count` channels beside the latent's."""
    return {**settings, "in_channels": settings["in_channels"] + count}


def widened(weight: Tensor, channels: int) -> Tensor:
    """The kernel [o, i, h, w] of a first layer that sees `channels`; what is added gives zero."""
    missing = channels - weight.shape[1]
    return nn.functional.pad(weight, (0, 0, 0, 0, 0, missing))


def renamed(name: str, num_slots: int) -> str:
    """The name in the network of `with_sequences` of a parameter of the UNet that it extends.

    >>> renamed("down_blocks.1.attentions.1.norm.weight", 2)
    'down_blocks.1.attentions.3.norm.weight'
    """
    block, mark, rest = name.partition("attentions.")
    if not mark:
        return name
    index, _, inner = rest.partition(".")
    return f"{block}attentions.{int(index) * (1 + num_slots)}.{inner}"


def from_settings(settings: NetworkSettings) -> nn.Module:
    """A published network of random weights, by its config.json. `ValueError` for another class."""
    kinds: dict[str, Any] = {
        "UNet2DConditionModel": UNet2DConditionModel,
        "AudioLDM2UNet2DConditionModel": AudioLDM2UNet2DConditionModel,
    }
    name = settings["_class_name"]
    if name not in kinds:
        raise ValueError(f"a {name}: need one of {', '.join(kinds)}")
    network: nn.Module = kinds[name].from_config(dict(settings))
    return network


def with_time_condition(settings: NetworkSettings, num_features: int) -> dict[str, Any]:
    """Of the same network, that is also told features [b, num_features] beside the time, `timestep_cond`."""
    # by this list, diffusers puts defaults back over what is set
    kept = {name: value for name, value in settings.items() if name != "_use_default_values"}
    return {**kept, "time_cond_proj_dim": num_features}


def zero_time_condition(network: Any) -> None:
    """In place: whatever is told beside the time, a network gives what it gave without, until it learns."""
    nn.init.zeros_(network.time_embedding.cond_proj.weight)


def label_dim_of(settings: NetworkSettings) -> int:
    """How wide the vector is that a UNet takes where a class label would enter; 0: it takes none."""
    kind = settings.get("class_embed_type")
    if kind is None:
        return 0
    if kind != "simple_projection":
        raise ValueError(f"class_embed_type={kind}: need simple_projection, as AudioLDM has it")
    return int(settings["projection_class_embeddings_input_dim"])


def widths_of(settings: NetworkSettings) -> list[int]:
    """How wide the tokens are that a UNet attends to, by slot; none of one that attends to itself alone."""
    if settings["_class_name"] == "UNet2DConditionModel":
        return []
    levels = [list(level) for level in settings["cross_attention_dim"]]
    first, *widths = levels[0]
    is_uniform = all(level == levels[0] for level in levels)
    if first is not None or not is_uniform or not 1 <= len(widths) <= MOST_SLOTS:
        raise ValueError(
            f"cross_attention_dim={levels}: need [null, …] with one or two widths, on all levels"
        )
    return [int(width) for width in widths]


def shapes_of(config: UNetSettings, latent_channels: int, condition_dim: int) -> dict[str, Any]:
    """The config.json of `build_unet`, without its weights."""
    with torch.device("meta"):
        unet = build_unet(config, latent_channels, condition_dim)
    return {**unet.config, "_class_name": type(unet).__name__}
