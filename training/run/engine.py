"""DeepSpeed, made from our settings: nothing is compiled at start-up, and it knows nothing of checkpoints.

    prepare_process(threads)                          # in a process group, before DeepSpeed is imported
    engines = start_engines(model, config, world)     # one for each optimiser of the recipe

ZeRO 0 to 3, fp32, bf16 and fp16. Without Ray, `ensure_process_group` makes a group of one. What is saved of
it is training.checkpoints.fragments's.
"""

import contextlib
import functools
import math
import os
import shutil
from collections.abc import Iterator
from typing import Any, TypedDict

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import HashStore
from torch.utils.flop_counter import FlopCounterMode

from configs.load import UserError
from training.checkpoints.fragments import trained_parameters
from training.recipes.recipe import Batch
from training.run.scaling import INITIAL_POWER, WINDOW, prepare_scaler
from training.run.sides import sides_of
from training.settings import TrainConfig


def prepare_process(threads: int) -> None:
    """Sets what has to be set before DeepSpeed is imported.

    No JIT builds: a process killed while compiling leaves a lock that blocks later ones. The process group
    decides the device: gloo with tensors on a GPU, or nccl with tensors on a CPU, would fail.
    """
    os.environ["DS_ACCELERATOR"] = "cuda" if dist.get_backend() == "nccl" else "cpu"
    torch.set_num_threads(threads)
    with _quiet_linker():
        import deepspeed

        # init_distributed would compile it (41 s)
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel("WARNING")


@contextlib.contextmanager
def _quiet_linker() -> Iterator[None]:
    """On import DeepSpeed looks for libaio by calling the linker, which complains if it is missing."""
    stderr = os.dup(2)
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def wants_gpu() -> bool:
    """Unless DS_ACCELERATOR=cpu, as the Makefile sets it."""
    return os.environ.get("DS_ACCELERATOR") != "cpu"


def ensure_process_group() -> None:
    """A torch.distributed group of this process alone, for runs without Ray.

    It is never destroyed: DeepSpeed keeps its groups for ever.
    """
    if dist.is_initialized():
        return
    os.environ.update({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"})
    backend = "nccl" if wants_gpu() and torch.cuda.is_available() else "gloo"
    # a store in memory: no port is opened
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)


def start_engines(model: nn.Module, config: TrainConfig, world: int) -> list[Any]:
    """DeepSpeed engines around `model`, one for each of the recipe's optimisers, in their order."""
    import deepspeed

    if config.activation_checkpointing:
        _checkpoint_activations(model)
    if config.compile:
        _mend_compiler()
        model.compile()
    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False)
    return [_start_engine(side, config, world) for side in sides_of(model, config.optimisers)]


def _start_engine(model: nn.Module, config: TrainConfig, world: int) -> Any:
    """With AdamW as stock torch has it, in the groups of `parameter_groups`."""
    import deepspeed

    groups = parameter_groups(model, config.weight_decay)
    settings = engine_settings(config, world)
    count = sum(parameter.numel() for parameter in model.parameters())
    # DeepSpeed reserves a buffer of 5e8 values for gradients, 2 GB of fp32 for the smallest model
    settings["zero_optimization"]["reduce_bucket_size"] = min(LARGEST_BUCKET, count + BUCKET_SLACK)
    engine, *_ = deepspeed.initialize(model=model, model_parameters=groups, config=settings)
    prepare_scaler(engine)
    if config.zero_stage == 0:
        # alone it would copy all gradients to sum them with nobody's
        engine.enable_backward_allreduce = world > 1
        engine.clip_fp32_gradients = functools.partial(_clip, engine)
    return engine


def _checkpoint_activations(model: nn.Module) -> None:
    """In every module of diffusers and transformers that can."""
    for module in model.modules():
        if hasattr(module, "enable_gradient_checkpointing"):
            module.enable_gradient_checkpointing()  # type: ignore[operator]


LARGEST_BUCKET = 500_000_000  # values; DeepSpeed's default
# for what DeepSpeed pads: all gradients still go in one bucket, and are summed as they were
BUCKET_SLACK = 1_000_000


class ParameterGroup(TypedDict):
    """As AdamW takes them."""

    params: list[nn.Parameter]
    weight_decay: float


EngineSettings = dict[str, Any]
"""A DeepSpeed configuration, or a section of one: its own JSON."""


def parameter_groups(model: nn.Module, weight_decay: float) -> list[ParameterGroup]:
    """For AdamW, of what is trained: matrices and kernels decay; vectors (norms, biases, null embeddings,
    temperature) do not.

    A vector has no scale that a later layer could undo, so that decay would only pull it to zero: a
    temperature to 1, a norm to silence (Goyal et al. 2017, section 5.3; CLIP, Radford et al. 2021, section
    2.5).
    """
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for _, parameter in trained_parameters(model):
        (matrices if parameter.ndim > 1 else vectors).append(parameter)
    groups: list[ParameterGroup] = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _clip(engine: Any) -> None:
    """As DeepSpeed does it at ZeRO 0, but the norm is kept: it is in the metrics, and shows gradients that
    are NaN or infinite.
    """
    norm = nn.utils.clip_grad_norm_(engine.module.parameters(), engine.gradient_clipping())
    engine._global_grad_norm = norm


