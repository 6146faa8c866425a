"""VITS's text encoder alone: bit-equal to the whole model's, and only its own weights are read."""

from pathlib import Path

import torch
from transformers import VitsModel

from tests.fakes.readers import save_vits
from training.networks.vits_text import VitsText


@torch.no_grad()
def test_it_is_the_text_encoder_of_the_whole_model(tmp_path: Path) -> None:
    save_vits(tmp_path)
    alone, info = VitsText.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    whole = VitsModel.from_pretrained(tmp_path).eval()
    assert alone.state_dict().keys() == {f"text_encoder.{name}" for name in whole.text_encoder.state_dict()}
    ids = torch.tensor([[0, 3, 0, 5, 0], [0, 7, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    found = alone.eval()(input_ids=ids, attention_mask=mask)
    expected = whole.text_encoder(ids, padding_mask=mask[..., None].float(), attention_mask=mask)
    assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
