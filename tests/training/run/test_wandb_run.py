"""wandb=PROJECT, offline: the run's own numbers and nothing else are in W&B's file, under one id however
often it starts again.
"""

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from cluster.jsonl import read_lines
from cluster.storage import open_store
from configs.load import UserError
from tests.fakes.latents import make_latents
from tests.fakes.runs import losses, settings
from training.recipes import diffusion
from training.run.metrics import MetricsLog
from training.run.preview import Drawn
from training.train import train

KEY, SECRET, ARGUMENT = "k" * 40, "secret-of-the-storage", "token-in-an-argument"
BLOCK, HEADER = 32768, 7


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_latents(tmp_path_factory.mktemp("latents") / "data").uri


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of the machine's own settings;

    W&B reads them once per process, so it is ended after each test.
    """
    for name, value in {
        "HOME": str(tmp_path / "home"),
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "WANDB_SILENT": "true",
    }.items():
        monkeypatch.setenv(name, value)
    wandb.teardown()
    yield
    wandb.teardown()


def records(path: Path) -> Iterator[Record]:
    """Of a run's file:

    LevelDB's log format after seven bytes of W&B's, a record cut into pieces where it crosses a block.
    """
    content, at, whole = path.read_bytes(), HEADER, b""
    assert content[:4] == b":W&B"
    while at + HEADER <= len(content):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        _, size, kind = struct.unpack("<IHB", content[at : at + HEADER])
        whole += content[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if kind in (1, 4):  # whole, or the last piece
            yield Record.FromString(whole)
            whole = b""


def files_of(folder: Path) -> list[Path]:
    """Of every start, oldest first."""
    return sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)


def history(path: Path) -> list[dict[str, Any]]:
    lines = [record.history.item for record in records(path) if record.HasField("history")]
    return [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in line}
        for line in lines
    ]


def run_id(path: Path) -> str:
    (found,) = {record.run.run_id for record in records(path) if record.HasField("run")}
    return str(found)


def shown(path: Path, name: str) -> dict[int, float]:
    return {line["step"]: line[name] for line in history(path) if name in line}


def test_a_run_and_its_second_start_are_one_run_there_with_all_losses(data: str, tmp_path: Path) -> None:
    config = {"wandb": "sounds", "validate_every": 4, "validation_items": 3}
    train(settings(data, tmp_path / "run", steps=4, **config))
    train(settings(data, tmp_path / "run", steps=8, **config))
    train(settings(data, tmp_path / "elsewhere/run", steps=4, wandb="sounds"))
    first, second, other = files_of(tmp_path)
    assert run_id(first) == run_id(second) != run_id(other)
    assert list((shown(first, "train/loss") | shown(second, "train/loss")).items()) == list(
        enumerate(losses(tmp_path / "run"), 1)
    )
    assert shown(other, "train/loss") == dict(enumerate(losses(tmp_path / "elsewhere/run"), 1))
    validation = {line["step"]: line["loss"] for line in read_lines(tmp_path / "run/validation.jsonl")}
    assert shown(first, "validation/loss") | shown(second, "validation/loss") == validation
    asked = [record.run for record in records(first) if record.HasField("run")][0]
    assert (
        asked.project == "sounds"
        and {item.key: item.value_json for item in asked.config.update}["lr"] == "0.001"
    )


def test_what_a_rollback_makes_again_is_shown_anew(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_batch = diffusion.make_batch

    def poisoned(samples: Any, keys: Any, *more: Any) -> Any:
        batch = make_batch(samples, keys, *more)
        batch["noise"][[key.position == 8 * 6 + 3 for key in keys]] = float("nan")
        return batch

    monkeypatch.setattr(diffusion, "make_batch", poisoned)
    train(settings(data, tmp_path / "run", steps=8, wandb="sounds"))
    (path,) = files_of(tmp_path)
    assert [line["step"] for line in history(path)] == [1, 2, 3, 4, 5, 6, 5, 6, 7, 8]
    assert list(shown(path, "train/loss").values()) == losses(tmp_path / "run")


def test_previews_are_pictures_and_players_there(data: str, tmp_path: Path) -> None:
    names = [f"{key}/{kind}" for key in "ab" for kind in ("drawn", "truth")]
    tones = [0.5 * np.sin(np.arange(1600) / (5 + number)) for number in range(4)]
    previews = [
        Drawn(name, np.zeros((10, 64)), tone.astype(np.float32), 16000)
        for name, tone in zip(names, tones, strict=True)
    ]
    config = settings(data, tmp_path / "run", wandb="sounds", preview_every=4)
    (tmp_path / "run").mkdir()
    with MetricsLog(open_store(config.output, writable=True), config, 0) as metrics:
        metrics.log_previews(4, previews)
    # its service writes the file, also after the end of a run
    wandb.teardown()
    (path,) = files_of(tmp_path)
    (line,) = history(path)
    assert line["step"] == 4
    for kind in ("drawn", "truth"):
        assert line[f"preview/{kind}/_type"] == "images/separated"
        assert line[f"preview/{kind}/captions"] == line[f"preview/{kind}_sound/captions"] == ["a", "b"]
        assert line[f"preview/{kind}_sound/_type"] == "audio"
    wavs = list(path.parent.glob("files/media/audio/**/*.wav"))
    assert len(wavs) == 4 and all(len(soundfile.read(wav)[0]) == 1600 for wav in wavs)
    assert len(list(path.parent.glob("files/media/images/**/*.png"))) == 4


def test_no_key_and_no_command_line_is_in_its_files(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_DIR")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setattr(sys, "argv", ["training", "train", f"data=s3://{ARGUMENT}@bucket/latents"])
    train(settings(data, tmp_path / "run", steps=2, wandb="sounds"))
    (path,) = files_of(tmp_path / "run")  # without WANDB_DIR in the output
    written = [b"".join(record.SerializeToString() for record in records(path))]
    written += [file.read_bytes() for file in path.parent.parent.rglob("*") if file.is_file()]
    assert not any(word.encode() in content for content in written for word in (KEY, SECRET, ARGUMENT))


def test_without_its_package_or_a_key_a_run_is_refused_at_the_door(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(data, tmp_path / "run", steps=2, wandb="sounds")
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(UserError, match="wandb=sounds: no API key was found; set WANDB_API_KEY"):
        train(config)
    monkeypatch.setenv("WANDB_API_KEY", "short")
    with pytest.raises(UserError, match="wandb=sounds: WANDB_API_KEY invalid: .*; set WANDB_API_KEY"):
        train(config)
    monkeypatch.delitem(sys.modules, "wandb")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="wandb=sounds: the package is not installed here; pip install wandb"):
        train(config)
    assert not (tmp_path / "run").exists()
