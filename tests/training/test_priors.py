"""The chain with a prior: picture -> embedding -> tokens of its sound -> latents -> sound; what does not fit is
refused, and what made it is counted.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from cluster.dataset import Dataset
from cluster.jsonl import read_lines
from cluster.shards import members_of, read_member
from configs.load import UserError
from ingest.pixels import open_picture
from tests.fakes.chain import Chain, frames_of
from training.data.npy import read_npy
from training.evaluate import evaluate
from training.evaluation import EvaluateConfig
from training.export import ExportConfig, export, open_pipeline
from training.generate import GenerateConfig, generate
from training.networks.prior import TokenPrior
from training.pretrained import load_prior
from training.priors import check_prior, open_prior
from training.recipes import diffusion
from training.recipes.conditions import SequenceConfig
from training.settings import TrainConfig
from training.train import train

WIDTH = 16  # of the chain's AudioMAE
TOKENS = SequenceConfig(member="audiomae.npy", dim=WIDTH, length=8, dropout=0.5)
UNET = diffusion.Config(
    channels=[8, 16], head_counts=[2, 2], layers_per_block=1, norm_groups=4, widths=[8], sequences=[TOKENS]
)
# at a rate that a few steps can be heard of: what is added to a network begins with zeros
SHARED: dict[str, Any] = {
    **{"workers": 0, "steps": 3, "global_batch": 4, "lanes": 4, "checkpoint_every": 3, "zero_stage": 0},
    **{"lr": 0.02, "warmup_steps": 0, "ema": 0.0},
}


@pytest.fixture(scope="module")
def models(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Runs that attend to tokens, by network: the vector beside them, and AudioLDM2's, without one."""
    folder = tmp_path_factory.mktemp("models")
    found = {}
    for network in ("audioldm", "audioldm2"):
        found[network] = str(folder / network)
        unet = replace(UNET, network=network)
        train(TrainConfig(data=chain.token_latents, output=found[network], diffusion=unet, **SHARED))
    return found


def wavs(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(output.glob("*.wav"))}


@pytest.mark.parametrize("network", ["audioldm", "audioldm2"])
def test_the_chain_works_whole_and_an_export_of_it_sounds_the_same(
    chain: Chain, models: dict[str, str], tmp_path: Path, network: str
) -> None:
    frames = frames_of(chain, tmp_path / "frames")
    folder = str(tmp_path / "export")
    export(ExportConfig(model=models[network], output=folder, prior=chain.prior))
    settings: dict[str, Any] = {"images": str(tmp_path / "frames"), "steps": 2, "threads": 1, "page": False}
    run = {"model": models[network], "prior": chain.prior, "batch": 1}
    generate(GenerateConfig(output=str(tmp_path / "run"), **run, **settings))
    generate(GenerateConfig(output=str(tmp_path / "again"), model=folder, batch=3, **settings))
    made = wavs(tmp_path / "run")
    assert len(made) == len(frames) == 4 and made == wavs(tmp_path / "again")
    # stock diffusers, which knows nothing of us
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    assert type(pipe.prior).__name__ == "TokenPrior"
    row = read_lines(tmp_path / "run/sounds.jsonl")[0]
    theirs = pipe(image=row["picture"], generator=torch.Generator().manual_seed(row["seed"]), steps=2)
    ours = open_pipeline(folder)(
        image=row["picture"], generator=torch.Generator().manual_seed(row["seed"]), steps=2
    )
    assert np.abs(theirs.audios - ours.audios).max() < 1e-4


def stored(latents: str, key: str) -> torch.Tensor:
    """The image embedding [1, d] of a sample, as precompute wrote it."""
    dataset = Dataset.open(latents)
    row = next(row for row in dataset.iter_rows() if row["key"] == key)
    tar = dataset.commits()[row["unit"]].tar
    member = next(member for member in members_of(row) if member.ext == "image.npy")
    assert tar
    return torch.from_numpy(read_npy(read_member(dataset.store, tar.name, member)).astype(np.float32))[None]


