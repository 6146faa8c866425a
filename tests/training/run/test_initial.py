"""Weights to start from: what fits is loaded and counted, their license is known, and a resume needs them no more."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.jsonl import read_lines
from configs.load import UserError
from tests.fakes.chain import Chain
from tests.fakes.clips import make_clips
from tests.fakes.runs import losses, settings
from tests.training.recipes.test_vocoder import GENERATORS, GEOMETRY, TINY
from training.networks.vocoders import VocoderConfig, build_vocoder
from training.pipeline.codec import vocode
from training.recipes import vocoder
from training.run.initial import compare, fill, read_origin
from training.settings import RECIPES, TrainConfig
from training.train import train
from training.weights_license import license_of


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_clips(tmp_path_factory.mktemp("clips") / "data").uri


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A stock vocoder as a publisher saves it, with a model card."""
    torch.manual_seed(1)
    folder = tmp_path / "published"
    vocoder = build_vocoder(GENERATORS["hifigan"], 64, 16000)
    for parameter in vocoder.parameters():
        # new ones are silent
        parameter.data *= 8
    vocoder.save_pretrained(folder)
    (folder / "README.md").write_text("---\ntags: [audio]\nlicense: cc-by-nc-sa-4.0\n---\n# A vocoder\n")
    return folder


def config(clips: str, output: Path, source: object = "", **changes: Any) -> TrainConfig:
    defaults = {"recipe": "vocoder", "vocoder": TINY, "steps": 4, "checkpoint_every": 2, "global_batch": 4}
    return settings(clips, output, init_from=str(source), **{**defaults, **changes})


def record(output: Path) -> dict[str, Any]:
    return json.loads((output / "run.json").read_text())


# --- What is loaded -----------------------------------------------------------------------------------------


def test_a_published_vocoder_sounds_the_same_in_ours(published: Path) -> None:
    stock = build_vocoder(GENERATORS["hifigan"], 64, 16000).from_pretrained(published)
    model: Any = vocoder.build_model(TINY, GEOMETRY)
    model.load_state_dict(vocoder.initial(str(published), TINY, GEOMETRY), strict=False)
    log_mel = torch.randn(1, 16, 64)
    with torch.no_grad():
        assert torch.allclose(vocode(model.generator, log_mel, 2560), vocode(stock, log_mel, 2560), atol=1e-6)


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_a_finished_model_of_ours_is_taken_whole(chain: Chain, recipe: str) -> None:
    run = json.loads((chain.root / recipe / "run.json").read_text())
    module = RECIPES[recipe]
    section = section_of(recipe, run)
    weights = module.initial(f"{chain.root}/{recipe}", section, run["facts"])
    counts = compare(module.build_model(section, run["facts"]), weights)
    assert all(
        part.loaded and not (part.new or part.left_over or part.other_shape) for part in counts.values()
    )


def section_of(recipe: str, run: dict[str, Any]) -> Any:
    from configs.load import load_config

    def leaves(prefix: str, values: dict[str, Any]) -> list[str]:
        flat = []
        for name, value in values.items():
            flat += (
                leaves(f"{prefix}.{name}", value)
                if isinstance(value, dict)
                else [f"{prefix}.{name}={value if isinstance(value, str) else json.dumps(value)}"]
            )
        return flat

    args = ["data=a", "output=b", f"recipe={recipe}", *leaves(recipe, run["config"][recipe])]
    return load_config(TrainConfig, args).section


