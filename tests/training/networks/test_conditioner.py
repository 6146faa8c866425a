"""Conditions on their way into a network: projections, nulls, masks, slots."""

from pathlib import Path
from typing import Any

import pytest
import torch

from training.networks.conditioner import Conditioner

TOKENS = {"name": "tokens", "dim": 6, "length": 4, "projection": "linear", "slot": 0}
TEXT = {"name": "text", "dim": 10, "length": 3, "projection": "none", "slot": 1}


def conditioner(*sequences: dict[str, Any], **other: Any) -> Conditioner:
    torch.manual_seed(0)
    made = Conditioner(5, 8, **{"projection": "linear", "widths": (8, 10), "sequences": sequences, **other})
    for name, parameter in made.named_parameters():
        if "null" in name:
            torch.nn.init.normal_(parameter)
    return made


def batch() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A whole sequence, a short one, and an absent one, of each kind."""
    torch.manual_seed(1)
    present = torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]])
    return {"tokens": (torch.randn(3, 4, 6), present), "text": (torch.randn(3, 3, 10), present[:, :3])}


def test_an_absent_sequence_is_one_learnt_token_and_a_short_one_is_masked() -> None:
    made = conditioner(TOKENS, TEXT)
    conditions = made(torch.randn(3, 5), batch())
    assert conditions["encoder_attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]
    assert conditions["encoder_attention_mask_1"].tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0]]
    assert torch.equal(conditions["encoder_hidden_states"][2, 0], made.projections["tokens"].null)
    assert torch.equal(conditions["encoder_hidden_states_1"][2, 0], made.projections["text"].null)
    # what is taken as it is stays as it is
    assert torch.equal(conditions["encoder_hidden_states_1"][:2], batch()["text"][0][:2])


def test_what_is_masked_changes_nothing_that_is_attended_to() -> None:
    made = conditioner(TOKENS, TEXT)
    image = torch.randn(3, 5)
    first = made(image, batch())
    values = {
        name: (value + 9 * (1 - present[..., None]), present) for name, (value, present) in batch().items()
    }
    second = made(image, values)
    for states, mask in (
        ("encoder_hidden_states", "encoder_attention_mask"),
        ("encoder_hidden_states_1", "encoder_attention_mask_1"),
    ):
        assert torch.equal(first[states] * first[mask][..., None], second[states] * second[mask][..., None])


def test_two_sequences_of_one_slot_are_attended_to_together() -> None:
    made = conditioner(TOKENS, {**TEXT, "slot": 0, "projection": "linear"}, widths=(8,))
    conditions = made(torch.randn(3, 5), batch())
    assert conditions["encoder_hidden_states"].shape == (3, 7, 8)
    assert conditions["encoder_attention_mask"].sum(1).tolist() == [7, 4, 2]


def test_a_slot_without_a_sequence_has_a_token_of_its_own() -> None:
    made = conditioner(TOKENS)
    conditions = made(torch.randn(3, 5), batch())
    assert conditions["encoder_hidden_states_1"].shape == (3, 1, 10)
    assert torch.equal(conditions["encoder_hidden_states_1"][1, 0], made.empty["1"].null)
    assert conditions["encoder_attention_mask_1"].tolist() == [[1], [1], [1]]


@pytest.mark.parametrize("projection,kept", [("none", True), ("identity", True), ("linear", False)])
def test_a_vector_is_projected_as_named(projection: str, kept: bool) -> None:
    vector = torch.randn(3, 8)
    made = Conditioner(8, 8, projection, (4,))
    labels = made(vector, {})["class_labels"]
    assert torch.allclose(labels, vector, atol=1e-6) == kept
    assert (made.label is None) == (projection == "none")
    assert "class_labels" not in Conditioner(8, 0, "none", (4,))(vector, {})


def test_it_is_saved_and_loaded_whole(tmp_path: Path) -> None:
    made = conditioner(TOKENS, TEXT)
    made.save_pretrained(tmp_path)
    loaded = Conditioner.from_pretrained(tmp_path)
    image = torch.randn(3, 5)
    first, second = made(image, batch()), loaded(image, batch())
    assert all(torch.equal(first[name], second[name]) for name in first) and len(first) == 5
