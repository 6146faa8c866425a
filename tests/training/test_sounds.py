"""The stage of generate: lanes, seeds, and what tells two models apart."""

import io
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from cluster.worklist import UnitTask, WorkItem
from tests.fakes.chain import Chain
from training.export import open_pipeline
from training.pipeline.codec import BadMelError
from training.pipeline.pipeline import StillsoundPipeline
from training.sounds import (
    CPU_LANES,
    Sampling,
    SoundStage,
    fingerprint,
    item_id_of,
    lanes_of,
    pixel_sha256,
    thumbnail,
)

SAMPLING = Sampling(guidance=2.0, steps=1, seed=0, batch=8, page=False)


@pytest.fixture(scope="module")
def pipe(chain: Chain) -> StillsoundPipeline:
    return open_pipeline(chain.diffusion, vocoder=chain.vocoder)


def task_of(folder: Path, *colours: str, takes: int = 1) -> UnitTask:
    """A unit of one picture of each colour."""
    items = []
    for colour in colours:
        path = folder / f"{colour}.png"
        Image.new("RGB", (40, 40), colour).save(path)
        for take in range(1, takes + 1):
            payload = {"name": colour, "picture": str(path), "take": take}
            items.append(WorkItem(item_id_of(colour, take, path), 0, payload))
    return UnitTask("u0000000", items)


def run(stage: SoundStage, task: UnitTask, folder: Path) -> dict[str, np.ndarray]:
    """Path -> sound of what the stage wrote."""
    (folder / "scratch").mkdir(exist_ok=True)
    stage(task, folder / "scratch")
    return {path.name: soundfile.read(path)[0] for path in stage.output.rglob("*.wav")}


def test_one_that_gives_no_sound_is_a_row_and_its_neighbours_are_what_they_are_alone(
    pipe: StillsoundPipeline, tmp_path: Path
) -> None:
    task = task_of(tmp_path, "red", "green", "blue")
    alone = run(SoundStage(pipe, SAMPLING, tmp_path / "alone"), task_of(tmp_path, "blue"), tmp_path)
    waves = pipe._waves

    def diverging(latent: torch.Tensor) -> np.ndarray:
        wavs = waves(latent)
        if any(np.array_equal(wav, green) for wav in wavs):
            raise BadMelError("too loud")
        return wavs

    captured: list[np.ndarray] = []
    stage = SoundStage(pipe, SAMPLING, tmp_path / "out")
    with mock.patch.object(pipe, "_waves", lambda latent: captured.append(waves(latent)) or captured[-1]):
        run(SoundStage(pipe, SAMPLING, tmp_path / "before"), task, tmp_path)
    green = captured[0][1]
    with mock.patch.object(pipe, "_waves", diverging):
        found = run(stage, task, tmp_path)
    assert sorted(found) == ["blue.wav", "red.wav"]
    assert np.array_equal(found["blue.wav"], alone["blue.wav"])


def test_small_models_have_lanes_and_large_ones_none(pipe: StillsoundPipeline) -> None:
    assert {lanes_of(pipe, batch) for batch in (1, 3, 8)} == {CPU_LANES}
    with mock.patch("training.sounds.SMALL_MODEL", 0):
        assert {lanes_of(pipe, batch) for batch in (1, 3, 8)} == {1}


def test_no_more_pictures_are_open_than_are_computed_together(
    pipe: StillsoundPipeline, tmp_path: Path
) -> None:
    stage = SoundStage(pipe, SAMPLING, tmp_path / "out")
    calls: list[int] = []
    sample = stage._sample
    with mock.patch.object(stage, "_sample", lambda jobs: calls.append(len(jobs)) or sample(jobs)):
        found = run(stage, task_of(tmp_path, "red", "green", "blue", takes=2), tmp_path)
    assert calls == [CPU_LANES, 2] and len(found) == 6


def test_a_picture_is_known_by_what_it_shows() -> None:
    picture = Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3))
    assert pixel_sha256(picture) == pixel_sha256(picture.copy())
    assert pixel_sha256(picture) != pixel_sha256(picture.transpose(Image.Transpose.ROTATE_90))
    wide, high = Image.new("RGB", (20, 10)), Image.new("RGB", (10, 20))
    assert pixel_sha256(wide) != pixel_sha256(high)  # of the same bytes


def test_seeds_differ_by_run_picture_and_take(pipe: StillsoundPipeline, tmp_path: Path) -> None:
    seeds = []
    for seed in (0, 1):
        stage = SoundStage(pipe, replace(SAMPLING, seed=seed), tmp_path / "out")
        rows: list[object] = []
        jobs = stage._opened(task_of(tmp_path, "red", "blue", takes=2).items, rows)  # type: ignore[arg-type]
        seeds += [job.sound["seed"] for job in jobs]
    assert len(set(seeds)) == 8
    assert all(seed is not None and 0 <= seed < 2**53 for seed in seeds)


def test_the_fingerprint_is_of_what_is_loaded_part_by_part(chain: Chain, pipe: StillsoundPipeline) -> None:
    again = fingerprint(open_pipeline(chain.diffusion, vocoder=chain.vocoder))
    assert again == fingerprint(pipe)
    plain = open_pipeline(chain.diffusion)
    assert {name for name in again if fingerprint(plain)[name] != again[name]} == {"vocoder"}
    assert fingerprint(plain)["vocoder"] == "none"
    # folders of sounds from before there were priors go on
    assert "prior" not in again
    with torch.no_grad():
        next(plain.unet.parameters()).flatten()[0] += 1
    assert {name for name in again if fingerprint(plain)[name] != again[name]} == {"vocoder", "unet"}


def test_a_thumbnail_is_small_and_of_the_same_shape() -> None:
    data = thumbnail(Image.new("RGB", (4000, 1000), "red"))
    assert len(data) < 10_000
    assert Image.open(io.BytesIO(data)).size == (320, 80)
