"""What a codec loses: nothing but the vocoder's share where it is perfect, and more where it is not."""

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cluster.dataset import Dataset
from configs.load import UserError, load_config
from tests.conftest import ROOT
from tests.fakes.chain import Chain
from training.__main__ import train
from training.evaluation import EvaluateConfig, HeldOut, find_clips
from training.pipeline.mel import MelConfig
from training.precompute import PrecomputeConfig, precompute
from training.roundtrip import Codec, is_codec, measure, open_codec, roundtrip


class Perfect(nn.Module):
    """A codec of 1 x 1 patches whose latents are the log mels themselves, or a little wrong."""

    def __init__(self, error: float = 0.0):
        super().__init__()
        self.error = error

    def encode(self, log_mel: torch.Tensor) -> Any:
        moments = type("Moments", (), {"mean": log_mel, "std": torch.zeros_like(log_mel)})
        return type("Output", (), {"latent_dist": moments})

    def decode(self, latent: torch.Tensor) -> Any:
        return type("Output", (), {"sample": latent + self.error})


def clip(seed: int, mel: MelConfig) -> HeldOut:
    wav = 0.01 * np.random.default_rng(seed).standard_normal(mel.num_samples).astype(np.float32)
    return HeldOut(f"k{seed}", b"", wav, None, None, f"medium{seed}")  # type: ignore[arg-type]


@pytest.mark.parametrize("level", ["recorded", "audioldm"])
def test_a_perfect_codec_loses_what_the_vocoder_does(level: str) -> None:
    mel = MelConfig(duration_s=0.32, level=level)
    clips = [clip(seed, mel) for seed in range(3)]
    report, wavs = measure(Codec(Perfect(), mel), clips, batch=2)
    assert report["mel_l1"] == 0 and report["num_clips"] == report["num_media"] == 3
    assert report["stft_distance"] == report["stft_distance_of_vocoder"] > 0
    # of what the codec was given: at AudioLDM's level, whose peak is 0.5, it is no further off
    assert report["stft_distance"] < 1.5 and wavs[0].shape == (mel.num_samples,)


def test_what_a_codec_loses_is_told_apart_from_the_vocoders_share() -> None:
    mel = MelConfig(duration_s=0.32)
    clips = [clip(seed, mel) for seed in range(2)]
    perfect, _ = measure(Codec(Perfect(), mel), clips, 2)
    wrong, _ = measure(Codec(Perfect(error=-1.0), mel), clips, 2)
    assert wrong["mel_l1"] == pytest.approx(1.0, abs=1e-3)
    assert wrong["stft_distance"] > perfect["stft_distance"] + 0.5
    assert wrong["stft_distance_of_vocoder"] == perfect["stft_distance_of_vocoder"]


def config_of(chain: Chain, output: Path, **changes: Any) -> EvaluateConfig:
    basic = {"model": chain.autoencoder, "data": chain.clips, "output": str(output), "num_clips": 4}
    return EvaluateConfig(**{**basic, **changes})


def test_the_command_reports_a_codec_with_its_scores(chain: Chain, tmp_path: Path) -> None:
    args = [f"model={chain.autoencoder}", f"data={chain.clips}", f"output={tmp_path}", "num_clips=4"]
    command = [sys.executable, "-m", "training", "evaluate", *args, f"truth={chain.world}/truth"]
    said = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "the codec loses" in said and "keeps of the gap" in said
    report = json.loads((tmp_path / "roundtrip.json").read_text())
    assert report["latent_shape"] == [8, 40, 16] and report["num_clips"] == 4
    assert report["vocoder"] == "Griffin-Lim"
    assert set(report["scores"]) == {"timbre", "f0", "rate"}
    # the sounds themselves are judged right
    assert report["scores"]["timbre"]["real"] > 0.7


def test_a_codecs_training_ends_with_the_command_that_measures_it(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [
        "recipe=autoencoder",
        "workers=0",
        "steps=2",
        "global_batch=4",
        "lanes=4",
        "checkpoint_every=2",
    ]
    codec = ["channels=[8,8,16]", "layers_per_block=1", "norm_groups=4", "attention=false", "crop_frames=32"]
    places = [f"data={chain.clips}", f"output={chain.autoencoder}", "zero_stage=0"]
    train(
        [*settings, *places, *(f"autoencoder.{setting}" for setting in codec)], as_json=False, dry_run=False
    )
    said = " ".join(capsys.readouterr().out.split())
    assert "finished" in said
    command = shlex.split(said.partition("measure it before anything is trained on its latents: ")[2])
    assert command[:4] == ["python", "-m", "training", "evaluate"]
    config = load_config(EvaluateConfig, command[4:])
    assert config.output == f"{chain.autoencoder}/roundtrip"
    assert roundtrip(replace(config, num_clips=1, output=str(tmp_path)))["mel_l1"] > 0


def test_without_truths_only_distances_are_reported(chain: Chain, tmp_path: Path) -> None:
    report = roundtrip(config_of(chain, tmp_path, vocoder=chain.vocoder))
    assert "scores" not in report and report["vocoder"] == chain.vocoder
    assert report["mel_l1"] > 0
    codec = open_codec(chain.autoencoder, "", Dataset.open(chain.clips))
    clips = find_clips(Dataset.open(chain.clips), config_of(chain, tmp_path), codec.mel.num_samples)
    again, _ = measure(codec, clips, 1)
    assert again["mel_l1"] == pytest.approx(report["mel_l1"], abs=1e-4)


def test_precompute_reports_it_beside_the_latents(chain: Chain, tmp_path: Path, caplog: Any) -> None:
    caplog.set_level("INFO")
    models = {"autoencoder": chain.autoencoder, "image_encoder": chain.contrastive}
    config = PrecomputeConfig(data=chain.clips, output=str(tmp_path / "latents"), workers=0, **models)
    precompute(replace(config, roundtrip_clips=3), progress=False)
    report = json.loads((tmp_path / "latents/roundtrip.json").read_text())
    assert report["num_clips"] == 3 and "the codec loses" in caplog.text


def test_what_is_no_codec_or_has_no_clips_is_told(chain: Chain, tmp_path: Path) -> None:
    assert is_codec(chain.autoencoder) and not is_codec(chain.diffusion) and not is_codec(chain.vocoder)
    with pytest.raises(UserError, match="has no clips of split=nowhere"):
        roundtrip(config_of(chain, tmp_path, split="nowhere"))
    with pytest.raises(UserError, match="truth=/nowhere: no such folder"):
        roundtrip(config_of(chain, tmp_path, truth="/nowhere"))
