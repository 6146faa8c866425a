"""What a file or an answer is, by its first bytes."""

import io

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ingest.fetch.sniff import is_text, media_type, text_type
from tests.ingest.fetch.test_fetcher import fetch as fetch
from tests.ingest.fetch.test_fetcher import hostile as hostile


def encoded(container: str, codec: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for n in range(5):
            out.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(np.full((64, 64, 3), 50 * n, np.uint8), format="rgb24")
                )
            )
        out.mux(stream.encode(None))
    return file.getvalue()


CONTAINERS = [
    ("mp4", "libx264", "video/mp4"),
    ("mov", "libx264", "video/mp4"),
    ("matroska", "libx264", "video/webm"),
    ("mpegts", "libx264", "video/mp2t"),
    ("avi", "mpeg4", "video/x-msvideo"),
    ("flv", "flv1", "video/x-flv"),
    ("asf", "mpeg4", "video/x-ms-asf"),
    ("mpeg", "mpeg2video", "video/mpeg"),
]


@pytest.mark.parametrize(("container", "codec", "expected"), CONTAINERS)
def test_a_video_is_recognized_by_its_first_bytes(container: str, codec: str, expected: str) -> None:
    assert media_type(encoded(container, codec)[:4096]) == expected


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("WAV", "audio/wav"),
        ("FLAC", "audio/flac"),
        ("OGG", "application/ogg"),
        ("AIFF", "audio/aiff"),
        ("MP3", "audio/mpeg"),
        ("CAF", "audio/x-caf"),
    ],
)
def test_a_sound_is_recognized_by_its_first_bytes(kind: str, expected: str) -> None:
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(0).normal(0, 0.1, 16000), 16000, format=kind)
    assert media_type(file.getvalue()[:4096]) == expected


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_a_picture_is_recognized_by_its_first_bytes(kind: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, kind)
    assert media_type(file.getvalue()[:4096]) == f"image/{kind.lower()}"


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1))
def test_no_text_is_taken_for_a_medium(text: str) -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        head = f"<p>{text}".encode(encoding)
        assert is_text(head) and media_type(head) == ""


def test_a_manifest_is_recognized_by_its_start() -> None:
    assert text_type(b"\xef\xbb\xbf#EXTM3U\n", "text/plain") == "application/vnd.apple.mpegurl"
    assert text_type(b'<?xml version="1.0"?>\n<!-- x -->\n<MPD xmlns="x">', "") == "application/dash+xml"
    assert (
        text_type(b"<!doctype html><title>x</title>", "video/mp4") == "text/html"
        and text_type(b"{}", "application/json") == "application/json"
    )
