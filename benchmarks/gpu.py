"""On a GPU: throughput, MFU, memory and waiting for data of UNet-S, M and L in bf16, as the presets train
them.

    python -m benchmarks.gpu [sizes=s,m,l] [batch=48] [steps=30] [samples=2048] [output=FILE]

The real verb on latents of a folder, one worker, ZeRO 1; medians of the second half of the steps.
`loader_over_training`: how many times the samples of a training step the loader gives in its time, with
nothing else to do. Each size runs in a process of its own, so that its memory is its own. Without a GPU it
says so and measures nothing; `cpu=1` goes the same way on a CPU, to try it out.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.loader import BATCH, make, ours
from benchmarks.machine import machine
from configs.load import load_config
from training.data.catalogue import Catalogue
from training.recipes import diffusion
from training.settings import TrainConfig
from training.train import train

CONFIGS = Path(__file__).parents[1] / "configs/training"


def measure(size: str, data: str, batch: int, steps: int) -> dict[str, float]:
    """One size, in this process."""
    with tempfile.TemporaryDirectory(prefix="stillsound-bench-") as name:
        preset = CONFIGS / (f"diffusion_{size}.yaml" if size != "tiny" else "tiny.yaml")
        words = [
            str(preset),
            f"data={data}",
            f"output={name}/run",
            "workers=0",
            f"steps={steps}",
            f"global_batch={batch}",
            f"lanes={batch}",
        ]
        words += [
            "zero_stage=1",
            "precision=bf16",
            "validate_every=0",
            "preview_every=0",
            f"checkpoint_every={10 * steps}",
        ]
        train(load_config(TrainConfig, words))
        lines = [json.loads(line) for line in Path(name, "run/metrics.jsonl").open()][
            steps // 2 : -1
        ]  # the last one begins a save
    step_s = statistics.median(line["step_s"] for line in lines)
    found = {"samples_per_s": batch / step_s, "tflops": statistics.median(line["tflops"] for line in lines)}
    found["data_wait_share"] = sum(line["data_wait_s"] for line in lines) / sum(
        line["step_s"] for line in lines
    )
    if "mfu" in lines[0]:
        found["mfu"] = statistics.median(line["mfu"] for line in lines)
    if torch.cuda.is_available():
        found["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return {key: round(value, 4) for key, value in found.items()}


def main(words: dict[str, str]) -> None:
    if not torch.cuda.is_available() and "cpu" not in words:
        print("no GPU here: nothing was measured", file=sys.stderr)
        return
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="stillsound-bench-") as name:
        dataset = make(f"{name}/latents", int(words.get("samples", 2048)))
        catalogue = Catalogue.of(dataset, dataset.snapshot(), "train", diffusion.MEMBERS)
        loader_per_s = ours(catalogue, 2)
        for size in words.get("sizes", "s,m,l").split(","):
            rest = [f"batch={words.get('batch', BATCH)}", f"steps={words.get('steps', 30)}"]
            command = [sys.executable, "-m", "benchmarks.gpu", f"size={size}", f"data={dataset.uri}", *rest]
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found[size] = json.loads(told.splitlines()[-1])
            found[size]["loader_over_training"] = round(loader_per_s / found[size]["samples_per_s"], 1)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: not a result"
    described = f"{device}, {machine('torch', 'deepspeed')}"
    text = json.dumps(
        {"benchmark": "gpu", "date": time.strftime("%Y-%m-%d"), "machine": described, **found}, indent=1
    )
    print(text)
    if "output" in words:
        Path(words["output"]).write_text(f"{text}\n")


if __name__ == "__main__":
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    if "size" in given:
        print(json.dumps(measure(given["size"], given["data"], int(given["batch"]), int(given["steps"]))))
    else:
        main(given)
