"""`training probe`: a node's numerics and its all-reduce, by two processes on it; what `cluster doctor`
starts by name.

    probe()        # {"torch", "device", "matmul_error", "all_reduce", "seconds"}
"""

import multiprocessing
import socket
import time
from typing import TypedDict

import torch
import torch.distributed as dist

WORLD = 2
SIZE = 512
# a sum of 512 products in fp32 is off by about 1e-4, in TF32 by up to 1e-1: that would be noticed
TOLERANCE = 1e-3
RANK_TIMEOUT_S = 60


class Findings(TypedDict):
    """`matmul_error`: the largest difference from float64. `all_reduce`: the backend that was used."""

    torch: str
    device: str
    matmul_error: float
    all_reduce: str
    seconds: float


def probe() -> Findings:
    """`RuntimeError` naming what is off: a product that differs from float64, or an all-reduce that gives
    another sum.
    """
    started = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    error = _matmul_error(device)
    # so written, NaN fails too
    if not error < TOLERANCE:
        raise RuntimeError(
            f"a {SIZE} x {SIZE} product on {device} is off by {error:.2g}, allowed {TOLERANCE:.2g}"
        )
    # nccl refuses two ranks on one GPU
    backend = "nccl" if torch.cuda.device_count() >= WORLD else "gloo"
    _all_reduce(backend)
    return {
        "torch": torch.__version__,
        "device": device,
        "matmul_error": error,
        "all_reduce": backend,
        "seconds": round(time.monotonic() - started, 1),
    }


def _matmul_error(device: str) -> float:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(SIZE, SIZE, generator=generator)
    right = torch.randn(SIZE, SIZE, generator=generator)
    exact = left.double() @ right.double()
    computed = (left.to(device) @ right.to(device)).cpu().double()
    return float((computed - exact).abs().max())


def _all_reduce(backend: str) -> None:
    port = _free_port()
    # spawn: a forked child cannot use CUDA
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_rank, args=(rank, port, backend)) for rank in range(WORLD)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(RANK_TIMEOUT_S)
        if process.exitcode is None:
            process.kill()
    codes = [process.exitcode for process in ranks]
    if codes != [0] * WORLD:
        raise RuntimeError(f"the all-reduce of {WORLD} processes over {backend} failed: exit codes {codes}")


def _free_port() -> int:
    with socket.socket() as probe_socket:
        probe_socket.bind(("127.0.0.1", 0))
        port: int = probe_socket.getsockname()[1]
        return port


def _rank(rank: int, port: int, backend: str) -> None:
    dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    values = torch.full((1000,), float(rank + 1), device=device)
    dist.all_reduce(values)
    assert bool((values == sum(range(1, WORLD + 1))).all()), "another sum"
    dist.destroy_process_group()
