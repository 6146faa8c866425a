"""`training export`: a diffusion run -> one folder that stock diffusers loads, and how every command here
opens a model.

    export(ExportConfig(model="out/demo/runs/diffusion", output="out/demo/export"))
    DiffusionPipeline.from_pretrained("out/demo/export", trust_remote_code=True)

The folder holds all weights and its own pipeline.py, made of four files in a row (`SHIPPED`). Nothing is
uploaded.
"""

import ast
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DConditionModel

from cluster.dataset import Dataset
from cluster.scratch import scratch_folder
from configs.load import UserError
from training.data.pinned import check_codec
from training.pipeline.pipeline import StillsoundPipeline
from training.pretrained import (
    RUN,
    fetch_models,
    folder_sha256,
    is_finished,
    load_autoencoder,
    load_image_encoder,
    local_copy,
    plain_processor,
    read_processor,
)
from training.recipes import diffusion

ROOT = Path(__file__).parent.parent
PIPELINE = "training/pipeline/pipeline.py"


@dataclass
class ExportConfig:
    """`model`: a finished diffusion run.

    `latents`: for runs of before models carried their codec, where their latents lie now.
    """

    model: str
    output: str
    latents: str = ""


def export(config: ExportConfig) -> dict[str, Any]:
    """Writes the folder; returns `{"output"}`.

    `UserError` for a model that is not finished or an output not writable.
    """
    pipeline = open_pipeline(config.model, config.latents)
    folder = make_folder(config.output)
    pipeline.save_pretrained(folder)
    (folder / "pipeline.py").write_text(shipped_source())
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = ["pipeline", StillsoundPipeline.__name__]
    index["conditioning"]["exported_sha256"] = {
        name: folder_sha256(folder / name) for name in diffusion.PARTS.weights
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))
    return {"output": str(folder)}


def open_pipeline(model: str, latents: str = "") -> StillsoundPipeline:
    """The pipeline behind an exported folder or a diffusion run, on the GPU where there is one.

    `UserError` where its codec or image tower is not the one it was trained with; `latents` as in
    `ExportConfig`.
    """
    folder = local_copy(model)
    if not folder.exists():
        raise UserError(f"model={model}: does not exist; give a finished diffusion run or an exported folder")
    if (folder / "model_index.json").is_file():
        pipeline = StillsoundPipeline(**_exported_parts(folder, model))
    else:
        pipeline = StillsoundPipeline(**_run_parts(folder, model, latents))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def _exported_parts(folder: Path, said: str) -> dict[str, Any]:
    index = json.loads((folder / "model_index.json").read_text())
    conditioning = index["conditioning"]
    _check_carried(folder, conditioning.get("exported_sha256", {}), said)
    conditioning["processor"] = _processor(conditioning["processor"], conditioning)
    return {**_diffusion_parts(folder), **_codec_parts(folder), "conditioning": conditioning}


def _run_parts(folder: Path, said: str, latents: str) -> dict[str, Any]:
    """The UNet from the run, and the codec and the image tower that it carries; of older runs, those beside
    its latents.
    """
    model = folder if (folder / "conditioning.json").is_file() else folder / "model"
    if not (model / "conditioning.json").is_file() or not is_finished(folder):
        raise UserError(
            f"model={said}: holds no finished diffusion model; train it to the end, or give an exported folder"
        )
    conditioning = json.loads((model / "conditioning.json").read_text())
    with scratch_folder("models") as scratch:
        carried = (model / "autoencoder").is_dir()
        source = model if carried else scratch
        if carried:
            _check_carried(model, conditioning.get("sha256", {}), said)
        else:
            fetch_models(_older_latents(model, conditioning, said, latents), scratch)
        parts = _codec_parts(source)
        processor = read_processor(source / "image_encoder")
    kept = {name: value for name, value in conditioning.items() if name != "latents"}
    return {
        **_diffusion_parts(model),
        **parts,
        "conditioning": {**kept, "processor": _processor(processor, conditioning)},
    }


def _processor(settings: dict[str, Any], conditioning: dict[str, Any]) -> dict[str, Any]:
    """What made the pictures of a model: its processor, or of latents from before processors were honoured,
    the plain one.
    """
    return settings if conditioning.get("pictures", 1) > 1 else plain_processor(settings)


def _check_carried(folder: Path, recorded: dict[str, str], said: str) -> None:
    """`UserError` where a model folder holds another codec, tower or network than was recorded."""
    for name, sha256 in recorded.items():
        found = folder_sha256(folder / name)
        if found != sha256:
            raise UserError(
                f"model={said}: its {name} (sha256 {found[:12]}) is not the one it was made with ({sha256[:12]}); restore it from a copy"
            )


def _older_latents(model: Path, conditioning: dict[str, Any], said: str, latents: str) -> Dataset:
    """The dataset of latents of a model that carries no codec.

    `UserError` where it is gone, or was made anew by other models.
    """
    uri = latents or conditioning["latents"]
    try:
        dataset = Dataset.open(uri, "latents")
    except UserError as error:
        fix = "give their new place: python -m training export model=… latents=…"
        raise UserError(
            f"model={said}: its codec lies beside its latents, which are not at {uri} ({error}); {fix}"
        ) from error
    check_codec("latents", dataset, conditioning.get("sha256", {}))
    run = next((place / RUN for place in (model, model.parent) if (place / RUN).is_file()), None)
    snapshots = json.loads(run.read_text())["snapshots"] if run else []
    pinned = {commit["semantic_hash"] for snapshot in snapshots for commit in snapshot["commits"]}
    now = dataset.meta["semantic_hash"]
    if pinned and now not in pinned:
        raise UserError(
            f"model={said}: was trained on latents made with other settings or models ({min(pinned)[:12]}) than those now at {uri} "
            f"({now[:12]}); restore them, or give their place: python -m training export model=… latents=…"
        )
    return dataset


def _diffusion_parts(folder: Path) -> dict[str, Any]:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet").eval().requires_grad_(False)
    return {"unet": unet, "scheduler": FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")}


def _codec_parts(folder: Path) -> dict[str, Any]:
    return {
        "autoencoder": load_autoencoder(folder / "autoencoder"),
        "image_encoder": load_image_encoder(folder / "image_encoder"),
    }


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
    """The text of the exported pipeline.py: the pipeline's module after the modules of ours that it imports,
    without their imports of each other.
    """
    return "\n".join(_without_our_imports((ROOT / path).read_text()) for path in shipped_files()) + "\n"


def shipped_files() -> list[str]:
    """The pipeline's file after those of ours that it needs, each after what itself needs."""
    files: list[str] = []

    def add(path: str) -> None:
        for statement in _our_imports(ast.parse((ROOT / path).read_text())):
            add(f"{str(statement.module).replace('.', '/')}.py")
        if path not in files:
            files.append(path)

    add(PIPELINE)
    return files


def _our_imports(tree: ast.Module) -> list[ast.ImportFrom]:
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return [node for node in imports if str(node.module).split(".")[0] in ("ingest", "training")]


def _without_our_imports(text: str) -> str:
    """By statement and not by line: an import that is wrapped over several lines goes as a whole."""
    lines = text.splitlines()
    for statement in reversed(_our_imports(ast.parse(text))):
        del lines[statement.lineno - 1 : statement.end_lineno]
    return "\n".join(lines)
