"""`ingest stills`: photos -> silent static videos and a list of them, for video-to-audio models like MMAudio.

    python -m ingest stills images=photos output=out/stills duration_s=8
    out/stills/videos/…/<id>.mp4    H.264 (BT.709, limited range), no sound; a folder per settings
    out/stills/list.tsv             id, path, caption; a row per video (MMAudio reads the folder, or it)
    out/stills/refused.tsv          id, path, reason; the photos that cannot be used
    out/stills/sources.json         the sha256 of the photo that each video shows

Captions come from a .csv with columns `path` (as below the folder) and `caption`, or are empty. A video of
the same photo (by sources.json) and settings is kept. It makes no sound and loads no model.
"""

import csv
import hashlib
import io
import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ffmpeg
from PIL import Image

from cluster.files import replacing
from configs.load import UserError, at_least, operational
from ingest.ffmpeg import ffmpeg_exe
from ingest.photos import find_photos, root_of
from ingest.pixels import PictureError, open_picture
from ingest.sample import safe_id

SOURCES = "sources.json"
MAX_SIDE_PX = 16384  # of H.264
# of swscale, whose default is off by several levels
EXACT = "lanczos+accurate_rnd+full_chroma_int+full_chroma_inp"
CRF = 14


@dataclass
class StillsConfig:
    """Photos, and the videos made of them."""

    images: str  # a folder of photos with all below it, a glob, or one photo
    output: str  # the folder to write to
    captions: str = ""  # a CSV with columns path and caption
    duration_s: float = 8.0  # length of each video
    fps: int = 25  # frames per second
    short_side_px: int = 384  # shorter side of the videos; both sides are made even
    workers: int = operational(2)  # videos made at once

    def __post_init__(self) -> None:
        if self.fps < 1 or round(self.duration_s * self.fps) < 1:
            raise UserError(f"duration_s={self.duration_s} at fps={self.fps}: not even one frame")
        if self.short_side_px < 16 or self.short_side_px % 2:
            raise UserError(f"short_side_px={self.short_side_px}: give an even number, 16 or more")
        at_least(self, 1, "workers")


def make_stills(config: StillsConfig) -> dict[str, int]:
    """Renders every photo and writes the lists. Returns {"videos", "refused"}, counts.

    `UserError` for a place without photos, captions that cannot be read, an output that cannot be written.
    """
    photos = {safe_id(name): path for name, path in find_photos(config.images).items()}
    captions = read_captions(config.captions)
    output = Path(config.output)
    try:
        (output / "videos").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"output={config.output}: not writable ({error.strerror}); choose another folder"
        ) from None
    videos = {id: video_path(config, id) for id in photos}
    sources = _read_sources(output)
    with ThreadPoolExecutor(config.workers) as pool:
        digests = dict(zip(photos, pool.map(_digest, photos.values()), strict=True))
        stale = [sources.get(str(videos[id].relative_to(output))) != digests[id] for id in photos]
        reasons = list(pool.map(partial(_render, config), photos.values(), videos.values(), stale))
    rendered = {
        str(videos[id].relative_to(output)): digests[id]
        for id, reason in zip(photos, reasons, strict=True)
        if not reason
    }
    _write(output / SOURCES, json.dumps(sources | rendered, indent=0))
    made = [
        (id, str(videos[id].relative_to(output)), captions.get(_below(config.images, photo), ""))
        for (id, photo), reason in zip(photos.items(), reasons, strict=True)
        if not reason
    ]
    refused = [
        (id, _below(config.images, photos[id]), reason)
        for id, reason in zip(photos, reasons, strict=True)
        if reason
    ]
    _write_list(output / "list.tsv", ("id", "path", "caption"), made)
    _write_list(output / "refused.tsv", ("id", "path", "reason"), refused)
    return {"videos": len(made), "refused": len(refused)}


