"""Any still picture -> the same 8-bit RGB pixels everywhere: upright, sRGB, what is transparent on white, no
metadata.

    picture = open_picture("photo.png")            # a path, bytes or a file; else `PictureError`
    picture = to_srgb(PIL.Image.open("photo.png")) # of a picture that is open already

Ingest, training, precompute, generate and evaluate all go through here, so that a model hears what it was
trained on. Needs Pillow and numpy only and imports nothing of ours: `training.export` copies this text into
the file that ships with a model.
"""

import importlib.util
import io
import os
import stat
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "JPEG2000", "PPM")
MAX_PIXELS = 178_956_970  # Pillow's own limit for what is a decompression bomb
ORIENTATION = 0x0112  # the EXIF tag
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
FEW_BITS = {"L;2": 85, "L;4": 17}  # what a grey of few bits is multiplied with
SRGB = ImageCms.createProfile("sRGB")
LAB = ImageCms.createProfile("LAB")
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    OverflowError,
    struct.error,
    zlib.error,
)
TOO_LARGE, UNSUPPORTED, CORRUPT = "too_large", "unsupported", "corrupt"


class PictureError(ValueError):
    """A picture that cannot be used;

    `kind` is too_large, unsupported or corrupt, the text one line that says why.
    """

    def __init__(self, kind: str, text: str):
        super().__init__(" ".join(text.split()) or kind)
        self.kind = kind


def open_picture(
    source: str | Path | bytes | IO[bytes], max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] = FORMATS
) -> Image.Image:
    """The (first) picture of a file as `to_srgb` gives it.

    Raises `PictureError`; never decodes more than `max_pixels`.
    """
    if isinstance(source, str | Path):
        _check_regular(source)
    file = io.BytesIO(source) if isinstance(source, bytes | bytearray | memoryview) else source
    try:
        with Image.open(file, formats=_readable(formats)) as opened:
            check_pixels(*opened.size, max_pixels)
            return to_srgb(opened)
    except PictureError:
        raise
    except Image.DecompressionBombError as error:
        raise PictureError(TOO_LARGE, str(error)) from None
    except UnidentifiedImageError:
        readable = _readable(formats)
        hint = "; HEIF needs the package pillow-heif" if readable != formats else ""
        raise PictureError(UNSUPPORTED, f"not a picture of {', '.join(readable)}{hint}") from None
    except BROKEN as error:
        raise _classified(error) from None


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raises `PictureError` for a picture without a size or of more than `max_pixels`."""
    if width < 1 or height < 1:
        raise PictureError(CORRUPT, "a picture without a size")
    if width * height > max_pixels:
        raise PictureError(TOO_LARGE, f"{width} x {height} pixels, {max_pixels} allowed")


def to_srgb(picture: Image.Image) -> Image.Image:
    """A new RGB picture of `picture` as it is shown; for an animated one, of the frame it stands at.

    Raises what Pillow raises for damaged files. Applied again it changes nothing: orientation and profile are
    gone.
    """
    transparent = _transparent_value(picture)  # before loading, which forgets how the file stores its pixels
    picture.load()
    profile = picture.info.get("icc_profile")
    turn = UPRIGHT.get(_orientation(picture))
    colours, alpha = _colours_and_alpha(picture, transparent)
    shown = _in_srgb(colours, profile)
    if alpha is not None:
        white = Image.new("RGB", shown.size, "white")
        white.paste(shown, mask=alpha)
        shown = white
    if turn is not None:
        shown = shown.transpose(turn)
    shown = shown.copy() if shown is picture else shown
    shown.info = {}
    return shown


def _transparent_value(picture: Image.Image) -> Any:
    """The one transparent grey, colour or palette entry of a file, or None, as its pixels are after loading.

    Pillow gives it as a PNG stores it: in 2 or 4 bits of grey, or in 16 bits a channel, of which Pillow keeps
    the upper 8.
    """
    value = picture.info.get("transparency")
    tiles = getattr(picture, "tile", None)
    stored = tiles[0].args if tiles else None
    if isinstance(value, tuple) and (stored == "RGB;16B" or max(value) > 255):
        return tuple(part >> 8 for part in value)
    if isinstance(value, int) and isinstance(stored, str):
        return value * FEW_BITS.get(stored, 1)
    return value


def _colours_and_alpha(picture: Image.Image, transparent: Any) -> tuple[Image.Image, Image.Image | None]:
    """8-bit colours (L, RGB, CMYK or LAB) and, where something is transparent, its mask (L)."""
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture)
        mask = (
            Image.fromarray((values != transparent).astype(np.uint8) * 255)
            if isinstance(transparent, int)
            else None
        )
        return Image.fromarray(_eight_bits(values, picture.mode)), mask
    if picture.has_transparency_data:
        if transparent is not None:
            picture = picture.copy()
            picture.info["transparency"] = transparent
        rgba = picture.convert("RGBA")
        grey = picture.mode in ("L", "LA", "La", "1")
        return rgba.convert("RGB").getchannel(0) if grey else rgba.convert("RGB"), rgba.getchannel("A")
    if picture.mode in ("L", "RGB", "CMYK", "LAB"):
        return picture, None
    return picture.convert("L" if picture.mode == "1" else "RGB"), None


def _eight_bits(values: np.ndarray, mode: str) -> np.ndarray:
    """Grey [height, width] of more than 8 bits -> uint8; Pillow itself would cut it off at 255.

    I;16 has 16 bits. I and F do not say what white is: 255 or, for larger values, 65535, then all 31 bits;
    for fractions, 1.
    """
    if mode == "F":
        values = np.nan_to_num(values, nan=0.0, posinf=65535.0, neginf=0.0)
        peak = values.max()
        return (values * (255 if peak <= 1 else 1 if peak <= 255 else 1 / 256)).clip(0, 255).astype(np.uint8)
    wide = values.astype(np.int64)
    peak = int(wide.max()) if mode == "I" else 65535
    shift = 0 if peak <= 255 else 8 if peak <= 65535 else 23
    return (wide >> shift).clip(0, 255).astype(np.uint8)


def _in_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB, by the profile where there is one that fits; otherwise, as browsers do, taken for sRGB."""
    if profile and picture.mode != "LAB":
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(picture, source, SRGB, outputMode="RGB")
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass  # a profile of another kind of picture, or a broken one
    if picture.mode == "LAB":
        converted = ImageCms.profileToProfile(
            picture, ImageCms.ImageCmsProfile(LAB), ImageCms.ImageCmsProfile(SRGB), outputMode="RGB"
        )
        assert converted is not None, "only a conversion in place gives None"
        return converted
    return picture.convert("RGB")