def check_compiler(config: TrainConfig) -> None:
    """`UserError` for compile=true on CPUs if the C++ compiler that torch would call is missing.

    GPUs have Triton's.
    """
    name = os.environ.get("CXX", "g++")
    on_cpu = not wants_gpu() or (config.workers == 0 and not torch.cuda.is_available())
    if config.compile and on_cpu and not shutil.which(name):
        raise UserError(
            f"compile=true: the C++ compiler {name} is not found here; "
            "install it (Debian: apt install g++), or leave it out"
        )


def check_precision(config: TrainConfig) -> None:
    """`UserError` for precision=fp16 on CPUs that torch cannot compute with in it."""
    on_cpu = not wants_gpu() or not torch.cuda.is_available()
    if config.precision == "fp16" and on_cpu and not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        raise UserError("precision=fp16: the CPU here has no such arithmetic; give fp32, or bf16, or a GPU")


@functools.cache
def _mend_compiler() -> None:
    """torch 2.13 for CPUs may fuse a read of a buffer with what is done before the last write to it (pytorch
    issue 185509): what is behind a nearest upsampling then learnt from zeros.

    Mended as in pull request 185873, which came after 2.13. The tag keeps what was compiled without it from
    being taken out of torch's cache.
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


def engine_settings(config: TrainConfig, world: int) -> EngineSettings:
    """DeepSpeed's own settings; the micro batch follows from the global one."""
    adam: EngineSettings = {
        "lr": config.lr,
        "betas": [config.beta1, config.beta2],
        "eps": 1e-8,
        "weight_decay": config.weight_decay,
        # stock torch; DeepSpeed's own would be compiled at start-up
        "torch_adam": True,
        # one pass over the memory instead of ten
        "fused": True,
    }
    zero: EngineSettings = {"stage": config.zero_stage}
    if config.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    # at ZeRO 0 DeepSpeed computes a norm only to clip; an infinite bound gives the norm and clips nothing
    unclipped = math.inf if config.zero_stage == 0 else 0.0
    return {
        "train_batch_size": config.global_batch,
        "train_micro_batch_size_per_gpu": config.global_batch // world // config.accumulate,
        "gradient_accumulation_steps": config.accumulate,
        "gradient_clipping": config.gradient_clip or unclipped,
        "optimizer": {"type": "AdamW", "params": adam},
        "zero_optimization": zero,
        # its own CPU optimiser would have to be compiled
        "zero_force_ds_cpu_optimizer": False,
        # its search for overflow costs nine kernels a parameter: the norm tells as much, the loop heeds it
        "bf16": {"enabled": config.precision == "bf16", "check_grad_overflow": False},
        "fp16": {
            "enabled": config.precision == "fp16",
            "initial_scale_power": INITIAL_POWER,
            "loss_scale_window": WINDOW,
        },
        # never: the metrics are ours
        "steps_per_print": 1_000_000_000,
    }


PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
"""Dense bf16 and fp16, as NVIDIA's data sheets state. L40S before L4: the first name that fits is taken."""


def peak_flops(device: torch.device, config: TrainConfig) -> float:
    """Of one worker's device in bf16 or fp16; 0 if it is not in the table, or the run computes in fp32."""
    if device.type != "cuda" or config.precision == "fp32":
        return 0.0
    device_name = torch.cuda.get_device_name(device)
    return next((peak for model, peak in PEAK_FLOPS.items() if model in device_name), 0.0)


def count_flops(engines: list[Any], batch: Batch, config: TrainConfig) -> float:
    """Floating point operations of one step over all ranks: a forward pass of every engine, counted, and a
    backward pass of twice as many. All ranks call it.

    What activation checkpointing computes again is not counted, as usual for the MFU (PaLM, Chowdhery et al.
    2022, appendix B). With opponents it is a little too much: a side's backward pass is not through all of
    the other.
    """
    size = len(batch["weight"]) // config.accumulate
    micro_batch = {name: values[:size].to(engines[0].device) for name, values in batch.items()}
    micro_batch["step"] = torch.full((size,), config.steps, device=engines[0].device)
    # eager: a compiled graph hides its operations from the counter
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        for optimiser, engine in zip(config.optimisers, engines, strict=True):
            losses = engine.module(micro_batch)
            micro_batch |= {name: losses[name] for name in optimiser.gives}
    forward: int = counter.get_total_flops()
    return 3.0 * forward / size * config.global_batch
