"""Runs of diffusion with other objectives and with sequences: what today's promises are, they keep."""

from pathlib import Path

import pytest
import torch

from cluster.jsonl import read_lines
from configs.load import load_config
from tests.fakes.latents import MOST_TOKENS, TOKEN_DIM, make_latents
from tests.fakes.ranks import kill_ranks, train_ranks
from tests.fakes.runs import TINY_ARGS, arguments, losses
from training.pretrained import load_network
from training.settings import TrainConfig
from training.train import train

TOKENS = f"{{member: tokens.npy, dim: {TOKEN_DIM}, length: {MOST_TOKENS - 1}, dropout: 0.2}}"
KINDS = {
    "eps": ["diffusion.objective=eps", "diffusion.min_snr=5"],
    "sequences": [
        "diffusion.objective=v",
        "diffusion.attention=true",
        f"diffusion.sequences=[{TOKENS}]",
        "diffusion.widths=[8]",
        "diffusion.projection=linear",
    ],
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
    [("eps", 1, "fp32"), ("eps", 3, "fp32"), ("sequences", 0, "fp32"), ("sequences", 2, "bf16")],
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
