"""DeepSpeed, made from our settings: nothing is compiled at start-up, and where a checkpoint lies is not its business.

    prepare_process(threads)                          # in a process group, before DeepSpeed is imported
    engine = start_engine(model, config, world)
    save_engine(engine, folder); load_engine(engine, folder, checkpoint, config, world)

ZeRO 0 to 3, fp32 and bf16. Without Ray, `ensure_process_group` makes a group of one.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from configs.load import UserError
from training.checkpoints import Checkpoint
from training.settings import TrainConfig

TAG = "engine"


def prepare_process(threads: int) -> None:
    """Sets what has to be set before DeepSpeed is imported. A process killed during a JIT build would block all later ones.

    The process group decides the device: gloo with tensors on a GPU, or nccl with tensors on a CPU, would fail.
    """
    os.environ["DS_ACCELERATOR"] = "cuda" if dist.get_backend() == "nccl" else "cpu"
    torch.set_num_threads(threads)
    with _quiet_linker():
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel("WARNING")


@contextlib.contextmanager
def _quiet_linker() -> Iterator[None]:
    """DeepSpeed asks the linker for libaio when it is imported, and lets it complain where there is none."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def wants_gpu() -> bool:
    """Unless DS_ACCELERATOR=cpu, as the Makefile sets it."""
    return os.environ.get("DS_ACCELERATOR") != "cpu"


def ensure_process_group() -> None:
    """A torch.distributed group of this process alone, for runs without Ray. It stays: DeepSpeed keeps its groups for ever."""
    if dist.is_initialized():
        return
    os.environ.update({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"})
    store = dist.HashStore()
    dist.init_process_group("nccl" if wants_gpu() and torch.cuda.is_available() else "gloo", store=store, rank=0, world_size=1)


def start_engine(model: nn.Module, config: TrainConfig, world: int) -> Any:
    """The DeepSpeed engine around `model`, with AdamW as stock torch has it."""
    import deepspeed

    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False)
    engine, *_ = deepspeed.initialize(model=model, model_parameters=list(model.parameters()), config=engine_settings(config, world))
    return engine


def engine_settings(config: TrainConfig, world: int) -> dict[str, Any]:
    """DeepSpeed's own settings; the micro batch follows from the global one."""
    adam = {"lr": config.lr, "betas": [config.beta1, config.beta2], "eps": 1e-8, "weight_decay": config.weight_decay, "torch_adam": True}
    return {
        "train_batch_size": config.global_batch,
        "train_micro_batch_size_per_gpu": config.global_batch // world // config.accumulate,
        "gradient_accumulation_steps": config.accumulate,
        "gradient_clipping": config.gradient_clip,
        "optimizer": {"type": "AdamW", "params": adam},
        "zero_optimization": {"stage": config.zero_stage},
        "bf16": {"enabled": config.precision == "bf16"},
        "steps_per_print": 1_000_000_000,
    }


def save_engine(engine: Any, folder: Path) -> None:
    """This rank's part of weights and optimiser below `folder`."""
    engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)


def load_engine(engine: Any, folder: Path, checkpoint: Checkpoint, config: TrainConfig, world: int) -> None:
    """Back to where `checkpoint` was. `folder` holds a folder per rank; they are laid together, as DeepSpeed wants them.

    `UserError` for another world size or ZeRO stage than the checkpoint's.
    """
    check_topology(checkpoint, config, world)
    together = folder / "together" / TAG
    together.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(f"rank-*/{TAG}/*"):
        if not (together / path.name).exists():
            os.link(path, together / path.name)
    loaded, _ = engine.load_checkpoint(str(together.parent), tag=TAG)
    assert loaded is not None, "load_checkpoint only warns where it finds nothing"


def check_topology(checkpoint: Checkpoint, config: TrainConfig, world: int) -> None:
    """`UserError` naming what the checkpoint was made with."""
    for name, ours in (("workers", world), ("zero_stage", config.zero_stage), ("precision", config.precision)):
        theirs = checkpoint.facts[name]
        if ours != theirs:
            raise UserError(f"{name}={ours}: the checkpoint of step {checkpoint.step} was made with {name}={theirs}; resume with that")