def heard_by(pipe: Any, guidance: float, **arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens [n, 8, d] that the conditioner is given in turn, and their presence [n, 8]."""
    values: list[torch.Tensor] = []
    presence: list[torch.Tensor] = []

    def keep(_: Any, inputs: Any) -> None:
        tokens, present = inputs[1]["audiomae"]
        values.append(tokens)
        presence.append(present)

    hook = pipe.conditioner.register_forward_pre_hook(keep)
    pipe(num_inference_steps=1, guidance_scale=guidance, **arguments)
    hook.remove()
    return torch.cat(values), torch.cat(presence)


def test_the_network_gets_what_the_prior_predicts_of_the_embedding_and_under_guidance_nothing(
    chain: Chain, models: dict[str, str], tmp_path: Path
) -> None:
    frame = frames_of(chain, tmp_path / "frames")[0]
    pipe = open_pipeline(models["audioldm"], prior=chain.prior)
    expected = load_prior(Path(chain.prior, "model/prior")).predict(stored(chain.token_latents, frame.stem))
    given, present = heard_by(pipe, 3.0, image=open_picture(frame))
    # its own whitening, of the embedding as it is stored
    assert torch.allclose(given[0], expected[0], atol=2e-3)
    assert (given[0] - pipe.prior.predict(pipe.embed(open_picture(frame)))[0]).abs().max() > 0.02
    # what guidance leads away from has no tokens, as in training where they were dropped
    assert present.tolist() == [[1] * 8, [0] * 8]
    ours, _ = heard_by(pipe, 1.0, image=frame, conditions={"audiomae": np.ones((8, WIDTH))})
    assert torch.equal(ours, torch.ones(1, 8, WIDTH))


def test_another_prior_is_another_model(chain: Chain, models: dict[str, str], tmp_path: Path) -> None:
    frame = frames_of(chain, tmp_path / "frames")[0]
    prior: Any = open_prior(chain.prior)
    torch.nn.init.constant_(prior.to_token.bias, 3.0)
    louder = str(tmp_path / "louder")
    prior.save_pretrained(louder)
    settings: dict[str, Any] = {"model": models["audioldm2"], "images": str(frame), "steps": 2, "page": False}
    generate(GenerateConfig(output=str(tmp_path / "a"), prior=chain.prior, **settings))
    generate(GenerateConfig(output=str(tmp_path / "b"), prior=louder, **settings))
    assert wavs(tmp_path / "a") != wavs(tmp_path / "b")
    with pytest.raises(UserError, match="prior"):
        generate(GenerateConfig(output=str(tmp_path / "a"), prior=louder, **settings))


# --- What does not fit --------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["generate", "evaluate", "export"])
def test_a_model_that_wants_tokens_is_refused_without_a_prior(
    chain: Chain, models: dict[str, str], tmp_path: Path, verb: str
) -> None:
    named: dict[str, Any] = {"model": models["audioldm"], "output": str(tmp_path / "out")}
    with pytest.raises(UserError, match=r"attends to tokens of a sound \(audiomae.npy\).*give prior=RUN"):
        if verb == "generate":
            frames_of(chain, tmp_path / "frames")
            generate(GenerateConfig(images=str(tmp_path / "frames"), **named))
        elif verb == "evaluate":
            evaluate(EvaluateConfig(data=chain.clips, truth=f"{chain.world}/truth", **named))
        else:
            export(ExportConfig(**named))
    assert not list(tmp_path.glob("out/*"))


def prior_with(**changes: Any) -> Any:
    sizes = {"image_dim": 3, "token_dim": WIDTH, "num_tokens": 8, "width": 4, "layers": 1, "heads": 1}
    return TokenPrior(**{**sizes, "sha256": {"audiomae": "a" * 64, "image_encoder": "b" * 64}, **changes})


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"token_dim": 12}, "predicts tokens of 12 numbers, the model attends to tokens of 16"),
        ({"num_tokens": 4}, "predicts 4 tokens, the model attends to 8"),
        ({"image_dim": 5}, "takes embeddings of 5 numbers, the model's image encoder gives 3"),
        (
            {"sha256": {"audiomae": "c" * 64, "image_encoder": "b" * 64}},
            r"another audiomae made \(sha256 cccccccccccc\) than the model's \(aaaaaaaaaaaa\)",
        ),
        ({"sha256": {"audiomae": "a" * 64, "image_encoder": "c" * 64}}, "another image_encoder made"),
        ({"sha256": None}, "nothing says which audiomae made"),
    ],
)
def test_a_prior_of_other_tokens_is_refused(changes: dict[str, Any], message: str) -> None:
    conditioning = {
        "sequences": [{"name": "audiomae", "member": "audiomae.npy", "dim": WIDTH, "length": 8}],
        "sha256": {"audiomae": "a" * 64, "image_encoder": "b" * 64, "autoencoder": "d" * 64},
        "image_mean": [0.0] * 3,
    }
    check_prior(prior_with(), conditioning, "run", "prior")
    with pytest.raises(UserError, match=f"prior=runs/prior: .*{message}.*give the run of recipe=prior"):
        check_prior(prior_with(**changes), conditioning, "run", "runs/prior")
    # longer sequences than the tokens there are were filled up, as they are here
    conditioning["sequences"] = [{**conditioning["sequences"][0], "length": 12}]  # type: ignore[dict-item]
    check_prior(prior_with(), conditioning, "run", "prior")


def test_a_prior_is_refused_where_no_tokens_are_attended_to(chain: Chain) -> None:
    with pytest.raises(UserError, match=f"prior={chain.prior}: .*attends to no AudioMAE tokens; leave prior"):
        open_pipeline(chain.diffusion, prior=chain.prior)
    with pytest.raises(UserError, match="prior=.*no finished model"):
        open_pipeline(chain.diffusion, prior=chain.clips)


def test_a_prior_of_an_older_version_knows_its_makers_by_what_lies_beside_it(
    chain: Chain, models: dict[str, str], tmp_path: Path
) -> None:
    run = shutil.copytree(chain.prior, tmp_path / "prior")
    path = run / "model/prior/config.json"
    config = json.loads(path.read_text())
    pinned = config.pop("sha256")
    path.write_text(json.dumps(config))
    assert pinned == {
        name: sha256
        for name, sha256 in Dataset.open(chain.token_latents).meta["config"]["sha256"].items()
        if name != "autoencoder"
    }
    pipe = open_pipeline(models["audioldm"], prior=str(run))
    # what export writes
    assert pipe.prior.config.sha256 == pinned
    # of one that was taken out of its run, nobody knows
    alone = shutil.copytree(run / "model/prior", tmp_path / "alone")
    with pytest.raises(UserError, match="nothing says which audiomae"):
        open_pipeline(models["audioldm"], prior=str(alone))


# --- Where it is from ---------------------------------------------------------------------------------------


def with_license(run: str, part: str, license: str, folder: Path) -> str:
    """A copy of a run, whose part began with weights of that license."""
    copy = shutil.copytree(run, folder)
    path = copy / "model/provenance.json"
    record = json.loads(path.read_text())
    record["parts"][part] |= {"license": license, "sources": [f"hub:some/{part}"]}
    path.write_text(json.dumps(record))
    return str(copy)


def test_what_made_the_tokens_is_counted_and_its_license_binds(
    chain: Chain, models: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "export"
    config = ExportConfig(
        model=with_license(models["audioldm"], "audiomae", "CC-BY-NC-SA-4.0", tmp_path / "run"),
        output=str(folder),
        prior=with_license(chain.prior, "prior", "CC-BY-NC-4.0", tmp_path / "prior"),
    )
    assert export(config)["license"] == "CC-BY-NC-SA-4.0"
    card = (folder / "README.md").read_text()
    assert "| prior | TokenPrior |" in card and "| audiomae | not in this folder" in card
    text = (folder / "LICENSE").read_text()
    assert "weights of prior (from hub:some/prior): CC-BY-NC-4.0" in text
    assert "weights of audiomae (from hub:some/audiomae): CC-BY-NC-SA-4.0" in text
    # what take-downs are looked for in
    parts = json.loads((folder / "provenance.json").read_text())["parts"]
    for part, data in (("prior", chain.token_latents), ("audiomae", chain.clips)):
        assert {each["snapshot"] for each in parts[part]["learnt_from"]} == {Dataset.open(data).snapshot().id}
    # an export of the export keeps all of it
    again = export(ExportConfig(model=str(folder), output=str(tmp_path / "again")))
    assert again["license"] == "CC-BY-NC-SA-4.0"
    assert json.loads((tmp_path / "again/provenance.json").read_text())["parts"].keys() == parts.keys()
