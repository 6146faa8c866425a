"""One way for pictures: every kind of file gives the same pixels in ingest, precompute, generate and the
exported pipeline.
"""

import importlib.util
import io
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import cast

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from configs.load import UserError
from ingest.clip.picture import finish, still_picture
from ingest.clip.windows import Settings
from ingest.photos import find_photos
from ingest.pixels import MAX_PIXELS, PictureError, _readable, open_picture, to_srgb
from ingest.sample import Reason, Refused
from training.export import shipped_source
from training.pipeline.codec import ImageConfig, image_to_tensor
from training.recipes.clips import decode_image

SCENE = np.kron(np.random.default_rng(0).integers(0, 256, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
MASK = np.zeros(SCENE.shape[:2], np.uint8)
MASK[8:40, 8:56] = 255
ON_WHITE = np.where(MASK[..., None] > 0, SCENE, 255)
GREY = SCENE[..., 0]
SETTINGS = cast(Settings, SimpleNamespace(short_side_px=32, quality=95, max_pixels=1_000_000))


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=2)


def sideways() -> Image.Image:
    return Image.fromarray(SCENE).transpose(Image.Transpose.ROTATE_90)


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def swapped_profile() -> bytes:
    """An RGB profile in which red and blue have changed places."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return srgb.replace(b"rXYZ", b"tmpX").replace(b"bXYZ", b"rXYZ").replace(b"tmpX", b"bXYZ")


def palette() -> tuple[Image.Image, np.ndarray]:
    """A picture of four colours, whose colour 0 is transparent, and how it is shown."""
    colours = np.array([[9, 99, 199], [200, 30, 30], [30, 200, 30], [30, 30, 200]], np.uint8)
    places = (np.arange(48 * 64).reshape(48, 64) // 7 % 4).astype(np.uint8)
    picture = Image.frombytes("P", (64, 48), places.tobytes())
    picture.putpalette(colours.tobytes())
    return picture, np.where((places == 0)[..., None], 255, colours[places])


def save(picture: Image.Image, path: Path, **options: object) -> None:
    picture.save(path, **options)  # type: ignore[arg-type]


def rgba(path: Path) -> np.ndarray:
    save(Image.fromarray(np.dstack([SCENE, MASK])), path)
    return ON_WHITE


def la(path: Path) -> np.ndarray:
    save(Image.fromarray(np.dstack([GREY, MASK])), path)
    return np.where(MASK[..., None] > 0, grey(GREY), 255)


def transparent_palette(path: Path) -> np.ndarray:
    picture, shown = palette()
    save(picture, path, transparency=0)
    return shown


def transparent_colour(path: Path) -> np.ndarray:
    save(Image.fromarray(SCENE), path, transparency=tuple(SCENE[0, 0].tolist()))
    return np.where((SCENE == SCENE[0, 0]).all(2)[..., None], 255, SCENE)


def transparent_grey(path: Path) -> np.ndarray:
    save(Image.fromarray(GREY), path, transparency=int(GREY[0, 0]))
    return np.where((GREY == GREY[0, 0])[..., None], 255, grey(GREY))


def sixteen_bits(path: Path) -> np.ndarray:
    ramp = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
    save(Image.fromarray(ramp), path)
    return grey(ramp >> 8)


def thirty_two_bits(path: Path) -> np.ndarray:
    save(Image.fromarray(GREY.astype(np.int32) * 257), path)
    return grey(GREY)


def thirty_one_bits(path: Path) -> np.ndarray:
    save(Image.fromarray(GREY.astype(np.int32) << 23), path)
    return grey(GREY)


def few_bits(path: Path) -> np.ndarray:
    """A PNG of 2 bits of grey, whose value 1 is transparent."""
    row = np.array([[0b00011011] * 16] * 48, np.uint8)
    raw = zlib.compress(np.hstack([np.zeros((48, 1), np.uint8), row]).tobytes())
    path.write_bytes(png(64, 48, chunk(b"tRNS", b"\0\1"), chunk(b"IDAT", raw), depth=2))
    return grey(np.tile(np.array([0, 255, 170, 255], np.uint8), (48, 16)))


def sixteen_bits_a_channel(path: Path) -> np.ndarray:
    """A PNG of 16 bits a channel, of which one colour is transparent."""
    values = (SCENE.astype(np.uint16) << 8).astype(">u2")
    raw = b"".join(b"\0" + row.tobytes() for row in values)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 48, 16, 2, 0, 0, 0)) + chunk(
        b"tRNS", values[0, 0].tobytes()
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b""))
    return np.where((SCENE == SCENE[0, 0]).all(2)[..., None], 255, SCENE)


def cmyk_jpeg(path: Path) -> np.ndarray:
    save(Image.new("RGB", (64, 48), (200, 30, 30)).convert("CMYK"), path, quality=95)
    return np.full((48, 64, 3), (200, 30, 30))


def integers_up_to_255(path: Path) -> np.ndarray:
    save(Image.fromarray(GREY.astype(np.int32)), path)
    return grey(GREY)


def fractions(path: Path) -> np.ndarray:
    save(Image.fromarray(np.linspace(0, 1, 48 * 64, dtype=np.float32).reshape(48, 64)), path)
    return grey((np.linspace(0, 1, 48 * 64, dtype=np.float32) * 255).reshape(48, 64))


def cmyk(path: Path) -> np.ndarray:
    picture = Image.fromarray(SCENE).convert("CMYK")
    save(picture, path)
    return np.asarray(picture.convert("RGB"))


def ycbcr(path: Path) -> np.ndarray:
    picture = Image.fromarray(SCENE).convert("YCbCr")
    save(picture, path)
    return np.asarray(picture.convert("RGB"))


def lab(path: Path) -> np.ndarray:
    srgb, theirs = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    picture = ImageCms.profileToProfile(Image.fromarray(SCENE), srgb, theirs, outputMode="LAB")
    assert picture
    save(picture, path)
    return SCENE


def profiled(path: Path) -> np.ndarray:
    save(Image.fromarray(SCENE), path, icc_profile=swapped_profile())
    return SCENE[..., ::-1]


def profiled_and_transparent(path: Path) -> np.ndarray:
    save(Image.fromarray(np.dstack([SCENE, MASK])), path, icc_profile=swapped_profile())
    return np.where(MASK[..., None] > 0, SCENE[..., ::-1], 255)


def turned(path: Path) -> np.ndarray:
    save(sideways(), path, exif=orientation(6))
    return SCENE


def turned_tiff(path: Path) -> np.ndarray:
    save(sideways(), path, tiffinfo={0x0112: 6})
    return SCENE


def animated(path: Path) -> np.ndarray:
    picture, _ = palette()
    first = picture.convert("RGB")
    save(
        first, path, save_all=True, append_images=[Image.fromarray(255 - SCENE)], duration=100, lossless=True
    )
    return np.asarray(first)


def black_and_white(path: Path) -> np.ndarray:
    save(Image.fromarray(MASK).convert("1"), path)
    return grey(MASK)


KINDS: list[tuple[Callable[[Path], np.ndarray], str, int]] = [
    (rgba, "a.png", 0),
    (rgba, "a.tif", 0),
    (la, "a.png", 0),
    (transparent_palette, "a.png", 0),
    (transparent_palette, "a.gif", 0),
    (transparent_colour, "a.png", 0),
    (transparent_grey, "a.png", 0),
    (sixteen_bits, "a.png", 0),
    (sixteen_bits, "a.tif", 0),
    (thirty_two_bits, "a.tif", 0),
    (thirty_one_bits, "a.tif", 0),
    (integers_up_to_255, "a.tif", 0),
    (few_bits, "a.png", 0),
    (sixteen_bits_a_channel, "a.png", 0),
    (cmyk_jpeg, "a.jpg", 2),
    (fractions, "a.tif", 0),
    (cmyk, "a.tif", 0),
    (ycbcr, "a.tif", 0),
    (lab, "a.tif", 30),
    (profiled, "a.png", 2),
    (profiled, "a.tif", 2),
    (profiled_and_transparent, "a.png", 2),
    (turned, "a.png", 0),
    (turned_tiff, "a.tif", 0),
    (animated, "a.gif", 0),
    (animated, "a.png", 0),
    (animated, "a.webp", 0),
    (black_and_white, "a.png", 0),
]


@pytest.fixture(autouse=True)
def limit_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """`still_picture` sets it for its process, which usually is a decoder child."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The pipeline.py of an exported folder, which knows nothing of this checkout."""
    path = tmp_path_factory.mktemp("export") / "shipped_pipeline.py"
    path.write_text(shipped_source())
    assert not [
        line
        for line in path.read_text().splitlines()
        if line.startswith(("from training", "from ingest", "from configs"))
    ]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("make", "name", "tolerance"), KINDS, ids=lambda part: getattr(part, "__name__", str(part))
)
def test_every_kind_of_picture_is_the_same_everywhere(
    make: Callable[[Path], np.ndarray], name: str, tolerance: int, tmp_path: Path, shipped: ModuleType
) -> None:
    shown = make(tmp_path / name).astype(int)
    picture, size = open_picture(tmp_path / name), ImageConfig(32)
    assert picture.mode == "RGB" and np.abs(np.asarray(picture, int) - shown).max() <= tolerance
    assert still_picture(str(tmp_path / name), SETTINGS).jpeg == finish(picture, 0.0, SETTINGS).jpeg
    precomputed = decode_image((tmp_path / name).read_bytes(), size)
    assert (precomputed == image_to_tensor(picture, size)).all()
    with Image.open(tmp_path / name) as opened:
        assert (shipped.image_to_tensor(opened, shipped.ImageConfig(32)).numpy() == precomputed.numpy()).all()


