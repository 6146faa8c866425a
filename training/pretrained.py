"""Finds trained models by what a user types, and loads them frozen.

    folder = find_model("out/demo/runs/autoencoder", "autoencoder")   # a run, or any save_pretrained folder
    autoencoder = load_autoencoder(folder)                            # `UserError` unless it is complete

Used by precompute (autoencoder, image encoder) and by everything that opens a pipeline. What a URI names is
copied to this machine first, for as long as the process lives; `hub:…` into the cache of Hugging Face.
"""

import atexit
import hashlib
import importlib.util
import json
import math
import shutil
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    AudioLDM2UNet2DConditionModel,
    AutoencoderKL,
    MMAudioVAE,
    MMAudioVocoder,
    SchedulerMixin,
    UNet2DConditionModel,
)
from diffusers.utils.logging import disable_progress_bar as quiet_diffusers
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForAudioClassification,
    ClapAudioModelWithProjection,
    ClapModel,
    ClapTextModelWithProjection,
    CLIPVisionModelWithProjection,
    SiglipVisionModel,
    SpeechT5HifiGan,
    ViTMAEForPreTraining,
)
from transformers.utils.logging import disable_progress_bar as quiet_transformers

from cluster.dataset import Dataset
from cluster.learnt import PROVENANCE
from cluster.scratch import new_scratch
from cluster.storage import open_store
from configs.load import UserError
from training.encoder_files import PACKAGES, is_plain, packaged, timm_processor, unpacked
from training.networks.audiomae import SpectrogramMae
from training.networks.conditioner import Conditioner
from training.networks.efficientnet_lite import EfficientNetLite
from training.networks.istft_vocoder import IstftVocoder
from training.networks.map_tower import MapTower
from training.networks.prior import TokenPrior
from training.pipeline.codec import ImageConfig, Processor
from training.pipeline.mel import MEL_FILE, MelConfig
from training.pipeline.sampling import build_scheduler, objective_of
from training.run.lora import load_adapters

quiet_diffusers()
quiet_transformers()
# torch lists its constructors at the first use of a device as context, for ever. transformers swaps
# torch.linspace while it loads: were that the first use, linspace would make no meta tensors ever after.
with torch.device("meta"):
    torch.empty(0)
HUB = "hub:"
SCHEDULER_FILE = "scheduler_config.json"  # diffusers' name
PIPELINE_INDEX = "model_index.json"  # diffusers' name; marks a pipeline
PIPELINE_PARTS = ("unet", "vae", "vocoder")  # those of AudioLDM's that are of use here
RUN = "run.json"  # marks the folder of a run
FINISHED = "FINISHED.json"  # written last, after the model
# of a run with lora.merge=false, beside its network
ADAPTERS = "lora"
NETWORKS: dict[str, type[Any]] = {
    "UNet2DConditionModel": UNet2DConditionModel,
    "AudioLDM2UNet2DConditionModel": AudioLDM2UNet2DConditionModel,
}  # by `_class_name` in their config.json
CODECS = ("AutoencoderKL", "MMAudioVAE")
VOCODERS: dict[str, Any] = {
    "SpeechT5HifiGan": SpeechT5HifiGan,
    "MMAudioVocoder": MMAudioVocoder,
    "IstftVocoder": IstftVocoder,
}
TIMM_MODEL = "timm_wrapper"
OWN_TOWERS: dict[str, Any] = {"EfficientNetLite": EfficientNetLite, "MapTower": MapTower}
IMAGE_TOWERS: dict[str, Any] = {  # by `model_type`; all others as `AutoModel` finds them
    "clip": CLIPVisionModelWithProjection,
    "clip_vision_model": CLIPVisionModelWithProjection,
    "siglip": SiglipVisionModel,
    "siglip_vision_model": SiglipVisionModel,
}
TRAINED_POOLERS = "give a tower whose embedding was trained: CLIP, SigLIP2, DINOv2, or one of timm"
CLAPS: dict[str, Any] = {  # by `model_type` in their config.json
    "clap": ClapModel,
    "clap_audio_model": ClapAudioModelWithProjection,
    "clap_text_model": ClapTextModelWithProjection,
}
# what a vocoder's spectrograms and a model's have to share; lengths and the codec's ratio may differ
VOCODED = ("sample_rate_hz", "fft_size", "hop_size", "num_mels", "min_hz", "max_hz", "floor", "level")
MAX_REASON = 200  # characters of a library's message in one of ours


