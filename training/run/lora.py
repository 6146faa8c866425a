"""LoRA: low-rank adapters beside the layers of a frozen network, by peft (Hu et al. 2022, eq. 3).

    inject(network, LoraConfig(rank=8))           # in place; its output is what it was, bit for bit
    merge(network)                                # in place: plain layers again, W + alpha / rank B A
    save_adapters(network, config, folder)        # or apart, as peft saves them
    load_adapters(network, folder)                # merged into a network without adapters

A layer computes W x + alpha / rank B A x, of which A and B are trained; B is 0 at first. No dropout: what it
would draw depends on the rank. Knows nothing of recipes and runs (training.run.trained does).
"""

import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import nn

from configs.load import UserError, at_least, operational

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
# as PeftModel names what it wraps
PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"
# what peft puts between a layer and its weight
BASE = ".base_layer."
_ADAPTER = re.compile(r"\.lora_[AB]\.")


@dataclass
class LoraConfig:
    """`rank` 0: no adapters. `alpha` 0: as `rank`, which is a scale of 1.

    `targets`: shell patterns of layers, linear and convolutional, within the network. `merge`: the finished
    model has plain weights; else it has the adapters in a folder lora/ beside them.
    """

    rank: int = 0  # of the adapters; 0 = no adapters
    alpha: float = 0.0  # scale times rank; 0 = as rank, a scale of 1
    targets: list[str] = field(default_factory=lambda: ["*"])
    merge: bool = operational(True)

    def __post_init__(self) -> None:
        at_least(self, 0, "rank", "alpha", section="lora.")
        if self.rank and not self.targets:
            raise UserError("lora.targets=[]: name layers; [*] is all of them")


def inject(network: nn.Module, config: LoraConfig) -> None:
    """Puts adapters beside all layers that `targets` name. They are on the device and of the seed of now.

    `UserError` for a target that names no layer.
    """
    layers = layer_names(network)
    chosen: set[str] = set()
    for target in config.targets:
        matching = [name for name in layers if fnmatchcase(name, target)]
        if not matching:
            examples = ", ".join(layers[:: max(1, len(layers) // 3)][:3])
            raise UserError(
                f"lora.targets={target}: names none of the {len(layers)} linear and convolutional layers of "
                f"the network; these are called {examples}, and a star stands for any letters"
            )
        chosen.update(matching)
    inject_adapter_in_model(_peft_config(config, [name for name in layers if name in chosen]), network)


def layer_names(network: nn.Module) -> list[str]:
    """Layers that can have adapters, in their order."""
    return [name for name, module in network.named_modules() if isinstance(module, LAYERS)]


def _peft_config(config: LoraConfig, layers: list[str]) -> PeftConfig:
    return PeftConfig(
        r=config.rank,
        lora_alpha=config.alpha or config.rank,
        # a pattern of whole names: in a list they would be ends of names
        target_modules="|".join(re.escape(name) for name in layers),
    )


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name is an adapter's."""
    return _ADAPTER.search(name) is not None


def plain_name(name: str) -> str:
    """What a parameter of a layer with an adapter is called without it."""
    return name.replace(BASE, ".")


def merge(network: nn.Module) -> None:
    """Adds what the adapters have learnt to the weights of their layers, which are plain again then."""
    for name, module in list(network.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()  # type: ignore[no-untyped-call]
            _replace(network, name, module.get_base_layer())


def remove(network: nn.Module) -> None:
    """The network as it was before it had adapters."""
    for name, module in list(network.named_modules()):
        if isinstance(module, LoraLayer):
            _replace(network, name, module.get_base_layer())


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)


def save_adapters(network: nn.Module, config: LoraConfig, folder: Path) -> None:
    """adapter_config.json and adapter_model.safetensors, which `PeftModel.from_pretrained(network, folder)`
    reads.
    """
    folder.mkdir(parents=True)
    layers = [name for name, module in network.named_modules() if isinstance(module, LoraLayer)]
    settings = _peft_config(config, layers)
    settings.inference_mode = True
    settings.save_pretrained(str(folder))
    state: dict[str, Any] = get_peft_model_state_dict(network)
    save_file({PREFIX + name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS)


def load_adapters(network: nn.Module, folder: Path) -> nn.Module:
    """The network with the adapters of a folder merged into its weights; `UserError` if they do not fit."""
    try:
        adapted = PeftModel.from_pretrained(network, str(folder))
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder}: its adapters cannot be put into the network beside it: {reason}"
        ) from error
    merged: nn.Module = adapted.merge_and_unload()
    return merged
