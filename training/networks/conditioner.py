"""What stands between conditions and a network: projections of an image's vector and of sequences of tokens.

    conditioner = Conditioner(image_dim=768, label_dim=512, projection="linear")
    conditions = conditioner(image, {"tokens": (values, present)})       # named arguments of the network

A sequence enters through cross-attention (training.networks.unet), in one of at most two slots, whose tokens
are attended to together. Where a sequence is absent, one learnt null token stands for it. A vector may also
enter as channels beside the latent: a convolutional network does not know which band it looks at, and these
say something else of each band. Stands alone: `training.export` copies this text beside its weights.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

SLOTS = (
    ("encoder_hidden_states", "encoder_attention_mask"),
    ("encoder_hidden_states_1", "encoder_attention_mask_1"),
)
"""What `AudioLDM2UNet2DConditionModel` calls its two sequences and their masks."""
Sequences = Mapping[str, tuple[Tensor, Tensor]]
"""Name -> values [b, t, d] and presence [b, t], 1 or 0."""
BANDS = "frequency_channels"  # beside the latent (training.pipeline.codec)
BANDS_WIDTH = 256  # of the hidden layer that makes them


class SequenceProjection(nn.Module):
    """Tokens [b, t, d] and presence [b, t] -> tokens [b, t, width] and the mask to attend with [b, t].

    `projection` none takes them as they are (d must be `width`), for networks that were trained on them.
    """

    def __init__(self, dim: int, width: int, length: int, projection: str = "linear"):
        super().__init__()
        self.null = nn.Parameter(torch.zeros(width))
        self.norm = self.linear = None
        if projection == "linear":
            self.norm = nn.LayerNorm(dim)
            self.linear = nn.Linear(dim, width)
            # features of a convolutional tower do not say where they are
            self.positions = nn.Parameter(torch.zeros(length, width))

    def forward(self, values: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        tokens = values.to(self.null.dtype)
        if self.linear is not None and self.norm is not None:
            tokens = self.linear(self.norm(tokens)) + self.positions[: values.shape[1]]
        is_absent = present.amax(1, keepdim=True) == 0
        is_first = torch.arange(present.shape[1], device=present.device) == 0
        is_null = is_absent & is_first
        return torch.where(is_null[..., None], self.null, tokens), present + is_null.to(present.dtype)


class EmptySlot(nn.Module):
    """A slot that no sequence enters: one learnt token."""

    def __init__(self, width: int):
        super().__init__()
        self.null = nn.Parameter(torch.zeros(width))

    def forward(self, count: int) -> tuple[Tensor, Tensor]:
        """[b, 1, width] and a mask of ones [b, 1]."""
        mask = torch.ones(count, 1, device=self.null.device)
        # a product, not a view: the counter of FLOPs takes no views of weights
        return mask[..., None].to(self.null.dtype) * self.null, mask


class FrequencyChannels(nn.Module):
    """A vector [b, d] -> channels over frequency that are the same at every time, [b, c, 1, bands]."""

    def __init__(self, dim: int, channels: int, bands: int):
        super().__init__()
        self.shape = (channels, 1, bands)
        self.layers = nn.Sequential(
            nn.Linear(dim, BANDS_WIDTH), nn.SiLU(), nn.Linear(BANDS_WIDTH, channels * bands)
        )

    def forward(self, vector: Tensor) -> Tensor:
        made: Tensor = self.layers(vector)
        return made.reshape(len(vector), *self.shape)


class Conditioner(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers hides its types from mypy
    """An image's vector [b, d] and sequences -> `class_labels` [b, label_dim], tokens and masks of the slots.

    `projection` of the vector: none, linear, or identity, which is linear and begins as such. `label_dim` 0:
    the network takes no vector. `widths` of the slots. `sequences`: name, dim, length, projection and slot of
    each. `frequency_channels` of `bands`: as many channels beside the latent, [b, c, 1, bands].
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        image_dim: int = 512,
        label_dim: int = 512,
        projection: str = "none",
        widths: tuple[int, ...] = (),
        sequences: tuple[dict[str, Any], ...] = (),
        frequency_channels: int = 0,
        bands: int = 0,
    ):
        super().__init__()
        self.label = nn.Linear(image_dim, label_dim) if label_dim and projection != "none" else None
        if self.label is not None and projection == "identity":
            nn.init.eye_(self.label.weight)
            nn.init.zeros_(self.label.bias)
        self.slots: list[list[dict[str, Any]]] = []
        # not `sequences`: diffusers looks for the settings first
        self.projections = nn.ModuleDict()
        self.empty = nn.ModuleDict()
        for slot, width in enumerate(widths):
            self.slots.append([each for each in sequences if each["slot"] == slot])
            for each in self.slots[slot]:
                self.projections[each["name"]] = SequenceProjection(
                    each["dim"], width, each["length"], each["projection"]
                )
            if not self.slots[slot]:
                self.empty[str(slot)] = EmptySlot(width)
        # not `bands`: diffusers looks for the settings first
        self.over_frequency = None
        if frequency_channels:
            self.over_frequency = FrequencyChannels(image_dim, frequency_channels, bands)

    def forward(self, image: Tensor, sequences: Sequences) -> dict[str, Tensor]:
        """Named arguments of the network."""
        conditions: dict[str, Tensor] = {}
        if self.config.label_dim:
            conditions["class_labels"] = image if self.label is None else self.label(image.to(self.dtype))
        if self.over_frequency is not None:
            conditions[BANDS] = self.over_frequency(image.to(self.dtype))
        for slot, members in enumerate(self.slots):
            if members:
                made = [self.projections[each["name"]](*sequences[each["name"]]) for each in members]
            else:
                made = [self.empty[str(slot)](len(image))]
            tokens, masks = zip(*made, strict=True)
            states, mask = SLOTS[slot]
            conditions[states] = torch.cat(tokens, 1)
            conditions[mask] = torch.cat(masks, 1)
        return conditions