def local_copy(path: str) -> Path:
    """A local path is returned as it is; a URI is downloaded (of a run, only its model).

    If nothing exists there, neither does the result.
    """
    if path.startswith(HUB):
        return hub_copy(path)
    if "://" not in path:
        return Path(path)
    store = open_store(path)
    folder = new_scratch("model")
    # models are memory-mapped: their files must live as long as the process
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    markers = [name for name in (RUN, FINISHED) if store.exists(name)]
    # a run's checkpoints may be a hundred times its model
    names = [*markers, *store.list("model")] if markers else store.list()
    for name in names:
        target = folder / "copy" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        store.get_file(name, target)
    return folder / "copy"


def hub_copy(path: str) -> Path:
    """`hub:owner/name[/folder][@revision]`: its folder in the Hugging Face cache, downloaded if missing.

    Only settings, weights and what states their license, of a pipeline's parts too: safetensors, or where
    there are none the files of PyTorch, which are read as plain tensors.
    """
    name, _, revision = path.removeprefix(HUB).partition("@")
    owner, repository, *folders = [*name.split("/"), ""]
    folder = "/".join(folders).rstrip("/")
    try:
        # safetensors first: a .bin is a pickle, even if it is read without running any
        for weights in ("*.safetensors", "*.bin"):
            patterns = [f"{folder}/{pattern}".removeprefix("/") for pattern in ("*.json", weights)]
            patterns += ["README.md", "LICENSE*"]
            copy = snapshot_download(
                f"{owner}/{repository}", revision=revision or None, allow_patterns=patterns
            )
            if _has_weights(Path(copy, folder), weights):
                return Path(copy, folder)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:MAX_REASON]
        raise UserError(
            f"{path}: cannot be had from the hub ({reason}); check the name and the connection; "
            "HF_TOKEN for gated models, HF_HUB_OFFLINE=1 uses only what was downloaded before"
        ) from error
    raise UserError(
        f"{path}: holds no weights there (*.safetensors or *.bin); name its folder as hub:owner/name/folder"
    )


def _has_weights(folder: Path, pattern: str) -> bool:
    """Whether weights of this kind are in a folder, or of a pipeline in each part that is of use here."""
    if not (folder / PIPELINE_INDEX).is_file():
        return any(folder.glob(pattern))
    parts = [part for part in PIPELINE_PARTS if (folder / part / "config.json").is_file()]
    return bool(parts) and all(any((folder / part).glob(pattern)) for part in parts)


def is_finished(folder: Path) -> bool:
    """False for a run that is under way: its model folder may be half written.

    True for everything that is not a run.
    """
    return (folder / FINISHED).is_file() or not (folder / RUN).is_file()


def find_model(path: str, setting: str, *inside: str) -> Path:
    """The `save_pretrained` folder behind `path`: itself, `path/model`, or one of `inside` in one of them.

    `UserError`, naming `setting`, where no config.json is found there.
    """
    root = local_copy(path)
    # a run keeps its model in model/; where a model has several parts, `inside` are folders of this one
    candidates: list[Path] = []
    for folder in (root, root / "model"):
        candidates += [*(folder / name for name in inside), folder]
    for folder in candidates:
        if (folder / "config.json").is_file() and is_finished(root):
            return folder
    if not root.exists() and path.count("/") == 1 and not path.startswith((".", "/")):
        raise UserError(f"{setting}={path}: no such folder; a model of the Hugging Face hub is hub:{path}")
    state = "holds no finished model (is its training finished?)" if root.exists() else "does not exist"
    raise UserError(f"{setting}={path}: {state}; give a finished run or a save_pretrained folder")


