"""PE-AV as a judge gives what the stock model gives."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from transformers import PeAudioModel

from configs.load import UserError
from tests.fakes.pe_av import SIDE_PX, save_pe_audio, save_pe_av
from training.judging import pe_av
from training.judging.opening import open_pair_judge
from training.judging.sound import Sound


def noise(seed: int, samples: int = 1600) -> Sound:
    return Sound(np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32), 16000)


def test_sounds_and_captions_are_the_stock_models(tmp_path: Path) -> None:
    judge = open_pair_judge(str(save_pe_audio(tmp_path)))
    assert judge.modalities == ("text",) and judge.facts["kind"] == "PeAudioModel"
    stock = PeAudioModel.from_pretrained(tmp_path).eval()
    sound = noise(0)
    with torch.no_grad():
        output = stock(
            input_ids=torch.tensor([[0, 4, 5, 2]]), input_values=torch.from_numpy(sound.wav)[None, None]
        )
    heard = functional.normalize(output.audio_embeds, dim=-1).numpy()
    read = functional.normalize(output.text_audio_embeds, dim=-1).numpy()
    assert np.abs(judge.sounds([sound]) - heard).max() < 1e-5
    # whatever is beside it, shorter or longer
    assert np.abs(judge.sounds([noise(1, 900), sound, noise(2, 3001)])[1] - heard).max() < 1e-5
    assert np.abs(judge.texts(["rain on", "a roof rain on a roof"])[0] - read).max() < 1e-5


def test_pictures_are_videos_of_one_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = save_pe_av(tmp_path)
    if not importlib.util.find_spec("timm"):
        with pytest.raises(UserError, match="its pictures pass a tower of timm; pip install"):
            open_pair_judge(str(tmp_path))
    # its class would load one of timm's towers; all else is as it is
    monkeypatch.setattr(pe_av.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(pe_av, "load_whole", lambda *_, **__: stock)
    judge = open_pair_judge(str(tmp_path))
    assert judge.modalities == ("image", "text") and judge.facts["kind"] == "PeAudioVideoModel"
    colours = np.random.default_rng(0).integers(0, 255, (SIDE_PX, SIDE_PX, 3), np.uint8)
    frame = torch.from_numpy(colours).permute(2, 0, 1).float() / 127.5 - 1
    sound = noise(0)
    asked: dict[str, Any] = {"input_values": torch.from_numpy(sound.wav)[None, None]}
    with torch.no_grad():
        output = stock(**asked, input_ids=torch.tensor([[0, 4, 2]]), pixel_values_videos=frame[None, None])
    for given, embeds in (
        (judge.pictures([Image.fromarray(colours)]), output.video_embeds),
        (judge.sounds([sound]), output.audio_embeds),
        (judge.texts(["rain"]), output.text_audio_embeds),
    ):
        assert np.abs(given - functional.normalize(embeds, dim=-1).numpy()).max() < 1e-5


def test_front_ends_that_are_missing_are_named(tmp_path: Path) -> None:
    (save_pe_audio(tmp_path / "deaf") / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="has no usable preprocessor_config"):
        open_pair_judge(str(tmp_path / "deaf"))
    (save_pe_audio(tmp_path / "mute") / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="has no tokenizer.json; save its tokenizer"):
        open_pair_judge(str(tmp_path / "mute"))
