"""The masked autoencoder of rectangles: tables against the formula, features against the stock encoder."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining, ViTMAEModel

from training.networks.audiomae import (
    SpectrogramMae,
    embed_tokens,
    grid_of,
    patches_of,
    pixels_of,
    position_table,
    restore,
    standardise,
)

NARROW: dict[str, Any] = {
    "num_channels": 1,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
    "mask_ratio": 0.8,
}
PAPERS = ViTMAEConfig(image_size=[1024, 128], num_channels=1, mask_ratio=0.8)


def narrow(height: int, width: int) -> Any:
    torch.manual_seed(0)
    return SpectrogramMae(ViTMAEConfig(image_size=[height, width], **NARROW)).eval()


def test_the_papers_geometry() -> None:
    assert grid_of(PAPERS) == (64, 8)
    with torch.device("meta"):
        mae: Any = SpectrogramMae(PAPERS)
        seen = mae.vit(torch.empty(1, 1, 1024, 128), noise=torch.empty(1, 512))
        logits = mae.decoder(seen.last_hidden_state, seen.ids_restore).logits
    # 512 patches, a fifth of them seen, after a class token; ViT-B and 8 layers of 512
    assert seen.last_hidden_state.shape == (1, 1 + 102, 768) and logits.shape == (1, 512, 256)
    assert mae.vit.embeddings.position_embeddings.shape == (1, 513, 768)
    assert mae.decoder.decoder_pos_embed.shape == (1, 513, 512)
    millions = sum(parameter.numel() for parameter in mae.parameters()) / 1e6
    assert millions == pytest.approx(110.9, abs=0.1)


def test_the_stock_class_takes_no_rectangle() -> None:
    with pytest.raises(RuntimeError, match="must match"):
        ViTMAEForPreTraining(ViTMAEConfig(image_size=[64, 32], **NARROW))


def test_positions_are_sines_and_cosines_of_both_axes() -> None:
    table = position_table(ViTMAEConfig(image_size=[64, 32], **NARROW), 16)[0]
    assert table.shape == (1 + 4 * 2, 16) and not table[0].any()
    for row in range(4):
        for column in range(2):
            found = table[1 + row * 2 + column]
            expected = []
            for position in (column, row):
                angles = [position / 10000 ** (index / 4) for index in range(4)]
                expected += [*map(math.sin, angles), *map(math.cos, angles)]
            assert torch.allclose(found, torch.tensor(expected), atol=1e-6)


def test_both_tables_are_set_and_are_no_parameters() -> None:
    mae = narrow(64, 32)
    for table in (mae.vit.embeddings.position_embeddings, mae.decoder.decoder_pos_embed):
        assert torch.equal(table, position_table(mae.config, 16))
    assert not [name for name, _ in mae.named_parameters() if "pos" in name]
    # first weights as MAE's, and not those of every other layer
    assert mae.decoder.mask_token.std() > 0.005
    assert mae.vit.embeddings.patch_embeddings.projection.weight.std().item() == pytest.approx(
        0.086, abs=0.01
    )


def test_patches_are_those_of_the_stock_class_and_go_back() -> None:
    pixels = torch.randn(2, 1, 64, 64)
    stock = ViTMAEForPreTraining(ViTMAEConfig(image_size=64, **NARROW))
    assert torch.equal(patches_of(pixels, 16), stock.patchify(pixels))
    oblong = torch.randn(2, 1, 64, 32)
    assert torch.equal(pixels_of(patches_of(oblong, 16), 4, 16), oblong)
    assert torch.allclose(restore(standardise(oblong)), oblong, atol=1e-5)


@torch.no_grad()
def test_tokens_are_the_stock_encoders_pooled_8_by_8(tmp_path: Path) -> None:
    mae = narrow(1024, 128)
    mae.save_pretrained(tmp_path)
    log_mel = torch.randn(2, 1024, 128) - 6
    tokens = embed_tokens(mae, log_mel)
    stock = ViTMAEModel.from_pretrained(tmp_path, mask_ratio=0.0).eval()
    order = torch.arange(512).float().expand(2, -1)
    hidden = stock(standardise(log_mel)[:, None], noise=order).last_hidden_state[:, 1:]
    blocks = hidden.view(2, 8, 8 * 8, 16)
    assert tokens.shape == (2, 8, 16)
    assert torch.allclose(tokens, (blocks.mean(2) + blocks.amax(2)) / 2, atol=1e-5)
    # and the mask is as before
    assert mae.config.mask_ratio == 0.8


@torch.no_grad()
def test_a_saved_one_is_the_same_and_a_short_clip_has_as_many_tokens(tmp_path: Path) -> None:
    mae = narrow(160, 128)
    with torch.no_grad():
        mae.decoder.decoder_pos_embed.add_(1)
    mae.save_pretrained(tmp_path)
    again: Any = SpectrogramMae.from_pretrained(tmp_path).eval()
    for name, tensor in mae.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    log_mel = torch.randn(2, 160, 128) - 6
    assert embed_tokens(again, log_mel).shape == (2, 8, 16)
    assert torch.allclose(embed_tokens(again, log_mel)[:1], embed_tokens(mae, log_mel[:1]), atol=1e-5)