def test_the_table_counts_every_tensor(
    clips: str, published: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        train(config(clips, tmp_path / "run", published))
    (table,) = [message for message in caplog.messages if "init_from=" in message]
    model = vocoder.build_model(TINY, GEOMETRY)
    counts = {"generator": 0, "discriminators": 0}
    for name in model.state_dict():
        counts[name.split(".")[0]] += 1
    rows = {line.split()[0]: [int(cell) for cell in line.split()[1:]] for line in table.splitlines()[2:]}
    assert rows["generator"] == [counts["generator"], 0, 0, 0]
    assert rows["discriminators"] == [0, counts["discriminators"], 0, 0]


def test_a_tensor_of_another_shape_is_counted_and_stays_random(published: Path) -> None:
    wider = vocoder.Config(
        generator=VocoderConfig(channels=128, block_kernels=[3], dilations=[1]),
        discriminators=TINY.discriminators,
    )
    weights = vocoder.initial(str(published), wider, GEOMETRY)
    counts = compare(vocoder.build_model(wider, GEOMETRY), weights)
    assert counts["generator"].other_shape > 0


def test_weights_of_which_nothing_fits_are_refused(chain: Chain, tmp_path: Path) -> None:
    other = config(chain.clips, tmp_path / "run", chain.autoencoder)
    with pytest.raises(UserError, match="vocoder=.*: holds a AutoencoderKL"):
        train(other)
    assert not (tmp_path / "run").exists()


def test_what_is_missing_is_said_to_be_missing(clips: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="init_from=.*nowhere: does not exist"):
        train(config(clips, tmp_path / "run", tmp_path / "nowhere"))


# --- Runs ---------------------------------------------------------------------------------------------------


def test_a_run_starts_from_them_and_another_from_random_ones(
    clips: str, published: Path, tmp_path: Path
) -> None:
    train(config(clips, tmp_path / "random"))
    train(config(clips, tmp_path / "first", published))
    train(config(clips, tmp_path / "second", published))
    assert losses(tmp_path / "first") == losses(tmp_path / "second")
    assert losses(tmp_path / "first")[0] != losses(tmp_path / "random")[0]
    assert "origin" not in record(tmp_path / "random")


@pytest.mark.parametrize("stage", [0, 3])
def test_a_resume_needs_them_no_more(clips: str, published: Path, tmp_path: Path, stage: int) -> None:
    train(config(clips, tmp_path / "whole", published, zero_stage=stage))
    train(config(clips, tmp_path / "run", published, steps=2, zero_stage=stage))
    shutil.rmtree(published)
    train(config(clips, tmp_path / "run", published, zero_stage=stage))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_a_run_keeps_its_origin(clips: str, published: Path, tmp_path: Path) -> None:
    train(config(clips, tmp_path / "run", published, steps=2))
    for other in ("", tmp_path / "another"):
        if other:
            torch.manual_seed(2)
            build_vocoder(GENERATORS["hifigan"], 64, 16000).save_pretrained(other)
        with pytest.raises(UserError, match="this run was started from .*published; give the same"):
            train(config(clips, tmp_path / "run", other, init_license="mit"))
    moved = shutil.move(published, tmp_path / "moved")
    train(config(clips, tmp_path / "run", moved))
    assert read_lines(tmp_path / "run/metrics.jsonl")[-1]["step"] == 4


def test_weights_that_changed_since_the_run_was_bound_are_refused(published: Path, tmp_path: Path) -> None:
    bound = config("clips", tmp_path / "run", published)
    origin = read_origin(bound, GEOMETRY)
    build_vocoder(GENERATORS["hifigan"], 64, 16000).save_pretrained(published)
    assert origin is not None
    with pytest.raises(UserError, match="holds other weights than when this run was bound to them"):
        fill(vocoder.build_model(TINY, GEOMETRY), bound, GEOMETRY, origin)


# --- Licenses -----------------------------------------------------------------------------------------------


def test_the_license_goes_with_the_model_and_with_what_is_made_from_it(
    clips: str, published: Path, tmp_path: Path
) -> None:
    train(config(clips, tmp_path / "first", published, steps=2))
    assert record(tmp_path / "first")["origin"]["license"] == "CC-BY-NC-SA-4.0"
    assert (
        json.loads((tmp_path / "first/model/origin.json").read_text()) == record(tmp_path / "first")["origin"]
    )
    for source in (tmp_path / "first", tmp_path / "first/model"):
        assert license_of(str(source), "") == "CC-BY-NC-SA-4.0"
