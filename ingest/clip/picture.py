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

STILL_FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "AVIF",
    "GIF",
    "BMP",
    "TIFF",
    "HEIF",
)  # HEIF where pillow-heif is installed
HDR = (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)
WIDE = (ColorPrimaries.BT2020, ColorPrimaries.SMPTE431, ColorPrimaries.SMPTE432)
UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED
MAX_SIDE_PX = 65500  # of a JPEG


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
        """The frame as it is shown. Raises `Refused`: too_small, too_large, corrupt."""
        check_size(frame.width, frame.height, self.settings)
        check_size(round(frame.width * self.aspect), frame.height, self.settings)
        pixels, aspect = self._rgb(frame), self.aspect
        if frame.interlaced_frame and frame.height > 1:
            pixels, aspect = (
                pixels[::2],
                aspect / 2,
            )  # the field that is on screen first; both would show combs
        pixels, turned = upright(pixels, _display_matrix(frame))
        return finish(Image.fromarray(pixels), time_s, self.settings, 1 / aspect if turned else aspect)

    def _rgb(self, frame: Any) -> np.ndarray:
        """uint8 [height, width, 3]. Video without a mark has BT.709 colours from 720 lines on, as players
        take it.
        """
        options: dict[str, Any] = {"format": "rgb24", "threads": 1}
        if frame.colorspace == UNSPECIFIED and (frame.width >= 1280 or frame.height > 576):
            options["src_colorspace"] = Colorspace.ITU709
        if frame.color_trc in HDR or frame.color_primaries in WIDE:
            options |= {"dst_color_trc": ColorTrc.IEC61966_2_1, "dst_color_primaries": ColorPrimaries.BT709}
        return np.ascontiguousarray(self.reformatter.reformat(frame, **options).to_ndarray())


def upright(pixels: np.ndarray, matrix: np.ndarray | None) -> tuple[np.ndarray, bool]:
    """`pixels` [height, width, 3] turned and mirrored as a display matrix [3, 3] says, and whether its sides
    changed places.
    """
    if matrix is None:
        return pixels, False
    (a, b), (c, d) = matrix[:2, :2]
    turned = bool(abs(b) > abs(a))
    if turned:
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]), turned


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
    """RGB `picture`, whose pixels are `aspect` times as wide as high, as a JPEG of square ones with the short
    side asked for.
    """
    shown = (picture.width * aspect, picture.height)
    scale = settings.short_side_px / min(shown)
    width, height = (max(settings.short_side_px, round(side * scale)) for side in shown)
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
    found = [data for data in frame.side_data if data.type.name == "DISPLAYMATRIX"]
    return np.frombuffer(bytes(found[0]), np.int32)[:9].reshape(3, 3) if found else None
