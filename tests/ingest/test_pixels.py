"""Opening a picture: upright, on white, and within limits. Each kind of file: tests/whole/test_pictures.py."""

import io
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from ingest.pixels import MAX_PIXELS, PictureError, _readable, open_picture, to_srgb
from tests.fakes.pictures import SCENE, chunk, orientation, png

# orientation of EXIF -> what a camera did to the picture
STORED_AS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("value", range(1, 9))
def test_all_eight_orientations(value: int, tmp_path: Path) -> None:
    scene = Image.fromarray(SCENE)
    stored = scene.transpose(STORED_AS[value]) if value in STORED_AS else scene
    stored.save(tmp_path / "a.png", exif=orientation(value))
    assert np.array_equal(np.asarray(open_picture(tmp_path / "a.png")), SCENE)


def test_an_ordinary_jpeg_keeps_every_bit(tmp_path: Path) -> None:
    path = jpeg_file(tmp_path)
    with Image.open(path) as plain:
        upright = plain.transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(np.asarray(open_picture(path)), np.asarray(upright))


def test_metadata_is_dropped(tmp_path: Path) -> None:
    assert open_picture(jpeg_file(tmp_path)).info == {}


def test_a_second_pass_changes_nothing(tmp_path: Path) -> None:
    once = open_picture(jpeg_file(tmp_path))
    assert np.array_equal(np.asarray(to_srgb(once)), np.asarray(once))


def test_the_picture_of_the_caller_stays_as_it_is(tmp_path: Path) -> None:
    with Image.open(jpeg_file(tmp_path)) as picture:
        info = dict(picture.info)
        to_srgb(picture)
        assert picture.info == info and picture.size == (64, 48)


def jpeg_file(folder: Path) -> Path:
    """The scene with an orientation and a comment."""
    path = folder / "a.jpg"
    Image.fromarray(SCENE).save(path, exif=orientation(6), comment=b"hello")
    return path


def test_broken_exif_and_profiles_are_ignored(tmp_path: Path) -> None:
    exif = b"Exif\0\0II*\0\xff\xff\xff\xff"
    Image.fromarray(SCENE).save(tmp_path / "a.png", exif=exif, icc_profile=b"no profile")
    assert np.array_equal(np.asarray(open_picture(tmp_path / "a.png")), SCENE)


# --- Files that cannot be used ------------------------------------------------------------------------------


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


MAX_TEXT = PngImagePlugin.MAX_TEXT_CHUNK
MAX_TEXTS = PngImagePlugin.MAX_TEXT_MEMORY
PIXELS = chunk(b"IDAT", zlib.compress(bytes(9 * 8)))
TEXT = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(MAX_TEXT + 1), 9))
MANY_TEXTS = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(MAX_TEXT), 9)) * 66
HOSTILE = [
    (png(20000, 20000, chunk(b"IDAT", b"")), "too_large", "400000000 pixels"),
    (png(8, 8, TEXT, PIXELS), "too_large", f"text chunk of more than {MAX_TEXT} bytes"),
    (png(8, 8, MANY_TEXTS, PIXELS), "too_large", f"text chunks of more than {MAX_TEXTS} bytes"),
    (png(8, 8, chunk(b"IDAT", b"\xff" * 40)), "corrupt", ""),
    (png(0, 8, PIXELS), "unsupported", ""),
    (jpeg()[:-4000], "corrupt", "truncated"),
    (b"", "unsupported", "not a picture"),
    (b"GIF89a", "unsupported", ""),
    (b"<svg/>", "unsupported", "not a picture of JPEG"),
]


@pytest.mark.parametrize(("data", "kind", "message"), HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_file_is_an_error_of_one_line(data: bytes, kind: str, message: str) -> None:
    with pytest.raises(PictureError) as caught:
        open_picture(data)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.kind == kind


def test_the_limit_of_a_caller_holds(tmp_path: Path) -> None:
    Image.fromarray(SCENE).save(tmp_path / "a.png")
    with pytest.raises(PictureError, match="64 x 48 pixels, 3071 allowed"):
        open_picture(tmp_path / "a.png", max_pixels=3071)


def test_the_default_limit_lets_photos_of_100_megapixels_pass() -> None:
    assert MAX_PIXELS > 10**8


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "b.png")
    with pytest.raises(PictureError, match="not a regular file"):
        open_picture(tmp_path / "b.png")


# --- HEIF, which needs a package ----------------------------------------------------------------------------


def test_heif_without_its_package_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.pixels.importlib.util.find_spec", lambda name: None)
    _readable.cache_clear()
    with pytest.raises(PictureError, match="HEIF needs the package pillow-heif"):
        open_picture(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64), formats=("JPEG", "HEIF"))
    _readable.cache_clear()


def test_heif_is_read_where_its_package_is(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    Image.new("RGB", (64, 48), (200, 30, 30)).save(tmp_path / "a.heic", format="HEIF")
    picture = open_picture(tmp_path / "a.heic")
    assert picture.size == (64, 48)
    assert np.abs(np.asarray(picture, int) - (200, 30, 30)).max() < 6