def load_autoencoder(folder: Path) -> nn.Module:
    """`AutoencoderKL` on mels or `MMAudioVAE`, frozen, in eval mode.

    `UserError` for another class, for pictures, or where weights are missing.
    """
    config = json.loads((folder / "config.json").read_text())
    kind = config.get("_class_name")
    if kind not in CODECS:
        raise UserError(f"autoencoder={folder}: holds a {kind}, need one of {', '.join(CODECS)}")
    if kind == "MMAudioVAE":
        return load_whole(MMAudioVAE, folder, "autoencoder")
    taken = config.get("in_channels", 3)  # diffusers' default is a picture's
    given = config.get("out_channels", 3)
    if (taken, given) != (1, 1):
        fix = "a mel has one: give an autoencoder of mels"
        raise UserError(f"autoencoder={folder}: takes {taken} channels and gives {given}, {fix}")
    return load_whole(AutoencoderKL, folder, "autoencoder")


def find_image_encoder(path: str) -> Path:
    """The folder of an image tower: `find_model`'s, of a package by its name, or of a plain state dict."""
    if path in PACKAGES and not Path(path).exists():
        return packaged(path)
    root = local_copy(path)
    return unpacked(root) if is_plain(root) else find_model(path, "image_encoder", "image_encoder")


def load_image_encoder(folder: Path) -> nn.Module:
    """An image tower of transformers, of timm or of `OWN_TOWERS`, frozen, in eval mode, float32.

    `UserError` where weights are missing, where it takes no plain pictures, or has no trained pooler.
    """
    config = json.loads((folder / "config.json").read_text())
    own = OWN_TOWERS.get(config.get("_class_name", ""))
    if own:
        return load_whole(own, folder, "image_encoder")
    kind = config.get("model_type", TIMM_MODEL if "pretrained_cfg" in config else "")
    if kind == TIMM_MODEL and not importlib.util.find_spec("timm"):
        raise UserError(f"image_encoder={folder}: is a tower of timm; install it: pip install '.[timm]'")
    if kind.startswith("siglip2"):
        fix = "give one of a fixed size, such as hub:google/siglip2-base-patch16-224"
        raise UserError(f"image_encoder={folder}: cuts pictures into patches of any number (NaFlex); {fix}")
    if not config.get("vision_config", config).get("vision_use_head", True):
        raise UserError(f"image_encoder={folder}: its pooler was never trained; {TRAINED_POOLERS}")
    loader = IMAGE_TOWERS.get(kind, AutoModel)
    return load_whole(loader, folder, "image_encoder", dtype=torch.float32, local_files_only=True)


def load_clap(folder: Path) -> nn.Module:
    """A `ClapModel`, or one branch of it with its projection, frozen, in eval mode, float32.

    `UserError` for another class, or where weights are missing.
    """
    kind = json.loads((folder / "config.json").read_text()).get("model_type")
    if kind not in CLAPS:
        raise UserError(f"{folder}: holds a {kind}, need one of {', '.join(CLAPS)}")
    return load_whole(CLAPS[kind], folder, "init_from", dtype=torch.float32, local_files_only=True)


def load_audio_classifier(folder: Path) -> nn.Module:
    """Any classifier of sounds of transformers, frozen, in eval mode, float32.

    `UserError` for another class, or where weights are missing.
    """
    loader = AutoModelForAudioClassification
    return load_whole(loader, folder, "classifier", dtype=torch.float32, local_files_only=True)


def load_audiomae(folder: Path) -> nn.Module:
    """A masked autoencoder of spectrograms, or of pictures, frozen, in eval mode.

    `UserError` for another class, or where weights are missing.
    """
    kind = model_kind(folder)
    if kind != "vit_mae":
        raise UserError(f"audiomae={folder}: holds a {kind}, need a vit_mae: recipe=audiomae trains one")
    config = json.loads((folder / "config.json").read_text())
    # the stock class knows the names in older files; ours takes rectangles
    is_stock = "ViTMAEForPreTraining" in (config.get("architectures") or ())
    loader: Any = ViTMAEForPreTraining if is_stock else SpectrogramMae
    return load_whole(loader, folder, "audiomae", dtype=torch.float32, local_files_only=True)


