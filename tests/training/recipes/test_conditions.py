"""Sequences as conditions: what a batch holds of them, their own dropout, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch

from configs.load import UserError, load_config
from training.data.npy import to_npy
from training.data.randomness import VALIDATION, SampleKey
from training.recipes.conditions import SequenceConfig, check_sequences, check_widths, sequence_arrays
from training.settings import TrainConfig

TOKENS = SequenceConfig("tokens.npy", dim=6, length=4, dropout=0.3)
TEXT = SequenceConfig("text.npy", dim=3, length=2, dropout=0.5)


def sample(tokens: int = 3, text: int = 1) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "tokens.npy": to_npy(rng.standard_normal((tokens, 6)).astype(np.float16)),
        "text.npy": to_npy(rng.standard_normal((text, 3)).astype(np.float16)),
    }


def keys(count: int, epoch: int = 0) -> list[SampleKey]:
    return [SampleKey(0, epoch, position) for position in range(count)]


def test_long_ones_are_cut_short_ones_are_padded_and_empty_ones_and_holes_are_absent() -> None:
    samples = [sample(9), sample(2), sample(0), None]
    batch = sequence_arrays(samples, keys(4, VALIDATION), [TOKENS])
    assert batch["tokens"].shape == (4, 4, 6)
    assert batch["tokens_present"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert torch.equal(batch["tokens"] != 0, batch["tokens_present"][..., None].expand(-1, -1, 6) == 1)


def test_each_is_dropped_by_itself_at_its_rate_and_none_in_validation() -> None:
    count = 3000
    batch = sequence_arrays([sample()] * count, keys(count), [TOKENS, TEXT])
    kept, also = (batch[f"{name}_present"].amax(1) for name in ("tokens", "text"))
    assert kept.mean() == pytest.approx(0.7, abs=0.03)
    assert also.mean() == pytest.approx(0.5, abs=0.03)
    assert (kept * also).mean() == pytest.approx(0.35, abs=0.03)
    validated = sequence_arrays([sample()] * 50, keys(50, VALIDATION), [TOKENS, TEXT])
    assert validated["tokens_present"].amax(1).all() and validated["text_present"].amax(1).all()


def test_a_samples_sequences_do_not_depend_on_its_place() -> None:
    pair = sequence_arrays([sample(), sample(2)], keys(2), [TOKENS, TEXT])
    alone = sequence_arrays([sample(2)], keys(2)[1:], [TOKENS, TEXT])
    assert all(torch.equal(pair[name][1], alone[name][0]) for name in pair)


def test_arrays_of_another_width_are_refused() -> None:
    with pytest.raises(UserError, match=r"tokens.npy: dim=5, but the data has .* \[3, 6\]; give dim: 6"):
        sequence_arrays([sample()], keys(1, VALIDATION), [SequenceConfig("tokens.npy", dim=5, length=4)])


def test_a_width_that_the_data_states_otherwise_is_refused_before_any_work() -> None:
    units = [{"image_count": 3}, {"sequences": {"text.npy": {"present": 3, "absent": 0, "dim": 3}}}]
    check_widths([TOKENS, TEXT], units)
    with pytest.raises(UserError, match="text.npy: dim=4, but the data has tokens of 3 numbers; give dim: 3"):
        check_widths([SequenceConfig("text.npy", dim=4, length=2)], units)


@pytest.mark.parametrize(
    "sequences,widths,message",
    [
        ([TOKENS, TOKENS], [8], "tokens, tokens: give each member once"),
        ([SequenceConfig("image.npy", 6, 4)], [8], "give a member of the latents such as tokens.npy"),
        ([SequenceConfig("to.kens.npy", 6, 4)], [8], "give a member of the latents"),
        ([SequenceConfig("tokens.npy", 0, 4)], [8], "dim=0: give a positive number"),
        ([SequenceConfig("tokens.npy", 6, 4, dropout=1.5)], [8], "dropout=1.5: give 0 to 1"),
        ([SequenceConfig("tokens.npy", 6, 4, projection="deep")], [8], "projection=deep: give none or"),
        ([SequenceConfig("tokens.npy", 6, 4, slot=1)], [8], "slot=1: the network has 1, counted from 0"),
        ([SequenceConfig("tokens.npy", 6, 4, projection="none")], [8], "dim=6 does not fit slot 0, 8 wide"),
    ],
)
def test_what_cannot_enter_is_refused(
    sequences: list[SequenceConfig], widths: list[int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_sequences(sequences, widths)


def test_it_is_typed_as_one_setting() -> None:
    typed = "diffusion.sequences=[{member: text.npy, dim: 3, length: 2, dropout: 0.5}]"
    config = load_config(TrainConfig, ["data=a", "output=b", typed])
    assert config.diffusion.sequences == [TEXT]
    assert config.members == ("latent.npy", "image.npy", "text.npy")
