"""How fast every recipe trains on one GPU, at each of its sizes, and whether the loader keeps up.

    python -m benchmarks.gpu [cases=diffusion_s,vocoder] [variants=bf16,fp16,bf16+compile] [output=FILE]

A case is a preset of configs/training. Measured, of each in each variant: samples per second, TFLOP/s, MFU
(the baseline is the card's peak), memory, the share of time that a step waits for data, and how long the
first step took, which compiles. `loader_over_training` is how many times the samples of a training step the
loader gives in the time of the step, with nothing else to do; only of the diffusion, whose samples are not
decoded.

How: the real verb on random latents, or noise clips of 10.24 s, of a folder; one worker, ZeRO 1; medians of
the second half of the steps. Each runs in a process of its own, so that its memory is its own; one that fails
or does not end within `limit_s` says so in its place. Without a GPU the benchmark says so and measures
nothing; `cpu=1` runs it on a CPU, to try it out.
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
from benchmarks.from_clips import make_noise_clips
from benchmarks.loader import make_random_latents, our_samples_per_cpu_s
from benchmarks.machine import machine
from cluster.jsonl import read_lines
from configs.load import load_config
from training.data.catalogue import Catalogue
from training.recipes import diffusion
from training.settings import TrainConfig
from training.train import train

CONFIGS = Path(__file__).parents[1] / "configs/training"
# samples per step: what fits the memory of one card, as the presets share them out
CASES = {
    "diffusion_s": 48,
    "diffusion_m": 48,
    "diffusion_l": 48,
    "autoencoder": 48,
    "contrastive": 96,
    "contrastive_clap": 96,
    "contrastive_three_way": 96,
    "vocoder": 48,
    "vocoder_bigvgan": 48,
    "vocoder_istft": 48,
}
VARIANTS = "bf16,fp16,bf16+compile"
CLIP_S = 10.24
LATENTS = 2048
LOADER_PASSES = 2
LIMIT_S = 600

Figures = dict[str, float | str]
"""By name; where nothing could be measured, `error` says why."""


def measure_case(case: str, variant: str, data: str, steps: int, batch: int) -> Figures:
    """The figures of one preset, trained in this process."""
    precision, _, compiled = variant.partition("+")
    with tempfile.TemporaryDirectory(prefix="stillsound-bench-") as name:
        args = [str(CONFIGS / f"{case}.yaml"), f"data={data}", f"output={name}/run", "workers=0"]
        args += ["zero_stage=1", f"precision={precision}", f"compile={bool(compiled)}"]
        args += [f"steps={steps}", f"global_batch={batch}", f"lanes={batch}"]
        # nothing but training in the steps that count; a save comes only at the end
        args += ["validate_every=0", "preview_every=0", f"checkpoint_every={10 * steps}"]
        train(load_config(TrainConfig, args))
        lines = read_lines(Path(name, "run/metrics.jsonl"))
    first_step_s = lines[0]["step_s"]
    lines = lines[steps // 2 : -1]  # the first ones warm up, and the last one begins a save
    step_s = [line["step_s"] for line in lines]
    figures = {
        "samples_per_s": batch / statistics.median(step_s),
        "tflops": statistics.median(line["tflops"] for line in lines),
        "data_wait_share": sum(line["data_wait_s"] for line in lines) / sum(step_s),
        "first_step_s": first_step_s,
    }
    if "mfu" in lines[0]:
        figures["mfu"] = statistics.median(line["mfu"] for line in lines)
    if torch.cuda.is_available():
        figures["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return {name: round(value, 4) for name, value in figures.items()}


def measure_apart(case: str, variant: str, data: str, steps: int, batch: int, limit_s: float) -> Figures:
    """The same in a process of its own."""
    args = [f"case={case}", f"variant={variant}", f"data={data}", f"steps={steps}", f"batch={batch}"]
    command = [sys.executable, "-m", "benchmarks.gpu", *args]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return {"error": f"did not end within {limit_s:g} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def measure(
    cases: list[str], variants: list[str], steps: int, batch: int, limit_s: float
) -> dict[str, dict[str, Figures]]:
    """The figures of all cases, by variant. `batch` 0: as `CASES` has it."""
    figures: dict[str, dict[str, Figures]] = {}
    with tempfile.TemporaryDirectory(prefix="stillsound-bench-") as name:
        latents = make_random_latents(f"{name}/latents", LATENTS)
        clips = make_noise_clips(f"{name}/clips", CLIP_S)
        catalogue = Catalogue.of(latents, latents.snapshot(), "train", diffusion.MEMBERS)
        loader_per_s = our_samples_per_cpu_s(catalogue, LOADER_PASSES)
        for case in cases:
            figures[case] = {}
            data = latents.uri if case.startswith("diffusion") else clips.uri
            for variant in variants:
                size = batch or CASES[case]
                measured = measure_apart(case, variant, data, steps, size, limit_s)
                per_s = measured.get("samples_per_s")
                if data == latents.uri and isinstance(per_s, float):
                    measured["loader_over_training"] = round(loader_per_s / per_s, 1)
                figures[case][variant] = measured
                print(case, variant, measured, file=sys.stderr, flush=True)
    return figures


def main() -> None:
    options = parse_options()
    steps = int(options.get("steps", 24))
    batch = int(options.get("batch", 0))
    if "case" in options:
        figures = measure_case(options["case"], options["variant"], options["data"], steps, batch)
        print(json.dumps(figures))
        return
    if not torch.cuda.is_available() and "cpu" not in options:
        print("no GPU here: nothing was measured", file=sys.stderr)
        return
    cases = options["cases"].split(",") if "cases" in options else list(CASES)
    variants = options.get("variants", VARIANTS).split(",")
    measured = measure(cases, variants, steps, batch, float(options.get("limit_s", LIMIT_S)))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: not a result"
    header = {
        "benchmark": "gpu",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{device}, {machine('torch', 'deepspeed')}",
        "batch": {case: batch or CASES[case] for case in cases},
    }
    text = json.dumps({**header, **measured}, indent=1)
    print(text)
    if "output" in options:
        Path(options["output"]).write_text(f"{text}\n")


if __name__ == "__main__":
    main()
