"""The prior of a pipeline, which predicts a sound's tokens from the picture: opened, compared with a model.

    prior = open_prior("runs/prior")                            # a run, its folder, or an export that has one
    check_prior(prior, conditioning, model="runs/diffusion", path="runs/prior")

Tokens of another AudioMAE, or predicted from the embeddings of another image tower, are numbers of the same
shape that mean something else: what made both is compared by the sha256 that latents pin, never by shape
alone. The network is training.networks.prior's, its use training.pipeline.pipeline's.
"""

from pathlib import Path
from typing import Any

from configs.load import UserError
from training.networks.audiomae import NUM_TOKENS
from training.pipeline.pipeline import SOUND_TOKENS, Conditioning
from training.pretrained import find_model, folder_sha256, load_prior
from training.recipes.diffusion import PARTS
from training.recipes.prior import MADE_BY, made_by

FIX = "give the run of recipe=prior on the latents of this model"


def find_prior(path: str) -> Path:
    """The folder of its weights. `UserError` where there is none."""
    return find_model(path, "prior", PARTS.prior)


def open_prior(path: str) -> Any:
    """A `TokenPrior`, frozen, which knows what made the tokens it learnt from.

    `UserError` for something else.
    """
    return load_pinned_prior(find_prior(path))


def load_pinned_prior(folder: Path) -> Any:
    """The `TokenPrior` of a folder. One of an older version is told what lies beside it in its run."""
    prior: Any = load_prior(folder)
    if not prior.config.sha256:
        beside = {name: folder.parent / name for name in MADE_BY}
        found = {name: folder_sha256(model) for name, model in beside.items() if model.is_dir()}
        prior.register_to_config(sha256=found)
    return prior


def wanted_tokens(conditioning: Conditioning) -> dict[str, Any]:
    """The settings of the sequence that a prior predicts; {} of a model that does not attend to one."""
    sequences = conditioning.get("sequences", ())
    return next((dict(each) for each in sequences if each["name"] == SOUND_TOKENS), {})


def check_prior(prior: Any, conditioning: Conditioning, model: str, path: str) -> None:
    """`UserError` where a model has no prior and needs one, or has one that predicts what it never learnt.

    `path`: what the user gave as `prior`, "" for the model's own.
    """
    wanted = wanted_tokens(conditioning)
    if prior is None:
        if wanted:
            raise UserError(
                f"model={model}: attends to tokens of a sound ({wanted['member']}), and has no prior that "
                "predicts them from a picture; give prior=RUN, of recipe=prior on the same latents"
            )
        return
    setting = f"prior={path}" if path else f"model={model}: its prior"
    if not wanted:
        raise UserError(f"{setting}: model={model} attends to no AudioMAE tokens; leave prior out")
    _check_made_alike(prior, conditioning.get("sha256", {}), setting)
    image_dim = len(conditioning["image_mean"])
    if prior.config.image_dim != image_dim:
        need = f"the model's image encoder gives {image_dim}"
        raise UserError(f"{setting}: takes embeddings of {prior.config.image_dim} numbers, {need}; {FIX}")
    width = prior.config.token_dim
    length = prior.config.num_tokens
    if width != wanted["dim"]:
        need = f"the model attends to tokens of {wanted['dim']}"
        raise UserError(f"{setting}: predicts tokens of {width} numbers, {need}; {FIX}")
    # as many enter as entered in training, where longer sequences were cut
    if min(length, wanted["length"]) != min(NUM_TOKENS, wanted["length"]):
        need = f"the model attends to {wanted['length']}"
        raise UserError(f"{setting}: predicts {length} tokens, {need}; {FIX}")


def _check_made_alike(prior: Any, learnt: dict[str, str], setting: str) -> None:
    """`UserError` where the AudioMAE or the image tower was another one than of the model's latents."""
    pinned = prior.config.sha256 or {}
    for name, sha256 in made_by(learnt).items():
        if name not in pinned:
            raise UserError(f"{setting}: nothing says which {name} made what it learnt from; {FIX}")
        if pinned[name] != sha256:
            raise UserError(
                f"{setting}: learnt from what another {name} made (sha256 {pinned[name][:12]}) than the "
                f"model's ({sha256[:12]}); {FIX}"
            )
