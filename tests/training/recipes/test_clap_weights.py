"""Weights of CLAP in folders: a published model hears and reads the same in ours, and what does not fit is refused by name."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from transformers import (
    AutoTokenizer,
    ClapAudioModelWithProjection,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextModelWithProjection,
)

from configs.load import UserError
from tests.fakes.captioned import picture
from tests.fakes.clips import tone
from tests.fakes.contrastive_ranks import CONFIGS, FACTS, HTSAT, TEXT, TOWER
from tests.fakes.published_clap import FRONT_END, save_published
from training.data.randomness import SampleKey
from training.pipeline.mel import MelConfig
from training.recipes import contrastive
from training.recipes.captions import facts_of, load_tokenizer
from training.recipes.clap_mel import FrontEndConfig, resample
from training.recipes.recipe import Geometry
from training.run.initial import compare

CAPTION = "rain on a roof"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    save_published(folder)
    return folder


def config_of(published: Path, **changes: Any) -> contrastive.Config:
    text = replace(TEXT, tokenizer=str(published))
    fitting = replace(CONFIGS["clap"], text=text, front_end=FRONT_END)
    return replace(fitting, **changes)


def facts_for(config: contrastive.Config) -> Geometry:
    facts: Geometry = {"mel": MelConfig(duration_s=0.64).settings()}
    if config.text.kind:
        facts["tokenizer"] = facts_of(load_tokenizer(config.text.tokenizer))
    return facts


def started(source: Path, config: contrastive.Config) -> Any:
    """A model of ours with everything that the source has."""
    facts = facts_for(config)
    model = contrastive.build_model(config, facts)
    state = contrastive.initial(str(source), config, facts)
    counts = compare(model, state)
    assert not any(part.other_shape or part.left_over for part in counts.values()), counts
    # no checkpoint has the statistics of a norm: what a resumed run goes on with
    parameters = {name: state[name] for name, _ in model.named_parameters()}
    model.load_state_dict(parameters, strict=False)
    return model.train()


def batch_of(config: contrastive.Config, *captions: str) -> dict[str, torch.Tensor]:
    samples = []
    for number, caption in enumerate(captions):
        metadata = {"source": "a", "media_id": str(number), "meta": {"caption": caption}}
        flac = tone(300.0 + 100 * number)
        samples.append({"flac": flac, "jpg": picture(number), "json": json.dumps(metadata).encode()})
    keys = [SampleKey(0, 0, number) for number in range(len(samples))]
    return contrastive.make_batch(samples, keys, config, facts_for(config))


# --- Published ones -----------------------------------------------------------------------------------------


def test_a_published_model_hears_and_reads_the_same_in_ours(published: Path) -> None:
    config = config_of(published)
    model = started(published, config)
    stock: Any = ClapModel.from_pretrained(published).eval()
    wav, rate = soundfile.read(io.BytesIO(tone(300.0)), dtype="float32")
    features = ClapFeatureExtractor.from_pretrained(published)(
        resample(wav, rate, 48000), sampling_rate=48000, return_tensors="pt"
    )
    tokens = AutoTokenizer.from_pretrained(published)([CAPTION], return_tensors="pt")
    with torch.no_grad():
        audio, text = model.embed(batch_of(config, CAPTION), None)
        heard = stock.get_audio_features(**features).pooler_output
        read = stock.get_text_features(**tokens).pooler_output
    assert torch.allclose(audio, heard, atol=1e-5) and torch.allclose(text, read, atol=1e-5)
    assert np.allclose(model.text_log_scale.tolist(), [stock.logit_scale_a.item(), 1.5])


@pytest.mark.parametrize("kind", ["clap_pictures", "three_way"])
def test_a_branch_beside_an_image_tower_starts_from_it_too(published: Path, kind: str) -> None:
    config = config_of(published, image=TOWER)
    if kind == "clap_pictures":
        config = replace(config, text=replace(config.text, kind=""))
    facts = facts_for(config)
    counts = compare(
        contrastive.build_model(config, facts), contrastive.initial(str(published), config, facts)
    )
    assert counts["audio"].loaded and not counts["audio"].new and not counts["audio"].other_shape
    assert counts["image"].new and not counts["image"].loaded


@pytest.mark.parametrize(
    "change,says",
    [
        (
            {"front_end": FrontEndConfig()},
            "front_end.kind=clap contrastive.front_end.hop_size=1000 contrastive.front_end.max_length_s=1$",
        ),
        ({"front_end": replace(FRONT_END, min_hz=0.0)}, "was trained on other features.*front_end.min_hz=50"),
        (
            {"audio": replace(HTSAT, htsat=replace(HTSAT.htsat, heads=[4, 4]))},
            r"audio branch has num_attention_heads=\[2, 2\], contrastive.audio makes \[4, 4\]",
        ),
        ({"text": replace(TEXT, heads=4)}, "text branch has num_attention_heads=2, contrastive.text makes 4"),
        ({"text": TEXT}, "reads other tokens; give contrastive.text.tokenizer=/"),
    ],
)
def test_what_fits_by_shape_alone_is_refused(published: Path, change: dict[str, Any], says: str) -> None:
    config = config_of(published, **change)
    with pytest.raises(UserError, match=says):
        contrastive.initial(str(published), config, facts_for(config))


def copy_of(published: Path, folder: Path, name: str, **change: Any) -> Path:
    for path in published.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    settings = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**settings, **change}))
    return folder


def test_features_that_are_drawn_are_refused(published: Path, tmp_path: Path) -> None:
    fused = copy_of(published, tmp_path, "preprocessor_config.json", truncation="fusion")
    with pytest.raises(UserError, match="truncation=fusion.*hub:laion/clap-htsat-unfused"):
        started(fused, config_of(published))


@pytest.mark.parametrize(
    "name,says", [("preprocessor_config.json", "feature extractor"), ("tokenizer.json", "tokenizer")]
)
def test_a_folder_without_its_front_end_or_tokenizer_is_refused(
    published: Path, tmp_path: Path, name: str, says: str
) -> None:
    (copy_of(published, tmp_path, "config.json") / name).unlink()
    with pytest.raises(UserError, match=f"has no {name}; save its {says}"):
        started(tmp_path, config_of(published))


# --- Ours ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(CONFIGS))
@pytest.mark.parametrize("front_end", [FrontEndConfig(), FRONT_END])
def test_what_is_saved_starts_another_run(kind: str, front_end: FrontEndConfig, tmp_path: Path) -> None:
    config = replace(CONFIGS[kind], front_end=front_end)
    torch.manual_seed(0)
    model: Any = contrastive.build_model(config, FACTS)
    # an average has no buffers
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    contrastive.save(parameters, config, FACTS, tmp_path)
    again = contrastive.initial(str(tmp_path), config, FACTS)
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in parameters.items())


def test_stock_classes_load_what_is_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for kind, front_end in (("clap", FRONT_END), ("clap_pictures", FrontEndConfig())):
        config = replace(CONFIGS[kind], front_end=front_end)
        model: Any = contrastive.build_model(config, FACTS).eval()
        contrastive.save(model.state_dict(), config, FACTS, tmp_path / kind)
    stock: Any = ClapModel.from_pretrained(tmp_path / "clap/clap").eval()
    assert ClapFeatureExtractor.from_pretrained(tmp_path / "clap/clap").hop_length == 1000
    tokens = AutoTokenizer.from_pretrained(tmp_path / "clap/clap")(["né"], return_tensors="pt")
    text: Any = ClapTextModelWithProjection.from_pretrained(tmp_path / "clap/clap")
    assert tokens.input_ids.shape == (1, 5) and text(**tokens).text_embeds.shape == (1, 8)
    assert stock.get_text_features(**tokens).pooler_output.isfinite().all()
    alone: Any = ClapAudioModelWithProjection.from_pretrained(tmp_path / "clap_pictures/audio_encoder").eval()
    log_mel = -6 + 4 * torch.randn(2, 60, 64)
    with torch.no_grad():
        theirs = torch.nn.functional.normalize(alone(input_features=log_mel[:, None]).audio_embeds, dim=-1)
        batch = {"log_mel": log_mel, "image": torch.zeros(2, 3, 32, 32)}
        assert torch.allclose(model.embed(batch, model.pooled(batch))[1], theirs, atol=1e-6)
    assert json.loads((tmp_path / "clap_pictures/audio_encoder/mel.json").read_text())["hop_size"] == 160


def test_a_run_that_hears_otherwise_than_it_was_saved_is_refused(tmp_path: Path) -> None:
    config = CONFIGS["clap"]
    contrastive.save(contrastive.build_model(config, FACTS).state_dict(), config, FACTS, tmp_path)
    other = replace(config, front_end=FRONT_END)
    with pytest.raises(UserError, match="give contrastive.front_end.kind=mel"):
        contrastive.initial(str(tmp_path), other, FACTS)
