"""Pretrained models: found by what a user types, refused where they are not complete."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from cluster.dataset import Dataset
from configs.load import UserError
from tests.conftest import ROOT
from tests.fakes.chain import Chain
from tests.fakes.pipelines import audioldm_unet, save_pipeline
from training.pretrained import fetch_models, find_model, load_autoencoder, load_network


def test_models_of_the_hub_are_taken_from_its_cache(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    revision = "0123456789" * 4
    kept = tmp_path / "models--somebody--sounds"
    shutil.copytree(f"{chain.autoencoder}/model", kept / "snapshots" / revision / "vae")
    (kept / "refs").mkdir()
    (kept / "refs/main").write_text(revision)
    for name in ("hub:somebody/sounds/vae", f"hub:somebody/sounds/vae@{revision}"):
        load_autoencoder(find_model(name, "autoencoder"))
    for name, said in {
        "hub:somebody/sounds": "holds no weights",
        "hub:somebody/else": "cannot be had from the hub.*HF_HUB_OFFLINE",
        "hub:nobody": "cannot be had from the hub",
        "somebody/sounds": "is hub:somebody/sounds",
    }.items():
        with pytest.raises(UserError, match=said):
            find_model(name, "autoencoder")


def test_a_pipeline_of_the_hub_is_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    kept = tmp_path / "models--somebody--audio"
    save_pipeline(kept / "snapshots" / ("0123456789" * 4), audioldm_unet())
    (kept / "refs").mkdir()
    (kept / "refs/main").write_text("0123456789" * 4)
    load_autoencoder(find_model("hub:somebody/audio", "autoencoder", "vae"))
    load_network(find_model("hub:somebody/audio", "init_from", "unet"))
    assert find_model("hub:somebody/audio", "vocoder", "vocoder").name == "vocoder"
    for weights in kept.rglob("unet/*.safetensors"):
        weights.unlink()
    with pytest.raises(UserError, match="holds no weights"):
        find_model("hub:somebody/audio", "init_from", "unet")


def test_latents_whose_kept_model_changed_are_refused(chain: Chain, tmp_path: Path) -> None:
    shutil.copytree(chain.latents, tmp_path / "latents")
    settings = tmp_path / "latents/models/image_encoder/preprocessor_config.json"
    settings.write_text(settings.read_text().replace("0.5", "0.4", 1))
    with pytest.raises(OSError, match="is not the model that these latents were made with"):
        fetch_models(Dataset.open(str(tmp_path / "latents")), tmp_path / "models")


def test_loading_leaves_torchs_constructors_as_they_were(tmp_path: Path) -> None:
    """In a process in which it is the first to use a device as context."""
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tower = CLIPVisionModelWithProjection(CLIPVisionConfig(**small, image_size=32, patch_size=16))
    tower.save_pretrained(tmp_path)
    code = (
        "import sys, torch; from pathlib import Path; from training.pretrained import load_image_encoder\n"
        "load_image_encoder(Path(sys.argv[1]))\n"
        "with torch.device('meta'): print(torch.linspace(0, 1, 3).device)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.split()[-1] == "meta", done.stderr
