"""Weights of contrastive models in folders: `save_towers` writes one, `read_weights` reads ours or others'.

    save_towers(model, size_px, front_end, mel, folder)
    state = read_weights("hub:laion/clap-htsat-unfused", model, front_end, mel, tokenizer_sha256)

A published `ClapModel` is taken over only with its own front end, tokenizer and geometry, else refused with
the settings that it needs: its weights would fit by shape and hear or read something else.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

from configs.load import UserError
from training.networks.clap import with_statistics
from training.pipeline.mel import MEL_FILE, MelConfig
from training.pretrained import find_model, load_clap, load_image_encoder
from training.recipes.captions import facts_of, load_tokenizer, tokenizer_file
from training.recipes.clap_mel import NORMS, STATED, FrontEndConfig

AUDIO = "audio.safetensors"  # what is in no tower's folder
IMAGE_ENCODER, CLAP, AUDIO_ENCODER, TEXT_ENCODER = "image_encoder", "clap", "audio_encoder", "text_encoder"
EXTRACTOR = "preprocessor_config.json"
# what changes a branch's outputs and no shape of its weights
UNSEEN = {
    "audio": ("num_attention_heads", "window_size", "enable_fusion", "hidden_act", "layer_norm_eps"),
    "text": ("num_attention_heads", "pad_token_id", "hidden_act", "layer_norm_eps"),
}
PROJECTION = "projection_hidden_act"
# of spectrograms: a clip's length and how a codec shrinks them do not matter to a tower
HEARD = ("sample_rate_hz", "fft_size", "hop_size", "num_mels", "min_hz", "max_hz", "floor", "level")
Branches = dict[str, Any]
"""The towers of a model whose class is CLAP's, by modality."""


# --- Writing ------------------------------------------------------------------------------------------------


def save_towers(model: Any, size_px: int, front_end: FrontEndConfig, mel: MelConfig, folder: Path) -> None:
    """`image_encoder`; both of CLAP's branches as `clap`, one as `audio_encoder` or `text_encoder`; the rest
    in one file."""
    branches = branches_of(model)
    apart = list(branches)
    if "image" in model.modalities:
        apart.append("image")
        model.image.save_pretrained(folder / IMAGE_ENCODER)
        _save_processor(size_px, folder / IMAGE_ENCODER)
    if len(branches) == 2:
        clap_of(model).save_pretrained(folder / CLAP)
        _save_front_end(front_end, mel, folder / CLAP)
    elif "audio" in branches:
        model.audio.save_pretrained(folder / AUDIO_ENCODER)
        _save_front_end(front_end, mel, folder / AUDIO_ENCODER)
    elif "text" in branches:
        model.text.save_pretrained(folder / TEXT_ENCODER)
    rest = {
        name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if name.split(".")[0] not in apart
    }
    save_file(rest, folder / AUDIO)


def branches_of(model: Any) -> Branches:
    """CLAP's branches of a `Contrastive`."""
    branches: Branches = {"audio": model.audio} if model.projects else {}
    if "text" in model.modalities:
        branches["text"] = model.text
    return branches


def clap_of(model: Any) -> Any:
    """A stock `ClapModel` of a model's two branches and their temperatures."""
    settings = ClapConfig(
        audio_config=model.audio.config.to_dict(),
        text_config=model.text.config.to_dict(),
        projection_dim=model.audio.config.projection_dim,
    )
    clap: Any = ClapModel(settings)
    to_text, to_audio = model.state_dict()["text_log_scale"]
    temperatures = {"logit_scale_a": to_text, "logit_scale_t": to_audio}
    clap.load_state_dict({**model.audio.state_dict(), **model.text.state_dict(), **temperatures})
    return clap


def _save_processor(size_px: int, folder: Path) -> None:
    settings = {
        "size": {"height": size_px, "width": size_px},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "do_resize": True,
    }
    (folder / EXTRACTOR).write_text(json.dumps(settings, indent=1))


def _save_front_end(front_end: FrontEndConfig, mel: MelConfig, folder: Path) -> None:
    """CLAP's as transformers has it; AudioLDM's, which it does not have, as settings of ours."""
    if front_end.kind == "clap":
        ClapFeatureExtractor(**front_end.extractor()).save_pretrained(folder)
    else:
        (folder / MEL_FILE).write_text(json.dumps(mel.settings(), indent=1))


# --- Reading ------------------------------------------------------------------------------------------------


