"""The text encoder of a VITS (Kim et al. 2021) alone: characters or phonemes -> hidden states.

    VitsText.from_pretrained("facebook/mms-tts-eng")(input_ids=ids, attention_mask=mask).last_hidden_state

What audioldm_train's phoneme encoder is made of. Of a `VitsModel`'s files it reads what it needs: neither the
flow nor the decoder.
"""

from typing import Any

from torch import Tensor
from transformers import VitsConfig, VitsPreTrainedModel
from transformers.models.vits.modeling_vits import VitsTextEncoder


class VitsText(VitsPreTrainedModel):  # type: ignore[misc]  # transformers hides its types from mypy
    """Token ids and mask [b, t] -> `last_hidden_state` [b, t, hidden_size]."""

    def __init__(self, config: VitsConfig):
        super().__init__(config)
        self.text_encoder = VitsTextEncoder(config)
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """As `VitsModel.forward` calls it."""
        padding_mask = attention_mask[..., None].to(self.dtype)
        return self.text_encoder(
            input_ids=input_ids, padding_mask=padding_mask, attention_mask=attention_mask
        )
