"""What `ingest curate` finds of videos that were uploaded again, and what it takes by mistake.

    python -m benchmarks.curate [videos=12] [seconds=60]

Every video is encoded three times more: smaller with keyframes elsewhere, as VP9/Opus, and cut off at 1.37 s.
Beside them lie the same sounds under other pictures, and other sounds over one still. All are cut by the real
clipper, in keyframe and in grid mode. Per kind of re-upload: the share of its clips that were buried;
mistaken: that of all other clips. The baseline is the same pass without sequences, which compares only clips
cut at the same times.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from cluster.dataset import Dataset
from cluster.shards import Row, write_shard
from ingest.clip.clipper import AudioConfig, ClipConfig, Clipper, FrameConfig, MediaLimits
from ingest.curate import CurateConfig, curate
from ingest.ffmpeg import ffmpeg_exe
from ingest.sample import Item, Media
from ingest.scenes import render_audio, render_image, sample_scene
from ingest.shard import CLIP_COLUMNS, clip_row

RATE_HZ, WIDTH_PX, HEIGHT_PX, FPS = 16000, 192, 144, 10
AGAIN = {  # name: container, what is encoded otherwise
    "small": (
        "mp4",
        "-vf",
        "scale=128:96",
        "-c:v",
        "libx264",
        "-g",
        "53",
        "-crf",
        "33",
        "-c:a",
        "aac",
        "-b:a",
        "48k",
    ),
    "vp9": (
        "webm",
        "-c:v",
        "libvpx-vp9",
        "-deadline",
        "realtime",
        "-cpu-used",
        "8",
        "-g",
        "71",
        "-c:a",
        "libopus",
        "-b:a",
        "48k",
    ),
    "trimmed": (
        "mp4",
        "-ss",
        "1.37",
        "-c:v",
        "libx264",
        "-g",
        "61",
        "-crf",
        "28",
        "-c:a",
        "aac",
        "-b:a",
        "96k",
    ),
}


def music(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Notes that die away, float [num_samples]."""
    wave, at_s = 0.01 * rng.standard_normal(round(seconds * RATE_HZ)), 0.0
    while at_s < seconds:
        length_s, start = rng.uniform(0.3, 1.2), round(at_s * RATE_HZ)
        time_s = np.arange(min(round(length_s * RATE_HZ), len(wave) - start)) / RATE_HZ
        pitch_hz = 220 * 2 ** (rng.integers(0, 24) / 12)
        wave[start : start + len(time_s)] += sum(
            np.sin(2 * np.pi * pitch_hz * k * time_s) / k for k in range(1, 6)
        ) * np.exp(-5 * time_s)
        at_s += length_s / 2
    return wave / 4


