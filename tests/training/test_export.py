"""Export: what ships loads in stock diffusers, and is what the run was made with."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from cluster.dataset import Dataset
from cluster.jsonl import read_lines
from configs.load import StoppedError, UserError
from ingest.pixels import open_picture
from tests.fakes.chain import Chain, frames_of
from training.export import ExportConfig, PartLicenses, check_written, export, open_pipeline
from training.generate import GenerateConfig, generate
from training.networks.istft_vocoder import IstftVocoder
from training.precompute import PrecomputeConfig, precompute
from training.pretrained import load_autoencoder
from training.recipes import diffusion
from training.settings import TrainConfig
from training.sounds import CPU_LANES
from training.train import train


def test_the_exported_folder_loads_in_stock_diffusers_and_sounds_the_same(
    chain: Chain, tmp_path: Path
) -> None:
    picture = frames_of(chain, tmp_path / "frames")[0]
    export(ExportConfig(model=chain.diffusion, output=str(tmp_path / "export")))
    generate(
        GenerateConfig(
            model=chain.diffusion, images=str(picture), output=str(tmp_path / "ours"), steps=3, threads=1
        )
    )
    (row,) = read_lines(tmp_path / "ours/sounds.jsonl")
    seed = row["seed"]
    program = f"""
import numpy as np, sys, torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({str(tmp_path / "export")!r}, trust_remote_code=True)
assert not any(name.split(".")[0] in ("training", "configs", "cluster", "ingest") for name in sys.modules)
noise = [torch.Generator().manual_seed({seed}) for _ in range({CPU_LANES})]
pictures = [Image.open({str(picture)!r})] * {CPU_LANES}
np.save({str(tmp_path / "wav.npy")!r}, pipe(pictures, generator=noise, steps=3))
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        cwd=tmp_path,
        env={**environment, "HF_HOME": str(tmp_path / "hub")},
    )
    ours, _ = soundfile.read(tmp_path / "ours" / f"{picture.stem}.wav", dtype="float32")
    theirs = np.load(tmp_path / "wav.npy")[0]
    assert np.abs(ours - theirs).max() < 2 / 32768


def test_a_vocoder_ships_with_the_model_and_makes_its_sound(chain: Chain, tmp_path: Path) -> None:
    picture = frames_of(chain, tmp_path / "frames")[0]
    exported = str(tmp_path / "export")
    export(ExportConfig(model=chain.diffusion, output=exported, vocoder=chain.vocoder))
    sounds = {}
    for name, model, vocoder in (
        ("griffin_lim", chain.diffusion, ""),
        ("vocoder", chain.diffusion, chain.vocoder),
        ("exported", exported, ""),
    ):
        settings = {"images": str(picture), "steps": 2, "threads": 1}
        output = str(tmp_path / name)
        generate(GenerateConfig(model=model, output=output, vocoder=vocoder, **settings))
        sounds[name] = (tmp_path / name / f"{picture.stem}.wav").read_bytes()
    assert sounds["exported"] == sounds["vocoder"] != sounds["griffin_lim"]
    pipe = DiffusionPipeline.from_pretrained(exported, trust_remote_code=True)
    (row,) = read_lines(tmp_path / "vocoder/sounds.jsonl")
    wav = pipe(open_picture(picture), seed=row["seed"], steps=2)
    ours, _ = soundfile.read(tmp_path / "vocoder" / f"{picture.stem}.wav", dtype="float32")
    assert np.abs(wav[0] - ours).max() < 2 / 32768