@pytest.mark.parametrize("value", range(1, 9))
def test_all_eight_orientations(value: int, tmp_path: Path) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    scene = Image.fromarray(SCENE)
    stored = scene.transpose(undo[value]) if value in undo else scene
    stored.save(tmp_path / "a.png", exif=orientation(value))
    assert np.array_equal(np.asarray(open_picture(tmp_path / "a.png")), SCENE)


def test_an_ordinary_jpeg_keeps_every_bit_and_a_second_pass_changes_nothing(tmp_path: Path) -> None:
    Image.fromarray(SCENE).save(tmp_path / "a.jpg", exif=orientation(6), comment=b"hello")
    once = open_picture(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as plain:
        assert np.array_equal(np.asarray(once), np.asarray(plain.transpose(Image.Transpose.ROTATE_270)))
        before = dict(plain.info)
        to_srgb(plain)
        assert plain.info == before and plain.size == (64, 48), "the caller's picture stays as it is"
    assert once.info == {} and np.array_equal(np.asarray(to_srgb(once)), np.asarray(once))


def test_broken_exif_and_profiles_do_not_cost_the_picture(tmp_path: Path) -> None:
    Image.fromarray(SCENE).save(
        tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", icc_profile=b"no profile"
    )
    assert np.array_equal(np.asarray(open_picture(tmp_path / "a.png")), SCENE)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, depth: int = 8) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


