"""What the clip stage costs in CPU-seconds, beside one bare ffmpeg that only decodes and encodes.

    python -m benchmarks.clip [minutes=10] [videos=4]

Measured: CPU-seconds per minute of video, all child processes included.

- `keyframe`, `grid`: our clip stage in these two modes, with everything that a unit costs: sandboxed child,
  FLAC, JPEG, checks, tar, index.
- `floor`, the baseline: one ffmpeg per video that writes 16 kHz WAV segments and JPEGs of the keyframes,
  unaligned and unchecked.

How: videos of H.264/AAC, 640x360, 25 frames a second, a keyframe every 250 frames. The three take turns, RUNS
times; of each the median counts. `keyframe_over_floor` is the ratio of two medians.
"""

import json
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import ffmpeg

from benchmarks.command_line import parse_options
from benchmarks.machine import machine
from cluster.record import cpu_seconds
from cluster.worklist import UnitTask, WorkItem
from ingest.clip.clipper import ClipConfig
from ingest.ffmpeg import ffmpeg_exe
from ingest.scrape import ScrapeConfig, ScrapeStage
from ingest.sources.settings import SourceConfig

RUNS = 3
FLOOR_AUDIO = "-map 0:a -ac 1 -ar 16000 -f segment -segment_time 10.24".split()
FLOOR_FRAMES = "-map 0:v -vf scale=-2:256 -fps_mode passthrough -q:v 3".split()


# --- Videos to cut ------------------------------------------------------------------------------------------


def make_videos(folder: Path, videos: int, minutes: float) -> list[Path]:
    """Videos of moving, textured content with sound, as video sites serve them at 360p."""
    paths = [folder / f"video{seed}.mp4" for seed in range(videos)]
    for seed, path in enumerate(paths):
        make_video(path, seed, 60 * minutes)
    return paths


def make_video(path: Path, seed: int, duration_s: float) -> None:
    # colours and corners are named, as ffmpeg's seed does not decide them, and a flat picture would be
    # refused instead of written
    colour = f"0x2040{16 + 50 * (seed % 4):02x}"
    corners = "x0=0:y0=0:x1=640:y1=360"
    gradient = f"nb_colors=2:c0={colour}:c1=0xf0b040:{corners}:seed={seed}:speed=0.05"
    picture = ffmpeg.input(f"gradients=s=640x360:r=25:d={duration_s}:{gradient}", f="lavfi")
    picture = picture.filter("noise", alls=12, allf="t")
    sound = ffmpeg.input(f"anoisesrc=d={duration_s}:c=pink:r=44100:a=0.3:seed={seed}", f="lavfi")
    encoding = {
        "vcodec": "libx264",
        "preset": "veryfast",
        "crf": 28,
        "g": 250,
        "pix_fmt": "yuv420p",
        "acodec": "aac",
        "loglevel": "error",
    }
    output = ffmpeg.output(picture, sound, str(path), shortest=None, **encoding)
    subprocess.run(ffmpeg.compile(output, cmd=ffmpeg_exe(), overwrite_output=True), check=True)


# --- Both sides ---------------------------------------------------------------------------------------------


def our_stage(paths: list[Path], mode: str, scratch: Path) -> tuple[float, int]:
    """CPU-seconds and clips of one unit of all videos, with a child that is warm, as in a worker."""
    source = SourceConfig(path="unused", license="own")
    stage = ScrapeStage(ScrapeConfig(output="unused", source=source, clip=ClipConfig(mode=mode)))
    items = [{"source": "folder", "id": path.stem, "url": str(path), "license": "own"} for path in paths]
    warm_up = UnitTask("warm", [WorkItem("warm", 0, items[0])])
    task = UnitTask("all", [WorkItem(item["id"], 0, item) for item in items])
    for unit in (warm_up.unit, task.unit):
        (scratch / unit).mkdir(exist_ok=True)
    try:
        stage(warm_up, scratch / warm_up.unit)
        cpu_s_before = cpu_seconds(living=True)
        shard = stage(task, scratch / task.unit).shard
        cpu_s = cpu_seconds(living=True) - cpu_s_before
    finally:
        stage.close()
    assert set(shard.counts) == {"kept"}, f"a refused clip costs less than a written one: {shard.counts}"
    return cpu_s, shard.counts["kept"]


def bare_ffmpeg(paths: list[Path], scratch: Path) -> float:
    """CPU-seconds of one ffmpeg per video: audio segments and JPEGs of the keyframes."""
    cpu_s_before = cpu_seconds_of_children()
    for path in paths:
        args = [ffmpeg_exe(), "-y", "-loglevel", "error", "-threads", "1", "-skip_frame", "nokey"]
        args += ["-i", str(path)]
        args += [*FLOOR_AUDIO, str(scratch / f"{path.stem}-%04d.wav")]
        args += [*FLOOR_FRAMES, str(scratch / f"{path.stem}-%04d.jpg")]
        subprocess.run(args, check=True)
    return cpu_seconds_of_children() - cpu_s_before


def cpu_seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


# --- Result -------------------------------------------------------------------------------------------------


def measure(minutes: float, videos: int) -> dict[str, object]:
    cpu_s: dict[str, list[float]] = {"floor": [], "keyframe": [], "grid": []}
    clips = {"keyframe": 0, "grid": 0}
    with tempfile.TemporaryDirectory(prefix="stillsound-bench-") as name:
        folder = Path(name)
        paths = make_videos(folder, videos, minutes)
        # the sides take turns within a round: what else the machine does meets all three
        for _ in range(RUNS):
            cpu_s["floor"].append(bare_ffmpeg(paths, folder))
            for mode in clips:
                mode_cpu_s, clips[mode] = our_stage(paths, mode, folder)
                cpu_s[mode].append(mode_cpu_s)
    video_minutes = videos * minutes
    per_minute = {side: round(statistics.median(runs) / video_minutes, 4) for side, runs in cpu_s.items()}
    return {
        "benchmark": "clip",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine("av"),
        "video_minutes": video_minutes,
        "cpu_s_per_video_minute": per_minute,
        "keyframe_over_floor": round(per_minute["keyframe"] / per_minute["floor"], 3),
        "clips": clips,
    }


def main() -> None:
    options = parse_options()
    minutes = float(options.get("minutes", 10))
    videos = int(options.get("videos", 4))
    print(json.dumps(measure(minutes, videos), indent=1))


if __name__ == "__main__":
    main()
