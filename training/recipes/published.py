"""What diffusion takes over, besides weights, from the pipeline or the run that it starts from.

    taken = adopt("hub:cvssp/audioldm-s-full-v2", config, geometry)    # geometry with the network's shapes

Of a pipeline of diffusers (AudioLDM, AudioLDM2): the settings of its UNet, and the factor that scales its
latents, which is a mean of 0 and a spread of 1 / factor here. Of a run of ours that began so: what that run
took. A bare network gives its weights alone (training.recipes.diffusion's `initial`).
"""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs.load import UserError
from training.networks.unet import label_dim_of, widths_of
from training.pipeline.sampling import objective_of
from training.pretrained import PIPELINE_INDEX, find_model, folder_sha256, load_scheduler, load_text_encoder
from training.recipes.recipe import Geometry

log = logging.getLogger(__name__)
CONDITIONING = "conditioning.json"  # marks the model of a run
CODEC = "vae"  # what a pipeline calls its autoencoder
SCHEDULE = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear"}
MOMENTS = ("latent_mean", "latent_std", "image_mean", "image_std")


def adopt(source: str, objective: str, projection: str, keeps_moments: bool, geometry: Geometry) -> Geometry:
    """`geometry` with what the weights behind `source` need to be what they were.

    `keeps_moments`: whitened as they were, not by the statistics of the data. `UserError` for weights of
    another objective, or for latents of another shape.
    """
    folder = find_model(source, "init_from", "unet")
    conditioning = conditioning_of(folder.parent)
    if conditioning:
        return _of_ours(conditioning, keeps_moments, geometry)
    if not (folder.parent / PIPELINE_INDEX).is_file():
        return geometry
    return _of_pipeline(folder.parent, source, objective, projection, geometry)


@torch.no_grad()
def empty_text(pipeline: Path) -> Tensor | None:
    """The vector [d] of no text, which a pipeline's guidance leads away from; None where it reads none.

    For towers that are aligned with its texts; a projection that is new has nothing of it.
    """
    folder = pipeline / "text_encoder"
    if not (folder / "config.json").is_file():
        return None
    encoder = load_text_encoder(folder)
    # RoBERTa's ids of an empty text
    ids = torch.tensor([[encoder.config.bos_token_id, encoder.config.eos_token_id]])
    vector: Tensor = torch.nn.functional.normalize(encoder(ids).text_embeds, dim=-1)[0]
    return vector


def conditioning_of(folder: Path) -> dict[str, Any]:
    """What a model of ours states of itself, of a run or an export; {} for a published one."""
    if (folder / CONDITIONING).is_file():
        return dict(json.loads((folder / CONDITIONING).read_text()))
    index = folder / PIPELINE_INDEX
    return dict(json.loads(index.read_text()).get("conditioning", {})) if index.is_file() else {}


def _of_ours(conditioning: dict[str, Any], keeps_moments: bool, geometry: Geometry) -> Geometry:
    """Shapes that are not of this run's settings, and with them how latents and vectors were scaled."""
    taken: Geometry = {**geometry}
    if "network" in conditioning:
        taken["network"] = conditioning["network"]
        taken["unit_vectors"] = conditioning["unit_vectors"]
    if "network" in conditioning or keeps_moments:
        for name in MOMENTS:
            if len(conditioning[name]) != len(geometry[name]):  # type: ignore[literal-required]
                raise UserError(
                    f"init_from: has {len(conditioning[name])} numbers of {name}, this data "
                    f"{len(geometry[name])}; precompute with its codec and image encoder"  # type: ignore[literal-required]
                )
            taken[name] = conditioning[name]  # type: ignore[literal-required]
    return taken


def _of_pipeline(
    pipeline: Path, source: str, objective: str, projection: str, geometry: Geometry
) -> Geometry:
    """A published pipeline's network and scale."""
    network = json.loads((pipeline / "unet/config.json").read_text())
    codec = json.loads((pipeline / CODEC / "config.json").read_text())
    try:
        label_dim = label_dim_of(network)
        widths_of(network)
    except ValueError as error:
        raise UserError(f"init_from={source}: its UNet has {error}") from error
    _check_schedule(pipeline, source, objective)
    channels = geometry["latent_shape"][0]
    if network["in_channels"] != channels:
        raise UserError(
            f"init_from={source}: takes latents of {network['in_channels']} channels, the data has "
            f"{channels}; precompute with autoencoder={source}"
        )
    if geometry.get("sha256", {}).get("autoencoder") != folder_sha256(pipeline / CODEC):
        log.warning(
            "the latents were not made by the autoencoder of init_from=%s: its network knows others; "
            "precompute with autoencoder=%s",
            *(source, source),
        )
    taken: Geometry = {
        **geometry,
        "network": network,
        # AudioLDM's pipelines give embeddings of length 1
        "unit_vectors": True,
        "latent_mean": [0.0] * channels,
        "latent_std": [1 / codec["scaling_factor"]] * channels,
    }
    image_dim = len(geometry["image_mean"])
    if label_dim and projection != "linear":
        if image_dim != label_dim:
            raise UserError(
                f"diffusion.projection={projection}: the image encoder gives {image_dim} numbers, the "
                f"network takes {label_dim}; give diffusion.projection=linear"
            )
        # a tower that is aligned with CLAP gives what the network knows: it stays as it is
        taken |= {"image_mean": [0.0] * image_dim, "image_std": [1.0] * image_dim}
    return taken


def _check_schedule(pipeline: Path, source: str, objective: str) -> None:
    """`UserError` where the network was trained for another prediction or under other betas."""
    scheduler = load_scheduler(pipeline / "scheduler")
    predicted = objective_of(scheduler)
    if predicted != objective:
        raise UserError(
            f"diffusion.objective={objective}: init_from={source} predicts {predicted}; "
            f"give diffusion.objective={predicted}"
        )
    stated = {name: scheduler.config.get(name) for name in SCHEDULE}
    if objective != "flow" and stated != SCHEDULE:
        raise UserError(f"init_from={source}: was trained with betas {stated}, we train with {SCHEDULE}")
