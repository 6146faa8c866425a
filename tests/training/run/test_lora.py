"""LoRA: what adapters add, merged or apart, is one function, and nothing at first."""

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from configs.load import UserError
from tests.fakes.runs import TINY
from training.networks.unet import build_unet
from training.run.lora import (
    LoraConfig,
    inject,
    is_adapter,
    layer_names,
    load_adapters,
    merge,
    plain_name,
    remove,
    save_adapters,
)


@pytest.fixture(scope="module")
def base() -> nn.Module:
    torch.manual_seed(0)
    return build_unet(TINY, 8, 12)


def outputs(network: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(2, 8, 4, 16, generator=generator)
    condition = torch.randn(2, 12, generator=generator)
    with torch.no_grad():
        made: Tensor = network(latent, torch.tensor([100.0, 700.0]), None, class_labels=condition).sample
    return made


def adapted(base: nn.Module, config: LoraConfig, trained: bool = True) -> nn.Module:
    """A copy with adapters, as if they had been trained."""
    network = copy.deepcopy(base)
    torch.manual_seed(2)
    inject(network, config)
    for name, parameter in network.named_parameters():
        if trained and is_adapter(name):
            nn.init.normal_(parameter.data, std=0.1)
    return network


def test_adapters_change_no_bit_at_first(base: nn.Module) -> None:
    network = adapted(base, LoraConfig(rank=2), trained=False)
    assert torch.equal(outputs(network), outputs(base))
    merge(network)
    weights = network.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in base.state_dict().items())


def test_merged_weights_give_what_the_adapters_give(base: nn.Module) -> None:
    network = adapted(base, LoraConfig(rank=2, alpha=3.0))
    beside = outputs(network)
    assert not torch.allclose(beside, outputs(base), atol=0.1)
    merge(network)
    assert network.state_dict().keys() == base.state_dict().keys()
    assert torch.allclose(outputs(network), beside, atol=1e-5)


@pytest.mark.parametrize("alpha,stated", [(3.0, 3.0), (2.0, 0.0)])
def test_a_layer_computes_the_papers_equation(alpha: float, stated: float) -> None:
    layer = nn.Linear(3, 2)
    network = adapted(nn.ModuleDict({"layer": layer}), LoraConfig(rank=2, alpha=stated))
    state = network.state_dict()
    a = state["layer.lora_A.default.weight"]
    b = state["layer.lora_B.default.weight"]
    x = torch.randn(5, 3)
    expected = layer(x) + alpha / 2 * x @ a.T @ b.T
    assert torch.allclose(network["layer"](x), expected, atol=1e-6)  # type: ignore[index]


def test_stock_peft_reads_what_is_shipped_apart(base: nn.Module, tmp_path: Path) -> None:
    config = LoraConfig(rank=2, alpha=4.0, targets=["*.conv1", "time_embedding.*"])
    network = adapted(base, config)
    beside = outputs(network)
    save_adapters(network, config, tmp_path / "lora")
    stock = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "lora"))
    assert torch.equal(outputs(stock), beside)
    assert torch.allclose(outputs(load_adapters(copy.deepcopy(base), tmp_path / "lora")), beside, atol=1e-5)
    remove(network)
    assert torch.equal(outputs(network), outputs(base))


def test_adapters_that_are_damaged_are_refused(base: nn.Module, tmp_path: Path) -> None:
    save_adapters(adapted(base, LoraConfig(rank=2)), LoraConfig(rank=2), tmp_path / "lora")
    other = build_unet(TINY, 4, 12)
    with pytest.raises(UserError, match="its adapters cannot be put into the network beside it"):
        load_adapters(other, tmp_path / "lora")
    (tmp_path / "lora/adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="its adapters cannot be put into the network beside it"):
        load_adapters(copy.deepcopy(base), tmp_path / "lora")


def test_targets_are_whole_names(base: nn.Module) -> None:
    network = adapted(base, LoraConfig(rank=1, targets=["conv_in", "*.conv2"]))
    names = {name for name, _ in network.named_parameters() if is_adapter(name)}
    layers = {name.partition(".lora_")[0] for name in names}
    assert layers == {name for name in layer_names(base) if name == "conv_in" or name.endswith(".conv2")}
    assert {plain_name(name) for name, _ in network.named_parameters() if not is_adapter(name)} == {
        name for name, _ in base.named_parameters()
    }


def test_a_target_that_names_no_layer_is_refused(base: nn.Module) -> None:
    with pytest.raises(
        UserError, match=r"lora.targets=\*.to_q: names none of the .* these are called conv_in"
    ):
        adapted(base, LoraConfig(rank=1, targets=["*.conv1", "*.to_q"]))


@pytest.mark.parametrize("bad", [{"rank": -1}, {"alpha": -1.0}, {"rank": 1, "targets": []}])
def test_settings_that_make_no_adapter_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"lora\."):
        LoraConfig(**bad)  # type: ignore[arg-type]