def test_a_vocoder_of_ours_ships_with_its_class(chain: Chain, tmp_path: Path) -> None:
    light = IstftVocoder(num_mels=64, width=16, num_layers=2)
    light.save_pretrained(tmp_path / "light")
    exported = tmp_path / "export"
    stated = PartLicenses(vocoder="own")
    export(
        ExportConfig(
            model=chain.diffusion, output=str(exported), vocoder=str(tmp_path / "light"), init_license=stated
        )
    )
    program = f"""
import numpy as np, sys
from PIL import Image
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({str(exported)!r}, trust_remote_code=True)
assert not any(name.split(".")[0] in ("training", "configs", "cluster", "ingest") for name in sys.modules)
picture = Image.new("RGB", (40, 40), "red")
np.save({str(tmp_path / "wav.npy")!r}, pipe(image=picture, num_inference_steps=2).audios)
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["HF_HOME"] = str(tmp_path / "hub")
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, env=environment)
    ours = open_pipeline(str(exported))(image=Image.new("RGB", (40, 40), "red"), num_inference_steps=2)
    assert np.abs(np.load(tmp_path / "wav.npy") - ours.audios).max() < 1e-5


def test_an_export_without_a_vocoder_leaves_none_of_an_older_one(chain: Chain, tmp_path: Path) -> None:
    for vocoder in (chain.vocoder, ""):
        export(ExportConfig(model=chain.diffusion, output=str(tmp_path), vocoder=vocoder))
        assert (tmp_path / "vocoder").is_dir() == bool(vocoder)
    assert open_pipeline(str(tmp_path)).vocoder is None


def test_what_was_written_is_heard_before_it_is_done(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = open_pipeline(chain.diffusion)
    with torch.no_grad():
        next(pipeline.unet.parameters()).mul_(1.01)
    export(ExportConfig(model=chain.diffusion, output=str(tmp_path)))
    with pytest.raises(StoppedError, match="gives another sound"):
        check_written(pipeline, tmp_path)


def test_a_vocoder_that_was_exchanged_in_an_export_is_refused(chain: Chain, tmp_path: Path) -> None:
    export(ExportConfig(model=chain.diffusion, output=str(tmp_path / "export"), vocoder=chain.vocoder))
    with open(tmp_path / "export/vocoder/config.json", "a") as file:
        file.write(" ")
    with pytest.raises(UserError, match="its vocoder .* is not the one it was made with"):
        open_pipeline(str(tmp_path / "export"))


def test_a_vocoder_of_other_spectrograms_is_refused(chain: Chain, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(f"{chain.vocoder}/model", tmp_path / "vocoder"))
    mel = json.loads((folder / "mel.json").read_text())
    (folder / "mel.json").write_text(json.dumps(mel | {"level": "audioldm"}))
    with pytest.raises(UserError, match="level=audioldm, the model makes level=recorded"):
        open_pipeline(chain.diffusion, vocoder=str(folder))
    # a published one states no more than its config
    (folder / "mel.json").unlink()
    assert open_pipeline(chain.diffusion, vocoder=str(folder)).vocoder is not None
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"upsample_rates": [5, 4, 2, 2]}))
    with pytest.raises(UserError, match="hop_size=80, the model makes hop_size=160"):
        open_pipeline(chain.diffusion, vocoder=str(folder))


def test_a_codec_is_no_vocoder(chain: Chain) -> None:
    with pytest.raises(UserError, match="holds a AutoencoderKL, need one of SpeechT5HifiGan"):
        open_pipeline(chain.diffusion, vocoder=chain.autoencoder)


def latents_by_another_codec(chain: Chain, folder: Path) -> str:
    """Latents of the same clips by an autoencoder of other weights."""
    codec = shutil.copytree(f"{chain.autoencoder}/model", folder / "codec")
    model = load_autoencoder(codec)
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    model.save_pretrained(codec)
    models = {"autoencoder": str(codec), "image_encoder": chain.contrastive}
    precompute(
        PrecomputeConfig(data=chain.clips, output=f"{folder}/latents", workers=0, **models), progress=False
    )
    return f"{folder}/latents"


def copy_of_run(chain: Chain, folder: Path, latents: str, older: bool) -> Path:
    """A finished run that names `latents`; an older one carries no codec and recorded none by name."""
    run = Path(shutil.copytree(chain.diffusion, folder / "run"))
    path = run / "model/conditioning.json"
    conditioning = {**json.loads(path.read_text()), "latents": latents}
    if older:
        shutil.rmtree(run / "model/autoencoder")
        shutil.rmtree(run / "model/image_encoder")
        conditioning = {
            name: value for name, value in conditioning.items() if name not in ("sha256", "snapshots")
        }
    path.write_text(json.dumps(conditioning))
    return run


def test_a_model_is_decoded_by_its_own_codec_wherever_the_latents_went(chain: Chain, tmp_path: Path) -> None:
    run = copy_of_run(chain, tmp_path, str(tmp_path / "gone"), older=False)
    own, original = (open_pipeline(str(model)).autoencoder.state_dict() for model in (run, chain.diffusion))
    assert all(torch.equal(own[name], original[name]) for name in original)
    conditioning = json.loads((run / "model/conditioning.json").read_text())
    assert conditioning["sha256"] == Dataset.open(chain.latents).meta["config"]["sha256"]
    assert conditioning["snapshots"] == [Dataset.open(chain.latents).snapshot().id]


def test_another_codec_in_a_model_or_an_export_is_refused(chain: Chain, tmp_path: Path) -> None:
    run = copy_of_run(chain, tmp_path, chain.latents, older=False)
    export(ExportConfig(model=str(run), output=str(tmp_path / "export")))
    assert open_pipeline(str(tmp_path / "export")).config.conditioning["sha256"]
    for folder in (run / "model", tmp_path / "export"):
        with open(folder / "autoencoder/config.json", "a") as file:
            file.write(" ")
        with pytest.raises(UserError, match="its autoencoder .* is not the one it was made with"):
            open_pipeline(str(folder))


def test_an_older_model_opens_with_its_latents_and_refuses_those_of_another_codec(
    chain: Chain, tmp_path: Path
) -> None:
    assert open_pipeline(str(copy_of_run(chain, tmp_path / "a", chain.latents, older=True)))
    other = latents_by_another_codec(chain, tmp_path)
    run = copy_of_run(chain, tmp_path / "b", other, older=True)
    with pytest.raises(
        UserError,
        match=f"was trained on latents made with other settings or models .* than those now at {other}",
    ):
        open_pipeline(str(run))
    export(ExportConfig(model=str(run), output=str(tmp_path / "export"), latents=chain.latents))
    shutil.rmtree(other)
    with pytest.raises(
        UserError, match="its codec is stored beside its latents, which are not at .*latents="
    ):
        open_pipeline(str(run))


def test_a_run_does_not_go_on_with_latents_of_another_codec(chain: Chain, tmp_path: Path) -> None:
    run = copy_of_run(chain, tmp_path, chain.latents, older=False)
    other = latents_by_another_codec(chain, tmp_path)
    unet = diffusion.Config(
        channels=[8, 16], head_counts=[2, 2], layers_per_block=1, attention=False, norm_groups=4
    )
    shared = {"workers": 0, "steps": 4, "global_batch": 4, "lanes": 4, "checkpoint_every": 2, "zero_stage": 0}
    with pytest.raises(
        UserError, match="was made with another codec or image encoder .*autoencoder: .*existing.*yours"
    ):
        train(TrainConfig(data=other, output=str(run), diffusion=unet, **shared))
