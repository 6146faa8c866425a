"""Pictures of every kind that a file can hold, each with the pixels that a viewer shows.

    for make, name, tolerance in KINDS:
        expected = make(tmp_path / name)     # writes the file; uint8 [48, 64, 3] on white

`tolerance`: how far a value may be off, for kinds whose conversion is not exact.
"""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

SCENE = np.kron(np.random.default_rng(0).integers(0, 256, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
MASK = np.zeros(SCENE.shape[:2], np.uint8)
MASK[8:40, 8:56] = 255
ON_WHITE = np.where(MASK[..., None] > 0, SCENE, 255)
GREY = SCENE[..., 0]


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=2)


def sideways() -> Image.Image:
    return Image.fromarray(SCENE).transpose(Image.Transpose.ROTATE_90)


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def swapped_profile() -> bytes:
    """An RGB profile in which red and blue are swapped."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return srgb.replace(b"rXYZ", b"tmpX").replace(b"bXYZ", b"rXYZ").replace(b"tmpX", b"bXYZ")


def palette() -> tuple[Image.Image, np.ndarray]:
    """A picture of four colours whose colour 0 is transparent, and its pixels on white."""
    colours = np.array([[9, 99, 199], [200, 30, 30], [30, 200, 30], [30, 30, 200]], np.uint8)
    indices = (np.arange(48 * 64).reshape(48, 64) // 7 % 4).astype(np.uint8)
    picture = Image.frombytes("P", (64, 48), indices.tobytes())
    picture.putpalette(colours.tobytes())
    return picture, np.where((indices == 0)[..., None], 255, colours[indices])


def save(picture: Image.Image, path: Path, **options: object) -> None:
    picture.save(path, **options)  # type: ignore[arg-type]


def rgba(path: Path) -> np.ndarray:
    save(Image.fromarray(np.dstack([SCENE, MASK])), path)
    return ON_WHITE


def la(path: Path) -> np.ndarray:
    save(Image.fromarray(np.dstack([GREY, MASK])), path)
    return np.where(MASK[..., None] > 0, grey(GREY), 255)


def transparent_palette(path: Path) -> np.ndarray:
    picture, pixels = palette()
    save(picture, path, transparency=0)
    return pixels


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
    chunks = [
        chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 48, 16, 2, 0, 0, 0)),
        chunk(b"tRNS", values[0, 0].tobytes()),
        chunk(b"IDAT", zlib.compress(raw)),
        chunk(b"IEND", b""),
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
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
    srgb = ImageCms.createProfile("sRGB")
    lab = ImageCms.createProfile("LAB")
    picture = ImageCms.profileToProfile(Image.fromarray(SCENE), srgb, lab, outputMode="LAB")
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
    second = Image.fromarray(255 - SCENE)
    save(first, path, save_all=True, append_images=[second], duration=100, lossless=True)
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


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, depth: int = 8) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")
