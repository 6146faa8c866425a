"""What is trained by name: the rest stays as it was, in every bit, through resumes at any ZeRO stage."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from configs.load import UserError, load_config
from tests.conftest import ROOT
from tests.fakes.latents import IMAGE_DIM, LATENT_SHAPE
from tests.fakes.ranks import train_ranks
from tests.fakes.runs import TINY, arguments, losses, settings
from training.pretrained import load_network
from training.recipes import diffusion
from training.recipes.recipe import Optimiser
from training.run.lora import LoraConfig, is_adapter
from training.run.sides import sides_of
from training.run.trained import check_each_side, choose_trained
from training.settings import TrainConfig
from training.train import train

ONLY = ["unet.up_blocks.*", "null_embedding"]
UNET = "model/unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def base(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run to start from; one of another seed than the runs that start from it."""
    output = tmp_path_factory.mktemp("base") / "run"
    train(settings(data, output, steps=4, seed=7))
    return output


def config(data: str, output: Path, base: Path, **changes: Any) -> TrainConfig:
    return settings(data, output, **{"init_from": str(base), "train_only": ONLY, **changes})


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / UNET)


@pytest.mark.parametrize("zero_stage,precision", [(0, "fp32"), (1, "fp32"), (2, "bf16"), (3, "fp32")])
def test_what_is_frozen_keeps_every_bit_and_a_resume_needs_only_its_checkpoint(
    data: str, base: Path, tmp_path: Path, zero_stage: int, precision: str
) -> None:
    kind = {"zero_stage": zero_stage, "precision": precision}
    source = shutil.copytree(base, tmp_path / "base")
    train(config(data, tmp_path / "whole", source, **kind))
    train(config(data, tmp_path / "run", source, **kind, steps=8))
    shutil.rmtree(source)
    train(config(data, tmp_path / "run", source, **kind))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert (tmp_path / "run" / UNET).read_bytes() == (tmp_path / "whole" / UNET).read_bytes()
    before = weights(base)
    after = weights(tmp_path / "run")
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith("up_blocks.")}


@pytest.mark.parametrize("stages", [(0, 3), (3, 1)])
def test_a_run_resumes_at_another_zero_stage(
    data: str, base: Path, tmp_path: Path, stages: tuple[int, int]
) -> None:
    first, second = stages
    train(config(data, tmp_path / "whole", base, zero_stage=first))
    train(config(data, tmp_path / "run", base, zero_stage=first, steps=8))
    train(config(data, tmp_path / "run", base, zero_stage=second))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)


def test_a_run_resumes_with_another_number_of_workers(data: str, base: Path, tmp_path: Path) -> None:
    # as a user types them
    only = [f"train_only=[{','.join(ONLY)}]", f"init_from={base}", "checkpoint_every=4"]
    train_ranks(arguments(data, tmp_path / "run", "steps=8", *only), 2)
    train(config(data, tmp_path / "run", base))
    train(config(data, tmp_path / "whole", base))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    before = weights(base)
    assert all(
        torch.equal(value, before[name])
        for name, value in weights(tmp_path / "run").items()
        if not name.startswith("up_blocks.")
    )


def test_a_checkpoint_holds_moments_of_what_is_trained_alone(data: str, base: Path, tmp_path: Path) -> None:
    train(config(data, tmp_path / "run", base, steps=4, train_only=["null_embedding"]))
    part = json.loads(next((tmp_path / "run/checkpoints").rglob("part.json")).read_text())
    assert [name for name, _, _ in part["fragments"]] == list(part["shapes"]) == ["null_embedding"]


