"""CPU-seconds per video-minute of the clip stage, side by side with one bare ffmpeg process that only decodes
and encodes.

    python -m benchmarks.clip [minutes=10] [videos=4]

Ours: everything a unit costs - sandbox child, FLAC, JPEG, checks, tar, index - in keyframe and in grid mode.
The floor: one ffmpeg per video that writes 16 kHz WAV segments and keyframe JPEGs, unaligned, unchecked.
H.264/AAC 360p25, a keyframe every 250 frames. CPU-seconds include all children; runs alternate, the median of
three counts.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ffmpeg

from benchmarks.machine import machine
from cluster.record import cpu_seconds
from cluster.worklist import UnitTask, WorkItem
from ingest.clip.clipper import ClipConfig
from ingest.ffmpeg import ffmpeg_exe
from ingest.scrape import ScrapeConfig, ScrapeStage
from ingest.sources.settings import SourceConfig

RUNS = 3


def make_videos(folder: Path, videos: int, minutes: float) -> list[Path]:
    """Videos of moving, textured content with sound, as video sites serve them at 360p."""
    paths = []
    for number in range(videos):
        path = folder / f"video{number}.mp4"
        # colours and corners named: its seed does not decide them, and a flat picture would be refused, not
        # written
        colour = f"0x2040{16 + 50 * (number % 4):02x}"
        look = f"nb_colors=2:c0={colour}:c1=0xf0b040:x0=0:y0=0:x1=640:y1=360:seed={number}"
        picture = ffmpeg.input(
            f"gradients=s=640x360:r=25:d={minutes * 60}:{look}:speed=0.05", f="lavfi"
        ).filter("noise", alls=12, allf="t")
        sound = ffmpeg.input(f"anoisesrc=d={minutes * 60}:c=pink:r=44100:a=0.3:seed={number}", f="lavfi")
        options = {
            "vcodec": "libx264",
            "preset": "veryfast",
            "crf": 28,
            "g": 250,
            "pix_fmt": "yuv420p",
            "acodec": "aac",
            "loglevel": "error",
        }
        words = ffmpeg.compile(
            ffmpeg.output(picture, sound, str(path), shortest=None, **options),
            cmd=ffmpeg_exe(),
            overwrite_output=True,
        )
        subprocess.run(words, check=True)
        paths.append(path)
    return paths


def ours(paths: list[Path], mode: str, scratch: Path) -> tuple[float, int]:
    """CPU-seconds and clips of one unit of all videos, with warm children, as a worker does it."""
    config = ScrapeConfig(
        output="unused", source=SourceConfig(path="unused", license="own"), clip=ClipConfig(mode=mode)
    )
    stage = ScrapeStage(config)
    items = [{"source": "folder", "id": path.stem, "url": str(path), "license": "own"} for path in paths]
    warm = UnitTask("warm", [WorkItem("warm", 0, items[0])])
    task = UnitTask("all", [WorkItem(item["id"], 0, item) for item in items])
    try:
        for name in ("warm", "all"):
            (scratch / name).mkdir(exist_ok=True)
        stage(warm, scratch / "warm")
        before_s = cpu_seconds(living=True)
        output = stage(task, scratch / "all")
        assert set(output.shard.counts) == {"kept"}, (
            f"what is refused costs less than what is written: {output.shard.counts}"
        )
        return cpu_seconds(living=True) - before_s, output.shard.counts["kept"]
    finally:
        stage.close()


def floor(paths: list[Path], scratch: Path) -> float:
    """CPU-seconds of one ffmpeg per video: audio segments and keyframe JPEGs."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for path in paths:
        sound = [
            "-map",
            "0:a",
            "-ac",
            "1",
            "-ar",
            "16000",
            "-f",
            "segment",
            "-segment_time",
            "10.24",
            str(scratch / f"{path.stem}-%04d.wav"),
        ]
        frames = [
            "-map",
            "0:v",
            "-vf",
            "scale=-2:256",
            "-fps_mode",
            "passthrough",
            "-q:v",
            "3",
            str(scratch / f"{path.stem}-%04d.jpg"),
        ]
        words = [
            ffmpeg_exe(),
            "-y",
            "-loglevel",
            "error",
            "-threads",
            "1",
            "-skip_frame",
            "nokey",
            "-i",
            str(path),
            *sound,
            *frames,
        ]
        subprocess.run(words, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(minutes: float = 10.0, videos: int = 4) -> dict[str, object]:
    """Figures per video-minute, and the ratio of keyframe mode to the floor."""
    found: dict[str, list[float]] = {"floor": [], "keyframe": [], "grid": []}
    clips = {"keyframe": 0, "grid": 0}
    with tempfile.TemporaryDirectory(prefix="stillsound-bench-") as name:
        folder = Path(name)
        paths = make_videos(folder, videos, minutes)
        for _ in range(RUNS):
            found["floor"].append(floor(paths, folder))
            for mode in clips:
                cpu_s, clips[mode] = ours(paths, mode, folder)
                found[mode].append(cpu_s)
    per_minute = {
        name: round(statistics.median(values) / (videos * minutes), 4) for name, values in found.items()
    }
    return {
        "benchmark": "clip",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine("av"),
        "video_minutes": videos * minutes,
        "cpu_s_per_video_minute": per_minute,
        "keyframe_over_floor": round(per_minute["keyframe"] / per_minute["floor"], 3),
        "clips": clips,
    }


if __name__ == "__main__":
    words = dict(word.split("=", 1) for word in sys.argv[1:])
    print(json.dumps(measure(float(words.get("minutes", 10)), int(words.get("videos", 4))), indent=1))
