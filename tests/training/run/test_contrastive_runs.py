"""Contrastive runs of CLAP's towers: they learn to find, resume bit for bit after a kill, at every ZeRO stage."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cluster.dataset import Dataset
from cluster.jsonl import read_lines
from configs.load import UserError, load_config
from tests.fakes.captioned import make_captioned
from tests.fakes.published_clap import save_published
from tests.fakes.ranks import kill_ranks, train_ranks
from tests.fakes.runs import arguments, losses
from training.data.catalogue import Catalogue
from training.data.randomness import SampleKey
from training.recipes import contrastive
from training.settings import TrainConfig
from training.train import train

TINY = [
    "recipe=contrastive",
    "contrastive.embedding_dim=16",
    "contrastive.audio.kind=clap",
    "contrastive.audio.htsat.width=8",
    "contrastive.audio.htsat.depths=[1,1]",
    "contrastive.audio.htsat.heads=[2,2]",
    "contrastive.audio.htsat.spec_size=64",
    "contrastive.audio.htsat.window=4",
    "contrastive.text.width=16",
    "contrastive.text.layers=1",
    "contrastive.text.heads=2",
    "contrastive.text.column=caption",
    "contrastive.text.max_tokens=16",
    "contrastive.image.size_px=32",
    "contrastive.image.widths=[8]",
    "contrastive.image.depths=[1]",
    "contrastive.image.stem=8",
    "contrastive.image.norm_groups=4",
]
KINDS = {
    "clap": ["contrastive.image.kind=", "contrastive.text.kind=clap"],
    "clap_pictures": ["contrastive.image.kind=resnet"],
    "three_way": ["contrastive.image.kind=resnet", "contrastive.text.kind=clap"],
}
RUN = [
    "workers=0",
    "global_batch=16",
    "lanes=4",
    "steps=6",
    "checkpoint_every=2",
    "warmup_steps=2",
    "block_size=1",
]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_captioned(tmp_path_factory.mktemp("captioned") / "clips").uri


def config_of(clips: str, output: Path, kind: str, *more: str) -> TrainConfig:
    args = [f"data={clips}", f"output={output}", *TINY, *KINDS[kind], *RUN, *more]
    return load_config(TrainConfig, args)


# --- Learning -----------------------------------------------------------------------------------------------


def found(model: Any, clips: str, config: TrainConfig) -> float:
    """The share of held-out samples of one unit that find their partner among the eight, a mean over pairs."""
    dataset = Dataset.open(clips)
    catalogue = Catalogue.of(dataset, dataset.snapshot(), "validation", contrastive.MEMBERS)
    items = [item for item, key in enumerate(catalogue.keys) if "k_000_" in str(key)]
    samples = catalogue.read(items)
    keys = [SampleKey(0, 0, item) for item in items]
    facts = contrastive.geometry(dataset.snapshot(), dataset.meta, config.contrastive)
    batch = contrastive.make_batch([samples[item] for item in items], keys, config.contrastive, facts)
    assert len(items) == 8 and batch["weight"].sum() == 8
    with torch.no_grad():
        return float(model.eval()(batch)["accuracy"].mean())


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_run_learns_to_find_what_belongs_together(clips: str, tmp_path: Path, kind: str) -> None:
    config = config_of(
        clips, tmp_path / "run", kind, "steps=120", "checkpoint_every=120", "lr=4e-3", "ema=0.9"
    )
    dataset = Dataset.open(clips)
    facts = contrastive.geometry(dataset.snapshot(), dataset.meta, config.contrastive)
    torch.manual_seed(config.seed)
    fresh = contrastive.build_model(config.contrastive, facts)
    before = found(fresh, clips, config)
    train(config)
    model = contrastive.build_model(config.contrastive, facts)
    model.load_state_dict(contrastive.initial(str(tmp_path / "run"), config.contrastive, facts))
    after = found(model, clips, config)
    assert after >= max(0.5, before + 0.25), (before, after)


# --- Resuming -----------------------------------------------------------------------------------------------


def test_a_killed_run_repeats_an_unbroken_one_bit_for_bit(clips: str, tmp_path: Path) -> None:
    args = [
        *TINY,
        *KINDS["three_way"],
        *RUN[1:],
        "steps=12",
        "checkpoint_every=3",
        "warmup_steps=3",
        "lr=1e-3",
    ]
    kill_ranks(arguments(clips, tmp_path / "run", *args), 1, step=8)
    train_ranks(arguments(clips, tmp_path / "run", *args), 1)
    events = read_lines(tmp_path / "run/events.jsonl")
    assert [event["event"] for event in events] == ["started", "resumed", "finished"]
    # in such a process, too: in one that has done other things, libraries may round otherwise
    train_ranks(arguments(clips, tmp_path / "whole", *args), 1)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    files = sorted(
        path.relative_to(tmp_path / "whole/model") for path in (tmp_path / "whole/model").rglob("*.*")
    )
    assert {str(file) for file in files} > {
        "audio.safetensors",
        "clap/model.safetensors",
        "clap/tokenizer.json",
        "image_encoder/model.safetensors",
    }
    for file in files:
        assert (tmp_path / "run/model" / file).read_bytes() == (tmp_path / "whole/model" / file).read_bytes()


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_every_zero_stage_computes_the_same_losses(clips: str, tmp_path: Path, stage: int) -> None:
    train(config_of(clips, tmp_path / "one", "three_way", "zero_stage=1"))
    train(config_of(clips, tmp_path / "other", "three_way", f"zero_stage={stage}", "steps=4"))
    assert (
        train(config_of(clips, tmp_path / "other", "three_way", f"zero_stage={stage}"))["resumed_from"] == 4
    )
    assert losses(tmp_path / "other") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


def test_two_workers_give_the_losses_of_one(clips: str, tmp_path: Path) -> None:
    train(config_of(clips, tmp_path / "one", "three_way"))
    args = [*TINY, *KINDS["three_way"], *RUN[1:], "lr=1e-4"]
    train_ranks(arguments(clips, tmp_path / "two", *args), 2)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)


def test_half_precision_trains(clips: str, tmp_path: Path) -> None:
    train(config_of(clips, tmp_path / "run", "three_way", "precision=bf16"))
    whole = config_of(clips, tmp_path / "whole", "three_way")
    train(whole)
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), rel=0.1)


# --- Starting -----------------------------------------------------------------------------------------------


def test_a_column_that_no_sample_has_is_refused_with_those_there_are(
    clips: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(
        UserError, match="column=captoin: none of the first.*they have caption, title; give one of"
    ):
        train(config_of(clips, tmp_path / "run", "clap", "contrastive.text.column=captoin"))
    assert not (tmp_path / "run").exists()
    train(config_of(clips, tmp_path / "run", "three_way", "contrastive.text.column=captoin", "steps=2"))
    assert any("none of the first samples" in message for message in caplog.messages)


@pytest.mark.parametrize(
    "change,says",
    [
        ("contrastive.audio.kind=htsat", "contrastive.audio.kind=htsat: give one of conv, clap"),
        ("contrastive.text.kind=", "sounds need a partner; give a tower, or contrastive.text.kind=clap"),
        ("contrastive.audio.htsat.spec_size=96", "spec_size=96: is no multiple of 64 mels"),
        ("contrastive.front_end.kind=clap", "has room for 64 frames of 64 mels, clips have 1001; give 128"),
        (
            "contrastive.audio.htsat.window=5",
            "the last of 2 levels has 8 x 8 patches, which windows must divide",
        ),
        ("contrastive.text.max_tokens=600", "max_tokens=600: give 2 to contrastive.text.positions=512"),
        ("contrastive.front_end.padding=loop", "front_end.padding=loop: give one of repeatpad, repeat, pad"),
        ("contrastive.text.tokenizer=/nowhere", "tokenizer=/nowhere: has no tokenizer.json"),
    ],
)
def test_what_makes_no_model_is_refused_before_the_run_exists(
    clips: str, tmp_path: Path, change: str, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        train(config_of(clips, tmp_path / "run", "clap", change))
    assert not (tmp_path / "run").exists()


def test_a_run_starts_from_another_and_hears_and_reads_as_it_did(clips: str, tmp_path: Path) -> None:
    train(config_of(clips, tmp_path / "first", "three_way", "steps=2", "ema=0"))
    start = f"init_from={tmp_path}/first"
    train(config_of(clips, tmp_path / "second", "three_way", start, "steps=2", "warmup_steps=0", "lr=1e-9"))
    assert losses(tmp_path / "second")[0] != losses(tmp_path / "first")[0]
    for part in ("audio.safetensors", "clap/model.safetensors"):
        before, after = (load_file(tmp_path / name / "model" / part) for name in ("first", "second"))
        assert before.keys() == after.keys()
        assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    origin = json.loads((tmp_path / "second/model/origin.json").read_text())
    assert origin["license"] == "own"


def test_a_run_starts_from_published_weights(clips: str, tmp_path: Path) -> None:
    """As a user types it: the first try is refused with the settings that the weights need."""
    published = tmp_path / "published"
    published.mkdir()
    save_published(published)
    tiny = [arg for arg in TINY if "embedding_dim" not in arg] + [
        "contrastive.embedding_dim=8",
        "contrastive.text.layers=2",
    ]
    args = [f"data={clips}", f"output={tmp_path}/run", *tiny, *KINDS["clap"], *RUN]
    args += [f"init_from={published}", "init_license=apache-2.0"]
    needed = f"contrastive.text.tokenizer={published}"
    with pytest.raises(
        UserError, match="was trained on other features; give contrastive.front_end.kind=clap"
    ) as told:
        train(load_config(TrainConfig, [*args, needed]))
    settings = str(told.value).split("; give ")[1].split()
    train(load_config(TrainConfig, [*args, needed, *settings]))
    assert len(losses(tmp_path / "run")) == 6
    stock = load_file(published / "model.safetensors")
    ours = load_file(tmp_path / "run/model/clap/model.safetensors")
    assert stock.keys() == ours.keys()
    name = "text_projection.linear2.weight"
    assert 0 < float((stock[name] - ours[name]).abs().max()) < 0.01
