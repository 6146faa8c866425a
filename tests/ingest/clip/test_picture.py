"""Pictures of clips: colours by their matrix and range, upright, square pixels, one field, no metadata."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image, ImageCms

from ingest.clip.clipper import Clipper
from ingest.sample import Clip, Media
from tests.fakes.cutting import cut
from tests.fakes.media import NOISE, RATE_HZ
from tests.ingest.clip.test_clipper import ffmpeg


def picture(clip: Clip) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(clip.image)), dtype=float)


QUARTERS = np.zeros((96, 128, 3), np.uint8)
QUARTERS[:48, :64], QUARTERS[:48, 64:], QUARTERS[48:, :64], QUARTERS[48:, 64:] = (
    (200, 30, 30),
    (30, 200, 30),
    (30, 30, 200),
    (220, 220, 40),
)


def colours(clip: Clip) -> np.ndarray:
    """The four quarters' middles, [2, 2, 3]."""
    shown = picture(clip)
    height, width, _ = shown.shape
    return np.array([[shown[height * y // 4, width * x // 4] for x in (1, 3)] for y in (1, 3)])


def painted(path: Path, *coding: str, frames: np.ndarray = QUARTERS, rate: str = "10") -> None:
    """A two-second video of one RGB picture, and the noise; `coding`: the options of ffmpeg."""
    height, width, _ = frames.shape
    soundfile.write(path.with_suffix(".wav"), NOISE[: 2 * RATE_HZ], RATE_HZ)
    source = [
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-s",
        f"{width}x{height}",
        "-r",
        rate,
        "-i",
        "pipe:",
        "-i",
        str(path.with_suffix(".wav")),
    ]
    ffmpeg(*source, *coding, str(path), stdin=frames.tobytes() * 2 * int(rate))


@pytest.mark.parametrize("matrix", ["smpte170m", "bt709", "bt2020nc"])
@pytest.mark.parametrize("span", ["tv", "pc"])
def test_colours_by_their_matrix_and_range(
    matrix: str, span: str, tmp_path: Path, clippers: dict[str, Clipper]
) -> None:
    into = f"scale=in_range=pc:out_color_matrix={matrix}:out_range={span},format=yuv444p"
    painted(
        tmp_path / "a.mp4",
        "-vf",
        into,
        "-c:v",
        "libx264",
        "-crf",
        "4",
        "-colorspace",
        matrix,
        "-color_range",
        span,
    )
    expected = QUARTERS[24::48, 32::64]
    assert np.abs(colours(cut(clippers["grid"], tmp_path / "a.mp4")[0]) - expected).max() < 8


def test_unmarked_high_definition_is_taken_as_bt709(tmp_path: Path, clippers: dict[str, Clipper]) -> None:
    large = np.repeat(np.repeat(QUARTERS, 8, axis=0), 10, axis=1)
    painted(
        tmp_path / "a.mkv",
        "-vf",
        "scale=out_color_matrix=bt709,format=yuv420p,setparams=colorspace=unknown",
        "-c:v",
        "mpeg4",
        "-q:v",
        "2",
        frames=large,
        rate="2",
    )
    assert np.abs(colours(cut(clippers["grid"], tmp_path / "a.mkv")[0]) - QUARTERS[24::48, 32::64]).max() < 10


def test_high_dynamic_range_is_brought_to_srgb(tmp_path: Path, clippers: dict[str, Clipper]) -> None:
    to_pq = "format=gbrp,zscale=pin=bt709:tin=iec61966-2-1:min=gbr:rin=full:p=bt2020:t=smpte2084:m=bt2020nc:r=limited:npl=203"
    marks = [
        "-color_primaries",
        "bt2020",
        "-color_trc",
        "smpte2084",
        "-colorspace",
        "bt2020nc",
        "-color_range",
        "tv",
    ]
    painted(
        tmp_path / "a.mp4",
        "-vf",
        f"{to_pq},format=yuv420p10le",
        "-c:v",
        "libx265",
        "-x265-params",
        "log-level=none:crf=4",
        *marks,
    )
    assert (
        np.abs(colours(cut(clippers["grid"], tmp_path / "a.mp4")[0]) - QUARTERS[24::48, 32::64]).max() < 32
    )  # 100 if ignored


@pytest.mark.parametrize(
    ("how", "turn"),
    [
        (["-display_rotation", "90"], lambda quarters: np.rot90(quarters, 1)),
        (["-display_rotation", "180"], lambda quarters: np.rot90(quarters, 2)),
        (["-display_rotation", "270"], lambda quarters: np.rot90(quarters, 3)),
        (["-display_rotation", "0", "-display_hflip"], lambda quarters: quarters[:, ::-1]),
        (["-display_rotation", "0", "-display_vflip"], lambda quarters: quarters[::-1]),
        (["-display_rotation", "90", "-display_hflip"], lambda quarters: np.rot90(quarters, 1)[:, ::-1]),
    ],
)
def test_turned_and_mirrored_video_is_upright(
    how: list[str], turn: Any, tmp_path: Path, clippers: dict[str, Clipper]
) -> None:
    painted(tmp_path / "a.mp4", "-c:v", "libx264", "-pix_fmt", "yuv420p")
    ffmpeg(*how, "-i", str(tmp_path / "a.mp4"), "-c", "copy", str(tmp_path / "turned.mp4"))
    clip = cut(clippers["grid"], tmp_path / "turned.mp4")[0]
    truth = turn(QUARTERS[24::48, 32::64])
    assert np.abs(colours(clip) - truth).max() < 30
    sideways = "90" in how or "270" in how
    assert (clip.width_px, clip.height_px) == ((64, 85) if sideways else (85, 64))


@pytest.mark.parametrize(
    ("aspect", "size"), [("16/11", (124, 64)), ("8/9", (76, 64)), ("1/2", (64, 96)), ("0", (85, 64))]
)
def test_pixels_that_are_not_square(
    aspect: str, size: tuple[int, int], tmp_path: Path, clippers: dict[str, Clipper]
) -> None:
    painted(tmp_path / "a.mp4", "-vf", f"setsar={aspect}", "-c:v", "libx264", "-pix_fmt", "yuv420p")
    if aspect == "1/2":
        painted(
            tmp_path / "a.mp4", "-vf", "scale=256:192,setsar=1/2", "-c:v", "libx264", "-pix_fmt", "yuv420p"
        )
    clip = cut(clippers["grid"], tmp_path / "a.mp4")[0]
    assert (
        (clip.width_px, clip.height_px)
        == (size if aspect != "1/2" else (64, 96))
        == picture(clip).shape[1::-1]
    )


def test_one_field_of_an_interlaced_frame(tmp_path: Path, clippers: dict[str, Clipper]) -> None:
    """The fields of moving things are of different times; woven they would show as combs, blended as ghosts."""
    woven = np.zeros((192, 256, 3), np.uint8)
    woven[::2, :128], woven[1::2, 128:] = 220, 220
    painted(
        tmp_path / "a.mpg",
        "-c:v",
        "mpeg2video",
        "-flags",
        "+ildct+ilme",
        "-vf",
        "setfield=tff",
        "-q:v",
        "1",
        "-c:a",
        "ac3",
        frames=woven,
        rate="25",
    )
    shown = picture(cut(clippers["grid"], tmp_path / "a.mpg")[0])
    assert shown.shape == (64, 85, 3) and shown[:, :38].mean() > 200 and shown[:, 48:].mean() < 30


def still(clippers: dict[str, Clipper], path: Path) -> Clip:
    soundfile.write(path.with_suffix(".wav"), NOISE[: 2 * RATE_HZ], RATE_HZ)
    return clippers["grid"].cut(Media(path, path.with_suffix(".wav"), True, "own"))[0]


def test_a_photo_is_turned_by_its_exif_and_loses_it(tmp_path: Path, clippers: dict[str, Clipper]) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x9286] = 6, "the maker", "a user's comment"
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 51.0, 30.0)})
    sideways = Image.fromarray(np.ascontiguousarray(np.rot90(QUARTERS, 1)))
    for name in ("a.jpg", "a.png", "a.webp"):
        comment = {"comment": b"a secret comment"} if name == "a.jpg" else {}
        sideways.save(
            tmp_path / name, exif=exif, xmp=b"<x:xmpmeta>a secret place</x:xmpmeta>", quality=95, **comment
        )
        clip = still(clippers, tmp_path / name)
        assert np.abs(colours(clip) - QUARTERS[24::48, 32::64]).max() < 30
        stored = Image.open(io.BytesIO(clip.image))
        assert not stored.getexif() and not {"exif", "xmp", "comment", "icc_profile", "photoshop"} & set(
            stored.info
        )
        assert b"secret" not in clip.image and b"maker" not in clip.image


