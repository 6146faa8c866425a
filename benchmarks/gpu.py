"""How fast UNet-S, M and L train on a GPU in bf16, as the presets train them.

    python -m benchmarks.gpu [sizes=s,m,l] [batch=48] [steps=30] [samples=2048] [output=FILE]

Measured, of each size: samples per second, TFLOP/s, MFU (the baseline is the card's peak), memory, and the
share of time that a step waits for data. `loader_over_training` is how many times the samples of a training
step the loader gives in the time of the step, with nothing else to do.

How: the real verb on latents of a folder, one worker, ZeRO 1; medians of the second half of the steps. Each
size runs in a process of its own, so that its memory is its own. Without a GPU the benchmark says so and
measures nothing; `cpu=1` runs it on a CPU, to try it out.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.command_line import parse_options
from benchmarks.loader import BATCH, make_random_latents, our_samples_per_cpu_s
from benchmarks.machine import machine
from cluster.jsonl import read_lines
from configs.load import load_config
from training.data.catalogue import Catalogue
from training.recipes import diffusion
from training.settings import TrainConfig
from training.train import train

CONFIGS = Path(__file__).parents[1] / "configs/training"
LOADER_PASSES = 2


def measure_size(size: str, data: str, batch: int, steps: int) -> dict[str, float]:
    """The figures of one size, trained in this process."""
    with tempfile.TemporaryDirectory(prefix="stillsound-bench-") as name:
        preset = CONFIGS / ("tiny.yaml" if size == "tiny" else f"diffusion_{size}.yaml")
        args = [str(preset), f"data={data}", f"output={name}/run", "workers=0", "zero_stage=1"]
        args += ["precision=bf16", f"steps={steps}", f"global_batch={batch}", f"lanes={batch}"]
        # nothing but training in the steps that count; a save comes only at the end
        args += ["validate_every=0", "preview_every=0", f"checkpoint_every={10 * steps}"]
        train(load_config(TrainConfig, args))
        lines = read_lines(Path(name, "run/metrics.jsonl"))
    lines = lines[steps // 2 : -1]  # the first ones warm up, and the last one begins a save
    step_s = [line["step_s"] for line in lines]
    figures = {
        "samples_per_s": batch / statistics.median(step_s),
        "tflops": statistics.median(line["tflops"] for line in lines),
        "data_wait_share": sum(line["data_wait_s"] for line in lines) / sum(step_s),
    }
    if "mfu" in lines[0]:
        figures["mfu"] = statistics.median(line["mfu"] for line in lines)
    if torch.cuda.is_available():
        figures["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return {name: round(value, 4) for name, value in figures.items()}


def measure(sizes: list[str], batch: int, steps: int, samples: int) -> dict[str, dict[str, float]]:
    """The figures of all sizes."""
    figures = {}
    with tempfile.TemporaryDirectory(prefix="stillsound-bench-") as name:
        dataset = make_random_latents(f"{name}/latents", samples)
        catalogue = Catalogue.of(dataset, dataset.snapshot(), "train", diffusion.MEMBERS)
        loader_per_s = our_samples_per_cpu_s(catalogue, LOADER_PASSES)
        for size in sizes:
            args = [f"size={size}", f"data={dataset.uri}", f"batch={batch}", f"steps={steps}"]
            command = [sys.executable, "-m", "benchmarks.gpu", *args]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            figures[size] = json.loads(output.splitlines()[-1])
            times = loader_per_s / figures[size]["samples_per_s"]
            figures[size]["loader_over_training"] = round(times, 1)
    return figures


def main() -> None:
    options = parse_options()
    batch = int(options.get("batch", BATCH))
    steps = int(options.get("steps", 30))
    if "size" in options:
        print(json.dumps(measure_size(options["size"], options["data"], batch, steps)))
        return
    if not torch.cuda.is_available() and "cpu" not in options:
        print("no GPU here: nothing was measured", file=sys.stderr)
        return
    sizes = options.get("sizes", "s,m,l").split(",")
    figures = measure(sizes, batch, steps, int(options.get("samples", 2048)))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: not a result"
    header = {
        "benchmark": "gpu",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{device}, {machine('torch', 'deepspeed')}",
    }
    text = json.dumps({**header, **figures}, indent=1)
    print(text)
    if "output" in options:
        Path(options["output"]).write_text(f"{text}\n")


if __name__ == "__main__":
    main()