def load_prior(folder: Path) -> nn.Module:
    """A `TokenPrior`, frozen, in eval mode. `UserError` for another class, or where weights are missing."""
    if model_kind(folder) != TokenPrior.__name__:
        raise UserError(f"prior={folder}: holds a {model_kind(folder)}, need one of recipe=prior")
    return load_whole(TokenPrior, folder, "prior")


def model_kind(folder: Path) -> str:
    """What a folder states: a class of diffusers or ours, or a type of transformers; "" for neither."""
    config = json.loads((folder / "config.json").read_text())
    return str(config.get("_class_name") or config.get("model_type") or "")


def load_network(folder: Path) -> nn.Module:
    """A diffusers network of `NETWORKS`, frozen, in eval mode, with the adapters beside it merged into it.

    `UserError` for another class.
    """
    name = json.loads((folder / "config.json").read_text()).get("_class_name")
    if name not in NETWORKS:
        raise UserError(f"model={folder}: holds a {name}, need one of {', '.join(NETWORKS)}")
    network = load_whole(NETWORKS[name], folder, "model")
    adapters = folder.parent / ADAPTERS
    if not adapters.is_dir():
        return network
    return load_adapters(network, adapters).eval().requires_grad_(False)


def load_vocoder(folder: Path, mel: MelConfig) -> nn.Module:
    """A `SpeechT5HifiGan` or a `MMAudioVocoder`, frozen, in eval mode.

    `UserError` for another class, and for one of other spectrograms than `mel`.
    """
    config = json.loads((folder / "config.json").read_text())
    kind = config.get("_class_name") or (config.get("architectures") or ["model of no name"])[0]
    if kind not in VOCODERS:
        raise UserError(f"vocoder={folder}: holds a {kind}, need one of {', '.join(VOCODERS)}")
    _check_spectrogram(folder, config, mel)
    return load_whole(VOCODERS[kind], folder, "vocoder")


def _check_spectrogram(folder: Path, config: dict[str, Any], mel: MelConfig) -> None:
    """`UserError` where a vocoder was trained on other spectrograms; of published ones little is known."""
    stated = {
        "num_mels": config.get("model_in_dim", config.get("num_mels")),
        "hop_size": config.get("hop_size") or math.prod(config.get("upsample_rates", ())),
        "sample_rate_hz": config.get("sampling_rate", mel.sample_rate_hz),
    }
    if (folder / MEL_FILE).is_file():
        stated = json.loads((folder / MEL_FILE).read_text())
    for name in VOCODED:
        if name in stated and stated[name] != getattr(mel, name):
            raise UserError(
                f"vocoder={folder}: was trained on spectrograms of {name}={stated[name]}, "
                f"the model makes {name}={getattr(mel, name)}; train one on its clips: recipe=vocoder"
            )


def load_text_encoder(folder: Path) -> Any:
    """CLAP's text tower of a pipeline, frozen, in eval mode."""
    return load_whole(ClapTextModelWithProjection, folder, "init_from", local_files_only=True)


def load_conditioner(folder: Path) -> nn.Module:
    """What conditions pass before the network, frozen, in eval mode."""
    return load_whole(Conditioner, folder, "model")


def load_scheduler(folder: Path) -> Any:
    """The scheduler of diffusers that a folder names. `UserError` for none, or one of another prediction."""
    path = folder / SCHEDULER_FILE
    try:
        name = json.loads(path.read_text())["_class_name"]
        kind: Any = getattr(diffusers, name, None)
        if SchedulerMixin not in getattr(kind, "__mro__", ()):
            raise ValueError(f"{name} is no scheduler of diffusers")
        scheduler = kind.from_pretrained(folder)
        objective_of(scheduler)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:MAX_REASON]
        raise UserError(f"{path}: cannot be used ({reason}); restore it, or export again") from error
    return scheduler