PIXELS = chunk(b"IDAT", zlib.compress(bytes(9 * 8)))
TEXT = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(PngImagePlugin.MAX_TEXT_CHUNK + 1), 9))
MANY_TEXTS = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(PngImagePlugin.MAX_TEXT_CHUNK), 9)) * 66
HOSTILE = [
    (png(20000, 20000, chunk(b"IDAT", b"")), "too_large", "400000000 pixels"),
    (png(8, 8, TEXT, PIXELS), "too_large", f"text chunk of more than {PngImagePlugin.MAX_TEXT_CHUNK} bytes"),
    (
        png(8, 8, MANY_TEXTS, PIXELS),
        "too_large",
        f"text chunks of more than {PngImagePlugin.MAX_TEXT_MEMORY} bytes",
    ),
    (png(8, 8, chunk(b"IDAT", b"\xff" * 40)), "corrupt", ""),
    (png(0, 8, PIXELS), "corrupt", ""),
    (jpeg()[:-4000], "corrupt", "truncated"),
    (b"", "unsupported", "not a picture"),
    (b"GIF89a", "corrupt", ""),
    (b"<svg/>", "unsupported", "not a picture of JPEG"),
]


@pytest.mark.parametrize(("data", "kind", "text"), HOSTILE, ids=range(len(HOSTILE)))
def test_what_cannot_be_used_is_one_line_that_names_the_limit(data: bytes, kind: str, text: str) -> None:
    with pytest.raises(PictureError) as caught:
        open_picture(data)
    assert text in str(caught.value) and "\n" not in str(caught.value)
    assert kind == caught.value.kind or kind != "too_large"


