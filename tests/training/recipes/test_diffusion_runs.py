"""Runs of diffusion with other objectives and with sequences: what today's promises are, they keep."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from cluster.jsonl import read_lines
from configs.load import load_config
from tests.fakes.chain import Chain
from tests.fakes.latents import IMAGE_DIM, MOST_TOKENS, TOKEN_DIM, make_latents
from tests.fakes.ranks import kill_ranks, train_ranks
from tests.fakes.runs import TINY_ARGS, arguments, losses
from training.export import ExportConfig, export
from training.pipeline.codec import predict
from training.precompute import PrecomputeConfig, precompute
from training.pretrained import load_network
from training.recipes import diffusion
from training.settings import TrainConfig
from training.train import train

PICTURE = Image.new("RGB", (40, 32), (200, 30, 90))
TOKENS = f"{{member: tokens.npy, dim: {TOKEN_DIM}, length: {MOST_TOKENS - 1}, dropout: 0.2}}"
KINDS = {
    "shortcut": ["diffusion.objective=shortcut", "diffusion.shortcut.share=0.5"],
    "eps": ["diffusion.objective=eps", "diffusion.min_snr=5"],
    "sequences": [
        "diffusion.objective=v",
        "diffusion.attention=true",
        f"diffusion.sequences=[{TOKENS}]",
        "diffusion.widths=[8]",
        "diffusion.projection=linear",
    ],
    "bands": ["diffusion.frequency_channels=3"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_latents(tmp_path_factory.mktemp("latents") / "data", has_tokens=True).uri


def run(data: str, output: Path, kind: str, *more: str) -> list[float]:
    args = [f"data={data}", f"output={output}", "workers=0", "steps=8", "global_batch=8", "lanes=4"]
    args += ["checkpoint_every=4", "warmup_steps=3", "lr=1e-3", *TINY_ARGS, *KINDS[kind], *more]
    train(load_config(TrainConfig, args))
    return losses(output)


def model_of(output: Path) -> dict[str, bytes]:
    names = {path.relative_to(output / "model") for path in (output / "model").rglob("*") if path.is_file()}
    return {str(name): (output / "model" / name).read_bytes() for name in names if name.name != "run.json"}


@pytest.mark.parametrize(
    "kind,stage,precision",
    [
        ("eps", 1, "fp32"),
        ("eps", 3, "fp32"),
        ("sequences", 0, "fp32"),
        ("sequences", 2, "bf16"),
        ("bands", 3, "fp32"),
        ("shortcut", 3, "fp16"),
    ],
)
def test_a_resumed_run_repeats_an_unbroken_one_bit_for_bit(
    data: str, tmp_path: Path, kind: str, stage: int, precision: str
) -> None:
    more = [f"zero_stage={stage}", f"precision={precision}"]
    whole = run(data, tmp_path / "whole", kind, *more)
    run(data, tmp_path / "run", kind, *more, "steps=4")
    assert run(data, tmp_path / "run", kind, *more) == whole
    assert model_of(tmp_path / "run") == model_of(tmp_path / "whole")


def test_sequences_resume_at_another_zero_stage(data: str, tmp_path: Path) -> None:
    whole = run(data, tmp_path / "whole", "sequences", "zero_stage=1")
    run(data, tmp_path / "run", "sequences", "zero_stage=0", "steps=4")
    assert run(data, tmp_path / "run", "sequences", "zero_stage=3") == pytest.approx(whole, rel=1e-6)


def test_a_killed_rank_of_two_costs_nothing_and_one_gives_the_same(data: str, tmp_path: Path) -> None:
    """Of both kinds together: eps, with sequences."""
    args = [*KINDS["sequences"], "diffusion.objective=eps", "steps=12", "checkpoint_every=4"]
    kill_ranks(arguments(data, tmp_path / "two", *args), 2, step=10)
    train_ranks(arguments(data, tmp_path / "two", *args), 2)
    events = [event["event"] for event in read_lines(tmp_path / "two/events.jsonl")]
    assert events == ["started", "resumed", "finished"]
    one = run(data, tmp_path / "one", "sequences", *args[-3:])
    assert losses(tmp_path / "two") == pytest.approx(one, abs=1e-5)


def test_sequences_are_learnt_from(data: str, tmp_path: Path) -> None:
    """The output of the added attention is zero at first, and is not when the run is over."""
    run(data, tmp_path / "run", "sequences")
    network = load_network(tmp_path / "run/model/unet")
    added = [
        tensor for name, tensor in network.state_dict().items() if "attentions.1.proj_out.weight" in name
    ]
    assert added and all(torch.count_nonzero(tensor) for tensor in added)


# --- Channels over frequency --------------------------------------------------------------------------------


def test_channels_over_frequency_start_from_a_model_without_and_give_what_it_gave(
    data: str, tmp_path: Path
) -> None:
    run(data, tmp_path / "plain", "eps", "diffusion.objective=flow")
    run(
        data,
        tmp_path / "bands",
        "bands",
        f"init_from={tmp_path}/plain",
        "steps=1",
        "lr=1e-9",
        "warmup_steps=0",
    )
    plain, wider = (load_network(tmp_path / name / "model/unet") for name in ("plain", "bands"))
    assert wider.config.in_channels == plain.config.in_channels + 3
    latent, bands = torch.randn(2, 8, 4, 16), torch.randn(2, 3, 1, 16)
    vector = torch.randn(2, IMAGE_DIM)
    times = torch.tensor([100.0, 700.0])
    with torch.no_grad():
        before = predict(plain, latent, times, {"class_labels": vector}, torch.float32)
        given = {"class_labels": vector, "frequency_channels": bands}
        after = predict(wider, latent, times, given, torch.float32)
    assert torch.allclose(before, after, atol=1e-5)


def test_channels_over_frequency_are_the_same_at_every_time_and_of_the_null_where_dropped() -> None:
    config = load_config(TrainConfig, [*TINY_ARGS, "data=d", "output=o", "diffusion.frequency_channels=3"])
    torch.manual_seed(0)
    facts: Any = {"latent_shape": [8, 6, 4], "image_mean": [0.0] * IMAGE_DIM}
    model: Any = diffusion.build_model(config.diffusion, facts)
    seen: list[torch.Tensor] = []
    model.unet.conv_in.register_forward_hook(lambda module, given, result: seen.append(given[0]))
    noise = torch.randn(2, 8, 6, 4)
    batch = {"latent": noise, "noise": noise, "time": torch.rand(2), "weight": torch.ones(2)}
    batch |= {"image": torch.randn(2, IMAGE_DIM), "drop": torch.tensor([0.0, 1.0])}
    model(batch)
    channels = seen[0][:, 8:]
    assert channels.shape == (2, 3, 6, 4)
    assert torch.equal(channels, channels[:, :, :1].expand_as(channels))
    expected = model.conditioner.over_frequency(torch.stack([batch["image"][0], model.null_embedding]))
    assert torch.allclose(channels[:, :, :1], expected, atol=1e-6)
    # of each band another
    assert channels.std(3).min() > 1e-3


def test_a_tower_that_tells_sounds_and_channels_over_frequency_ship(chain: Chain, tmp_path: Path) -> None:
    """The demo's chain, small: towers, latents, diffusion, an export that stock diffusers opens."""
    shared = ["workers=0", "steps=2", "global_batch=4", "lanes=4", "checkpoint_every=2", "zero_stage=0"]
    towers = ["recipe=contrastive", "contrastive.embedding_dim=8", "contrastive.sound_weight=1"]
    towers += ["contrastive.audio.width=16", "contrastive.audio.depths=[1]"]
    for setting in ("kind=map", "widths=[8,8]", "depths=[1,1]", "dim=12", "norm_groups=4", "size_px=32"):
        towers.append(f"contrastive.image.{setting}")
    run_of = {name: str(tmp_path / name) for name in ("towers", "latents", "diffusion", "export")}
    args = [f"data={chain.clips}", f"output={run_of['towers']}", *towers, *shared]
    train(load_config(TrainConfig, args))
    facts = json.loads(Path(run_of["towers"], "run.json").read_text())["facts"]
    assert len(facts["sounds"]["mean"]) == len(facts["sounds"]["spread"]) > facts["mel"]["num_mels"]
    models = {"autoencoder": chain.autoencoder, "image_encoder": run_of["towers"]}
    precompute(
        PrecomputeConfig(data=chain.clips, output=run_of["latents"], workers=0, **models), progress=False
    )
    args = [f"data={run_of['latents']}", f"output={run_of['diffusion']}", *TINY_ARGS, *shared]
    train(load_config(TrainConfig, [*args, "diffusion.frequency_channels=3", "lr=0.1", "warmup_steps=0"]))
    export(ExportConfig(model=run_of["diffusion"], output=run_of["export"]))
    pipe = DiffusionPipeline.from_pretrained(run_of["export"], trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe.image_encoder).__name__ == "MapTower" and pipe.conditioner.over_frequency is not None
    vectors, patches = pipe._embed(PICTURE)
    assert vectors.shape == (1, 12) and patches.shape[::2] == (1, 8)
    sound = pipe(PICTURE, steps=2, generator=torch.Generator().manual_seed(0))
    for parameter in pipe.conditioner.over_frequency.parameters():
        torch.nn.init.zeros_(parameter)
    assert not np.array_equal(pipe(PICTURE, steps=2, generator=torch.Generator().manual_seed(0)), sound)