def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_names(data: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train_only=unet.conv_inn.*: matches none of .*unet.conv_in.weight"):
        train(settings(data, tmp_path / "run", train_only=["null_embedding", "unet.conv_inn.*"]))
    assert not (tmp_path / "run").exists()


def test_an_optimiser_without_anything_to_train_is_refused(data: str) -> None:
    geometry: Any = {"latent_shape": list(LATENT_SHAPE), "image_mean": [0.0] * IMAGE_DIM}
    model = torch.nn.ModuleDict({"one": diffusion.Diffusion(TINY, geometry), "two": torch.nn.Linear(1, 1)})
    choose_trained(model, settings(data, Path("unused"), train_only=["one.*"]))
    sides = sides_of(model, (Optimiser("first", ("one",)), Optimiser("second", ("two",))))
    with pytest.raises(UserError, match="train_only: leaves nothing to train of two"):
        check_each_side(sides)
    # and a step of the other side does not thaw what is frozen
    sides[1].take_gradients()
    sides[0].take_gradients()
    assert not any(parameter.requires_grad for parameter in model["two"].parameters())


@pytest.mark.parametrize("preset", ["finetune", "finetune_demo"])
def test_the_presets_of_fine_tuning_are_sound(preset: str) -> None:
    args = [str(ROOT / f"configs/training/{preset}.yaml"), "data=x", "more_data=[y]", "init_from=z"]
    config = load_config(TrainConfig, args)
    assert config.keep_best and config.patience and config.diffusion.whitening == "origin"


# --- Adapters -----------------------------------------------------------------------------------------------

LORA = {"lora": LoraConfig(rank=2), "train_only": ["null_embedding"]}


@pytest.mark.parametrize("zero_stage,precision", [(0, "fp32"), (1, "bf16"), (2, "fp32"), (3, "fp32")])
def test_adapters_alone_are_trained_and_resume_bit_for_bit(
    data: str, base: Path, tmp_path: Path, zero_stage: int, precision: str
) -> None:
    kind = {**LORA, "zero_stage": zero_stage, "precision": precision}
    source = shutil.copytree(base, tmp_path / "base")
    train(config(data, tmp_path / "whole", source, **kind))
    train(config(data, tmp_path / "run", source, **kind, steps=8))
    shutil.rmtree(source)
    train(config(data, tmp_path / "run", source, **kind))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert (tmp_path / "run" / UNET).read_bytes() == (tmp_path / "whole" / UNET).read_bytes()
    part = json.loads(next((tmp_path / "run/checkpoints").rglob("part.json")).read_text())
    names = {name for name, _, _ in part["fragments"]}
    assert "null_embedding" in names
    assert all(is_adapter(name) for name in names - {"null_embedding"})
    # merged: plain names, kernels that moved, all else as it was
    before = weights(base)
    after = weights(tmp_path / "run")
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) == (value.ndim == 1) for name, value in after.items())


def test_adapters_begin_where_the_weights_are(data: str, base: Path, tmp_path: Path) -> None:
    train(config(data, tmp_path / "lora", base, **LORA, steps=4))
    train(config(data, tmp_path / "full", base, train_only=[], steps=4))
    assert losses(tmp_path / "lora")[0] == losses(tmp_path / "full")[0]
    assert losses(tmp_path / "lora")[1] != losses(tmp_path / "full")[1]


def test_a_run_with_adapters_resumes_with_other_workers_and_stages(
    data: str, base: Path, tmp_path: Path
) -> None:
    args = ["lora.rank=2", "train_only=[null_embedding]", f"init_from={base}", "checkpoint_every=4"]
    train_ranks(arguments(data, tmp_path / "run", "steps=8", *args), 2)
    train(config(data, tmp_path / "run", base, **LORA, zero_stage=3))
    train(config(data, tmp_path / "whole", base, **LORA, activation_checkpointing=True))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


def test_adapters_shipped_apart_are_the_merged_ones_to_all_who_open_them(
    data: str, base: Path, tmp_path: Path
) -> None:
    train(config(data, tmp_path / "merged", base, **LORA))
    train(config(data, tmp_path / "apart", base, **LORA | {"lora": LoraConfig(rank=2, merge=False)}))
    assert torch.equal(weights(tmp_path / "apart")["conv_in.weight"], weights(base)["conv_in.weight"])
    assert sorted(path.name for path in (tmp_path / "apart/model/lora").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    merged = load_network(tmp_path / "merged/model/unet").state_dict()
    opened = load_network(tmp_path / "apart/model/unet").state_dict()
    assert all(torch.equal(opened[name], value) for name, value in merged.items())
    assert not any(
        parameter.requires_grad for parameter in load_network(tmp_path / "apart/model/unet").parameters()
    )


def test_adapters_need_weights(data: str, base: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="lora.rank=2: adapters change weights that are there; give init_from"
    ):
        config(data, tmp_path / "run", Path(), **LORA, init_from="")
    with pytest.raises(UserError, match="lora.merge=false: contrastive has no network"):
        config(
            data, tmp_path / "run", Path("some"), recipe="contrastive", lora=LoraConfig(rank=2, merge=False)
        )
    with pytest.raises(UserError, match=r"lora.targets=\*.to_q"):
        train(config(data, tmp_path / "run", base, lora=LoraConfig(rank=2, targets=["*.to_q"])))