def test_limits_of_a_caller_hold_and_pipes_are_never_opened(tmp_path: Path) -> None:
    Image.fromarray(SCENE).save(tmp_path / "a.png")
    with pytest.raises(PictureError, match="64 x 48 pixels, 3071 allowed"):
        open_picture(tmp_path / "a.png", max_pixels=3071)
    os.mkfifo(tmp_path / "b.png")
    with pytest.raises(PictureError, match="not a regular file"):
        open_picture(tmp_path / "b.png")
    with pytest.raises(Refused) as caught:
        still_picture(str(tmp_path / "b.png"), SETTINGS)
    assert caught.value.reason == Reason.UNSUPPORTED and MAX_PIXELS > 10**8


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
    assert picture.size == (64, 48) and np.abs(np.asarray(picture, int) - (200, 30, 30)).max() < 6


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def test_every_photo_of_a_tree_has_a_name_of_its_own(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "a/scene.jpg",
        "b/scene.jpg",
        "x.jpg",
        "x.png",
        "x.jpg.png",
        "x.jpg.png.gif",
        "UPPER.JPG",
        "notes.txt",
        ".hidden.jpg",
    )
    names = {str(path.relative_to(tmp_path)): name for name, path in find_photos(str(tmp_path)).items()}
    assert names == {
        "a/scene.jpg": "a/scene",
        "b/scene.jpg": "b/scene",
        "x.jpg": "x.jpg",
        "x.png": "x.png",
        "x.jpg.png": "x.jpg.png",
        "x.jpg.png.gif": "x.jpg.png.gif",
        "UPPER.JPG": "UPPER",
    }


def test_names_of_a_glob_are_below_its_fixed_part(tmp_path: Path) -> None:
    touch(tmp_path, "a/scene.jpg", "b/scene.jpg", "b/deep/er.png")
    assert set(find_photos(f"{tmp_path}/[ab]/*.jpg")) == {"a/scene", "b/scene"}
    assert set(find_photos(f"{tmp_path}/**/*")) == {"a/scene", "b/scene", "b/deep/er"}
    touch(tmp_path, "odd[1].jpg", "plain")
    assert list(find_photos(f"{tmp_path}/odd[1].jpg")) == ["odd[1]"]
    assert list(find_photos(f"{tmp_path}/plain")) == ["plain"], "a file that is named itself needs no suffix"


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.jpg", "out/b.jpg")
    (tmp_path / "in/linked").symlink_to(tmp_path / "out")
    (tmp_path / "in/circle").symlink_to(tmp_path / "in")
    (tmp_path / "in/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert list(find_photos(f"{tmp_path}/in")) == ["a", "gone", "linked/b"]


@pytest.mark.parametrize("images", ["nowhere", "nowhere/*.jpg", "."])
def test_no_photo_is_one_line(images: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="images="):
        find_photos(str(tmp_path / images))