def read_weights(
    source: str, model: Any, front_end: FrontEndConfig, mel: MelConfig, tokenizer_sha256: str
) -> dict[str, Tensor]:
    """What `source` has for `model` (which may be on meta), under the names of its state.

    A published image tower or `ClapModel`, or all of a model of ours. `UserError` where a branch of CLAP
    would hear, read or compute other than where it was trained.
    """
    folder = find_model(source, "init_from", IMAGE_ENCODER, CLAP, AUDIO_ENCODER, TEXT_ENCODER)
    home = folder.parent
    is_ours = (home / AUDIO).is_file()
    state: dict[str, Tensor] = {}
    for tower in (home / CLAP, home / AUDIO_ENCODER, home / TEXT_ENCODER) if is_ours else (folder,):
        if _is_clap(tower):
            _check_clap(source, tower, model, front_end, mel, tokenizer_sha256)
            state |= _of_clap(tower, front_end)
    image = home / IMAGE_ENCODER if is_ours else folder
    if (image / "config.json").is_file() and not _is_clap(image):
        tower_state = load_image_encoder(image).state_dict()
        state |= {f"image.{name}": tensor for name, tensor in tower_state.items()}
    return state | (load_file(home / AUDIO) if is_ours else {})


def _is_clap(folder: Path) -> bool:
    path = folder / "config.json"
    return path.is_file() and str(json.loads(path.read_text()).get("model_type")).startswith("clap")


def _of_clap(folder: Path, front_end: FrontEndConfig) -> dict[str, Tensor]:
    """The state of a `ClapModel` or a branch of one, by the names of a `Contrastive`."""
    published: dict[str, Tensor] = load_clap(folder).state_dict()
    audio = {name: tensor for name, tensor in published.items() if name.startswith("audio_")}
    if audio:
        audio = with_statistics(audio, NORMS[front_end.kind])
    state = {f"audio.{name}": tensor for name, tensor in audio.items()}
    state |= {f"text.{name}": tensor for name, tensor in published.items() if name.startswith("text_")}
    if "logit_scale_a" in published:
        state["text_log_scale"] = torch.stack([published["logit_scale_a"], published["logit_scale_t"]])
    return state


def _check_clap(
    source: str,
    folder: Path,
    model: Any,
    front_end: FrontEndConfig,
    mel: MelConfig,
    tokenizer_sha256: str,
) -> None:
    """`UserError` for what shapes do not show: the front end, the tokenizer, heads and the like."""
    settings = json.loads((folder / "config.json").read_text())
    for name, branch in branches_of(model).items():
        stated = settings.get(f"{name}_config", settings)
        if settings["model_type"] not in ("clap", f"clap_{name}_model"):
            continue
        stock = type(branch.config)(**{key: value for key, value in stated.items() if key in UNSEEN[name]})
        for key in UNSEEN[name]:
            needed = getattr(stock, key)
            given = getattr(branch.config, key)
            if needed != given and list(_listed(needed)) != list(_listed(given)):
                raise UserError(
                    f"init_from={source}: its {name} branch has {key}={needed}, contrastive.{name} makes "
                    f"{given}; give its settings"
                )
        activation = settings.get(PROJECTION, "relu")
        if activation != getattr(branch.config, PROJECTION):
            raise UserError(f"init_from={source}: has {PROJECTION}={activation}, need relu; give another")
        if name == "audio":
            _check_front_end(source, folder, front_end, mel)
        else:
            _check_tokenizer(source, folder, tokenizer_sha256)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _check_front_end(source: str, folder: Path, front_end: FrontEndConfig, mel: MelConfig) -> None:
    """`UserError` where an audio branch was trained on other features than `front_end` makes."""
    if (folder / MEL_FILE).is_file():
        stated = json.loads((folder / MEL_FILE).read_text())
        own = asdict(mel)
        other = [name for name in HEARD if name in stated and stated[name] != own[name]]
        if front_end.kind != "mel" or other:
            raise UserError(
                f"init_from={source}: hears other log mels ({', '.join(other) or 'AudioLDM'}); "
                "give contrastive.front_end.kind=mel and clips of its rate"
            )
        return
    if not (folder / EXTRACTOR).is_file():
        raise UserError(f"init_from={source}: has no {EXTRACTOR}; save its feature extractor into the folder")
    stated = json.loads((folder / EXTRACTOR).read_text())
    truncation = stated.get("truncation", "fusion")
    if truncation == "fusion":
        raise UserError(
            f"init_from={source}: its features are drawn at random (truncation=fusion); "
            "give an unfused one, such as hub:laion/clap-htsat-unfused"
        )
    needed = ["contrastive.front_end.kind=clap"] if front_end.kind != "clap" else []
    stock = ClapFeatureExtractor(**{name: stated[name] for name in STATED.values() if name in stated})
    for name, theirs in STATED.items():
        if getattr(stock, theirs) != getattr(front_end, name):
            needed.append(f"contrastive.front_end.{name}={getattr(stock, theirs)}")
    if needed:
        raise UserError(f"init_from={source}: was trained on other features; give {' '.join(needed)}")


def _check_tokenizer(source: str, folder: Path, sha256: str) -> None:
    """`UserError` where a text branch was trained on other tokens than this run's."""
    fix = f"give contrastive.text.tokenizer={source}"
    if tokenizer_file(folder) is None:
        raise UserError(
            f"init_from={source}: has no tokenizer.json; save its tokenizer into the folder, and {fix}"
        )
    if facts_of(load_tokenizer(str(folder)))["sha256"] != sha256:
        raise UserError(f"init_from={source}: its text branch reads other tokens; {fix}")
