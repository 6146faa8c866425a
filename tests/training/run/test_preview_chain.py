"""Previews: held-out samples as pictures and sounds while a run trains."""

import io
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from tensorboardX.proto import event_pb2

from cluster.dataset import Dataset
from configs.load import UserError
from tests.fakes.chain import Chain
from training.recipes import autoencoder, diffusion
from training.run.preview import Preview
from training.settings import TrainConfig
from training.train import train


def board_of(output: Path) -> list[tuple[int, Any]]:
    """What TensorBoard would show: (step, value)."""
    found = []
    for path in output.glob("tensorboard/events*"):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
            found += [(event.step, value) for value in event.summary.value]
            at += size + 16
    return found


@pytest.mark.parametrize("recipe", ["diffusion", "autoencoder"])
def test_held_out_samples_are_seen_and_heard_while_training_which_changes_no_number(
    chain: Chain, tmp_path: Path, recipe: str
) -> None:
    finished = json.loads((Path(chain.root) / recipe / "run.json").read_text())["config"]
    section = (
        diffusion.Config(**finished["diffusion"])
        if recipe == "diffusion"
        else autoencoder.Config(**finished["autoencoder"])
    )
    shared: dict[str, Any] = {
        "steps": 3,
        "global_batch": 4,
        "lanes": 4,
        "workers": 0,
        "zero_stage": 0,
        "recipe": recipe,
        recipe: section,
    }
    shared |= {"data": chain.latents if recipe == "diffusion" else chain.clips, "checkpoint_every": 2}
    train(TrainConfig(output=f"{tmp_path}/seen", preview_every=2, preview_items=3, **shared))
    train(TrainConfig(output=f"{tmp_path}/unseen", **shared))
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").open()]
        for name in ("seen", "unseen")
    ]
    assert losses[0] == losses[1]
    shown = [(step, value) for step, value in board_of(tmp_path / "seen") if "preview/" in value.tag]
    pictures, sounds = (
        [(step, value) for step, value in shown if value.HasField(kind)] for kind in ("image", "audio")
    )
    assert len(pictures) == len(sounds) == 2 * 3 * 2 and {step for step, _ in shown} == {
        2,
        3,
    }  # steps, items, drawn and truth
    held_out = {row["key"] for row in Dataset.open(chain.clips).iter_rows() if row["split"] == "validation"}
    assert {value.tag.split("/")[1] for _, value in shown} <= held_out
    frames = section.crop_frames if recipe == "autoencoder" else 160
    assert {(value.image.width, value.image.height) for _, value in pictures} == {(frames, 64)}
    for _, value in sounds:
        wav, rate_hz = soundfile.read(io.BytesIO(value.audio.encoded_audio_string))
        assert rate_hz == 16000 and len(wav) == 160 * frames and np.abs(wav).max() > 0
    page = (tmp_path / "seen/previews/index.html").read_text()
    assert page.count("<audio") == 3 * 3 and "step 2<" in page and "step 3<" in page
    drawn, _ = soundfile.read(next((tmp_path / "seen/previews/step-00000003").glob("*.wav")))
    assert len(drawn) == 160 * frames
    assert not any("preview/" in value.tag for _, value in board_of(tmp_path / "unseen"))
    assert not (tmp_path / "unseen/previews").exists()
    with pytest.raises(UserError, match="contrastive makes nothing to look at"):
        train(
            TrainConfig(
                output=f"{tmp_path}/none",
                preview_every=2,
                **{**shared, "recipe": "contrastive", "data": chain.clips},
            )
        )


def test_a_take_down_changes_nothing_about_the_other_previews(chain: Chain, tmp_path: Path) -> None:
    finished = json.loads((Path(chain.root) / "autoencoder/run.json").read_text())
    clips = Dataset.open(shutil.copytree(chain.clips, tmp_path / "clips").as_posix())
    codec = autoencoder.Config(**finished["config"]["autoencoder"])
    shared: dict[str, Any] = {
        "recipe": "autoencoder",
        "autoencoder": codec,
        "preview_every": 1,
        "preview_items": 3,
    }
    config = TrainConfig(data=clips.uri, output=f"{tmp_path}/run", **shared)
    before = Preview.of(clips, clips.snapshot(), config, finished["facts"])
    assert before and len(before.names) == 3
    clips.bury({before.names[1]: "asked"})
    after = Preview.of(clips, clips.snapshot(), config, finished["facts"])
    assert after and after.names == [before.names[0], before.names[2]]
    assert all(torch.equal(after.batch[name], tensor[[0, 2]]) for name, tensor in before.batch.items())
