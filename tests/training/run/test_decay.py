"""Weight decay: matrices only, at every ZeRO stage as plain torch does it; and runs of older numbers."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.load import UserError
from tests.fakes.latents import IMAGE_DIM, LATENT_SHAPE, make_latents
from tests.fakes.runs import TINY, settings
from training.checkpoints.fragments import fragments_of
from training.pipeline.mel import MelConfig
from training.recipes import contrastive, diffusion
from training.run.engine import ensure_process_group, parameter_groups, prepare_process, start_engines
from training.settings import NUMBERS, identity
from training.train import prepare, train

FACTS = {"latent_shape": list(LATENT_SHAPE), "image_mean": [0.0] * IMAGE_DIM}
STEPS, LR, DECAY = 3, 1e-2, 0.5


def tensors() -> dict[str, torch.Tensor]:
    """A batch of the diffusion, in which half of the conditions are dropped."""
    dice, size = torch.Generator().manual_seed(1), 8
    latent, noise = (torch.randn(size, *LATENT_SHAPE, generator=dice) for _ in range(2))
    image = torch.randn(size, IMAGE_DIM, generator=dice)
    drop = torch.arange(size) % 2.0
    return {
        "latent": latent,
        "noise": noise,
        "image": image,
        "drop": drop,
        "time": torch.full((size,), 0.5),
        "weight": torch.ones(size),
    }


def by_torch(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights after `STEPS` of torch's AdamW, where what has one axis does not decay."""
    named = dict(model.named_parameters())
    vectors = [value for value in named.values() if value.ndim == 1]
    matrices = [value for value in named.values() if value.ndim > 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.99), eps=1e-8)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(tensors())["loss"].mean().backward()
        optimizer.step()
    return {name: value.detach() for name, value in named.items()}


@pytest.mark.parametrize("stage,offload", [(0, False), (1, False), (1, True), (2, False), (3, False)])
def test_weights_move_as_with_plain_adamw_whose_vectors_do_not_decay(
    stage: int, offload: bool, tmp_path: Path
) -> None:
    ensure_process_group()
    prepare_process(1)
    torch.manual_seed(0)
    model = diffusion.build_model(TINY, FACTS)
    torch.nn.init.ones_(model.null_embedding)  # type: ignore[arg-type]
    expected = by_torch(copy.deepcopy(model))
    config = settings(
        "data",
        tmp_path,
        zero_stage=stage,
        offload=offload,
        lr=LR,
        weight_decay=DECAY,
        gradient_clip=0.0,
        global_batch=8,
    )
    (engine,) = start_engines(model, config, 1)
    for _ in range(STEPS):
        engine.backward(engine(tensors())["loss"].mean())
        engine.step()
    found = {piece.name: piece.values("master").clone() for piece in fragments_of(engine, stage)}
    assert set(found) == set(expected)
    for (
        name,
        value,
    ) in found.items():  # a gradient near 0 may differ in its sign, so not the greatest difference
        assert float((value - expected[name].flatten()).abs().mean()) < 2e-6, name


def test_what_decays_are_matrices_and_kernels_alone() -> None:
    tower = contrastive.ImageTowerConfig(
        kind="resnet", widths=[8], depths=[1], stem=8, norm_groups=4, size_px=32
    )
    audio = contrastive.AudioTowerConfig(width=16, depths=[1])
    config = contrastive.Config(image=tower, audio=audio, embedding_dim=8)
    for model in (
        contrastive.Contrastive(config, {"mel": MelConfig(duration_s=0.16).settings()}),
        diffusion.build_model(TINY, FACTS),
    ):
        decayed, kept = parameter_groups(model, 0.1)
        names = {id(value): name for name, value in model.named_parameters()}
        still = {names[id(value)] for value in kept["params"]}
        assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0)
        assert len(decayed["params"]) + len(kept["params"]) == len(names)
        assert {name for name in names.values() if name.endswith("bias") or "norm" in name} <= still
        assert {"log_scale", "null_embedding"} & set(names.values()) <= still
        assert not any(name.endswith("conv_in.weight") for name in still)


def begun_before(data: str, output: Path, **other: Any) -> Path:
    """A run whose settings name no version of the numbers."""
    train(settings(data, output, steps=4, **other))
    kept = json.loads((output / "run.json").read_text())
    assert kept["config"].pop("numbers") == NUMBERS == identity(settings(data, output))["numbers"]
    (output / "run.json").write_text(json.dumps(kept))
    return output


def test_a_run_begun_by_an_older_version_is_not_resumed(tmp_path: Path) -> None:
    data = make_latents(tmp_path / "data").uri
    config = settings(data, begun_before(data, tmp_path / "run"), steps=8)
    with pytest.raises(UserError, match="begun by an older version.*finish it there or start another output"):
        prepare(config)
    assert train(replace(config, steps=4))["finished_before"]
