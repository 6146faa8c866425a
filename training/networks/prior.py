"""From an image embedding to the tokens of its sound: a small GPT-2 over vectors, one after another.

    prior = TokenPrior(image_dim=512, token_dim=768)
    tokens = prior.predict(image)                          # [b, d] as an encoder gives it -> [b, 8, 768]

AudioLDM2's (Liu et al. 2023, section 3.2.2) with an image in place of the text: the picture is the first of
the sequence, then come the tokens, each predicted from all before it. Saves itself with the moments of the
embeddings that it was trained on, and with which models made them and the tokens. No loss and no data here
(training.recipes.prior). Stands alone: `training.export` copies this text beside its weights.
"""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from transformers import GPT2Config, GPT2Model


class TokenPrior(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers hides its types from mypy
    """`gpt` between two projections; `start` comes before the picture, as in AudioLDM2.

    `sha256`: of the models that made what it was trained on, by name; None where nobody recorded it.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        image_dim: int = 512,
        token_dim: int = 768,
        num_tokens: int = 8,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        sha256: dict[str, str] | None = None,
    ):
        super().__init__()
        self.gpt = _sequence_model(width, layers, heads, length=num_tokens + 1)
        self.start = nn.Parameter(torch.zeros(width))
        self.of_image = nn.Linear(image_dim, width)
        self.of_token = nn.Linear(token_dim, width)
        self.to_token = nn.Linear(width, token_dim)
        self.register_buffer("image_mean", torch.zeros(image_dim))
        self.register_buffer("image_std", torch.ones(image_dim))

    def forward(self, image: Tensor, tokens: Tensor) -> Tensor:
        """Embeddings [b, d] and the first k tokens [b, k, t] -> the first k + 1, predicted, [b, k + 1, t]."""
        dtype = self.start.dtype
        whitened = (image - self.image_mean.to(image)) / self.image_std.to(image)
        picture = self.of_image(whitened.to(dtype))[:, None]
        start = self.start.expand(len(image), 1, -1)
        sequence = torch.cat([start, picture, self.of_token(tokens.to(dtype))], 1)
        # as the stock one is, which looks at values of the batch to know it
        later = torch.full((sequence.shape[1],) * 2, torch.finfo(dtype).min, device=image.device).triu(1)
        mask = later.to(dtype).expand(len(image), 1, -1, -1)
        output = self.gpt(inputs_embeds=sequence, attention_mask=mask, use_cache=False)
        hidden = output.last_hidden_state
        # from the picture on: before it nothing is known
        predicted: Tensor = self.to_token(hidden[:, 1:]).float()
        return predicted

    def predict(self, image: Tensor) -> Tensor:
        """Image embeddings [b, d], as their encoder gives them -> float32 [b, num_tokens, t], one by one."""
        tokens = torch.zeros(len(image), 0, self.config.token_dim, device=image.device)
        for _ in range(self.config.num_tokens):
            following = self(image, tokens)[:, -1:]
            tokens = torch.cat([tokens, following], 1)
        return tokens


def _sequence_model(width: int, layers: int, heads: int, length: int) -> GPT2Model:
    """Stock, without a table of words. No dropout: it would be drawn by the rank."""
    config = GPT2Config(
        vocab_size=1,
        # words that it does not have
        bos_token_id=None,
        eos_token_id=None,
        n_positions=length,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    gpt = GPT2Model(config)
    gpt.wte = nn.Identity()
    return gpt
