"""The decoder's answers, without its process: clips as plain data, refusals as codes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from ingest.clip.process import Request, answer
from ingest.sample import Reason
from tests.fakes.cutting import SETTINGS
from tests.fakes.media import NOISE, RATE_HZ, card, film


def request(picture: Path, sound: Path | None = None) -> Request:
    return Request(
        picture=str(picture), sound=str(sound or picture), still=sound is not None, start_s=0.0, end_s=0.0
    )


@pytest.fixture
def still(tmp_path: Path) -> Request:
    """A photo and 4 s of sound."""
    Image.fromarray(card(1.0)).save(tmp_path / "a.jpg")
    soundfile.write(tmp_path / "a.wav", NOISE[: 4 * RATE_HZ], RATE_HZ)
    return request(tmp_path / "a.jpg", tmp_path / "a.wav")


def answered(request: Request, **changes: Any) -> tuple[Any, list[bytes]]:
    """The reply; as `Any`, as a test knows which of its kinds it expects."""
    return answer(request, replace(SETTINGS, **changes))


def test_clips_of_one_picture_share_its_bytes(still: Request) -> None:
    header, blobs = answered(still)
    assert len(header["clips"]) == 4 and len(blobs) == 5
    assert len({entry["image"] for entry in header["clips"]}) == 1


def test_a_clip_has_the_samples_of_its_place(still: Request) -> None:
    header, blobs = answered(still)
    truth = np.round(NOISE[: 4 * RATE_HZ] * 32768)
    for entry in header["clips"]:
        samples = np.frombuffer(blobs[entry["audio"]], "<i2")
        assert np.abs(samples - truth[entry["start"] :][:RATE_HZ]).max() <= 1


def test_a_cap_takes_clips_from_the_middles_of_equal_segments(still: Request) -> None:
    header, _ = answered(still, max_clips=2)
    assert [entry["start"] / RATE_HZ for entry in header["clips"]] == [1, 3]


def test_what_cannot_be_decoded_is_a_refusal_without_its_path(tmp_path: Path) -> None:
    (tmp_path / "secret-name.mp4").write_bytes(b"no medium")
    header, blobs = answered(request(tmp_path / "secret-name.mp4"))
    assert header["refused"] in (Reason.CORRUPT, Reason.UNSUPPORTED)
    assert "secret-name" not in header["detail"] and blobs == []


def test_a_film_gives_the_frame_at_the_middle_of_each_window(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4")
    header, _ = answered(request(tmp_path / "a.mp4"), mode="keyframe")
    for entry in header["clips"]:
        middle_s = entry["start"] / RATE_HZ + SETTINGS.duration_s / 2
        assert entry["mode"] != "keyframe" or abs(entry["frame_time_s"] - middle_s) <= 1 / RATE_HZ
    assert header["clips"] and header["unseen"] == []
