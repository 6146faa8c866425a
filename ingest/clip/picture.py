"""A decoded frame or a photo -> the JPEG of a sample: upright, square pixels, sRGB, no metadata.

    picture = VideoPictures(aspect, settings).picture(frame, time_s)     # a frame of PyAV
    picture = still_picture("/photo.jpg", settings)

Runs in the decoder child only. It scales down to the configured short side and judges no content.
"""

import io
import os
import stat
from dataclasses import dataclass
from typing import Any

import numpy as np
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc, VideoReformatter
from PIL import Image, ImageFile

from ingest.clip.windows import Settings
from ingest.pixels import PictureError, open_picture
from ingest.sample import Reason, Refused

# a whitelist: Pillow's EPS decoder would start Ghostscript. HEIF needs pillow-heif
STILL_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "HEIF")
# transfer curves and primaries whose values, taken for sRGB, would look flat and grey
HDR = (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)
WIDE = (ColorPrimaries.BT2020, ColorPrimaries.SMPTE431, ColorPrimaries.SMPTE432)
UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED
MAX_SIDE_PX = 65500  # of a JPEG, by libjpeg: its format ends at 65535


@dataclass(frozen=True)
class Picture:
    """A finished frame: JPEG bytes, its size and presentation time."""

    jpeg: bytes
    width_px: int
    height_px: int
    time_s: float


class VideoPictures:
    """Finishes the frames of one video; `aspect` is the width of its pixels over their height."""

    def __init__(self, aspect: float, settings: Settings):
        self.aspect = aspect
        self.settings = settings
        self.reformatter = VideoReformatter()  # kept: tables for high dynamic range take it a second to make

    def picture(self, frame: Any, time_s: float) -> Picture:
        """The frame as a player displays it. Raises `Refused`: too_small, too_large, corrupt."""
        check_size(frame.width, frame.height, self.settings)
        check_size(round(frame.width * self.aspect), frame.height, self.settings)
        pixels = self._rgb(frame)
        aspect = self.aspect
        if frame.interlaced_frame and frame.height > 1:
            # the field that is on screen first: two fields are two moments, and what moved would have combs
            pixels = pixels[::2]
            aspect /= 2
        pixels, turned = upright(pixels, _display_matrix(frame))
        return finish(Image.fromarray(pixels), time_s, self.settings, 1 / aspect if turned else aspect)

    def _rgb(self, frame: Any) -> np.ndarray:
        """uint8 [height, width, 3]."""
        # as players do: without a mark, high definition has BT.709 colours and the rest BT.601
        is_unmarked_hd = frame.colorspace == UNSPECIFIED and (frame.width >= 1280 or frame.height > 576)
        is_wide = frame.color_trc in HDR or frame.color_primaries in WIDE
        converted = self.reformatter.reformat(
            frame,
            format="rgb24",
            src_colorspace=Colorspace.ITU709 if is_unmarked_hd else None,
            dst_color_trc=ColorTrc.IEC61966_2_1 if is_wide else None,
            dst_color_primaries=ColorPrimaries.BT709 if is_wide else None,
            threads=1,  # one item has one core
        )
        return np.ascontiguousarray(converted.to_ndarray())


def upright(pixels: np.ndarray, matrix: np.ndarray | None) -> tuple[np.ndarray, bool]:
    """`pixels` [height, width, 3] turned and mirrored as a display matrix [3, 3] says.

    And whether its sides changed places: then its pixels' aspect is the other way round, too.
    """
    if matrix is None:
        return pixels, False
    (a, b), (c, d) = matrix[:2, :2]
    turned = bool(abs(b) > abs(a))
    if turned:
        # transposed, x is the frame's y: whether it runs backwards is the sign of c, and that of y of b
        pixels = pixels.transpose(1, 0, 2)
        a = c
        d = b
    row_step = -1 if d < 0 else 1
    column_step = -1 if a < 0 else 1
    return np.ascontiguousarray(pixels[::row_step, ::column_step]), turned


def still_picture(path: str, settings: Settings) -> Picture:
    """A photo as a frame, upright. Raises `Refused`: too_small, too_large, unsupported, corrupt."""
    Image.MAX_IMAGE_PIXELS = settings.max_pixels
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        photo = open_picture(path, settings.max_pixels, STILL_FORMATS)
    except PictureError as error:
        raise Refused(Reason(error.kind), str(error)) from None
    check_size(*photo.size, settings)
    return finish(photo, 0.0, settings)


def finish(picture: Image.Image, time_s: float, settings: Settings, aspect: float = 1.0) -> Picture:
    """RGB `picture` as a JPEG of square pixels with the configured short side.

    `aspect`: the width of its pixels over their height.
    """
    square_sides = (picture.width * aspect, picture.height)
    scale = settings.short_side_px / min(square_sides)
    width, height = (max(settings.short_side_px, round(side * scale)) for side in square_sides)
    if max(width, height) > MAX_SIDE_PX:
        raise Refused(Reason.TOO_LARGE, f"shown at {width} x {height} pixels")
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    picture.info = {}  # PIL would write a comment of the original again
    jpeg = io.BytesIO()
    picture.save(jpeg, "JPEG", quality=settings.quality)
    return Picture(jpeg.getvalue(), width, height, time_s)


def check_size(width: int, height: int, settings: Settings) -> None:
    """Raises `Refused`: too_small, too_large, corrupt."""
    if not width or not height:
        raise Refused(Reason.CORRUPT, "a picture without a size")
    if width * height > settings.max_pixels:
        raise Refused(Reason.TOO_LARGE, f"{width} x {height} pixels, {settings.max_pixels} allowed")
    if min(width, height) < settings.short_side_px:
        raise Refused(
            Reason.TOO_SMALL, f"{width} x {height} pixels, the short side needs {settings.short_side_px}"
        )


def regular_file(path: str) -> None:
    """Raises `Refused`: a pipe or device would never end."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise Refused(Reason.CORRUPT, error.strerror or "cannot be opened") from None
    if not stat.S_ISREG(mode):
        raise Refused(Reason.UNSUPPORTED, "not a regular file")


def _display_matrix(frame: Any) -> np.ndarray | None:
    matrices = [data for data in frame.side_data if data.type.name == "DISPLAYMATRIX"]
    return np.frombuffer(bytes(matrices[0]), np.int32)[:9].reshape(3, 3) if matrices else None
