"""`training export`: a diffusion run -> one folder that stock diffusers loads, and how every command here opens a model.

    export(ExportConfig(model="out/demo/runs/diffusion", output="out/demo/export"))
    DiffusionPipeline.from_pretrained("out/demo/export", trust_remote_code=True)

The folder holds all weights and its own pipeline.py, made of four files in a row (`SHIPPED`). Nothing is uploaded.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DConditionModel

from cluster.dataset import Dataset
from cluster.scratch import scratch_folder
from configs.load import UserError
from training.models import fetch_models, is_finished, load_autoencoder, load_image_encoder, local_copy, read_processor
from training.pipeline import StillsoundPipeline

ROOT = Path(__file__).parent.parent
SHIPPED = ("ingest/pixels.py", "training/mel.py", "training/codec.py", "training/pipeline.py")
OURS = ("from training.", "from ingest.")


@dataclass
class ExportConfig:
    """`model`: a finished diffusion run."""

    model: str
    output: str


def export(config: ExportConfig) -> dict[str, Any]:
    """Writes the folder; returns `{"output"}`. `UserError` for a model that is not finished or an output not writable."""
    pipeline = open_pipeline(config.model)
    folder = make_folder(config.output)
    pipeline.save_pretrained(folder)
    (folder / "pipeline.py").write_text(shipped_source())
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = ["pipeline", StillsoundPipeline.__name__]
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))
    return {"output": str(folder)}


def open_pipeline(model: str) -> StillsoundPipeline:
    """The pipeline behind an exported folder or a diffusion run, on the GPU where there is one."""
    folder = local_copy(model)
    if not folder.exists():
        raise UserError(f"model={model}: does not exist; give a finished diffusion run or an exported folder")
    if (folder / "model_index.json").is_file():
        pipeline = StillsoundPipeline(**_exported_parts(folder))
    else:
        pipeline = StillsoundPipeline(**_run_parts(folder, model))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def _exported_parts(folder: Path) -> dict[str, Any]:
    conditioning = json.loads((folder / "model_index.json").read_text())["conditioning"]
    return {**_diffusion_parts(folder), **_codec_parts(folder), "conditioning": conditioning}


def _run_parts(folder: Path, said: str) -> dict[str, Any]:
    """The UNet from the run; the codec and the image tower from the dataset of latents it was trained on."""
    model = folder if (folder / "conditioning.json").is_file() else folder / "model"
    if not (model / "conditioning.json").is_file() or not is_finished(folder):
        raise UserError(f"model={said}: holds no finished diffusion model; train it to the end, or give an exported folder")
    conditioning = json.loads((model / "conditioning.json").read_text())
    latents = Dataset.open(conditioning["latents"], "latents")
    with scratch_folder("models") as scratch:
        fetch_models(latents, scratch)
        parts = _codec_parts(scratch)
        processor = read_processor(scratch / "image_encoder")
    kept = {name: value for name, value in conditioning.items() if name != "latents"}
    return {**_diffusion_parts(model), **parts, "conditioning": {**kept, "processor": processor}}


def _diffusion_parts(folder: Path) -> dict[str, Any]:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet").eval().requires_grad_(False)
    return {"unet": unet, "scheduler": FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")}


def _codec_parts(folder: Path) -> dict[str, Any]:
    return {"autoencoder": load_autoencoder(folder / "autoencoder"), "image_encoder": load_image_encoder(folder / "image_encoder")}


def make_folder(path: str) -> Path:
    """The output folder, created. `UserError` where that is not possible."""
    if "://" in path:
        raise UserError(f"output={path}: give a folder of this machine; nothing is uploaded")
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output={path}: not writable ({error.strerror}); choose another folder") from error
    return folder


def shipped_source() -> str:
    """The text of the exported pipeline.py: the files of `SHIPPED` in a row, without their imports of each other."""
    texts = [(ROOT / name).read_text() for name in SHIPPED]
    lines = [line for text in texts for line in text.splitlines() if not line.startswith(OURS)]
    return "\n".join(lines) + "\n"
