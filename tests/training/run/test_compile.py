"""compile=true: the same losses and gradients as without, checkpoints that either may go on from, and no
start without a compiler.

Compiling takes half a minute and more: `make chaos`, marked slow. "small" is the part that torch
2.13 got wrong, a nearest upsampling between residual blocks, inside the same training loop; "tiny" is the
preset.
"""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from cluster.jsonl import read_lines
from configs.load import UserError, load_config
from tests.conftest import ROOT
from tests.fakes.latents import make_latents
from tests.fakes.runs import settings
from training.pipeline.sampling import NUM_TIMESTEPS
from training.recipes import diffusion
from training.settings import TrainConfig
from training.train import train


class Small(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """[b, c, t, f] -> [b, c, t, f]: half the size, a residual block that sees time and image, and back to
    another.
    """

    @register_to_config
    def __init__(self, channels: int, image_dim: int):
        super().__init__()
        self.shrink = nn.Conv2d(channels, 8, 3, stride=2, padding=1)
        self.block = ResnetBlock2D(in_channels=8, out_channels=8, temb_channels=image_dim, groups=4)
        self.grow = Upsample2D(8, use_conv=True)
        self.last = ResnetBlock2D(in_channels=8, out_channels=channels, temb_channels=None, groups=4)

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: None, class_labels: Tensor
    ) -> UNet2DConditionOutput:
        seen = class_labels + timestep[:, None] / NUM_TIMESTEPS
        return UNet2DConditionOutput(sample=self.last(self.grow(self.block(self.shrink(sample), seen)), None))


@pytest.mark.timeout(900)
@pytest.mark.slow
@pytest.mark.parametrize("network", ["small", "tiny"])
def test_a_compiled_run_learns_what_an_eager_one_does_and_each_goes_on_from_the_other(
    network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setattr(
        logging.getLogger("torch.__trace"), "propagate", False
    )  # pytest would keep a book of all that is compiled
    data = make_latents(tmp_path / "latents").uri
    config = replace(
        settings(data, tmp_path / "eager", steps=6, checkpoint_every=2), diffusion=sizes_of_tiny()
    )
    if network == "small":
        monkeypatch.setattr(
            diffusion, "build_unet", lambda config, channels, image_dim: Small(channels, image_dim)
        )
    train(config)
    mixed = replace(config, output=str(tmp_path / "mixed"))
    for steps, compiled in ((2, False), (4, True), (6, False)):
        before = len(kernels(tmp_path))
        train(replace(mixed, steps=steps, compile=compiled))
        assert (len(kernels(tmp_path)) > before) == compiled
    torch._dynamo.reset()
    assert figures(tmp_path / "mixed") == pytest.approx(figures(tmp_path / "eager"), rel=1e-4)
    assert len(figures(tmp_path / "mixed")) == 12
    assert names(tmp_path / "mixed", 4) == names(tmp_path / "eager", 4)


def sizes_of_tiny() -> diffusion.Config:
    return load_config(TrainConfig, [str(ROOT / "configs/training/tiny.yaml")]).diffusion


def kernels(root: Path) -> list[Path]:
    """What the compiler made."""
    return list((root / "compiled").rglob("*.so"))


def figures(run: Path) -> list[float]:
    """Loss and norm of the gradient of every step."""
    return [line[name] for line in read_lines(run / "metrics.jsonl") for name in ("loss", "grad_norm")]


def names(run: Path, step: int) -> list[Any]:
    """Of all pieces of parameters in a checkpoint."""
    (part,) = (run / f"checkpoints/step-{step:08d}").rglob("part.json")
    return json.loads(part.read_text())["fragments"]


def test_without_a_compiler_a_run_is_refused_at_the_door(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_latents(tmp_path / "latents").uri
    monkeypatch.setenv("CXX", "no-such-g++")
    with pytest.raises(
        UserError, match=r"compile=true: the C\+\+ compiler no-such-g\+\+ is not found here; install it"
    ):
        train(settings(data, tmp_path / "run", steps=2, compile=True))
    assert not (tmp_path / "run").exists()
    train(settings(data, tmp_path / "run", steps=2))