def rain(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Noise whose level wavers, float [num_samples]."""
    wave = rng.standard_normal(round(seconds * RATE_HZ))
    return wave * np.repeat(np.exp(0.5 * rng.standard_normal(len(wave) // 2000 + 1)), 2000)[: len(wave)] / 12


def scenes(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """The sounds of procedural scenes one after the other, float [num_samples]."""
    parts = [render_audio(sample_scene(rng, 2), 4.0, RATE_HZ, rng) for _ in range(int(seconds / 4) + 1)]
    return np.concatenate(parts)[: round(seconds * RATE_HZ)] / 2


SOUNDS = (music, rain, scenes)


def frames(rng: np.random.Generator, seconds: float, still: bool) -> Iterator[bytes]:
    """Shots of 3 to 9 s over which a camera pans, or one picture throughout; raw RGB."""
    left, big, place, speed = 0, np.zeros(0), np.zeros(2), np.zeros(2)
    for _ in range(round(seconds * FPS)):
        if not left:
            left = round(rng.uniform(3, 9) * FPS)
            big, place, speed = (
                render_image(sample_scene(rng, 3), 320),
                rng.uniform(0, 100, 2),
                rng.uniform(-2, 2, 2),
            )
        left -= 0 if still else 1
        place = np.clip(place + (0 if still else speed), 0, (320 - HEIGHT_PX, 320 - WIDTH_PX))
        y, x = place.astype(int)
        yield big[y : y + HEIGHT_PX, x : x + WIDTH_PX].tobytes()


def film(path: Path, picture_seed: int, sound: np.ndarray, seconds: float, still: bool = False) -> Path:
    """A video of this sound, a keyframe every 4.7 s."""
    soundfile.write(path.with_suffix(".wav"), np.clip(sound, -1, 1), RATE_HZ, subtype="PCM_16")
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{WIDTH_PX}x{HEIGHT_PX}", "-r", str(FPS), "-i", "-"]
    coded = [
        "-c:v",
        "libx264",
        "-preset",
        "veryfast",
        "-g",
        "47",
        "-pix_fmt",
        "yuv420p",
        "-c:a",
        "aac",
        "-b:a",
        "128k",
        str(path),
    ]
    words = [ffmpeg_exe(), "-v", "error", "-y", *raw, "-i", str(path.with_suffix(".wav")), *coded]
    subprocess.run(
        words, input=b"".join(frames(np.random.default_rng(picture_seed), seconds, still)), check=True
    )
    return path


def encoded_again(path: Path, name: str) -> Path:
    """The video as somebody else would upload it; its key sorts after the original's: the lowest stays."""
    container, *options = AGAIN[name]
    copy = path.with_name(f"b{path.stem}-{name}.{container}")
    subprocess.run(
        [ffmpeg_exe(), "-v", "error", "-y", "-i", str(path), "-pix_fmt", "yuv420p", *options, str(copy)],
        check=True,
    )
    return copy


def make_films(folder: Path, videos: int, seconds: float) -> list[Path]:
    """Originals, each encoded again; the sounds of some under other pictures; other sounds over one still."""
    paths = []
    for number in range(videos):
        rng = np.random.default_rng(number)
        sound = SOUNDS[number % len(SOUNDS)](rng, seconds)
        paths.append(film(folder / f"a{number:02d}.mp4", 1000 + number, sound, seconds))
        paths += [encoded_again(paths[-1], name) for name in AGAIN]
        if number % 2 == 0:
            paths.append(film(folder / f"c-other-pictures{number:02d}.mp4", 2000 + number, sound, seconds))
        else:
            paths.append(
                film(
                    folder / f"c-one-still{number:02d}.mp4",
                    3000,
                    SOUNDS[number % 3](rng, seconds),
                    seconds,
                    still=True,
                )
            )
    return paths


def cut(paths: list[Path], mode: str, clip_s: float) -> list[Row]:
    """The rows that a scrape of these files makes."""
    rows = []
    with Clipper(ClipConfig(clip_s, mode), AudioConfig(RATE_HZ), FrameConfig(64), MediaLimits()) as clipper:
        for path in paths:
            media = Media(path, path, False, "own")
            rows += [
                clip_row(Item("folder", path.stem, str(path)), path.stem, media, one, "train", None, {})
                for one in clipper.cut(media)
            ]
    return rows


def curated(rows: list[Row], folder: Path) -> tuple[dict[str, str], float]:
    """What was buried of a dataset of these rows, key -> reason, and the seconds it took."""
    dataset = Dataset.create_or_open(str(folder / "clips"), "clips", {}, [])
    dataset.worklist.append([("all", {})], 1)
    dataset.commit("u0000000", 0, write_shard(folder, rows, CLIP_COLUMNS), {})
    started = time.monotonic()
    curate(CurateConfig(dataset.uri))
    return dataset.buried(), time.monotonic() - started


def judged(rows: list[Row], buried: dict[str, str]) -> dict[str, float]:
    """Share of the clips that were buried: by kind of re-upload, and of all others."""
    kinds: dict[str, list[bool]] = {name: [] for name in (*AGAIN, "mistaken")}
    for row in rows:
        kind = row.item_id.rpartition("-")[2]
        kinds[kind if kind in AGAIN else "mistaken"].append(row.key in buried)
    return {name: round(float(np.mean(values)), 3) for name, values in kinds.items()} | {"clips": len(rows)}


def measure(videos: int = 12, seconds: float = 60.0, clip_s: float = 10.24) -> dict[str, object]:
    found: dict[str, object] = {
        "benchmark": "curate",
        "date": time.strftime("%Y-%m-%d"),
        "videos": videos,
        "seconds": seconds,
    }
    with tempfile.TemporaryDirectory(prefix="stillsound-bench-") as name:
        paths = make_films(Path(name), videos, seconds)
        for mode in ("keyframe", "grid"):
            rows = cut(paths, mode, clip_s)
            for what in ("with sequences", "baseline"):
                folder = Path(name) / f"{mode}-{what}"
                folder.mkdir()
                buried, took_s = curated(rows, folder)
                found[f"{mode}, {what}"] = judged(rows, buried) | {"curate_s": round(took_s, 2)}
                for row in rows:
                    row.columns["audio_sequence"] = b""
    return found


if __name__ == "__main__":
    words = dict(word.split("=", 1) for word in sys.argv[1:])
    print(json.dumps(measure(int(words.get("videos", 12)), float(words.get("seconds", 60))), indent=1))