def read_captions(path: str) -> dict[str, str]:
    """Captions by the photo's path below its folder. `UserError` where the file has another form."""
    if not path:
        return {}
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"captions={path}: cannot be read as csv: {error}") from None
    if rows and not {"path", "caption"} <= rows[0].keys():
        raise UserError(
            f"captions={path}: columns path and caption are needed; it has {', '.join(map(str, rows[0]))}"
        )
    return {str(row["path"]): " ".join(str(row["caption"] or "").split()) for row in rows}


def video_path(config: StillsConfig, id: str) -> Path:
    """Where the video of a photo lies; other settings have other names, so that a video that is there is the
    right one.
    """
    shape = f"{config.duration_s:g}s-{config.fps}fps-{config.short_side_px}px-bt709"
    return Path(config.output) / "videos" / shape / f"{id}.mp4"


def _read_sources(output: Path) -> dict[str, str]:
    """Which photo each video was made of: sha256 by the video's path.

    Empty where nothing (readable) is there yet.
    """
    try:
        sources = json.loads((output / SOURCES).read_text())
    except (OSError, ValueError):
        return {}
    return sources if isinstance(sources, dict) else {}


def _digest(photo: Path) -> str:
    """sha256 of a photo's file; "" for what is no readable file, which `_render` refuses."""
    try:
        return hashlib.sha256(photo.read_bytes()).hexdigest() if photo.is_file() else ""
    except OSError:
        return ""


def _render(config: StillsConfig, photo: Path, video: Path, stale: bool) -> str:
    """Renders one video, published by renaming; returns why not, or "".

    One that is there is kept unless `stale`.
    """
    if video.exists() and not stale:
        return ""
    video.unlink(missing_ok=True)
    try:
        frame = _scaled(open_picture(photo), config.short_side_px)
    except PictureError as error:
        return f"cannot be used: {error}"
    if max(frame.size) > MAX_SIDE_PX:
        return f"too long: {frame.width} x {frame.height} pixels as a video, {MAX_SIDE_PX} a side allowed"
    video.parent.mkdir(exist_ok=True)
    with replacing(video) as partial:
        command = _encoding(config, frame, partial)
        result = subprocess.run(command, input=frame.tobytes(), capture_output=True)
        if result.returncode:
            raise RuntimeError(f"ffmpeg failed on {photo}: {result.stderr.decode(errors='replace')[-500:]}")
    return ""


def _encoding(config: StillsConfig, frame: Image.Image, target: Path) -> list[str]:
    """The ffmpeg command that reads the frame's RGB bytes. Converted by BT.709 at every size, and marked so:
    players guess the matrix of an unmarked video by its height."""
    picture = ffmpeg.input(
        "pipe:", format="rawvideo", pix_fmt="rgb24", s=f"{frame.width}x{frame.height}", r=config.fps
    )
    still = picture.filter(
        "scale", in_range="pc", out_range="tv", out_color_matrix="bt709", flags=EXACT
    ).filter("format", "yuv420p")
    still = still.filter("loop", loop=-1, size=1, start=0)
    options = {
        "vcodec": "libx264",
        "preset": "veryfast",
        "tune": "stillimage",
        "crf": CRF,
        "pix_fmt": "yuv420p",
        "threads": 1,
    }
    options |= {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709", "color_range": "tv"}
    options |= {
        "vframes": round(config.duration_s * config.fps),
        "movflags": "+faststart",
        "loglevel": "error",
    }
    options |= {"map_metadata": -1, "fflags": "+bitexact", "flags:v": "+bitexact"}
    return list(
        ffmpeg.compile(ffmpeg.output(still, str(target), **options), cmd=ffmpeg_exe(), overwrite_output=True)
    )


def _scaled(picture: Image.Image, short_side_px: int) -> Image.Image:
    """`picture` with its shorter side at `short_side_px` and the longer one at the nearest even number."""
    scale = short_side_px / min(picture.size)
    width, height = (max(short_side_px, 2 * round(side * scale / 2)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _below(images: str, photo: Path) -> str:
    return photo.relative_to(root_of(images)).as_posix()


def _write_list(path: Path, header: tuple[str, ...], rows: list[tuple[str, str, str]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    _write(path, text.getvalue())


def _write(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