def scheduler_of(sampler: str, stored: Any) -> Any:
    """The scheduler of a sampler by name, for what the model with the `stored` one predicts; "": that one.

    `UserError` for an unknown sampler, or one that does not fit.
    """
    if not sampler:
        return stored
    try:
        return build_scheduler(sampler, objective_of(stored))
    except ValueError as error:
        raise UserError(str(error)) from error


def load_whole(loader: Any, folder: Path, setting: str, **options: Any) -> nn.Module:
    """The model, frozen, in eval mode.

    `UserError` where its files cannot be read or lack weights, which would be random ones.
    """
    try:
        model, info = loader.from_pretrained(folder, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:MAX_REASON]
        raise UserError(
            f"{setting}={folder}: cannot be loaded ({type(error).__name__}: {reason}); restore its files"
        ) from error
    # older files of transformers lack position_ids, which are no weights
    missing = sorted(name for name in info["missing_keys"] if not name.endswith("position_ids"))
    missing += sorted(str(name) for name in info.get("mismatched_keys") or ())
    if missing:
        names = f"{missing[0]} and {len(missing) - 1} more" if len(missing) > 1 else missing[0]
        raise UserError(
            f"{setting}={folder}: its files have no weights for {names}, which would be random; "
            + (TRAINED_POOLERS if "pooler" in missing[0] else "give a complete model")
        )
    frozen: nn.Module = model.eval().requires_grad_(False)
    return frozen


def check_finite(model: nn.Module, setting: str, path: str) -> None:
    """`UserError` where a weight is NaN or infinite."""
    if not all(bool(torch.isfinite(tensor).all()) for tensor in model.state_dict().values()):
        raise UserError(f"{setting}={path}: holds weights that are NaN or infinite; give a sound model")


def read_processor(folder: Path) -> Processor:
    """The image settings of a tower; timm's are in its config.json.

    `UserError` where preprocessor_config.json is missing, or needs what is not done here.
    """
    path = folder / "preprocessor_config.json"
    config = json.loads((folder / "config.json").read_text()) if (folder / "config.json").is_file() else {}
    is_timm = "pretrained_cfg" in config
    if is_timm:
        path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"image_encoder={folder}: preprocessor_config.json is missing; "
            "save the image processor into the folder"
        )
    try:
        settings: Processor = timm_processor(config) if is_timm else json.loads(path.read_text())
        ImageConfig.from_processor(settings)
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        fix = "give a tower whose pictures can be made so"
        raise UserError(f"image_encoder={path}: {reason}; {fix}") from error
    return settings


def plain_processor(settings: Processor) -> Processor:
    """A centred square, scaled bilinearly: how version 1 of latents had pictures, whatever the processor."""
    size = settings.get("crop_size") or settings["size"]
    side = size if isinstance(size, int) else size.get("height") or size["shortest_edge"]
    return {
        "size": {"height": side, "width": side},
        "image_mean": settings["image_mean"],
        "image_std": settings["image_std"],
    }


def pictures_version(settings: Processor) -> int:
    """2 where a processor's pictures are not those of `plain_processor`, else 1."""
    plain = ImageConfig.from_processor(plain_processor(settings))
    return 1 if ImageConfig.from_processor(settings) == plain else 2


def fetch_models(latents: Dataset, folder: Path) -> None:
    """Copies what precompute kept beside the latents to `folder/autoencoder` and `folder/image_encoder`.

    `OSError` where a model is not the one the latents were made with.
    """
    for name in latents.store.list("models"):
        target = folder / name.removeprefix("models/")
        target.parent.mkdir(parents=True, exist_ok=True)
        latents.store.get_file(name, target)
    for name, sha256 in latents.meta["config"].get("sha256", {}).items():
        if folder_sha256(folder / name) != sha256:
            raise OSError(f"{latents.uri}/models/{name}: is not the model that these latents were made with")


def folder_sha256(folder: Path) -> str:
    """Over the names and bytes of a model folder's files: what makes latents different.

    Where it is from is none of that.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.name != PROVENANCE and path.is_file() and path.suffix in (".json", ".safetensors", ".bin"):
            digest.update(f"{path.name} {path.stat().st_size} ".encode())
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
