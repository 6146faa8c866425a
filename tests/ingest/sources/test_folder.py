"""Folders as people have them: linked, with sidecars, unmerged streams and every suffix that can be decoded."""

import contextlib
import io
import json
import logging
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from ingest.clip.clipper import AudioConfig, ClipConfig, Clipper, FrameConfig, MediaLimits
from ingest.fetch.fetcher import Fetcher
from ingest.fetch.settings import FetchConfig
from ingest.sample import Item
from ingest.sources.suffixes import PICTURE_SUFFIXES, SOUND_SUFFIXES
from tests.fakes.media import film
from tests.ingest.sources.test_registry import listed, touch
from tests.ingest.sources.test_tars import write_tar

RATE_HZ = 16000
ENCODED = {
    ".mka": "flac",
    ".aac": "aac",
    ".m4b": "aac",
    ".oga": "flac",
    ".m4a": "aac",
    ".opus": "libopus",
    ".mp3": "libmp3lame",
}


def noise(seconds: float = 2.0) -> np.ndarray:
    """int16 [samples] at 16 kHz."""
    return (
        (np.random.default_rng(0).normal(0, 0.2, round(seconds * RATE_HZ)) * 32767)
        .clip(-32768, 32767)
        .astype(np.int16)
    )


def write_sound(path: Path) -> None:
    """2 s of noise in the format of the suffix."""
    if path.suffix == ".amr":
        bits = random.Random(0)
        path.write_bytes(
            b"#!AMR\n" + b"".join(b"\x3c" + bits.randbytes(31) for _ in range(100))
        )  # mode 7, 20 ms each
    elif path.suffix == ".wma":
        with av.open(str(path), "w") as out:
            stream = out.add_stream("wmav2", rate=44100, layout="mono")
            stream.bit_rate = 64000  # without one, its encoder does not open
            for start in range(0, 2 * 44100, 2048):
                frame = av.AudioFrame.from_ndarray(
                    noise(2.1 * 44100 / RATE_HZ)[None, start : start + 2048], "s16", "mono"
                )
                frame.sample_rate, frame.pts = 44100, start
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    elif path.suffix in ENCODED:
        film(path, video="", audio=ENCODED[path.suffix], duration_s=2.0)
    else:
        kind = {".ogg": "OGG", ".aif": "AIFF", ".aiff": "AIFF"}.get(path.suffix, path.suffix[1:].upper())
        soundfile.write(path, noise(), RATE_HZ, format=kind)


def write_picture(path: Path) -> None:
    """96 x 72 pixels of orange; an animated one goes on with blue."""
    orange, blue = (Image.new("RGB", (96, 72), colour) for colour in ("orange", "blue"))
    if path.suffix in (".heic", ".heif"):
        import pillow_heif

        pillow_heif.from_pillow(orange).save(str(path))
    elif path.suffix in (".gif", ".webp"):
        orange.save(path, save_all=True, append_images=[blue])
    else:
        orange.save(path)


def is_orange(jpeg: bytes) -> bool:
    red, green, blue = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"), float).reshape(-1, 3).mean(0)
    return bool(abs(red - 255) < 12 and abs(green - 165) < 12 and blue < 25)


def cut(items: list[Item], spool: Path) -> dict[str, int]:
    """How many clips of half a second each item gives."""
    settings = ClipConfig(0.5, mode="grid"), AudioConfig(), FrameConfig(64), MediaLimits()
    counts = {}
    with Fetcher(FetchConfig(), spool, allow=("own",)) as fetcher, Clipper(*settings) as clipper:
        for item in items:
            clips = clipper.cut(fetcher.fetch(item, 64))
            assert all(is_orange(clip.image) or not clip.mode == "still" for clip in clips), item.id
            counts[item.id] = len(clips)
    return counts


def test_a_pair_of_any_suffix_becomes_clips(tmp_path: Path) -> None:
    """Each sound with a JPEG, and each picture with a WAV; of animated ones the first frame counts."""
    for suffix in SOUND_SUFFIXES:
        write_picture(tmp_path / f"sound-{suffix[1:]}.jpg")
        write_sound(tmp_path / f"sound-{suffix[1:]}{suffix}")
    for suffix in PICTURE_SUFFIXES:
        write_picture(tmp_path / f"picture-{suffix[1:]}{suffix}")
        write_sound(tmp_path / f"picture-{suffix[1:]}.wav")
    counts = cut(listed(tmp_path, "folder"), tmp_path / ".spool")
    assert len(counts) == len(SOUND_SUFFIXES) + len(PICTURE_SUFFIXES)
    assert {id: count for id, count in counts.items() if count < 3} == {}


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a silent x.mp4 and x.m4a, as video2dataset and yt-dlp make them of YouTube's streams."""
    root = tmp_path_factory.mktemp("silent")
    film(root / "x.mp4", audio="", duration_s=1.5)
    film(root / "x.m4a", video="", duration_s=1.5)
    return root


def test_a_silent_video_takes_the_sound_beside_it(silent: Path, tmp_path: Path) -> None:
    members = {path.name: path.read_bytes() for path in silent.iterdir()}
    write_tar(tmp_path / "tars/00000.tar", {**members, "x.json": b"{}", "x.txt": b"rain"})
    for items in (listed(silent, "folder"), listed(tmp_path / "tars", "webdataset")):
        assert len(items) == 1 and sum(cut(items, tmp_path / "spool").values()) >= 2