def _paint(mode: str) -> Image.Image:
    grey = np.full((96, 128), 100, np.uint8)
    if mode == "I;16":
        return Image.fromarray(grey.astype(np.uint16) * 257)
    return (
        Image.fromarray(grey).quantize(8)
        if mode == "P"
        else Image.fromarray(grey).convert("RGB").convert(mode)
    )


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("L", "a.jpg"),
        ("CMYK", "a.jpg"),
        ("P", "a.png"),
        ("I;16", "a.png"),
        ("LA", "a.png"),
        ("RGBA", "a.webp"),
    ],
)
def test_a_grey_of_100_in_every_kind_of_picture(
    mode: str, name: str, tmp_path: Path, clippers: dict[str, Clipper]
) -> None:
    _paint(mode).save(tmp_path / name)
    clip = still(clippers, tmp_path / name)
    assert picture(clip).shape == (64, 85, 3) and np.abs(picture(clip) - 100).max() < 6


def test_what_is_transparent_is_white(tmp_path: Path, clippers: dict[str, Clipper]) -> None:
    clear = np.dstack([QUARTERS, np.zeros((96, 128), np.uint8)])
    clear[:48, :64, 3] = 255
    Image.fromarray(clear).save(tmp_path / "a.png")
    assert (
        np.abs(
            colours(still(clippers, tmp_path / "a.png")) - [[QUARTERS[0, 0], [255] * 3], [[255] * 3] * 2]
        ).max()
        < 10
    )


def test_a_colour_profile_is_applied(tmp_path: Path, clippers: dict[str, Clipper]) -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = (
        lab.replace(b"rXYZ", b"tmpX").replace(b"bXYZ", b"rXYZ").replace(b"tmpX", b"bXYZ")
    )  # red and blue change places
    Image.fromarray(QUARTERS).save(tmp_path / "a.png", icc_profile=swapped)
    assert (
        np.abs(colours(still(clippers, tmp_path / "a.png")) - QUARTERS[24::48, 32::64][:, :, ::-1]).max() < 40
    )
    Image.fromarray(QUARTERS).save(tmp_path / "b.png", icc_profile=lab[:60] + b"nonsense")
    assert np.abs(colours(still(clippers, tmp_path / "b.png")) - QUARTERS[24::48, 32::64]).max() < 20


def test_a_moving_picture_lends_its_first_frame(tmp_path: Path, clippers: dict[str, Clipper]) -> None:
    frames = [Image.fromarray(QUARTERS), Image.fromarray(255 - QUARTERS)]
    for name in ("a.webp", "a.png", "a.gif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=100)
        assert np.abs(colours(still(clippers, tmp_path / name)) - QUARTERS[24::48, 32::64]).max() < 30
