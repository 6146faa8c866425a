"""DeepSpeed, made from our settings: nothing is compiled at start-up, and where a checkpoint lies is not its
business.

    prepare_process(threads)                          # in a process group, before DeepSpeed is imported
    engine = start_engine(model, config, world)

ZeRO 0 to 3, fp32 and bf16. Without Ray, `ensure_process_group` makes a group of one. What it saves is
training.checkpoints.fragments's.
"""

import contextlib
import functools
import math
import os
import shutil
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from configs.load import UserError
from training.settings import TrainConfig


def prepare_process(threads: int) -> None:
    """Sets what has to be set before DeepSpeed is imported. A process killed during a JIT build would block
    all later ones.

    The process group decides the device: gloo with tensors on a GPU, or nccl with tensors on a CPU, would
    fail.
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
    """A torch.distributed group of this process alone, for runs without Ray.

    It stays: DeepSpeed keeps its groups for ever.
    """
    if dist.is_initialized():
        return
    os.environ.update({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"})
    store = dist.HashStore()
    dist.init_process_group(
        "nccl" if wants_gpu() and torch.cuda.is_available() else "gloo", store=store, rank=0, world_size=1
    )


def start_engine(model: nn.Module, config: TrainConfig, world: int) -> Any:
    """The DeepSpeed engine around `model`, with AdamW as stock torch has it, in the groups of
    `parameter_groups`.
    """
    import deepspeed

    if config.activation_checkpointing:
        for part in model.modules():
            if hasattr(part, "enable_gradient_checkpointing"):
                part.enable_gradient_checkpointing()  # type: ignore[operator]
    if config.compile:
        _mend_compiler()
        model.compile()
    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False)
    groups = parameter_groups(model, config.weight_decay)
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=groups, config=engine_settings(config, world)
    )
    if config.zero_stage == 0:
        engine.enable_backward_allreduce = (
            world > 1
        )  # alone it would copy all gradients to sum them with nobody's
        engine.clip_fp32_gradients = functools.partial(_clip, engine)
    return engine


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """For AdamW: matrices and kernels decay; vectors (norms, biases, null embeddings, the temperature) do
    not.

    A vector has no scale that a later layer could undo, so that decay would only pull it to zero: a
    temperature to 1, a norm to silence (Goyal et al. 2017, section 5.3; CLIP, Radford et al. 2021, section
    2.5).
    """
    parameters = list(model.parameters())
    matrices, vectors = (
        [one for one in parameters if one.ndim > 1],
        [one for one in parameters if one.ndim <= 1],
    )
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _clip(engine: Any) -> None:
    """As DeepSpeed does it at ZeRO 0, but the norm is kept: it is in the metrics, and tells of gradients that
    are no numbers.
    """
    engine._global_grad_norm = nn.utils.clip_grad_norm_(
        engine.module.parameters(), engine.gradient_clipping()
    )


def check_compiler(config: TrainConfig) -> None:
    """`UserError` for compile=true on CPUs where the C++ compiler that torch would call is not there;

    GPUs have Triton's.
    """
    name = os.environ.get("CXX", "g++")
    on_cpu = not wants_gpu() or (config.workers == 0 and not torch.cuda.is_available())
    if config.compile and on_cpu and not shutil.which(name):
        raise UserError(
            f"compile=true: the C++ compiler {name} is not found here; install it (Debian: apt install g++), or leave it out"
        )


@functools.cache
def _mend_compiler() -> None:
    """torch 2.13 for CPUs may fuse a read of a buffer with what is done before the last write to it (pytorch
    issue 185509).

    What lies behind a nearest upsampling then learnt from zeros. Mended as in pull request 185873, which came
    after 2.13. The tag keeps what was compiled without it from being taken out of torch's cache.
    """
    if not torch.__version__.startswith("2.13."):
        return
    from torch._inductor.scheduler import SchedulerNode

    recompute = SchedulerNode.recompute_size_and_body

    def renaming(node: Any, *args: Any, **named: Any) -> None:
        recompute(node, *args, **named)
        node.set_read_writes(node.read_writes.rename(node.mutation_renames))

    SchedulerNode.recompute_size_and_body = renaming  # type: ignore[method-assign, assignment]
    torch.compiler.config.cache_key_tag += "pytorch-185873"


def engine_settings(config: TrainConfig, world: int) -> dict[str, Any]:
    """DeepSpeed's own settings; the micro batch follows from the global one."""
    adam = {
        "lr": config.lr,
        "betas": [config.beta1, config.beta2],
        "eps": 1e-8,
        "weight_decay": config.weight_decay,
    }
    adam |= {"torch_adam": True, "fused": True}  # stock torch; one pass over the memory instead of ten
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_batch_size": config.global_batch,
        "train_micro_batch_size_per_gpu": config.global_batch // world // config.accumulate,
        "gradient_accumulation_steps": config.accumulate,
        "gradient_clipping": config.gradient_clip
        or (math.inf if config.zero_stage == 0 else 0.0),  # infinite: a norm, unclipped
        "optimizer": {"type": "AdamW", "params": adam},
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # its own CPU optimiser would have to be compiled
        "bf16": {"enabled": config.precision == "bf16"},
        "steps_per_print": 1_000_000_000,
    }


PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
"""Dense bf16, as NVIDIA's data sheets state."""


def peak_flops(device: torch.device, config: TrainConfig) -> float:
    """Of one worker's device in bf16; 0 where it is not known, or the run computes in fp32."""
    if device.type != "cuda" or config.precision != "bf16":
        return 0.0
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAK_FLOPS.items() if known in name), 0.0)


def count_flops(engine: Any, tensors: dict[str, torch.Tensor], config: TrainConfig) -> float:
    """Floating point operations of one step over all ranks: a forward pass, counted, and a backward pass of
    twice as many.

    All ranks call it. What activation checkpointing computes again is not counted, as usual for the MFU
    (PaLM, appendix B).
    """
    size = len(tensors["weight"]) // config.accumulate
    batch = {name: tensor[:size].to(engine.device) for name, tensor in tensors.items()}
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        engine.module(batch)
    return 3.0 * counter.get_total_flops() / size * config.global_batch
