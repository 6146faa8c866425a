"""The audiomae recipe: the paper's loss, masks from keys alone, and runs that resume bit for bit."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining, ViTMAEModel

from cluster.jsonl import read_lines
from configs.load import UserError
from tests.fakes.clips import make_clips, tone
from tests.fakes.ranks import killed_and_whole
from tests.fakes.runs import losses, settings
from training.data.randomness import SampleKey
from training.networks.audiomae import standardise
from training.pipeline.mel import SPECTROGRAMS, MelConfig
from training.recipes import audiomae
from training.recipes.audiomae import Config
from training.train import train

TINY = Config(width=16, layers=2, heads=2, decoder_width=16, decoder_layers=1, decoder_heads=2)
TINY_ARGS = [
    "recipe=audiomae",
    "audiomae.width=16",
    "audiomae.layers=2",
    "audiomae.heads=2",
    "audiomae.decoder_width=16",
    "audiomae.decoder_layers=1",
    "audiomae.decoder_heads=2",
]
GEOMETRY: Any = {"mel": MelConfig(duration_s=0.64, **SPECTROGRAMS["audiomae"]).settings()}
KEYS = [SampleKey(0, 0, position) for position in range(3)]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_clips(tmp_path_factory.mktemp("clips") / "data").uri


def batch_of(*samples: dict[str, bytes] | None, config: Config = TINY) -> dict[str, torch.Tensor]:
    return audiomae.make_batch(samples, KEYS[: len(samples)], config, GEOMETRY)


def model_of(config: Config = TINY) -> Any:
    torch.manual_seed(0)
    return audiomae.build_model(config, GEOMETRY).eval()


def test_0_64_s_are_4_by_8_patches_of_which_a_fifth_is_seen() -> None:
    batch = batch_of({"flac": tone(440)})
    assert batch["log_mel"].shape == (1, 1, 64, 128) and batch["noise"].shape == (1, 32)
    _, hidden = model_of().predict(standardise(batch["log_mel"]), batch["noise"])
    assert hidden.sum() == 32 - 6
    # the highest are hidden
    assert batch["noise"][hidden == 1].min() > batch["noise"][hidden == 0].max()


def test_masks_come_from_the_keys_alone() -> None:
    samples = [{"flac": tone(440)}, {"flac": tone(600)}, {"flac": tone(800)}]
    whole = batch_of(*samples)["noise"]
    alone = audiomae.make_batch(samples[1:2], KEYS[1:2], TINY, GEOMETRY)["noise"]
    assert torch.equal(alone[0], whole[1]) and not torch.equal(whole[0], whole[1])
    later = audiomae.make_batch(samples[:1], [SampleKey(0, 1, 0)], TINY, GEOMETRY)["noise"]
    assert not torch.equal(later[0], whole[0])


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_the_loss_is_the_stock_classes_on_a_square(norm_pix_loss: bool) -> None:
    config = Config(**{**vars(TINY), "norm_pix_loss": norm_pix_loss})
    square: Any = {"mel": MelConfig(duration_s=1.28, **SPECTROGRAMS["audiomae"]).settings()}
    torch.manual_seed(0)
    model: Any = audiomae.build_model(config, square).eval()
    settings = model.mae.config.to_dict() | {"image_size": 128}
    stock = ViTMAEForPreTraining(ViTMAEConfig(**settings)).eval()
    stock.load_state_dict(model.mae.state_dict())
    log_mel = torch.randn(1, 1, 128, 128) - 6
    noise = torch.rand(1, 64)
    with torch.no_grad():
        found = model({"log_mel": log_mel, "noise": noise, "weight": torch.ones(1)})["loss"]
        theirs = stock(standardise(log_mel), noise=noise).loss
    assert found.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_a_hole_weighs_nothing_and_changes_no_other_loss() -> None:
    samples = [{"flac": tone(440)}, {"flac": tone(600)}, {"flac": tone(800)}]
    model = model_of()
    with torch.no_grad():
        whole = model(batch_of(*samples))["loss"]
        holed = model(batch_of(samples[0], None, samples[2]))["loss"]
    assert holed[1] == 0 and torch.allclose(holed[[0, 2]], whole[[0, 2]], atol=1e-6)
    assert torch.isfinite(whole).all()


def test_what_is_drawn_is_true_where_it_was_seen() -> None:
    batch = batch_of({"flac": tone(440)})
    with torch.no_grad():
        drawn = audiomae.draw(model_of(), batch, GEOMETRY)
    same = (drawn["drawn"] - drawn["truth"]).abs() < 1e-4
    assert drawn["drawn"].shape == (1, 64, 128) and same.float().mean() == pytest.approx(6 / 32, abs=0.05)


@pytest.mark.parametrize(
    "change,says",
    [
        ({"mask_ratio": 1.0}, "mask_ratio=1.0: give more than 0, less than 1"),
        ({"width": 18}, "audiomae.width=18: give a multiple of 4"),
        ({"decoder_heads": 3}, "audiomae.decoder_width=16: give a multiple of 4 and of decoder_heads=3"),
        ({"layers": 0}, "audiomae.layers=0"),
        ({"level": "loud"}, "audiomae.level=loud"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        audiomae.check_config(Config(**{**vars(TINY), **change}))


def test_a_ratio_that_leaves_no_patch_is_refused(clips: str, tmp_path: Path) -> None:
    greedy = Config(**{**vars(TINY), "mask_ratio": 0.99})
    with pytest.raises(UserError, match="mask_ratio=0.99: leaves 0 of 32 patches"):
        train(settings(clips, tmp_path, recipe="audiomae", audiomae=greedy))


# --- Runs ---------------------------------------------------------------------------------------------------


def run(clips: str, output: Path, **changes: Any) -> list[float]:
    """Losses of a run."""
    defaults = {"recipe": "audiomae", "audiomae": TINY, "steps": 8, "global_batch": 8}
    train(settings(clips, output, **{**defaults, **changes}))
    return losses(output)


@pytest.mark.parametrize("stage", range(4))
def test_it_resumes_bit_for_bit(clips: str, tmp_path: Path, stage: int) -> None:
    whole = run(clips, tmp_path / "whole", zero_stage=stage)
    run(clips, tmp_path / "run", zero_stage=stage, steps=4)
    assert run(clips, tmp_path / "run", zero_stage=stage) == whole
    models = [(tmp_path / name / "model/model.safetensors").read_bytes() for name in ("whole", "run")]
    assert models[0] == models[1]


def test_it_learns_is_previewed_and_stock_transformers_loads_its_encoder(clips: str, tmp_path: Path) -> None:
    more = {"lr": 3e-3, "validate_every": 30, "validation_items": 2, "preview_every": 60, "preview_items": 1}
    found = run(clips, tmp_path / "run", steps=60, precision="bf16", zero_stage=1, **more)
    assert sum(found[-5:]) < 0.9 * sum(found[:5])
    first, last = (line["ema_loss"] for line in read_lines(tmp_path / "run/validation.jsonl"))
    assert last < first
    stock, info = ViTMAEModel.from_pretrained(tmp_path / "run/model", output_loading_info=True)
    assert not info["missing_keys"] and stock.embeddings.position_embeddings.abs().sum() > 100
    again = run(
        clips, tmp_path / "more", steps=2, init_from=str(tmp_path / "run"), precision="bf16", zero_stage=1
    )
    assert again[0] < 0.95 * found[0]


def test_a_vit_of_pictures_gives_its_layers(tmp_path: Path) -> None:
    settings = audiomae.mae_config(TINY, MelConfig(**GEOMETRY["mel"])).to_dict()
    pictures = ViTMAEConfig(**{**settings, "image_size": 32, "num_channels": 3})
    ViTMAEForPreTraining(pictures).save_pretrained(tmp_path)
    weights = audiomae.initial(str(tmp_path), TINY, GEOMETRY)
    expected = model_of().state_dict()
    assert weights.keys() == expected.keys()
    other = {name for name, tensor in weights.items() if tensor.shape != expected[name].shape}
    tables = {"mae.vit.embeddings.position_embeddings", "mae.decoder.decoder_pos_embed"}
    patches = "mae.vit.embeddings.patch_embeddings.projection.weight"
    assert other == tables | {patches, "mae.decoder.decoder_pred.weight", "mae.decoder.decoder_pred.bias"}


def test_a_killed_rank_costs_no_bit_and_one_rank_gives_the_same(clips: str, tmp_path: Path) -> None:
    whole = killed_and_whole(clips, tmp_path, *TINY_ARGS)
    alone = run(clips, tmp_path / "alone", steps=12, zero_stage=1)
    assert alone == pytest.approx(whole, rel=1e-5)


def test_silence_has_a_finite_loss() -> None:
    batch = batch_of({"flac": tone(440)})
    batch["log_mel"].fill_(math.log(1e-5))
    assert torch.isfinite(model_of()(batch)["loss"]).all()
