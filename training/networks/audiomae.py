"""A masked autoencoder of spectrograms (Huang et al. 2022): transformers' ViTMAE (He et al. 2022), oblong.

    mae = SpectrogramMae(config)                       # a ViTMAEConfig with image_size [frames, mels]
    tokens = embed_tokens(mae, log_mel)                # [b, t, m] -> [b, 8, d]: AudioMAE's features, pooled

The stock classes take squares: the one for pre-training raises on others, and where it does not, its tables
of positions stay zero (transformers 5.23). Here both tables are made, for the grid. Weights are saved under
the stock names: `ViTMAEModel` loads the encoder. No loss and no data here (training.recipes.audiomae).

Of AudioMAE are the patches, the masks and the encoder; its decoder attends in shifted windows, this one, as
MAE's, everywhere, and its spectrograms are Kaldi's, where ours are those of training.pipeline.mel.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEModel
from transformers import initialization as init
from transformers.models.vit_mae.modeling_vit_mae import (
    ViTMAEDecoder,
    ViTMAEEmbeddings,
    ViTMAEPreTrainedModel,
    build_2d_sinusoidal_position_embedding,
)

TYPICAL_LOG_MEL = -6.0
TYPICAL_SPREAD = 3.0
NUM_TOKENS = 8
"""AudioLDM2 (Liu et al. 2023, section 3.2): 64 x 8 patches of 10 s, pooled by 8 x 8."""


class _Rectangular(ViTMAEPreTrainedModel):  # type: ignore[misc]  # transformers hides its types from mypy
    """The stock initial weights, but tables for the grid of `config`."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, ViTMAEEmbeddings):
            kernels = module.patch_embeddings.projection.weight
            init.xavier_uniform_(kernels.view(len(kernels), -1))
            init.normal_(module.cls_token, std=self.config.initializer_range)
            init.copy_(module.position_embeddings, position_table(self.config, self.config.hidden_size))
        elif isinstance(module, ViTMAEDecoder):
            init.normal_(module.mask_token, std=self.config.initializer_range)
            init.copy_(module.decoder_pos_embed, position_table(self.config, self.config.decoder_hidden_size))
        else:
            super()._init_weights(module)


class _Encoder(_Rectangular, ViTMAEModel):  # type: ignore[misc]
    """`ViTMAEModel` of any rectangle."""


class _Decoder(ViTMAEDecoder):  # type: ignore[misc]
    """Initialised by the model that it is in."""

    def initialize_weights(self, num_patches: int) -> None:
        pass


class SpectrogramMae(_Rectangular):
    """`ViTMAEForPreTraining` of any rectangle: encoder `vit`, decoder `decoder`."""

    def __init__(self, config: ViTMAEConfig):
        super().__init__(config)
        rows, columns = grid_of(config)
        self.vit = _Encoder(config)
        self.decoder = _Decoder(config, rows * columns)
        _make_buffer(self.vit.embeddings, "position_embeddings")
        _make_buffer(self.decoder, "decoder_pos_embed")
        for first in (self.vit.layers[0], self.decoder.decoder_layers[0]):
            first.register_forward_pre_hook(_as_weights)
        self.post_init()


def _as_weights(layer: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """What enters a first layer, in the precision of its weights: the tables that were added stay float32."""
    return given[0].to(layer.layernorm_before.weight.dtype), *given[1:]


def _make_buffer(module: nn.Module, name: str) -> None:
    """Of a parameter that is never stepped: optimisers and averages take all parameters."""
    table = getattr(module, name).detach()
    delattr(module, name)
    module.register_buffer(name, table)


def grid_of(config: ViTMAEConfig) -> tuple[int, int]:
    """Rows in time and columns of bands, in patches."""
    size: Any = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return height // config.patch_size, width // config.patch_size


def position_table(config: ViTMAEConfig, width: int) -> Tensor:
    """Sines and cosines of both axes, float32 [1, 1 + rows * columns, width]; the class token's is 0.

    In transformers' layout, whose columns come first: of a square it is the stock table.
    """
    table = build_2d_sinusoidal_position_embedding(*grid_of(config), width, cls_token=True)
    half = width // 2
    return torch.cat([table[:, half:], table[:, :half]], 1)[None]


def standardise(log_mel: Tensor) -> Tensor:
    """Log mels as the network takes and predicts them: typical ones have mean 0 and deviation .5, as in
    AudioMAE's code.
    """
    return (log_mel - TYPICAL_LOG_MEL) / (2 * TYPICAL_SPREAD)


def restore(pixels: Tensor) -> Tensor:
    """The inverse of `standardise`."""
    return pixels * (2 * TYPICAL_SPREAD) + TYPICAL_LOG_MEL


def patches_of(pixels: Tensor, patch: int) -> Tensor:
    """[b, 1, t, m] -> [b, patches, patch * patch], in reading order, frames first."""
    batch, _, frames, mels = pixels.shape
    grid = pixels.view(batch, frames // patch, patch, mels // patch, patch)
    return grid.transpose(2, 3).reshape(batch, -1, patch * patch)


def pixels_of(patches: Tensor, rows: int, patch: int) -> Tensor:
    """The inverse of `patches_of`: [b, patches, patch * patch] -> [b, 1, t, m]."""
    batch = len(patches)
    grid = patches.view(batch, rows, -1, patch, patch).transpose(2, 3)
    return grid.reshape(batch, 1, rows * patch, -1)


def embed_tokens(mae: Any, log_mel: Tensor) -> Tensor:
    """Log mels [b, t, m] -> float32 [b, 8, d]: the encoder's patches, pooled over all bands and an eighth of
    the time each: the mean of mean and maximum, as AudioLDM2's code has it. Nothing is masked.
    """
    rows, columns = grid_of(mae.config)
    pixels = standardise(log_mel)[:, None].to(mae.dtype)
    # in order: where nothing is masked, nothing needs to be shuffled
    order = torch.arange(rows * columns, device=log_mel.device).float().expand(len(log_mel), -1)
    hidden = _unmasked(mae, pixels, order)[:, 1:].float()
    grid = hidden.transpose(1, 2).reshape(len(log_mel), -1, rows, columns)
    # of shorter clips neighbours overlap
    mean = nn.functional.adaptive_avg_pool2d(grid, (NUM_TOKENS, 1))
    most = nn.functional.adaptive_max_pool2d(grid, (NUM_TOKENS, 1))
    pooled: Tensor = ((mean + most) / 2)[..., 0].transpose(1, 2)
    return pooled


def _unmasked(mae: Any, pixels: Tensor, order: Tensor) -> Tensor:
    """The encoder's last layer [b, 1 + patches, d]."""
    settings = mae.vit.embeddings.config
    masked = settings.mask_ratio
    settings.mask_ratio = 0.0
    try:
        hidden: Tensor = mae.vit(pixels, noise=order).last_hidden_state
    finally:
        settings.mask_ratio = masked
    return hidden