def test_a_video_with_its_own_sound_keeps_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    film(tmp_path / "x.mp4", duration_s=0.4)
    touch(tmp_path, "x.wav")
    with caplog.at_level(logging.INFO):
        (item,) = listed(tmp_path, "folder")
    assert (item.id, item.sound_url) == ("x.mp4", "") and "1 .wav" in caplog.text


@pytest.mark.parametrize("kind", ["folder", "webdataset"])
def test_streams_that_yt_dlp_did_not_merge_are_one_pair(silent: Path, tmp_path: Path, kind: str) -> None:
    names = {"x.mp4": "A walk [id].f137.mp4", "x.m4a": "A walk [id].f140-1.m4a"}
    for old, new in names.items():
        shutil.copy(silent / old, tmp_path / new)
    info = {
        "id": "id",
        "title": "A walk",
        "channel_id": "UCx",
        "license": "Creative Commons Attribution license (reuse allowed)",
    }
    (tmp_path / "A walk [id].info.json").write_text(
        json.dumps({**info, "formats": [{}] * 100, "description": "long"})
    )
    if kind == "webdataset":
        write_tar(tmp_path / "in/a.tar", {path.name: path.read_bytes() for path in tmp_path.iterdir()})
    (item,) = listed(tmp_path / "in/a.tar" if kind == "webdataset" else tmp_path, kind)
    assert (item.title, item.channel, item.license, item.meta["id"]) == ("A walk", "UCx", "CC-BY-3.0", "id")
    assert "description" not in item.meta and "formats" not in item.meta
    assert item.sound_url or set(item.meta["tar"]) == {"picture", "sound"}


def test_a_merged_video_goes_before_its_streams(silent: Path, tmp_path: Path) -> None:
    film(tmp_path / "x.mp4", duration_s=0.4)
    shutil.copy(silent / "x.mp4", tmp_path / "x.f137.mp4")
    shutil.copy(silent / "x.m4a", tmp_path / "x.f140.m4a")
    assert [item.id for item in listed(tmp_path, "folder")] == ["x.mp4"]


def test_files_beside_a_medium_state_license_title_and_caption(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.jpg", "b.wav", "c.mp4", "d.mp4")
    (tmp_path / "a.json").write_text(
        '{"license": "CC0-1.0", "title": "Brook", "caption": "water", "snr": NaN, "views": 3}'
    )
    (tmp_path / "b.txt").write_text("\ufeffrain\u2028on a roof\n")
    (tmp_path / "c.info.json").write_text("{broken")
    (tmp_path / "d.json").write_text('{"license": "all mine"}')
    a, b, c, d = listed(tmp_path, "folder")
    assert (a.license, a.title, a.meta) == ("CC0-1.0", "Brook", {"caption": "water", "views": 3})
    assert (b.license, b.title, b.meta) == ("own", "b", {"caption": "rain on a roof"})
    assert (c.license, c.title, c.meta) == ("own", "c", {})
    assert d.license == "unknown"


def test_linked_folders_are_listed_once_and_circles_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path / "disk2", "two.mp4", "deep/three.mp4")
    touch(tmp_path / "media", "one.mp4", "zoo/four.mp4")
    (tmp_path / "media/more").symlink_to(tmp_path / "disk2")
    (tmp_path / "media/again").symlink_to(tmp_path / "media/zoo")
    (tmp_path / "disk2/deep/up").symlink_to(tmp_path / "disk2")
    (tmp_path / "media/root").symlink_to(tmp_path)
    (tmp_path / "media/gone.mp4").symlink_to(tmp_path / "nothing.mp4")
    os.mkfifo(tmp_path / "media/pipe.mp4")
    with caplog.at_level(logging.INFO):
        items = listed(tmp_path / "media", "folder")
    assert [item.id for item in items] == ["more/deep/three.mp4", "more/two.mp4", "one.mp4", "zoo/four.mp4"]
    for line in (
        "2 linked folder that is listed already",
        "1 linked folder that holds",
        "1 broken link",
        "1 pipe or device",
    ):
        assert line in caplog.text


def test_hidden_media_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a.mp4", ".b.mp4", ".cache/c.mp4", ".DS_Store")
    with caplog.at_level(logging.INFO):
        assert [item.id for item in listed(tmp_path, "folder")] == ["a.mp4"]
    assert "skipped: 1 hidden folder, 1 hidden file" in caplog.text


@contextlib.contextmanager
def somebody() -> Iterator[Path]:
    """A folder, in the shoes of a user who may not read everything."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        try:
            if not user:
                os.chown(folder, 65534, -1)
                os.seteuid(65534)
            yield Path(folder)
            (Path(folder) / "closed").chmod(0o700)
        finally:
            os.seteuid(user)


def test_an_unreadable_folder_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    with somebody() as folder:
        touch(folder, "a.mp4", "closed/b.mp4")
        (folder / "closed").chmod(0)
        with caplog.at_level(logging.INFO):
            assert len(listed(folder, "folder")) == 1
    assert "1 unreadable folder" in caplog.text
