"""The prior recipe: learns a sound's tokens from its picture, and resumes bit for bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2Model

from cluster.jsonl import read_lines
from configs.load import UserError
from tests.fakes.latents import make_latents
from tests.fakes.ranks import killed_and_whole
from tests.fakes.runs import losses, settings
from tests.fakes.tokens import IMAGE_DIM, TOKENS, make_tokens
from training.data.npy import to_npy
from training.networks.prior import TokenPrior
from training.recipes import prior
from training.recipes.prior import Config
from training.train import train

TINY = Config(width=32, layers=1, heads=2)
TINY_ARGS = ["recipe=prior", "prior.width=32", "prior.layers=1", "prior.heads=2"]
GEOMETRY: Any = {"image_mean": [0.5] * IMAGE_DIM, "image_std": [2.0] * IMAGE_DIM, "audiomae_shape": TOKENS}


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tokens(tmp_path_factory.mktemp("tokens") / "data").uri


def batch_of(seed: int = 0) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    samples = [
        {
            "image.npy": to_npy(rng.standard_normal(IMAGE_DIM).astype(np.float16)),
            "audiomae.npy": to_npy(rng.standard_normal(TOKENS).astype(np.float16)),
        }
        for _ in range(3)
    ]
    return prior.make_batch([samples[0], None, samples[2]], [], TINY, GEOMETRY)


def test_the_loss_is_of_true_tokens_before_in_training_and_of_predicted_ones_in_validation() -> None:
    torch.manual_seed(0)
    model: Any = prior.build_model(TINY, GEOMETRY)
    batch = batch_of()
    with torch.no_grad():
        forced = model.train()(batch)["loss"]
        free = model.eval()(batch)["loss"]
        expected = (model.prior(batch["image"], batch["tokens"][:, :-1]) - batch["tokens"]).abs().mean((1, 2))
        alone = (model.prior.predict(batch["image"]) - batch["tokens"]).abs().mean((1, 2))
    assert forced[1] == free[1] == 0
    assert torch.allclose(forced[[0, 2]], expected[[0, 2]]) and torch.allclose(free[[0, 2]], alone[[0, 2]])


@pytest.mark.parametrize(
    "config,says",
    [(Config(width=30, heads=4), "width=30: give a multiple of heads=4"), (Config(layers=0), "layers=0")],
)
def test_settings_that_do_not_fit_are_refused(config: Config, says: str) -> None:
    with pytest.raises(UserError, match=says):
        prior.check_config(config)


def test_latents_without_tokens_are_refused(tmp_path: Path) -> None:
    plain = make_latents(tmp_path / "latents").uri
    with pytest.raises(UserError, match="holds no AudioMAE tokens; make another one by precompute"):
        train(settings(plain, tmp_path / "run", recipe="prior", prior=TINY))


# --- Runs ---------------------------------------------------------------------------------------------------


def run(latents: str, output: Path, **changes: Any) -> list[float]:
    """Losses of a run."""
    defaults = {"recipe": "prior", "prior": TINY, "steps": 8, "global_batch": 8}
    train(settings(latents, output, **{**defaults, **changes}))
    return losses(output)


@pytest.mark.parametrize("stage", range(4))
def test_it_resumes_bit_for_bit(latents: str, tmp_path: Path, stage: int) -> None:
    whole = run(latents, tmp_path / "whole", zero_stage=stage)
    run(latents, tmp_path / "run", zero_stage=stage, steps=4)
    assert run(latents, tmp_path / "run", zero_stage=stage) == whole


def test_it_learns_what_follows_from_a_picture(latents: str, tmp_path: Path) -> None:
    run(latents, tmp_path, steps=400, lr=1e-2, validate_every=200, validation_items=16, global_batch=16)
    first, last = (line["ema_loss"] for line in read_lines(tmp_path / "validation.jsonl"))
    # the tokens' own spread is about 2: of held-out pictures, from the picture alone
    assert last < first and last < 0.8
    saved, info = TokenPrior.from_pretrained(tmp_path / "model/prior", output_loading_info=True)
    assert not info["missing_keys"] and saved.image_std.abs().sum() > 0
    assert saved.eval().predict(torch.zeros(2, IMAGE_DIM)).shape == (2, *TOKENS)
    begun = run(latents, tmp_path / "more", steps=2, init_from=str(tmp_path))
    assert begun[0] < 0.8


def test_it_starts_from_the_layers_of_a_gpt2(tmp_path: Path) -> None:
    GPT2Model(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=7)).save_pretrained(tmp_path)
    weights = prior.initial(str(tmp_path), TINY, GEOMETRY)
    expected = prior.build_model(TINY, GEOMETRY).state_dict()
    fitting = [
        name for name, tensor in weights.items() if name in expected and tensor.shape == expected[name].shape
    ]
    # all of it but the words and the places, which are as many as a sentence's
    assert weights.keys() - set(fitting) == {"prior.gpt.wte.weight", "prior.gpt.wpe.weight"}


def test_a_killed_rank_costs_no_bit_and_one_rank_gives_the_same(latents: str, tmp_path: Path) -> None:
    whole = killed_and_whole(latents, tmp_path, *TINY_ARGS)
    alone = run(latents, tmp_path / "alone", steps=12, zero_stage=1)
    assert alone == pytest.approx(whole, rel=1e-5)