def _orientation(picture: Image.Image) -> int:
    """1 to 8; a broken EXIF block turns nothing."""
    try:
        return int(picture.getexif().get(ORIENTATION, 1))
    except BROKEN:
        return 1


def _classified(error: Exception) -> PictureError:
    text = str(error) or type(error).__name__
    if "MAX_TEXT_CHUNK" in text:
        return PictureError(TOO_LARGE, f"a text chunk of more than {PngImagePlugin.MAX_TEXT_CHUNK} bytes")
    if "text chunks" in text:
        return PictureError(TOO_LARGE, f"text chunks of more than {PngImagePlugin.MAX_TEXT_MEMORY} bytes")
    return PictureError(CORRUPT, text)


def _check_regular(path: str | Path) -> None:
    """Raises `PictureError`: a pipe or device would never end."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise PictureError(CORRUPT, error.strerror or "cannot be opened") from None
    if not stat.S_ISREG(mode):
        raise PictureError(UNSUPPORTED, "not a regular file")


@cache
def _readable(formats: tuple[str, ...]) -> tuple[str, ...]:
    """Those of `formats` that can be read here: HEIF needs the package pillow-heif."""
    if "HEIF" not in formats:
        return formats
    if not importlib.util.find_spec("pillow_heif"):
        return tuple(name for name in formats if name != "HEIF")
    importlib.import_module("pillow_heif").register_heif_opener()
    return formats
